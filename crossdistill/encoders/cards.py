"""What an encoder is and costs: view, features, parameters, operations, published weights. No weights are made."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import asdict, dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from crossdistill.encoders import ARCHITECTURES, Encoder, create_encoder, is_from_file
from crossdistill.encoders.base import EncoderInfo
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.types import ViewSpec


def count_gmacs(encoder: Encoder) -> float:
    """Count a view's multiply-adds of convolutions and matrix products, in billions, on the meta device."""
    view = encoder.view
    clip = torch.empty(1, view.kind.channels, view.num_frames, view.size_px, view.size_px, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.eval()(clip)
    return counter.get_total_flops() / 2e9


@dataclass(frozen=True)
class Size:
    """Parameters and operations of a network, and the part of its stems, which depends on the modality's channels."""

    num_parameters: int
    gmacs: float
    stem_parameters: int
    stem_gmacs: float

    def with_view(self, measured: ViewSpec, wanted: ViewSpec) -> Size:
        """Return the size in another modality, with other channels and another number of single frames."""
        channels = wanted.kind.channels / measured.kind.channels
        frames = wanted.num_frames / measured.num_frames
        return Size(
            num_parameters=self.num_parameters + round((channels - 1) * self.stem_parameters),
            gmacs=(self.gmacs + (channels - 1) * self.stem_gmacs) * frames,
            stem_parameters=round(channels * self.stem_parameters),
            stem_gmacs=channels * frames * self.stem_gmacs,
        )


@functools.cache
def _measure(architecture: str) -> tuple[Size, ViewSpec]:
    """Measure an architecture in its first modality, from which ``Size.with_view`` derives the others in less time."""
    with torch.device("meta"), SizesOnly():  # without memory or values
        encoder = create_encoder(f"{ARCHITECTURES[architecture].modalities[0]}_{architecture}")
        stems = [encoder.body.get_submodule(name) for name in encoder.info.stems]
        weights = [stem.get_parameter("weight") for stem in stems]
        outputs: list[int] = []
        for stem in stems:
            stem.register_forward_hook(lambda *call: outputs.append(call[2].numel()))
        gmacs = count_gmacs(encoder)
    stem_gmacs = sum(output * weight[0].numel() for output, weight in zip(outputs, weights, strict=True)) / 1e9
    stem_parameters = sum(weight.numel() for weight in weights)
    return Size(encoder.num_parameters, gmacs, stem_parameters, stem_gmacs), encoder.view


def card_of(name: str) -> dict[str, object]:
    """Return the facts of an encoder that ``crossdistill encoders`` lists."""
    modality, _, architecture = name.partition("_")
    info: EncoderInfo
    if entry := ARCHITECTURES.get(architecture):
        info, view = entry, entry.view(modality)
        measured, measured_view = _measure(architecture)
        size = measured.with_view(measured_view, view)
        num_parameters, gmacs = size.num_parameters, size.gmacs
        source, published_gmacs = entry.source, entry.published_gmacs
    else:
        with contextlib.nullcontext() if is_from_file(name) else torch.device("meta"):
            encoder = create_encoder(name).to("meta")
        info, view = encoder.info, encoder.view
        num_parameters, gmacs = encoder.num_parameters, count_gmacs(encoder)
        source, published_gmacs = type(encoder.body).__module__, None
    return {
        "name": name,
        "modality": view.modality,
        "view": asdict(view),
        "takes": info.takes,
        "embed_dim": info.embed_dim,
        "has_tokens": info.token_layer is not None,
        "num_parameters": num_parameters,
        "gmacs": gmacs,
        "published_gmacs": published_gmacs,
        "weights": [
            {"name": weights.name, "top1_percent": weights.top1_percent, "url": weights.url}
            for weights in info.public_weights
            if view.modality in weights.modalities
        ],
        "student_starts": [weights.name for weights in info.public_weights],
        "source": source,
    }
