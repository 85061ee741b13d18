"""The notebooks of ``examples/`` run from top to bottom, on small data, and hold the outputs that GitHub shows."""

import json
import re
from pathlib import Path

import matplotlib as mpl
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = {
    "own_images_and_loop": {"images_per_class": 8, "teacher_epochs": 1, "student_epochs": 2, "batch_size": 8}
    | {"bank_size": 16},
    # Those of the fixture toy_folder, which is then not rendered again.
    "quickstart": {"clips_per_class": 6, "num_frames": 8, "size_px": 32, "teacher_epochs": 1, "student_epochs": 1},
}


def cells_of(name):
    """The code cells of a notebook."""
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run(name):
    """Run the cells one after the other, with small parameters in place of those of the first cell."""
    scope = {}
    with mpl.rc_context({"backend": "Agg"}):
        first, *others = cells_of(name)
        exec("".join(first["source"]), scope)
        assert SMALL[name].keys() == scope.keys() - {"__builtins__"}, "the first cell holds the parameters alone"
        scope |= SMALL[name]
        for cell in others:
            exec(compile("".join(cell["source"]), f"{name}.ipynb, {cell['id']}", "exec"), scope)
    return scope


def test_names__are_those_of_the_folder():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == SMALL.keys()


def test_own_images_and_loop__runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = run("own_images_and_loop")
    assert [row["bank"] for row in scope["curves"]][:2] == [0.5, 1.0]
    assert set(scope["accuracy"]) == {"teacher", "student, random", "student, distilled"}
    assert (tmp_path / "student.safetensors").is_file()


@pytest.mark.slow
def test_quickstart__runs_from_top_to_bottom(toy_folder, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toyactions").symlink_to(toy_folder)
    monkeypatch.chdir(tmp_path)
    scope = run("quickstart")
    assert scope["similarities"].shape == (len(scope["test"]), len(scope["train"]))
    assert {role for one in scope["run"].results.values() for role in one} == {
        *("teacher", "student, random", "student, distilled")
    }
    assert (tmp_path / "flow.onnx").is_file() and (tmp_path / "flow.pt2").is_file()


@pytest.mark.parametrize("name", SMALL)
def test_outputs__are_stored_whole_and_name_no_folder_of_a_machine(name):
    cells = cells_of(name)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run all cells, then save"
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    text = json.dumps([{**output, "data": {**output.get("data", {}), "image/png": ""}} for output in outputs])
    assert not re.search(r"/(home|tmp|root|Users)/", text)
