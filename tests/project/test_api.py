"""The Python API: one call from teacher and data to a run that evaluates, reports, exports and predicts."""

import json
import sys
from pathlib import Path

import pytest

import crossdistill as cd
from crossdistill.recipes.config import parse, to_dict

TINY = {
    **{"student": "flow_tiny3d_8", "student_frames": 4, "student_size": 32, "teacher_frames": 4, "teacher_size": 32},
    **{"epochs": 1, "batch_size": 8, "bank_size": 32, "workers": 0, "tracker": "none", "knn_clips": 0, "lr": 0.01},
}


@pytest.fixture(scope="module")
def run(toy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    teacher = cd.create_encoder("rgb_tiny3d_8", num_frames=4, size_px=32)
    cd.save_student(teacher, folder / "teacher", facts={})
    return cd.distill(
        teacher="rgb_tiny3d_8", teacher_weights=folder / "teacher", data=toy_folder, out=folder / "run", **TINY
    )


def test_distill__returns_a_run_with_curves_and_results(run):
    assert run.metrics["step"].iloc[-1] == len(run.metrics) or run.metrics["loss"].notna().all()
    (by_role,) = run.results.values()
    assert set(by_role) == {"teacher", "student, random", "student, distilled"}
    assert run.config.pair.student == "flow_tiny3d_8" and cd.Run(run.folder) == run
    frame = run.to_frame()
    (linear,) = frame[(frame.role == "student, distilled") & (frame.protocol == "linear")].to_dict("records")
    stored = by_role["student, distilled"]["results"]["linear"]
    assert [linear["top1"], linear["low"], linear["high"]] == [stored["top1"], *stored["intervals"]["top1"]]
    assert (linear["encoder"], set(frame.dataset), set(frame.role)) == ("flow_tiny3d_8", set(run.results), set(by_role))


def test_frames__without_pandas_or_a_run_are_one_sentence(run, tmp_path, monkeypatch):
    with pytest.raises(cd.UserError, match="is not a run folder"):
        _ = cd.Run(tmp_path).metrics
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name, read in {"Run.metrics": lambda: run.metrics, "Run.to_frame": run.to_frame}.items():
        with pytest.raises(cd.UserError, match=rf"{name}.* needs pandas.*pip install 'crossdistill\[pandas\]'"):
            read()


def test_evaluate__takes_the_options_of_the_command(run):
    evaluation = run.evaluate(protocols=["knn", "linear"], k=1, bootstrap=20, workers=0)
    assert list(evaluation.results) == ["1-nn", "linear"] and evaluation.top1 == evaluation.results["1-nn"].top1
    low, high = evaluation.interval
    assert low <= evaluation.top1 <= high
    assert list(evaluation.to_frame()["protocol"]) == ["1-nn", "linear"]
    with pytest.raises(cd.UserError, match="unknown keyword 'kk'"):
        run.evaluate(kk=1)
    with pytest.raises(cd.UserError, match="bootstrap"):
        run.evaluate(bootstrap="many")


def test_report_export_predict__write_and_say_what_the_commands_do(run, toy_folder, tmp_path):
    page = run.report(tmp_path / "page.html", gallery=2, clips=20, workers=0)
    assert page == tmp_path / "page.html" and "flow_tiny3d_8" in page.read_text()
    exported = run.export(tmp_path / "student.pt2", clips=2)
    assert exported.path == tmp_path / "student.pt2" and exported.path.is_file()
    video = sorted(path for path in (toy_folder / "flow").rglob("*") if path.is_file())[0]
    (prediction,) = run.predict(video, clips=1, k=1, workers=0)
    assert prediction.scores is not None


def test_distill__refuses_what_the_command_line_refuses(tmp_path):
    with pytest.raises(cd.UserError, match="unknown keyword 'studnet': names like it are student"):
        cd.distill(studnet="flow_r3d18")
    with pytest.raises(cd.UserError, match="no teacher was given"):
        cd.distill(student="flow_r3d18", data=tmp_path)
    with pytest.raises(cd.UserError, match="is not a run's folder"):
        _ = cd.Run(tmp_path).config


def test_configuration_of_a_run__is_that_of_the_same_command_line(run, toy_folder):
    options = ["--student", "flow_tiny3d_8", "--data", str(toy_folder), "--lr", "0.01", "--epochs", "1"]
    expected = to_dict(parse(options))["optimization"] | {"batch_size": 8}
    assert to_dict(run.config)["optimization"] == expected
    stored = json.loads((Path(run.folder) / "config.json").read_text())["configuration"]["optimization"]
    left_out = {"layer_decay": 1.0, "drop_path": None}  # so that runs from before these options are known again
    assert stored | left_out == expected and not stored.keys() & left_out.keys()
