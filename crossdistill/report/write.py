"""Write the HTML page of one run, or of a comparison of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crossdistill.errors import UserError, require_at_least, require_num_workers
from crossdistill.report.charts import MAX_STYLES
from crossdistill.report.comparison_page import comparison_page
from crossdistill.report.networks import Kind
from crossdistill.report.options import ReportOptions
from crossdistill.report.page import render_page
from crossdistill.report.record import RunRecord, read_run
from crossdistill.report.run_data import collect
from crossdistill.report.run_page import run_page
from crossdistill.utils.console import console
from crossdistill.utils.files import require_writable, write_text_atomically


def write_report(runs: Sequence[Path], out: Path | None = None, options: ReportOptions | None = None) -> Path:
    """Write the page of one run, or of a comparison of several runs, and return its path.

    By default it is ``report.html`` in the run folder, or ``comparison.html`` in the working directory. An invalid
    option, or a folder that is not a run folder, is a ``UserError``.
    """
    options = options or ReportOptions()
    if not runs:
        raise UserError("no run was given: give one or more run folders (--out of crossdistill train)")
    out = out or (Path("comparison.html") if len(runs) > 1 else runs[0] / "report.html")
    _check(runs, out, options)
    records = [read_run(path) for path in runs]
    baseline = None if options.baseline is None else read_run(options.baseline)
    if baseline is not None:
        _check_baseline(baseline, records[0])
    if len(records) == 1:
        runs_data = [collect(records[0], options, baseline=baseline)]
        page = run_page(runs_data[0], num_queries=options.gallery)
    else:
        runs_data = [collect(record, options, kinds=(Kind.STUDENT,)) for record in records]
        page = comparison_page(runs_data)
    write_text_atomically(out, render_page(page))
    missing = [section.title for section in page.sections if section.unavailable]
    without = f"; without {', '.join(missing)} (the page gives the reasons)" if missing else ""
    num_bytes = out.stat().st_size
    size = f"{num_bytes / 1e6:.1f} MB" if num_bytes > 1e5 else f"{num_bytes / 1e3:.0f} kB"
    for reason in dict.fromkeys(reason for run in runs_data for reason in run.reasons.values()):
        if "--allow-code" in reason:
            console.print(f"a network is missing on the page: {reason}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {out} ({size}){without}", soft_wrap=True, highlight=False, markup=False)
    return out


def _check(runs: Sequence[Path], out: Path, options: ReportOptions) -> None:
    """Check the options before anything is read."""
    require_writable(out)
    if len(runs) > MAX_STYLES:
        raise UserError(f"{len(runs)} runs were given, but a comparison shows at most {MAX_STYLES}: give fewer runs")
    folders = [path.resolve() for path in runs]
    for path in runs:
        if folders.count(path.resolve()) > 1:
            raise UserError(f"the run {path} was given twice: give each run once")
    require_at_least("--gallery", options.gallery, 0, note="no gallery")
    require_num_workers(options.workers)
    require_at_least("--clips", options.clips, 1)
    if options.baseline is not None and len(runs) > 1:
        raise UserError("--baseline needs a single run: add the supervised baseline to the runs instead")


def _check_baseline(baseline: RunRecord, record: RunRecord) -> None:
    """Check that a run trained the student of another run with labels."""
    advice = "give a run of the same student with --supervised"
    if not baseline.is_supervised:
        raise UserError(f"--baseline {baseline.folder} was distilled from a teacher: {advice}")
    if baseline.encoder != record.encoder:
        raise UserError(f"--baseline {baseline.folder} trained {baseline.encoder}, not {record.encoder}: {advice}")
