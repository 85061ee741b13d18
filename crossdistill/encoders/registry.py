"""The registry of encoders, ``<modality>_<architecture>``, and how one is built by its name."""

from __future__ import annotations

import importlib
from typing import Any

from crossdistill.encoders import pytorchvideo as ptv
from crossdistill.encoders import small, torchvision, tsm
from crossdistill.encoders.architecture import Architecture, build_encoder
from crossdistill.encoders.base import Encoder
from crossdistill.encoders.tokens import TokenLayer
from crossdistill.encoders.torchvision import image_size, picture_network, pool_features
from crossdistill.encoders.user_file import create_from_file, is_from_file
from crossdistill.encoders.wide_resnet import wide_resnet50
from crossdistill.errors import UserError, unknown_name
from crossdistill.modalities import MODALITIES

_FEATURES, _LAYER4, _NORM = TokenLayer("features"), TokenLayer("layer4"), TokenLayer("norm", "channels-last")
_MVIT_NORM = TokenLayer("norm", "sequence", frames_per_token=2, num_prefix=1)
_MOBILENET_V2 = picture_network("mobilenet_v2", "classifier", "features.0.0", 1280, _FEATURES)

ARCHITECTURES: dict[str, Architecture] = {
    # torchvision, pictures: name, classifier, first convolution, number of features, layer before pooling.
    "alexnet": picture_network("alexnet", "classifier.6", "features.0", 4096, _FEATURES),
    # As the authors of CompRess build it; their files name its linear layers otherwise.
    "alexnet_no_dropout": picture_network(
        "alexnet",
        "classifier.6",
        "features.0",
        4096,
        _FEATURES,
        adapt=torchvision.remove_dropout,
        aliases={"feats.0": "classifier.1", "feats.2": "classifier.4"},
    ),
    "vgg16": picture_network("vgg16", "classifier.6", "features.0", 4096, _FEATURES),
    "squeezenet1_0": picture_network(
        "squeezenet1_0", "", "features.0", 512, _FEATURES, classifier_prefix="classifier.", adapt=pool_features
    ),
    "resnet18": picture_network("resnet18", "fc", "conv1", 512, _LAYER4),
    "resnet34": picture_network("resnet34", "fc", "conv1", 512, _LAYER4),
    "resnet50": picture_network("resnet50", "fc", "conv1", 2048, _LAYER4),
    "resnet50x4": wide_resnet50(4),
    "resnet101": picture_network("resnet101", "fc", "conv1", 2048, _LAYER4),
    "resnext50_32x4d": picture_network("resnext50_32x4d", "fc", "conv1", 2048, _LAYER4),
    "wide_resnet50_2": picture_network("wide_resnet50_2", "fc", "conv1", 2048, _LAYER4),
    "densenet121": picture_network("densenet121", "classifier", "features.conv0", 1024, _FEATURES),
    "shufflenet_v2_x1_0": picture_network("shufflenet_v2_x1_0", "fc", "conv1.0", 1024, TokenLayer("conv5")),
    "mobilenet_v2": _MOBILENET_V2,
    "mobilenet_v3_small": picture_network("mobilenet_v3_small", "classifier.3", "features.0.0", 1024, _FEATURES),
    "mobilenet_v3_large": picture_network("mobilenet_v3_large", "classifier.3", "features.0.0", 1280, _FEATURES),
    "efficientnet_b0": picture_network("efficientnet_b0", "classifier", "features.0.0", 1280, _FEATURES),
    "mnasnet1_0": picture_network("mnasnet1_0", "classifier", "layers.0", 1280, TokenLayer("layers")),
    "convnext_tiny": picture_network("convnext_tiny", "classifier.2", "features.0.0", 768, _FEATURES),
    "swin_t": picture_network("swin_t", "head", "features.0.0", 768, _NORM),
    "vit_b_16": picture_network(
        "vit_b_16", "heads", "conv_proj", 768, TokenLayer("encoder", "sequence", num_prefix=1), size_options=image_size
    ),
    # torchvision, clips: the same columns.
    "r3d18": torchvision.network("r3d_18", "fc", "stem.0", 512, _LAYER4, bf16_pays_on_cpu=True),
    "mc3_18": torchvision.network("mc3_18", "fc", "stem.0", 512, _LAYER4),
    "r2plus1d_18": torchvision.network("r2plus1d_18", "fc", "stem.0", 512, _LAYER4),
    "s3d": torchvision.network("s3d", "classifier", "features.0.0.0", 1024, _FEATURES, adapt=torchvision.pool_to_one),
    "mvit_v2_s": torchvision.network("mvit_v2_s", "head", "conv_proj", 768, _MVIT_NORM, stride=4, is_of_one_size=True),
    "swin3d_t": torchvision.network("swin3d_t", "head", "patch_embed.proj", 768, _NORM, num_frames=32),
    # pytorchvideo, clips: library's function, frames, stride, pixels, weights on Kinetics-400, their accuracy.
    "r3d50": ptv.network("resnet.create_resnet", 16, 2, 112, build=ptv.build_r3d50, bf16_pays_on_cpu=True),
    # Only the slow pathway of SlowFast; only stages 4 and 5 convolve over time.
    "slow_r50": ptv.network("hub.slow_r50", 8, 8, 224, "SLOW_8x8_R50.pyth", 74.58, bf16_pays_on_cpu=True),
    "slowfast_r50": ptv.network("hub.slowfast_r50", 32, 2, 224, "SLOWFAST_8x8_R50.pyth", 76.94, **ptv.SLOWFAST),
    "r2plus1d_r50": ptv.network("hub.r2plus1d_r50", 16, 4, 224, "R2PLUS1D_16x4_R50.pyth", 76.01),
    "csn_r101": ptv.network("hub.csn_r101", 32, 2, 224, "CSN_32x2_R101.pyth", 77.0),  # Tran et al., ICCV 2019
    "mvit_b": ptv.network("hub.mvit_base_16x4", 16, 4, 224, "MVIT_B_16x4.pyth", 78.9, **ptv.MVIT),
    # pytorchvideo's X3D: name, frames, stride, pixels, accuracy on Kinetics-400, published operations.
    "x3d_xs": ptv.x3d("x3d_xs", 4, 12, 160, 69.12, gmacs=0.60),
    "x3d_s": ptv.x3d("x3d_s", 13, 6, 160, 73.33, gmacs=1.96),
    "x3d_m": ptv.x3d("x3d_m", 16, 5, 224, 75.94, gmacs=4.73),
    # This package's own, clips.
    "tsm_mobilenet_v2": tsm.shifted(_MOBILENET_V2),
    "tsm_online_mobilenet_v2": tsm.shifted(_MOBILENET_V2, is_online=True),
    "r3d10": small.r3d10(),
    "r3d10_gn": small.r3d10(small.group_norm, ", norm=group_norm"),
    "tiny3d_8": small.tiny3d(8),
    "tiny3d_16": small.tiny3d(16),
    "tiny3d_32": small.tiny3d(32),
}

