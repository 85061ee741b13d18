"""Fixtures that several test files use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

PROJECT_FOLDER = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Where several workers share the cores, each keeps to one: threads of torch would wait for those of the others.

    A shell starts background jobs with Ctrl-C ignored. Commands that tests start and interrupt would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = getattr(config, "workerinput", None)
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker["workerid"].removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Real videos and official lists that are not part of the project; tests skip without them."""
    folder = Path(os.environ.get("CROSSDISTILL_SHARED", PROJECT_FOLDER.parent / "shared"))
    if not (folder / "media").is_dir():
        pytest.skip("no shared data")
    return folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared toyactions of 6 clips a class, 32 pixels, 8 frames; tests that change it copy it."""
    from data_prep.datasets.toyactions import ToyactionsOptions, prepare

    folder = tmp_path_factory.mktemp("toy") / "toyactions"
    prepare(ToyactionsOptions(out=folder, clips_per_class=6, size=32, frames=8))
    return folder


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an rgb_r3d10_gn that was never trained: a teacher for tests of machinery."""
    import torch
    from safetensors.torch import save_file

    from crossdistill.encoders import create_encoder

    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(create_encoder("rgb_r3d10_gn").body.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def fold_teachers(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of rgb_tiny3d_8 with labels on toyactions, each without one of two folds: teachers for ``--folds 2``."""
    from in_process import train

    folders = []
    for number in (1, 2):
        folders.append(tmp_path_factory.mktemp("folds") / f"{number}of2")
        options = ["--supervised", "--student", "rgb_tiny3d_8", "--student-frames", 4, "--student-size", 16]
        options += ["--split", f"1@{number}of2", "--data", toy_folder, "--epochs", 1, "--batch-size", 8]
        options += ["--workers", 0, "--tracker", "none", "--knn-clips", 0, "--no-evaluate", "--precision", "fp32"]
        train([*options, "--out", folders[-1]])
    return folders
