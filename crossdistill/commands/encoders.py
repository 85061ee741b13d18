"""``crossdistill encoders``: list the networks that can be a teacher or a student."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tyro

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


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog=prog)
    from crossdistill.encoders import list_encoders
    from crossdistill.encoders.cards import card_of
    from crossdistill.modalities import get_modality

    if options.modality is not None:
        get_modality(options.modality)
    names = [name for name in options.names or list_encoders() if options.modality in (None, name.partition("_")[0])]
    cards = [card_of(name) for name in names]
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
