"""``crossdistill report``: one HTML page about a run, or about several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from crossdistill.errors import UserError
from crossdistill.report import spaces
from crossdistill.report.charts import MAX_TOLD_APART
from crossdistill.report.comparison import comparison_page
from crossdistill.report.page import Page, render_page
from crossdistill.report.record import RunRecord, read_run
from crossdistill.report.sections import run_page
from crossdistill.report.subject import gather
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.console import console
from crossdistill.utils.files import require_writable, write_text_atomically

REPORT_NAME, COMPARISON_NAME = "report.html", "comparison.html"


@dataclass(frozen=True)
class Options:
    """Write one HTML page about a run: numbers, curves, confusions, map, neighbours, cost. Several are compared."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Runs' folders, as train.py --out names them."""
    out: Path | None = None
    """The file; report.html in the run's folder if absent, of several runs comparison.html here."""
    data: Path | None = None
    """The prepared dataset, where it is not where the run found it."""
    twin: Path | None = None
    """The run of the same student trained from labels."""
    gallery: int = 12
    """How many test clips are shown with their neighbours."""
    teacher: bool = True
    """Load and embed the teacher as well; --no-teacher leaves it out."""
    clips: int = 5000
    """Most clips of either part that are embedded; features are kept in the run's folder."""
    workers: int = 2
    """Processes that decode."""
    allow_code: bool = False
    """Run the Python file that a network of one's own (path/to/file.py:function) names."""

    @property
    def file(self) -> Path:
        """Where the page goes."""
        return self.out or (Path(COMPARISON_NAME) if len(self.runs) > 1 else self.runs[0] / REPORT_NAME)


def check(options: Options) -> None:
    """Raise a ``UserError`` for what cannot work, before anything is read."""
    if not options.runs:
        raise UserError("no run was given: give the folder that train.py --out names, or several")
    if options.out is not None:
        require_writable(options.out)
    if len(options.runs) > MAX_TOLD_APART:
        raise UserError(
            f"{len(options.runs)} runs were given, and colours and shapes tell {MAX_TOLD_APART} apart: leave some out, "
            "or write several comparisons"
        )
    folders = [path.resolve() for path in options.runs]
    for path, folder in zip(options.runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError(f"the run {path} was named twice: name each run once")
    if options.gallery < 0:
        raise UserError(f"--gallery is {options.gallery}: give 0 (no clips) or more")
    if options.workers < 0:
        raise UserError(f"--workers is {options.workers}: give 0 (decode in this process) or more")
    if options.clips < 1:
        raise UserError(f"--clips is {options.clips}: give 1 or more")
    if options.twin is not None and len(options.runs) > 1:
        raise UserError("--twin is for the page of one run: name the twin among the runs that are compared")


def check_twin(twin: RunRecord, record: RunRecord) -> None:
    """Raise a ``UserError`` unless a run trained the student of another one from labels."""
    advice = "give the run of the same student with --supervised"
    if not twin.is_supervised:
        raise UserError(f"--twin {twin.folder} learned from a teacher: {advice}")
    if twin.encoder != record.encoder:
        raise UserError(f"--twin {twin.folder} trained {twin.encoder}, not {record.encoder}: {advice}")


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog="crossdistill report")
    check(options)
    records = [read_run(path) for path in options.runs]
    twin = None if options.twin is None else read_run(options.twin)
    if twin is not None:
        check_twin(twin, records[0])
    page = make_page(records, twin, options)
    write_text_atomically(options.file, render_page(page))
    absent = [section.title for section in page.sections if section.absent]
    size = f"{options.file.stat().st_size / 1e6:.1f} MB"
    left_out = f"; without {', '.join(absent)} (the page says why)" if absent else ""
    console.print(f"report: {options.file} ({size}){left_out}", soft_wrap=True, highlight=False, markup=False)


def make_page(records: Sequence[RunRecord], twin: RunRecord | None, options: Options) -> Page:
    """The page of one run, or the comparison of several."""
    reading = spaces.Options(
        num_clips=options.clips,
        num_workers=options.workers,
        has_teacher=options.teacher,
        allow_code=options.allow_code,
    )
    if len(records) == 1:
        subject = gather(records[0], twin=twin, data=options.data, options=reading)
        return run_page(subject, num_queries=options.gallery)
    subjects = [
        gather(record, twin=None, data=options.data, options=reading, kinds=(spaces.STUDENT,)) for record in records
    ]
    return comparison_page(subjects)
