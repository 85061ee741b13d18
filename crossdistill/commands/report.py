"""``crossdistill report``: one HTML page about a run, or a comparison of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from crossdistill.report.options import ReportOptions
from crossdistill.utils.command_line import parse_options


@dataclass(frozen=True, kw_only=True)
class Options(ReportOptions):
    """Write one HTML page about a run: accuracy, training curves, confusion matrix, t-SNE, nearest neighbours, cost.

    On data without labels the page shows the agreement with the teacher and the feature spread instead of accuracies.
    With several runs, write a comparison.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders (--out of crossdistill train)."""
    out: Path | None = None
    """HTML file; by default report.html in the run folder, or comparison.html in the working directory."""


def report(options: Options) -> Path:
    """Write the page, and return its path."""
    from crossdistill.report.write import write_report

    return write_report(options.runs, options.out, options)


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    report(parse_options(Options, arguments, prog=prog))
