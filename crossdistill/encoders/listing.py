"""``crossdistill encoders``: what can be a teacher or a student."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from crossdistill.console import print_table
from crossdistill.encoders import ARCHITECTURES, Encoder, create_encoder, encoder_names
from crossdistill.modalities import get_modality


@dataclass(frozen=True)
class Options:
    """List the encoders with their view, number of features, parameters, operations, weights and source."""

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
            f"{card['gmacs']:.3g}",
            ", ".join("{name} {top1_percent:.1f} %".format(**weights) for weights in card["weights"]),  # type: ignore[attr-defined]
            str(card["source"]),
        )
        for card in cards
    ]
    header = ("name", "view", "features", "parameters", "GMACs", "published weights, top-1", "source")
    print_table("encoders", header, rows)


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


def _card(name: str) -> dict[str, object]:
    with torch.device("meta"):  # sizes without memory or time
        encoder = create_encoder(name)
        gmacs = count_gmacs(encoder)
    return {
        "name": name,
        "modality": encoder.view.modality,
        "view": asdict(encoder.view),
        "embed_dim": encoder.embed_dim,
        "num_parameters": encoder.num_parameters,
        "gmacs": gmacs,
        "weights": [asdict(w) for w in encoder.public_weights if w.modality == encoder.view.modality],
        "source": ARCHITECTURES[name.partition("_")[2]].source,
    }
