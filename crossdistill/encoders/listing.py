"""``crossdistill encoders``: what can be a teacher or a student."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import tyro

from crossdistill.console import print_table
from crossdistill.encoders import ARCHITECTURES, create_encoder, encoder_names
from crossdistill.modalities import get_modality


@dataclass(frozen=True)
class Options:
    """List the encoders with their view, number of features, parameters and source."""

    modality: str | None = None
    """Only those of one modality."""
    json: bool = False
    """Print JSON."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = tyro.cli(Options, args=arguments, prog="crossdistill encoders", description=Options.__doc__)
    if options.modality is not None:
        get_modality(options.modality)
    cards = [card for card in map(_card, encoder_names()) if options.modality in (None, card["modality"])]
    if options.json:
        print(json.dumps(cards, indent=2))
        return
    rows = [
        (
            str(card["name"]),
            "{num_frames} x {size_px} px, stride {stride}".format(**card["view"]),  # type: ignore[arg-type]
            str(card["embed_dim"]),
            f"{card['num_parameters'] / 1e6:.1f} M",  # type: ignore[operator]
            str(card["source"]),
        )
        for card in cards
    ]
    print_table("encoders", ("name", "view", "features", "parameters", "source"), rows)


def _card(name: str) -> dict[str, object]:
    with torch.device("meta"):  # sizes without memory or time
        encoder = create_encoder(name)
    return {
        "name": name,
        "modality": encoder.view.modality,
        "view": asdict(encoder.view),
        "embed_dim": encoder.embed_dim,
        "num_parameters": encoder.num_parameters,
        "source": ARCHITECTURES[name.partition("_")[2]].source,
    }
