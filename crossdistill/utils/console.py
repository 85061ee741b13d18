"""What people see while they wait: progress bars, tables, one-line notices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

WIDE = 100
"""Columns of a terminal from which on bars are drawn long."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to ``friendly_errors``; rich would exit with a status of its own."""
        raise


console = _Console(markup=False)  # names of runs and classes are no markup


class _CutColumn(TextColumn):
    """Text on one line, cut short where the terminal is narrow, so that the numbers and times stay whole.

    Args:
        text_format: As of ``TextColumn``.
    """

    def __init__(self, text_format: str) -> None:
        super().__init__(text_format, markup=False, table_column=Column())

    def render(self, task: Task) -> Text:
        """One line with an ellipsis at its end if it has to be cut."""
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


def progress_bar(*fields: str, unit: str = "", is_shown: bool = True) -> Progress:
    """A progress bar with time left and extra text fields, silent where ``is_shown`` is false.

    Args:
        fields: Names of text fields, filled with ``progress.update(task, name=...)``.
        unit: What is counted, for example ``clips``.
        is_shown: False on all processes but the first.
    """
    whole = Column(no_wrap=True)
    return Progress(
        _CutColumn("{task.description}"),
        BarColumn(bar_width=24 if console.width >= WIDE else 10),
        MofNCompleteColumn(table_column=whole),
        TextColumn(unit),
        *(_CutColumn(f"{{task.fields[{name}]}}") for name in fields),
        TimeElapsedColumn(table_column=whole),
        TextColumn("left"),
        TimeRemainingColumn(table_column=whole),
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
