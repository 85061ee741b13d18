"""Curves and results reach the trackers that people use."""

import json
import sys

import pytest
from accelerate import tracking
from in_process import check_configuration
from in_process import train as main

from crossdistill.errors import UserError
from crossdistill.recipes.config import parse
from crossdistill.training import trackers
from crossdistill.training.run_folder import MetricsLog, RunFolder
from crossdistill.training.trackers import flatten_results, track_results

NN = {"top1": 0.5, "top5": 0.75, "mean_class": 0.25, "views": "1x1"}
LINEAR = {"top1": 0.75, "top5": 1.0, "mean_class": 0.5, "views": "10x3"}
OF_UCF101 = {"dataset": "ucf101", "split": "1 + 2", "results": {"1-nn": NN, "linear": LINEAR}, "agreement": []}
BY_ROLE = {"student, distilled": OF_UCF101}


def test_results__have_names_of_their_own_for_dataset_split_role_protocol_views_and_measure():
    start = "evaluation/ucf101 1  2/student distilled"
    expected = {f"{start}/1-nn {name}": value for name, value in NN.items() if name != "views"}
    expected |= {f"{start}/linear 10x3 {name}": value for name, value in LINEAR.items() if name != "views"}
    assert flatten_results(BY_ROLE) == expected


def test_tensorboard__has_curves_and_results(toy_folder, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = ["--supervised", "--student", "depth_tiny3d_8", "--student-frames", "4", "--student-size", "16"]
    more = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--knn-clips", "0", "--log-every-steps", "1"]
    main([*options, *more, "--data", str(toy_folder), "--out", str(tmp_path / "run")])
    (by_role,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name, value in flatten_results(by_role).items():
        (event,) = events.Scalars(name)
        assert event.value == pytest.approx(value) and event.step == 4
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_mlflow__resumed_run_continues_the_same_mlflow_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    for first_step in (1, 2):
        log = MetricsLog(folder, start_step=first_step, tracker="mlflow")
        log.write(first_step, {"loss": 1.0 / first_step})
        log.close()
    track_results("mlflow", folder, BY_ROLE, step=2)
    client = mlflow.tracking.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("crossdistill").experiment_id])
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "loss")] == [1.0, 0.5]
    assert (
        run.data.metrics["evaluation/ucf101 1  2/student distilled/linear 10x3 top1"] == 0.75
        and run.info.run_name == "run"
    )


def test_wandb__writes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    folder.mkdir()
    log = MetricsLog(folder, start_step=1, tracker="wandb")
    log.write(1, {"loss": 1.0})
    log.close()
    track_results("wandb", folder, BY_ROLE, step=1)
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


def test_absent_tracker__is_one_sentence_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = parse(["--supervised", "--student", "flow_r3d10", "--tracker", "wandb"])
    with pytest.raises(UserError, match="--tracker wandb needs the package wandb: pip install wandb"):
        check_configuration(config)


def test_tracker__error_of_its_package_is_one_sentence(tmp_path, monkeypatch):
    """W&B raises so without a key and without a terminal to ask for one."""
    usage_error = type("UsageError", (Exception,), {"__module__": "wandb.errors.errors"})

    def start(self):
        raise usage_error("api_key not configured (no-tty). call wandb.login(key=[your_api_key])\nmore")

    class Tracker(tracking.TensorBoardTracker):
        def __init__(self, *args, **kwargs): ...

    monkeypatch.setattr(Tracker, "start", start)
    monkeypatch.setattr(tracking, "WandBTracker", Tracker)
    monkeypatch.setattr(trackers, "require_tracker", lambda name: None)
    message = r"--tracker wandb does not start \(api_key not .*\): log in .*WANDB_MODE=offline"
    with pytest.raises(UserError, match=message):
        MetricsLog(RunFolder(tmp_path), start_step=1, tracker="wandb")
