"""What people see while they wait, in terminals of any width."""

import io

import pytest
from rich.console import Console

from crossdistill.utils import console as module


@pytest.mark.parametrize("num_columns", [60, 80, 140])
def test_progress_bar__keeps_numbers_and_times_whole(num_columns, monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=said, width=num_columns, markup=False))
    fields = "loss 3.217  lr 3.6e-06  12 clips/s  accuracy 0.09"
    with module.progress_bar("fields", unit="steps") as bar:
        bar.add_task("depth_tiny3d_8 [of] mine", total=1300, completed=1274, fields=fields)
    (line,) = said.getvalue().strip().splitlines()
    assert "1274/1300 steps" in line and " left " in line and "0:00:00" in line and len(line) <= num_columns
    assert line.startswith("depth" if num_columns == 60 else "depth_tiny3d")
    assert (fields in line) == (num_columns == 140)
    assert ("…" in line) == (num_columns < 140)
