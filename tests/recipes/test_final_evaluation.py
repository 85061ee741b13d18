"""The last table of a run."""

import io

import pytest
from rich.console import Console

from crossdistill.evaluation.results import Bootstrap, Evaluation, ProtocolResult
from crossdistill.recipes import final_evaluation
from crossdistill.utils import console as console_module


def evaluation(top1, interval):
    results = {
        name: ProtocolResult(name, top1, 1.0, top1, 9, intervals={"top1": interval} if interval else {})
        for name in ("1-nn", "linear", "cluster")
    }
    bootstrap = Bootstrap("group", 8, 2000, 0.95, seed=0) if interval else None
    return Evaluation("flow_mobilenet_v3_small", "toy", "1", 9, 9, {}, results, bootstrap=bootstrap).to_json()


def print_and_read(monkeypatch, by_role):
    said = io.StringIO()
    terminal = Console(file=said, width=80, markup=False, force_terminal=True, color_system=None)
    for module in (console_module, final_evaluation):
        monkeypatch.setattr(module, "console", terminal)
    final_evaluation.print_comparison("toy, split 1", by_role)
    return said.getvalue().splitlines()


def test_print_comparison__has_intervals_in_80_columns(monkeypatch):
    by_role = {
        "teacher": evaluation(1.0, (1.0, 1.0)),
        "student, random": evaluation(0.104, (0.08, 0.12)),
        "student, distilled": evaluation(0.873, (0.851, 0.893)),
    }
    title, *lines = print_and_read(monkeypatch, by_role)
    assert title == "toy, split 1, top-1 in % ± half of the 95% interval"
    cells = {"teacher": "100.0", "student, random": "10.4 ±2.0", "student, distilled": "87.3 ±2.1"}
    for role, cell in cells.items():
        (line,) = (line for line in lines if line.strip().startswith(role))
        assert line.count(cell) == 3 and "flow_mobilenet_v3_small" in line
    assert "2000 test sets drawn from 8 groups; intervals of so few units are rough" in " ".join(
        " ".join(lines).split()
    )


@pytest.mark.parametrize("interval", [None, (0.5, 0.5)])
def test_print_comparison__without_intervals_has_none(interval, monkeypatch):
    lines = print_and_read(monkeypatch, {"teacher": evaluation(0.5, interval)})
    assert not any("±" in line for line in lines[1:]) and any("50.0" in line for line in lines)
    assert ("interval" in " ".join(lines)) == (interval is not None)
