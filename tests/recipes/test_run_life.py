"""A run beside other runs, moved data and weights, a terminal without Unicode, and folders of somebody else."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import cache, train

from crossdistill.commands.main import main
from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.evaluation.settings import FineTuning
from crossdistill.recipes import final_evaluation
from crossdistill.recipes import run as run_module
from crossdistill.recipes.config import parse
from crossdistill.recipes.data import dataset_of_run
from crossdistill.recipes.finetune import finetune_config
from crossdistill.recipes.identity import choose_folder, own_teacher_config
from crossdistill.recipes.teachers import teacher_options, teacher_sources
from crossdistill.training import trackers
from crossdistill.utils import locks

SMALL = ["--student-frames", 4, "--student-size", 32, "--epochs", 1, "--batch-size", 8, "--workers", 0]
OPTIONS = ["--supervised", "--student", "flow_tiny3d_8", *SMALL, "--tracker", "none", "--knn-clips", 0]
HOLD = """
import sys
from pathlib import Path
from crossdistill.utils.locks import folder_lock
with folder_lock(Path(sys.argv[1]), advice=""):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def finished(toy_folder, tmp_path_factory):
    """A finished run on a dataset of its own."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(toy_folder, folder / "data")
    train([*OPTIONS, "--data", folder / "data", "--out", folder / "run", "--no-evaluate"])
    return folder


@pytest.fixture
def hold():
    """Start a process that holds a folder until its standard input is closed."""
    processes = []

    def start(folder):
        command = [sys.executable, "-c", HOLD, str(folder)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def wrong(capsys, command, *options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        command([*options])
    assert exit_info.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_second_run_in_a_folder__is_refused_in_one_sentence(toy_folder, tmp_path, hold, capsys):
    out = tmp_path / "run"
    process = hold(out)
    (out / "config.json").write_text("of the run that has just started")
    error = wrong(capsys, train, *OPTIONS, "--data", toy_folder, "--out", out)
    assert error.startswith(f"crossdistill: error: {out} is in use by process {process.pid} on ")
    assert error.endswith(": wait for its end, or choose another --out")
    assert sorted(path.name for path in out.iterdir()) == [locks.LOCK_NAME, "config.json"]


def test_second_cache_in_a_folder__is_refused_in_one_sentence(toy_folder, teacher_file, tmp_path, hold, capsys):
    teacher = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--teacher-frames", 4]
    pair = [*teacher, "--teacher-size", 32, "--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 32]
    out = tmp_path / "cache"
    options = [*pair, "--data", toy_folder, "--workers", 0, "--augmentations", 1, "--out", out]
    process = hold(out)
    assert f"{out} is in use by process {process.pid}" in wrong(capsys, cache, *options)
    process.stdin.close()
    process.wait()
    cache(options)
    assert sorted(path.name for path in out.iterdir()) == ["cache.json", "shards"]


def test_common_run__waits_for_the_other_and_takes_its_student(finished, tmp_path, hold, monkeypatch, capsys):
    """Two students of one teacher that both have to train first."""
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)
    out = tmp_path / "teacher"
    process = hold(out)
    lock = run_module.RunFolder.lock

    def lock_while_the_other_finishes(self, on_wait=None):
        def end_the_other(holder):
            on_wait(holder)
            shutil.copytree(finished / "run" / "student", out / "student")
            process.stdin.close()

        return lock(self, end_the_other)

    monkeypatch.setattr(run_module.RunFolder, "lock", lock_while_the_other_finishes)
    config = parse([str(option) for option in (*OPTIONS, "--data", finished / "data", "--out", out, "--resume")])
    assert run_module.run(config, is_common=True) == out
    said = " ".join(capsys.readouterr().out.split())
    assert f"is in use by process {process.pid}" in said and "waiting for it" in said
    assert f"{out} is finished: its student is taken" in said
    assert [path.name for path in out.iterdir()] == ["student"]


def test_runs_without_out__that_start_together_get_folders_of_their_own(toy_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse([str(option) for option in (*OPTIONS, "--data", toy_folder)])
    names = [choose_folder(config, teacher_sources(config)).name for _ in range(2)]
    assert names == ["flow_tiny3d_8-from-labels", "flow_tiny3d_8-from-labels-2"]


@pytest.fixture
def moved(finished, tmp_path, monkeypatch):
    """The finished run, with its data at another path that is spelled relative to the working directory."""
    shutil.copytree(finished, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    return tmp_path / "moved"


RESUME = [*OPTIONS, "--no-evaluate", "--out", "run", "--resume", "--data"]


def test_resume__takes_the_same_data_at_another_path(moved, capsys):
    train([*RESUME, "data"])
    assert "resuming after step" in capsys.readouterr().out
    assert json.loads(Path("run/config.json").read_text())["configuration"]["data"]["data"] == ["data"]


def change_a_stream(manifest):
    first, *rest = manifest.videos
    streams = {**first.streams, "flow": replace(first.streams["flow"], sha256="0" * 64)}
    return (replace(first, streams=streams), *rest)


OTHER_DATA = {
    "another file": change_a_stream,
    "another label": lambda m: (replace(m.videos[0], label=1 - m.videos[0].label), *m.videos[1:]),
    "another order": lambda m: m.videos[::-1],
    "another split": lambda m: (replace(m.videos[0], splits={"1": "train", "2": "test"}), *m.videos[1:]),
}


def test_resume__of_another_run_names_that_and_not_its_batches(finished, tmp_path, capsys):
    options = [*OPTIONS, "--data", finished / "data", "--out", tmp_path / "run", "--no-evaluate"]
    train([*options, "--keep-checkpoints", "--batch-size", 8, "--accumulate", 1])
    given = ["--resume", "--batch-size", 5]
    assert "two numbers whose product is 8" in wrong(capsys, train, *options, *given)
    assert "was started with another --lr (" in wrong(capsys, train, *options, *given, "--lr", 1)


def test_dataset_of_run__is_what_a_student_without_classes_is_compared_with(finished, tmp_path):
    assert dataset_of_run(finished / "run") is None, "it has a classifier"
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    (run / "student" / "classifier.safetensors").unlink()
    assert dataset_of_run(run) == dataset_of_run(run / "student") == finished / "data"
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace(str(finished / "data"), str(tmp_path / "gone")))
    assert dataset_of_run(run) is None and dataset_of_run(tmp_path) is None


def test_shots__above_every_class_are_refused(finished, tmp_path, capsys):
    options = [*OPTIONS, "--data", finished / "data", "--out", tmp_path / "run", "--shots", 500]
    assert "--shots is 500, and the largest class of" in wrong(capsys, train, *options)


@pytest.mark.parametrize("change", OTHER_DATA)
def test_resume__refuses_other_data_of_the_same_length(moved, capsys, change):
    manifest = Manifest.load("data")
    replace(manifest, videos=OTHER_DATA[change](manifest)).save()
    assert Manifest.load("data").content_digest != manifest.content_digest
    assert "run was started with other files for --data" in wrong(capsys, train, *RESUME, "data")


def test_content_digest__does_not_know_folder_or_preparation(toy_folder):
    manifest = Manifest.load(toy_folder)
    other = replace(manifest, root=Path("/x"), facts={"command": "another"})
    videos = [replace(v, streams={n: s.at(f"/y/{s.path}") for n, s in v.streams.items()}) for v in manifest.videos]
    assert replace(other, videos=tuple(videos)).content_digest == manifest.content_digest


def test_resume__knows_weights_by_content(finished, tmp_path, capsys):
    shared = [*SMALL, "--tracker", "none", "--knn-clips", 0, "--no-evaluate", "--bank-size", 40]
    shared += ["--out", tmp_path / "r"]
    pair = ["--teacher", "flow_tiny3d_8", "--teacher-frames", 4, "--teacher-size", 32, "--student", "flow_tiny3d_8"]

    def run(teacher, *options):
        train([*pair, *shared, "--data", finished / "data", "--teacher-weights", teacher, *options])

    shutil.copytree(finished / "run" / "student", tmp_path / "teacher")
    run(tmp_path / "teacher")
    moved = (tmp_path / "teacher").rename(tmp_path / "moved")
    run(moved, "--resume")
    with open(moved / "student.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    error = wrong(capsys, lambda options: run(*options), moved, "--resume")
    assert "was started with other files for --teacher-weights" in error


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_resume__with_more_epochs_trains_longer(finished, tmp_path, capsys):
    options = [*OPTIONS, "--data", finished / "data", "--out", tmp_path / "run", "--no-evaluate"]
    options += ["--schedule", "cosine", "--log-every-steps", 1]
    train([*options, "--keep-checkpoints"])
    once = metrics(tmp_path / "run")
    assert once[-1]["lr"] < 0.2 * once[0]["lr"]
    train([*options, "--resume", "--epochs", 3])
    thrice = metrics(tmp_path / "run")
    assert thrice[: len(once)] == once and len(thrice) == 3 * len(once)
    # From there on the rate is that of three epochs.
    assert 0.5 * once[0]["lr"] < thrice[len(once)]["lr"] < once[0]["lr"] and thrice[-1]["lr"] < once[-1]["lr"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["configuration"]["optimization"]["epochs"] == 3
    error = wrong(capsys, train, *options, "--resume", "--epochs", 2)
    assert "was started with another --epochs (3, now 2)" in error
    error = wrong(capsys, train, *options, "--resume", "--epochs", 4)  # the second run kept its weights alone
    assert f"start another run with --student-weights {tmp_path / 'run'}" in error
    error = wrong(capsys, train, *options, "--resume", "--epochs", 4, "--lr", 1)
    assert "was started with another --lr" in error


def test_resume__with_more_epochs_lets_the_bank_grow(finished, tmp_path, capsys):
    """One epoch fills a bank of as many anchors as it has clips; three epochs fill more."""
    pair = ["--teacher", "flow_tiny3d_8", "--teacher-weights", finished / "run", "--student", "flow_tiny3d_8"]
    options = [*pair, *SMALL, "--tracker", "none", "--knn-clips", 0, "--no-evaluate", "--bank-size", 1000]
    options += ["--data", finished / "data", "--out", tmp_path / "run", "--log-every-steps", 1]
    train([*options, "--keep-checkpoints"])
    once = metrics(tmp_path / "run")
    train([*options, "--keep-checkpoints", "--resume", "--epochs", 3])
    thrice = metrics(tmp_path / "run")
    fill = [row["bank_fill"] for row in thrice]
    assert once[-1]["bank_fill"] == 1 == fill[-1] and fill[len(once)] == pytest.approx((len(once) + 1) / len(thrice))
    error = wrong(capsys, train, *options, "--rounds", 2, "--resume", "--epochs", 4)
    assert "was started with another --rounds" in error


def test_resume__former_run_remembers_that_it_grew(moved, finished):
    config = Path("run/config.json")
    written = json.loads(config.read_text())
    del written["contents"]
    written["configuration"]["optimization"]["epochs"] = 0.5
    config.write_text(json.dumps(written))
    shutil.rmtree("run/checkpoints")
    train([*RESUME, finished / "data"])
    assert json.loads(config.read_text())["configuration"]["optimization"]["epochs"] == 1


def test_resume__run_without_digests_is_compared_by_its_paths(moved, finished, capsys):
    config = Path("run/config.json")
    written = json.loads(config.read_text())
    del written["contents"]
    config.write_text(json.dumps(written))
    assert "was started with another --data" in wrong(capsys, train, *RESUME, "data")
    train([*RESUME, finished / "data"])
    assert "contents" not in json.loads(config.read_text())


@pytest.fixture
def former(tmp_path, monkeypatch):
    """Files of version 0.1, and a copy of them at another path."""
    folder = Path(__file__).resolve().parents[1] / "former_version"
    for name in ("here", "there"):
        shutil.copytree(folder, tmp_path / name)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "there"


def finish(folder):
    folder.mkdir(parents=True)
    (folder / "student.json").write_text("{}")


def test_teacher_to_train__is_found_by_content_and_under_its_former_name(former):
    def folder(data, run):
        config = parse(["--teacher", "rgb_tiny3d_8", "--student", "flow_tiny3d_8", "--data", str(data)])
        return own_teacher_config(config, teacher_options(config)[0], run, [Manifest.load(data)]).machine.out

    found = folder("data", Path("run"))
    assert found.parent == Path("teachers") and found.name == folder(former / "data", former / "run").name
    finish(Path("teachers/rgb_tiny3d_8-b20abc7c"))  # the name that version 0.1 gives with this path of the data
    assert folder("data", Path("run")) == Path("teachers/rgb_tiny3d_8-b20abc7c") != found


def test_fine_tuning__is_found_by_content_and_under_its_former_name(former):
    def folder(student, data):
        return finetune_config(FineTuning(), student, data=data, split="1").machine.out

    student, data = Path("run/student"), Path("data")
    found = folder(student, data)
    assert found.name == folder(former / student, former / data).name
    finish(Path("run/finetune-1-4177d067"))  # the name that version 0.1 gives with these paths
    assert folder(student, data) == Path("run/finetune-1-4177d067") != found


def printing_ascii(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    return output


def test_terminal_without_unicode__ends_neither_training_nor_evaluation(toy_folder, tmp_path, monkeypatch):
    manifest = Manifest.load(shutil.copytree(toy_folder, tmp_path / "data"))
    replace(manifest, classes=("Schlüssel – drehen", *manifest.classes[1:])).save()
    output = printing_ascii(monkeypatch)
    train([*OPTIONS, "--data", tmp_path / "data", "--out", tmp_path / "rün"])
    options = ["--data", tmp_path / "data", "--json", tmp_path / "e.json", "--workers", 0, "--bootstrap", 10]
    main(["evaluate", *map(str, [tmp_path / "rün", *options])])
    output.flush()
    assert b"r?n" in output.buffer.getvalue()
    assert (tmp_path / "rün" / "results.json").is_file() and (tmp_path / "e.json").is_file()


def test_results__are_written_before_they_are_printed(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(final_evaluation, "_protocols", lambda *_: ("knn",))
    monkeypatch.setattr(final_evaluation, "print_comparison", lambda *_: pytest.fail("the terminal is gone"))
    with pytest.raises(pytest.fail.Exception):
        train([*OPTIONS, "--data", finished / "data", "--out", tmp_path / "run"])
    assert "student, supervised" in str(json.loads((tmp_path / "run" / "results.json").read_text()))


def test_evaluate__of_a_run_that_cannot_be_written_gives_the_numbers(moved, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "is_writable", lambda folder: False)
    Path("run/features").write_text("a file, in which no folder can be made")
    before = sorted(Path("run").rglob("*"))
    options = ["--protocols", "knn", "--workers", "0", "--bootstrap", "0", "--tracker", "tensorboard"]
    main(["evaluate", "run", "--data", "data", *options])
    printed = " ".join(capsys.readouterr().out.split())
    assert "features are not kept: cannot write run/features/" in printed
    assert "the results are not sent to tensorboard, because run cannot be written" in printed
    assert "1-nn" in printed.lower() and sorted(Path("run").rglob("*")) == before


def test_report__beside_a_run_that_cannot_be_written_is_refused_at_once(moved, monkeypatch, capsys):
    Path("run/report.html").mkdir()
    monkeypatch.setattr("crossdistill.report.write.read_run", lambda *_: pytest.fail("minutes of work"))
    assert "run/report.html is a folder: give a file name" in wrong(capsys, main, "report", "run")
    assert (Path("data") / MANIFEST_NAME).is_file()
