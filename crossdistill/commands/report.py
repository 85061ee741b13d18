"""``crossdistill report``: one HTML page about a run, or a comparison of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from crossdistill.report.networks import ReportOptions
from crossdistill.report.write import write_report
from crossdistill.utils.command_line import parse_options


@dataclass(frozen=True)
class Options:
    """Write one HTML page about a run: accuracy, training curves, confusion matrix, t-SNE, nearest neighbours, cost.

    With several runs, write a comparison.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders (--out of train.py)."""
    out: Path | None = None
    """HTML file; by default report.html in the run folder, or comparison.html in the working directory."""
    data: Path | None = None
    """Prepared dataset; by default the dataset of the run."""
    baseline: Path | None = None
    """Run of the same student trained with labels (supervised baseline)."""
    gallery: int = 12
    """Number of test clips shown with their nearest neighbours."""
    teacher: bool = True
    """Load and embed the teacher too."""
    clips: int = 5000
    """Maximum number of clips of each part that are embedded; features are stored in the run folder."""
    workers: int = 2
    """Processes that decode."""
    allow_code: bool = False
    """Run the Python file of a custom encoder (path/to/file.py:function)."""


def report(options: Options) -> Path:
    """Write the page, and return its path."""
    settings = ReportOptions(
        data=options.data,
        baseline=options.baseline,
        num_queries=options.gallery,
        has_teacher=options.teacher,
        num_clips=options.clips,
        num_workers=options.workers,
        allow_code=options.allow_code,
    )
    return write_report(options.runs, options.out, settings)


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    report(parse_options(Options, arguments, prog="crossdistill report"))
