"""Console output: progress bars and tables, in terminals, log files and notebooks."""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleRenderable, RenderableType
from rich.live import Live
from rich.measure import Measurement
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

WIDE = 100  # columns of a terminal from which on bars are long
INDENT = "  "  # of text below a bar
UNLIMITED = 10_000  # columns, to measure how wide a bar would be
LOG_SECONDS = 30.0  # between two lines of a bar in a log file
MAX_UNBROKEN_WIDTH = 16  # columns, of words that a table does not break


class _Console(Console):
    def print(self, *objects: Any, soft_wrap: bool | None = None, **settings: Any) -> None:
        """Print as rich does, but break no sentence in a file or pipe, where ``grep`` would not find it."""
        is_text = all(isinstance(item, str | Text) for item in objects)
        super().print(
            *objects, soft_wrap=is_text and not self.is_terminal if soft_wrap is None else soft_wrap, **settings
        )

    def on_broken_pipe(self) -> None:
        """Raise the error again for ``friendly_errors``; rich would exit with another status."""
        raise


console = _Console(markup=False)  # names of runs and classes may contain brackets


@functools.cache
def say_once(text: str) -> None:
    """Print a notice once in a process, and only on the first process of a machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        console.print(text, soft_wrap=True, highlight=False)


class _CutColumn(TextColumn):
    """Text on one line that is cut if the terminal is narrow, so that numbers and times keep their space."""

    def __init__(self, text_format: str) -> None:
        super().__init__(text_format, markup=False, table_column=Column())

    def render(self, task: Task) -> Text:
        """Return the text as one line, with an ellipsis at its end if it is cut."""
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class _FieldColumn(_CutColumn):
    """A text field, which is named when the bar is made."""


class _NotebookLive(Live):
    """Display of a progress bar that updates one output of a notebook cell.

    rich's own display needs ipywidgets; without it the user sees a warning and no bar.
    """

    def __init__(self, progress: Progress) -> None:
        # Each refresh is a message to the browser, so there are fewer than in a terminal.
        super().__init__(console=progress.console, get_renderable=progress.get_renderable, refresh_per_second=2)
        self._progress = progress
        self._output: Any = None

    def refresh(self) -> None:
        if self._output is None:
            # Every notebook has IPython; it is not a dependency of crossdistill.
            self._output = importlib.import_module("IPython.display").display(self._progress, display_id=True)
        else:
            self._output.update(self._progress)

    def stop(self) -> None:
        if self.is_started:
            self.refresh()
        super().stop()


class _LogLive(Live):
    """Display of a progress bar in a file or pipe: a plain line from time to time, and one at the end."""

    def __init__(self, progress: Progress) -> None:
        get_renderable = progress.get_renderable
        super().__init__(console=progress.console, get_renderable=get_renderable, refresh_per_second=1 / LOG_SECONDS)
        self._progress = progress
        self._said_at = time.monotonic()

    def start(self, refresh: bool = False) -> None:
        self._said_at = time.monotonic()
        super().start(refresh=False)

    def refresh(self) -> None:
        """Print the line if it is time, or if the bar has ended."""
        now = time.monotonic()
        if self._nested or (self._started and now - self._said_at < LOG_SECONDS / 2):
            return
        self._said_at = now
        for task in self._progress.tasks:
            cells = [c.render(task).plain for c in self._progress.columns if isinstance(c, _TEXT_COLUMNS)]
            self.console.print(Text(" ".join(cell for cell in cells if cell)), soft_wrap=True)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Print what others print as it is. rich would add the bar at the end."""
        return renderables


class _FittedProgress(Progress):
    """Progress bar that puts its text fields on lines below it if the terminal is too narrow for one line."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar with its text fields beside it or below it."""
        table = self.make_tasks_table(self.tasks)
        options = console.options  # Progress.console is not there yet when rich first asks
        if Measurement.get(console, options.update(max_width=UNLIMITED), table).maximum <= options.max_width:
            yield table
            return
        with self._lock:
            columns = self.columns
            self.columns = tuple(column for column in columns if not isinstance(column, _FieldColumn))
            yield self.make_tasks_table(self.tasks)
            self.columns = columns
        for task in self.tasks:
            for line in _filled("  ".join(task.fields.values()), options.max_width - len(INDENT)):
                yield Text(INDENT + line, no_wrap=True, overflow="ellipsis")


