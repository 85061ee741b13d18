"""``crossdistill encoders``: list the networks that can be a teacher or a student."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from crossdistill.errors import UserError
from crossdistill.utils.command_line import flowed, parse_options, rows_of
from crossdistill.utils.console import console, print_table

LEGEND = (
    "A view is frames x pixels / stride in frames of the video. GMACs are billions of multiply-adds of one view. "
    "--json shows more (mean, standard deviation, layout, source)."
)
OTHERS = (
    "Networks of timm and Hugging Face have names like image_timm:<name> and rgb_hf:<name or folder>, a network of "
    "your own path/to/file.py:function."
)

NARROWER = {
    "flow": "view, size and published accuracy of one modality's encoders",
    "--match resnet": "of those whose names contain a text",
    "--all": "of all",
}


@dataclass(frozen=True)
class Options:
    """List the encoders with their view, number of features, parameters, operations and published weights."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names to show, also of timm, Hugging Face and your own, or modalities; the architectures by kind if absent."""
    modality: str | None = None
    """Show encoders of this modality only."""
    match: str | None = None
    """Show encoders whose names contain this text."""
    all: bool = False
    """Show every encoder."""
    json: bool = False
    """Print JSON."""


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog=prog)
    from crossdistill.encoders.cards import card_of

    if options == Options():
        _print_overview(prog)
        return
    names = _chosen(options)
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


def _chosen(options: Options) -> list[str]:
    """Return the names that the options choose."""
    from crossdistill.encoders import list_encoders
    from crossdistill.modalities import MODALITIES, get_modality

    if options.modality is not None:
        get_modality(options.modality)
    listed = list_encoders()
    names: list[str] = []
    for name in options.names or listed:
        names += [each for each in listed if each.startswith(f"{name}_")] if name in MODALITIES else [name]
    chosen = [
        name
        for name in names
        if options.modality in (None, name.partition("_")[0]) and (options.match or "").lower() in name.lower()
    ]
    if not chosen:
        raise UserError("no encoder has such a name: leave out --match or --modality, or give another")
    return chosen


def _print_overview(prog: str) -> None:
    """Print the architectures by kind; in a file or pipe, the name of every encoder on a line of its own."""
    from crossdistill.encoders import ARCHITECTURES, list_encoders

    if not console.is_terminal and not console.is_jupyter:
        print("\n".join(list_encoders()))
        return
    kinds: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, entry in ARCHITECTURES.items():
        kinds.setdefault((entry.takes, entry.modalities), []).append(name)
    print(flowed(f"{len(list_encoders())} encoders, each named <modality>_<architecture>, for example flow_r3d18."))
    for (takes, modalities), names in kinds.items():
        print(f"\n{'clips' if takes == 'clip' else 'single frames'}: {', '.join(modalities)}")
        columns = shutil.get_terminal_size().columns
        print(textwrap.fill(", ".join(sorted(names)), columns, initial_indent="  ", subsequent_indent="  "))
    print(f"\n{rows_of({f'{prog} {more}': what for more, what in NARROWER.items()})}\n\n{flowed(OTHERS)}")


def _accuracy(weights: dict[str, Any]) -> str:
    accuracy = weights["top1_percent"]
    return str(weights["name"]) if accuracy is None else f"{weights['name']} {accuracy:.1f} %"
