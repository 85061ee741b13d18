"""``crossdistill encoders``: what can be a teacher or a student."""

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

from crossdistill.encoders import ARCHITECTURES, Encoder, create_encoder, encoder_names, is_from_file
from crossdistill.encoders.base import PublicWeights
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.modalities import get_modality
from crossdistill.types import ViewSpec
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.console import print_table

LEGEND = (
    "A view is frames x pixels / frames of the video between them; GMACs are multiply-adds of one view in thousand "
    "millions; --json says more (mean, deviation, layout, source)."
)
OTHERS = (
    "Networks of timm and Hugging Face go by image_timm:<name> and rgb_hf:<name or folder>, "
    "one of your own by path/to/file.py:function."
)


@dataclass(frozen=True)
class Options:
    """List the encoders with their view, number of features, parameters, operations and published weights."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """These alone, and so also networks of timm and Hugging Face and your own; all that are listed if absent."""
    modality: str | None = None
    """Only those of one modality."""
    json: bool = False
    """Print JSON."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog="crossdistill encoders")
    if options.modality is not None:
        get_modality(options.modality)
    names = [name for name in options.names or encoder_names() if options.modality in (None, name.partition("_")[0])]
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
    """Multiply-adds of convolutions and matrix products for one view, in thousand millions.

    Args:
        encoder: Built on the meta device, where counting takes no time.
    """
    view = encoder.view
    clip = torch.empty(1, view.kind.channels, view.num_frames, view.size_px, view.size_px, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.eval()(clip)
    return counter.get_total_flops() / 2e9


@dataclass(frozen=True)
class Size:
    """What a network has and does, and how much of it is its stems', which follow the modality's channels."""

    num_parameters: int
    gmacs: float
    stem_parameters: int
    stem_gmacs: float

    def with_view(self, measured: ViewSpec, wanted: ViewSpec) -> Size:
        """The same network for another modality: other channels, and another number of frames if taken singly."""
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
    """Sizes in one of an architecture's modalities: the others follow, which takes a quarter of the time."""
    with torch.device("meta"), SizesOnly():  # without memory or values
        encoder = create_encoder(f"{ARCHITECTURES[architecture].modalities[0]}_{architecture}")
        stems = [encoder.body.get_submodule(name) for name in (encoder.stem, *encoder.more_stems)]
        weights = [stem.get_parameter("weight") for stem in stems]
        outputs: list[int] = []
        for stem in stems:
            stem.register_forward_hook(lambda *call: outputs.append(call[2].numel()))
        gmacs = count_gmacs(encoder)
    stem_gmacs = sum(output * weight[0].numel() for output, weight in zip(outputs, weights, strict=True)) / 1e9
    stem_parameters = sum(weight.numel() for weight in weights)
    return Size(encoder.num_parameters, gmacs, stem_parameters, stem_gmacs), encoder.view


def _card_of_any(name: str) -> dict[str, object]:
    """The card of an encoder that is in no list: built for it."""
    with contextlib.nullcontext() if is_from_file(name) else torch.device("meta"):
        encoder = create_encoder(name).to("meta")
    weights = [_weights_card(w) for w in encoder.public_weights if encoder.view.modality in w.modalities]
    return {
        "name": name,
        "modality": encoder.view.modality,
        "view": asdict(encoder.view),
        "takes": encoder.takes,
        "embed_dim": encoder.embed_dim,
        "has_tokens": encoder.token_layer is not None,
        "num_parameters": encoder.num_parameters,
        "gmacs": count_gmacs(encoder),
        "published_gmacs": None,
        "weights": weights,
        "student_starts": [w.name for w in encoder.public_weights],
        "source": type(encoder.body).__module__,
    }


def _card(name: str) -> dict[str, object]:
    modality, _, architecture = name.partition("_")
    if architecture not in ARCHITECTURES:
        return _card_of_any(name)
    entry = ARCHITECTURES[architecture]
    view = entry.view(modality)
    measured, measured_view = _measure(architecture)
    size = measured.with_view(measured_view, view)
    return {
        "name": name,
        "modality": modality,
        "view": asdict(view),
        "takes": entry.takes,
        "embed_dim": entry.embed_dim,
        "has_tokens": entry.token_layer is not None,
        "num_parameters": size.num_parameters,
        "gmacs": size.gmacs,
        "published_gmacs": entry.published_gmacs,
        "weights": [_weights_card(weights) for weights in entry.public_weights if modality in weights.modalities],
        "student_starts": [weights.name for weights in entry.public_weights],
        "source": entry.source,
    }


def _weights_card(weights: PublicWeights) -> dict[str, object]:
    return {"name": weights.name, "top1_percent": weights.top1_percent, "url": weights.url}