def _filled(text: str, width: int) -> list[str]:
    """Break a text into lines at its double spaces, so that no number is parted from its name."""
    lines: list[str] = []
    for part in filter(None, text.split("  ")):
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        else:
            lines.append(part)
    return lines


class _LogProgress(Progress):
    def stop(self) -> None:
        """End without the empty line that rich prints after a bar in a file."""
        self.live.stop()


_TEXT_COLUMNS = (TextColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn)


def progress_bar(*fields: str, unit: str = "", is_shown: bool = True) -> Progress:
    """Return a progress bar with elapsed time, remaining time and optional text fields.

    ``progress.update(task, name=...)`` sets the text fields, whose names are ``fields``. They are beside the bar, or
    below it if the terminal is narrow, where lines break at double spaces. ``unit`` is what the bar counts, for example
    ``clips``. ``is_shown`` is False on all processes but the first.
    """
    whole = Column(no_wrap=True)
    is_log = not (console.is_terminal or console.is_jupyter)
    progress = (_LogProgress if is_log else _FittedProgress)(
        _CutColumn("{task.description}"),
        BarColumn(bar_width=24 if console.width >= WIDE else 10),
        MofNCompleteColumn(table_column=whole),
        TextColumn(unit),
        *(_FieldColumn(f"{{task.fields[{name}]}}") for name in fields),
        TimeElapsedColumn(table_column=whole),
        TextColumn("left"),
        TimeRemainingColumn(table_column=whole),
        console=console,
        disable=not is_shown,
    )
    if console.is_jupyter:
        progress.live = _NotebookLive(progress)
    elif is_log:
        progress.live = _LogLive(progress)
    return progress


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a title and a table with a left-aligned first column and right-aligned other columns.

    If the terminal is too narrow, the widest columns are broken between words, and only long names inside. In a file or
    pipe, each row is one line of any width, so that ``grep`` finds what it holds.
    """
    cells = [list(header), *map(list, rows)]
    if not console.is_terminal and not console.is_jupyter:
        for line in (title, *_plain_lines([[cell.replace("\n", " ") for cell in row] for row in cells])):
            console.print(line, highlight=False, soft_wrap=True)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, (name, width) in enumerate(zip(header, _column_widths(cells), strict=True)):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold", width=width)
    for row in cells[1:]:
        table.add_row(*(Text(cell) for cell in row))  # names may contain brackets
    console.print(title, highlight=False)  # a title of the table would be as narrow as the table
    console.print(table)


def _column_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return widths that fit the terminal: of the longest cells if there is room, else of the longest words."""
    columns = list(zip(*rows, strict=True))
    cells = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    words = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    room = console.width - 2 * len(columns) - 1  # gaps, and the margins of the box
    limits = (limit for limit in range(MAX_UNBROKEN_WIDTH, 0, -1) if sum(min(limit, word) for word in words) <= room)
    limit = next(limits, 1)
    widths = [min(limit, word) for word in words]
    for _ in range(min(sum(cells), room) - sum(widths)):  # what is left goes to the column that lacks least
        lacking = {i: cell - width for i, (cell, width) in enumerate(zip(cells, widths, strict=True)) if cell > width}
        widths[min(lacking, key=lacking.__getitem__)] += 1
    return [max(1, width) for width in widths]


def _plain_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the columns of a table, whose first row is the header, and draw a line below the header."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        first = f"{row[0]}{gaps[0]}"
        return "  ".join([first, *(gap + cell for cell, gap in zip(row[1:], gaps[1:], strict=True))]).rstrip()

    header, *others = map(line, rows)
    return [header, "-" * (sum(widths) + 2 * len(widths) - 2), *others]