LIBRARIES: dict[str, str] = {"timm": "crossdistill.encoders.timm", "hf": "crossdistill.encoders.huggingface"}
"""Libraries with more networks than a list can hold: the module, imported on use, whose ``create`` builds one."""


def list_encoders() -> list[str]:
    """List every ``<modality>_<architecture>`` of the registry, sorted.

    Example:
        >>> [name for name in list_encoders() if name.startswith("flow_r3d")]
        ['flow_r3d10', 'flow_r3d10_gn', 'flow_r3d18', 'flow_r3d50']
    """
    return sorted(f"{modality}_{name}" for name, entry in ARCHITECTURES.items() for modality in entry.modalities)


def create_encoder(
    name: str,
    *,
    num_frames: int | None = None,
    stride: int | None = None,
    size_px: int | None = None,
    config: dict[str, Any] | None = None,
) -> Encoder:
    """Build an encoder with fresh weights.

    Args:
        name: ``<modality>_<architecture>``; ``<modality>_<library>:<model>``, for example ``image_timm:resnet50``; or
            ``path/to/file.py:function``, where the function takes no arguments and returns an ``Encoder`` (see
            ``wrap_encoder``).
        num_frames: Number of frames of a clip; the architecture's own if None, as for the next two.
        stride: Distance between frames, in frames of the video.
        size_px: Height and width.
        config: ``Encoder.config`` of an encoder that was built before.

    Raises:
        UserError: The name is unknown, the architecture does not take the modality or the view, or its library is not
            installed.

    Example:
        >>> import torch
        >>> encoder = create_encoder("flow_tiny3d_8", num_frames=8, size_px=32)
        >>> encoder(torch.zeros(2, 2, 8, 32, 32)).shape
        torch.Size([2, 256])
    """
    view_changes = {"num_frames": num_frames, "stride": stride, "size_px": size_px}
    if is_from_file(name):
        return create_from_file(name, **view_changes)
    modality, _, architecture = name.partition("_")
    if modality not in MODALITIES or not architecture:
        raise unknown_name("encoder", name, list_encoders(), listed_by="crossdistill encoders")
    library, colon, model = architecture.partition(":")
    if colon:
        if library not in LIBRARIES:
            raise unknown_name("library", library, LIBRARIES)
        create = importlib.import_module(LIBRARIES[library]).create
        return create(model, name=name, modality=modality, config=config, **view_changes)
    of_modality = [known for known in list_encoders() if known.startswith(f"{modality}_")]
    if architecture not in ARCHITECTURES:
        raise unknown_name("encoder", name, of_modality, listed_by="crossdistill encoders")
    entry = ARCHITECTURES[architecture]
    if modality not in entry.modalities:
        raise UserError(
            f"the architecture {architecture!r} does not take {modality}: it takes {', '.join(entry.modalities)}; "
            f"for {modality} choose one of {', '.join(of_modality)}"
        )
    return build_encoder(entry, name=name, modality=modality, **view_changes)
