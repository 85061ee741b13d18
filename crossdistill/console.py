"""What people see while they wait: progress bars, tables, one-line notices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to ``friendly_errors``; rich would exit with a status of its own."""
        raise


console = _Console(markup=False)  # names of runs and classes are no markup


def progress_bar(*fields: str, unit: str = "", is_shown: bool = True) -> Progress:
    """A progress bar with time left and extra text fields, silent where ``is_shown`` is false.

    Args:
        fields: Names of text fields, filled with ``progress.update(task, name=...)``.
        unit: What is counted, for example ``clips``.
        is_shown: False on all processes but the first.
    """
    extra = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in fields]
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        *extra,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not is_shown,
    )


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, folds_names: bool = False) -> None:
    """Print a table, the first column left-aligned, numbers right-aligned.

    Args:
        title: Above it.
        header: Names of the columns.
        rows: Texts.
        folds_names: Where the terminal is too narrow, whether the first column is folded in place of the others.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=(i == 0) != folds_names, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # names are no markup
    console.print(title, highlight=False)  # not the table's own, which is wrapped where the table is narrow
    console.print(table)
