"""Progress bars in terminals of any width, in notebooks and in log files."""

import io
import re
import sys
import types
import warnings

import pytest
from rich.console import Console

from crossdistill.utils import console as module

FIELDS = "loss 3.217  lr 3.6e-06  12 clips/s  accuracy 0.09"


@pytest.mark.parametrize(("num_columns", "below"), [(60, 2), (80, 1), (140, 0)])
def test_progress_bar__keeps_numbers_and_times_whole(num_columns, below, monkeypatch):
    said, fields = io.StringIO(), FIELDS + "  bank 100%  knn 0.458" * (below == 2)
    terminal = Console(file=said, width=num_columns, markup=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(module, "console", terminal)
    with module.progress_bar("fields", unit="steps") as bar:
        bar.add_task("depth_tiny3d_8 [of] mine", total=1300, completed=1274, fields=fields)
    shown = re.sub(r"\x1b\[\S*?[A-Za-z]", "", said.getvalue()).splitlines()
    line, *others = shown[-1 - below :]
    assert "1274/1300 steps" in line and " left " in line and "0:00:00" in line and len(line) <= num_columns
    assert line.startswith("depth" if num_columns < 80 else "depth_tiny3d")
    assert (fields in line) == (not below)
    assert [*map(len, others)] <= [num_columns] * below and "  ".join(map(str.strip, others)) == fields * bool(below)


class Output:
    """The output of a notebook cell, as ``IPython.display.display(..., display_id=True)`` returns it."""

    def __init__(self, shown):
        self.states = []
        self.update(shown)

    def update(self, shown):
        self.states.append(shown._repr_mimebundle_([], [])["text/plain"])


def test_progress_bar__updates_one_output_of_a_notebook_without_ipywidgets(monkeypatch):
    outputs = []

    def display(shown, *, display_id=None):
        if display_id is None:  # rich displays an empty text at the end of a bar
            assert shown._repr_mimebundle_([], [])["text/plain"] == ""
            return None
        outputs.append(Output(shown))
        return outputs[-1]

    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(module, "console", Console(force_jupyter=True, markup=False))
    with warnings.catch_warnings(), module.progress_bar(unit="clips") as bar:
        warnings.simplefilter("error")
        task = bar.add_task("clips", total=1000)
        for _ in range(1000):
            bar.advance(task)
    (output,) = outputs
    assert "1000/1000 clips" in output.states[-1]
    assert len(output.states) < 20  # not one for each step


def test_progress_bar__is_silent_on_other_processes(monkeypatch):
    for notebook in (False, True):
        said = io.StringIO()
        monkeypatch.setattr(module, "console", Console(file=said, force_jupyter=notebook, markup=False))
        with module.progress_bar(is_shown=False) as bar:
            bar.advance(bar.add_task("x", total=1))
        assert said.getvalue() == ""


def test_progress_bar__is_one_whole_line_at_the_end_of_short_work_in_a_log_file(monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=said, width=40, markup=False))
    with module.progress_bar("fields", unit="clips") as bar:
        task = bar.add_task("x", total=50, fields=FIELDS)
        for _ in range(50):
            bar.advance(task)
            bar.refresh()
    (line,) = said.getvalue().splitlines()
    assert re.fullmatch(rf"x 50/50 clips {FIELDS} 0:00:0\d left 0:00:00", line)


def test_progress_bar__says_from_time_to_time_how_far_long_work_is_in_a_log_file(monkeypatch):
    said, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(module, "console", Console(file=said, width=100, markup=False))
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with module.progress_bar(unit="clips") as bar:
        task = bar.add_task("x", total=6)
        for _ in range(6):
            clock[0] += module.LOG_SECONDS / 2 + 1
            bar.advance(task)
            bar.refresh()  # as rich does by itself
        module.console.print("said beside the bar")
    lines = [line.partition(" clips")[0] for line in said.getvalue().splitlines()]
    assert lines == [*(f"x {n}/6" for n in range(1, 7)), "said beside the bar", "x 6/6"]


def test_print_table__rows_are_whole_lines_in_a_pipe(monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(module, "console", module._Console(file=said, width=40, markup=False))
    name = "image_timm:" + "long" * 20
    module.print_table(
        "encoders", ("name", "weights\npublished"), [(name, "imagenet1k_v1 69.8 %, kinetics400"), ("犬", "none")]
    )
    module.console.print("a sentence of more than forty letters, which a terminal would break")
    title, header, line, first, second, sentence = said.getvalue().splitlines()
    assert (title, header.split(), set(line)) == ("encoders", ["name", "weights", "published"], {"-"})
    assert first == f"{name}  imagenet1k_v1 69.8 %, kinetics400"
    assert second == "犬" + " " * (len(line) - 6) + "none"
    assert sentence.endswith("a terminal would break")


@pytest.mark.parametrize("num_columns", [40, 60, 80, 120])
def test_print_table__fits_a_terminal_and_breaks_no_number_where_there_is_room(monkeypatch, num_columns):
    said = io.StringIO()
    terminal = Console(file=said, width=num_columns, markup=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(module, "console", terminal)
    header = ("", "encoder", "with teacher", "interval", "CKA", "effective rank", "uniformity")
    rows = [
        ("teacher", "teacher.py:teacher", "", "", "", "29.4 of 32", "-2.81"),
        ("student, random", "image_timm:tf_efficientnet_lite2", "35.2%", "30.9–39.7", "0.070", "26.5 of 32", "-0.65"),
        ("unrelated spaces, expected", "", "31.2%", "", "0.000", "", ""),
    ]
    module.print_table("pile", header, rows)
    lines = said.getvalue().splitlines()
    assert max(map(len, lines)) <= num_columns
    letters = "".join(line.replace(" ", "") for line in lines)
    assert all(
        letters.count(letter) >= sum(cell.count(letter) for row in rows for cell in row) for letter in "0123456789"
    )
    if num_columns >= 80:
        words = said.getvalue().split()
        assert all(word in words for word in ("35.2%", "30.9–39.7", "0.070", "-0.65", "uniformity", "effective"))
