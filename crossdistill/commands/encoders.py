"""``crossdistill encoders``: list the networks that can be a teacher or a student."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from crossdistill.encoders import ARCHITECTURES, Encoder, create_encoder, is_from_file, list_encoders
from crossdistill.encoders.base import EncoderInfo
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.modalities import get_modality
from crossdistill.types import ViewSpec
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.console import print_table

LEGEND = (
    "A view is frames x pixels / stride in frames of the video. GMACs are billions of multiply-adds of one view. "
    "--json shows more (mean, standard deviation, layout, source)."
)
OTHERS = (
    "Networks of timm and Hugging Face have names like image_timm:<name> and rgb_hf:<name or folder>, a network of "
    "your own path/to/file.py:function."
)


@dataclass(frozen=True)
class Options:
    """List the encoders with their view, number of features, parameters, operations and published weights."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names to show, also of timm, Hugging Face and your own; the whole list if absent."""
    modality: str | None = None
    """Show encoders of this modality only."""
    json: bool = False
    """Print JSON."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog="crossdistill encoders")
    if options.modality is not None:
        get_modality(options.modality)
    names = [name for name in options.names or list_encoders() if options.modality in (None, name.partition("_")[0])]
    cards = [_card(name) for name in names]
    if options.json:
        print(json.dumps(cards, indent=2))
        return
    rows = [
        (
            str(card["name"]),
            "{num_frames}x{size_px} / {stride}".format(**card["view"]),  # type: ignore[arg-type]
            str(card["embed_dim"]),
            f"{card['num_parameters'] / 1e6:.1f} M",  # type: ignore[operator]
            f"{card['gmacs']:.3g}",
            ", ".join(map(_accuracy, card["weights"])),  # type: ignore[call-overload]
        )
        for card in cards
    ]
    header = ("name", "view", "features", "params", "GMACs", "weights, top-1")
    print_table("encoders", header, rows)
    print(LEGEND)
    print(OTHERS)


def _accuracy(weights: dict[str, Any]) -> str:
    accuracy = weights["top1_percent"]
    return str(weights["name"]) if accuracy is None else f"{weights['name']} {accuracy:.1f} %"


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


def _card(name: str) -> dict[str, object]:
    """Return what the listing says about an encoder."""
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
