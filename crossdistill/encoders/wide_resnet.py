"""SimCLR's ResNet-50, four times as wide throughout: the strongest teacher of the CompRess paper.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020.
Unlike torchvision's ``wide_resnet50_2``, which widens the middle convolution of every block, all channels are wider.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from crossdistill.encoders.architecture import CLIP_MODALITIES, Architecture, Statistics, replace_stem
from crossdistill.encoders.tokens import TokenLayer
from crossdistill.types import ViewSpec

BLOCKS = (3, 4, 6, 3)


class WideResNet50(ResNet):
    """torchvision's ResNet-50 with ``width`` times as many channels, under the same names and without a classifier."""

    def __init__(self, width: float) -> None:
        self._width = width
        super().__init__(Bottleneck, list(BLOCKS))
        self.fc = nn.Identity()

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # the first stage: the stem was made before it, at torchvision's width
            self.inplanes = round(64 * self._width)
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(self.inplanes)
        return super()._make_layer(block, round(planes * self._width), *args, **kwargs)


def tensorflow_names() -> dict[str, str]:
    """Map module names of converters that keep TensorFlow's names to torchvision's.

    TensorFlow numbers convolutions and norms in the order of SimCLR's forward pass, shortcuts first. The file that
    CompRess' authors converted has these names.

    Example:
        >>> [tensorflow_names()[name] for name in ("conv2d", "batch_normalization_1", "conv2d_52")]
        ['conv1', 'layer1.0.downsample.1', 'layer4.2.conv3']
    """
    pairs = [("conv1", "bn1")]
    for stage, num_blocks in enumerate(BLOCKS, start=1):
        for block in range(num_blocks):
            place = f"layer{stage}.{block}"
            if block == 0:
                pairs.append((f"{place}.downsample.0", f"{place}.downsample.1"))
            pairs += [(f"{place}.conv{i}", f"{place}.bn{i}") for i in (1, 2, 3)]
    names: dict[str, str] = {}
    for number, (convolution, norm) in enumerate(pairs):
        suffix = f"_{number}" if number else ""
        names |= {f"conv2d{suffix}": convolution, f"batch_normalization{suffix}": norm}
    return names


def wide_resnet50(width: int) -> Architecture:
    """Describe SimCLR's ResNet-50 of a width. It sees intensities in [0, 1] that are not normalised further."""

    def build(view: ViewSpec) -> nn.Module:
        body = WideResNet50(width)
        replace_stem(body, "conv1", view.kind.channels)
        return body

    return Architecture(
        build=build,
        embed_dim=2048 * width,
        modalities=("image", *CLIP_MODALITIES),
        takes="frames",
        stems=("conv1",),
        classifier_prefix="fc.",
        token_layer=TokenLayer("layer4"),
        num_frames=8,
        stride=4,
        size_px=224,
        statistics=dict.fromkeys(("image", "rgb"), Statistics((0.0,) * 3, (1.0,) * 3, centre_fraction=224 / 256)),
        source=f"crossdistill.encoders.wide_resnet.WideResNet50({width})",
        aliases=tensorflow_names(),
        channels_last_pays_on_cpu=True,
    )
