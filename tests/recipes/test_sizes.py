"""Batch and bank where the configuration leaves them to the data, and what a finished run keeps."""

import json
from types import SimpleNamespace

import pytest
import torch
from in_process import train
from safetensors.torch import load_file

from crossdistill.errors import UserError
from crossdistill.recipes import sizes
from crossdistill.recipes.config import OptimizationConfig, parse
from crossdistill.recipes.context import Batches, BatchParts
from crossdistill.recipes.sizes import bank_size_for, batch_size_for, divide, fillable_bank_size, fit_to_data
from crossdistill.training.checkpoint import Checkpoints
from crossdistill.training.run_folder import RunFolder

ONE = SimpleNamespace(num_processes=1, is_main_process=True)


def fitted(*options, num_clips=62, folder="x", accelerator=ONE):
    config = parse(["--data", "x", "--teacher", "self", "--student", "flow_tiny3d_8", *map(str, options)])
    config, _ = fit_to_data(config, num_clips, RunFolder(folder), accelerator)
    return config, (config.optimization.batch_size, config.objective.bank_size)


@pytest.mark.parametrize("num_processes", [1, 2, 8])
@pytest.mark.parametrize("num_clips", [8, 16, 62, 431, 4096, 9537, 1_281_167])
def test_default_batch__always_fits_and_reaches_the_papers(num_clips, num_processes):
    size = batch_size_for(num_clips, num_processes)
    assert 1 <= size <= 256 and size * num_processes <= num_clips
    steps = num_clips // (size * num_processes)
    assert steps >= 16 or size <= 16
    assert (size == 256) == (num_clips >= 4096 * num_processes)


def test_default_bank__has_room_for_each_clip_once():
    assert [bank_size_for(num_clips) for num_clips in (0, 62, 128_000, 1_281_167)] == [1, 62, 128_000, 128_000]


def test_fit_to_data__chooses_what_is_not_given_and_says_so(capsys):
    assert fitted()[1] == (16, 62)
    assert "chosen for 62 training clips: --batch-size 16 and --bank-size 62" in capsys.readouterr().out
    assert fitted("--batch-size", 256, "--bank-size", 128_000)[1] == (256, 128_000)
    assert fitted(num_clips=1_281_167)[1] == (256, 128_000)
    assert "chosen" not in capsys.readouterr().out


def test_fit_to_data__a_resumed_run_keeps_the_sizes_of_its_start(tmp_path):
    """Version 0.1 wrote its defaults, 256 and 128,000, into each run's config.json."""
    written = {"optimization": {"batch_size": 256}, "objective": {"bank_size": 128_000}}
    (tmp_path / "config.json").write_text(json.dumps({"configuration": written}))
    assert fitted("--resume", num_clips=431, folder=tmp_path)[1] == (256, 128_000)
    assert fitted("--resume", "--bank-size", 40, num_clips=431, folder=tmp_path)[1] == (256, 40)
    assert fitted(num_clips=431, folder=tmp_path)[1] == (26, 431)


FOUR = BatchParts(4, 3, 2)


@pytest.mark.parametrize(
    ("num_processes", "given", "expected"),
    [
        (4, {}, (4, 3, 2)),
        (2, {}, (2, 3, 4)),
        (3, {}, (3, 2, 4)),  # 3 does not divide 8: the next smaller batch, which needs less memory
        (8, {}, (8, 3, 1)),
        (24, {}, (24, 1, 1)),
        (2, {"batch_size": 3}, (2, 3, 4)),  # the same command
        (2, {"batch_size": 6}, (2, 6, 2)),
        (2, {"batch_size": 12, "accumulate": 1}, (2, 12, 1)),
        (4, {"batch_size": 6, "accumulate": 1}, (4, 6, 1)),
        (1, {"accumulate": 3}, (1, 8, 3)),
    ],
)
def test_divide__keeps_the_global_batch(num_processes, given, expected):
    parts = divide(FOUR, num_processes, OptimizationConfig(**{"accumulate": 2, **given}))
    assert parts == BatchParts(*expected) and parts.clips_per_step == 24


@pytest.mark.parametrize(
    ("num_processes", "given", "advice"),
    [
        (
            5,
            {},
            "(4 processes x 3 x 2 batches), which 5 processes cannot share equally: resume it with 4 or 6 processes",
        ),
        (48, {}, "which 48 processes cannot share equally: resume it with 24 processes"),
        (2, {"batch_size": 5}, "--batch-size 5 and --accumulate 2 do not give the 12 of each of 2 process(es)"),
        (2, {"batch_size": 4}, "whose product is 12, for example --batch-size 4 --accumulate 3"),
        (2, {"accumulate": 5}, "--accumulate 5 do not give the 12 of each of 2 process(es): resume it with two"),
        (4, {"batch_size": 3, "accumulate": 1}, "for example --batch-size 3 --accumulate 2"),
    ],
)
def test_divide__says_what_divides(num_processes, given, advice):
    with pytest.raises(UserError) as error:
        divide(FOUR, num_processes, OptimizationConfig(**{"accumulate": 2, **given}))
    assert advice in str(error.value)


def write_start(folder, *, begun=True, **start):
    folder.mkdir(exist_ok=True)
    written = {"optimization": {"batch_size": 3, "accumulate": 2}, "objective": {"bank_size": 40}}
    (folder / "config.json").write_text(json.dumps({"configuration": written, **start}))
    if begun:
        (folder / "student").mkdir()


def batches_of(folder, num_processes, *options, like=None):
    config = parse(["--data", "x", "--supervised", "--student", "flow_tiny3d_8", *map(str, options)])
    accelerator = SimpleNamespace(num_processes=num_processes, is_main_process=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "decide_on_first", lambda _, decide: decide())
        return fit_to_data(config, 100, RunFolder(folder), accelerator, like=like)


def test_resume__with_other_processes_keeps_the_start_in_its_configuration_and_says_what_changes(tmp_path, capsys):
    write_start(tmp_path / "run", num_processes=4)
    for options in ([], ["--batch-size", 3]):
        config, batches = batches_of(tmp_path / "run", 2, *options, "--accumulate", 2, "--resume")
        assert (config.optimization.batch_size, config.optimization.accumulate) == (3, 2)
        assert batches == Batches(BatchParts(4, 3, 2), BatchParts(2, 3, 4))
        told = " ".join(capsys.readouterr().out.split())
        assert "24 clips a step (4 processes x 3 x 2 batches), now as 2 processes x 3 x 4 batches" in told
        assert "dropout" in told and "batch statistics" in told
    assert batches_of(tmp_path / "run", 4, "--accumulate", 2, "--resume")[1].now == BatchParts(4, 3, 2)
    assert not capsys.readouterr().out


def test_resume__of_a_former_run_takes_the_processes_of_its_newest_checkpoint(tmp_path):
    write_start(tmp_path)
    Checkpoints(tmp_path / "checkpoints").save(7, {"generators": [{}, {}, {}, {}], "trainable": {}})
    assert batches_of(tmp_path, 2, "--accumulate", 2, "--resume")[1] == Batches(FOUR, BatchParts(2, 3, 4))


def test_resume__before_the_first_checkpoint_keeps_the_global_batch_but_not_against_other_options(tmp_path):
    write_start(tmp_path / "run", begun=False, num_processes=4)
    assert batches_of(tmp_path / "run", 2, "--accumulate", 2, "--resume")[1].now == BatchParts(2, 3, 4)
    new = BatchParts(2, 5, 1)  # for example because the first batch did not fit into memory
    assert batches_of(tmp_path / "run", 2, "--batch-size", 5, "--resume")[1] == Batches(new, new)


def test_part_of_a_run__has_the_batches_of_the_run(tmp_path):
    """A teacher that is trained first, or the next round, begins when other processes have resumed the run."""
    like = Batches(FOUR, BatchParts(2, 6, 2))
    options = ["--batch-size", 3, "--accumulate", 2, "--resume"]
    assert batches_of(tmp_path / "new", 2, *options, like=like)[1] == like
    write_start(tmp_path / "own", num_processes=1)  # another run has begun to train this teacher
    assert batches_of(tmp_path / "own", 2, *options, like=like)[1] == Batches(BatchParts(1, 3, 2), BatchParts(2, 3, 1))


def test_bank__is_no_larger_than_the_run_can_fill():
    config, _ = fitted("--bank-size", 128_000, "--batch-size", 8, "--epochs", 3, "--accumulate", 2)

    def size(num_clips, num_processes):
        parts = BatchParts(num_processes, 8, 2)
        return fillable_bank_size(config, num_clips, Batches(parts, parts))

    # 7 batches an epoch, 21 in all, of which 20 make 10 steps; of 4 processes 1, 3 and 2.
    assert size(62, 1) == 10 * 2 * 8
    assert size(62, 4) == 1 * 2 * 8 * 4
    assert size(1_000_000, 1) == 128_000


@pytest.fixture(scope="module")
def small_run(toy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    options = ["--teacher", "self", "--student", "depth_tiny3d_8", "--student-frames", 4, "--student-size", 16]
    options += ["--objective", "compress-2q-live", "--data", toy_folder, "--epochs", 1, "--workers", 0]
    options += ["--tracker", "none", "--knn-clips", 0, "--out", folder]
    train([*options, "--no-evaluate"])
    return options, folder


def test_run__without_sizes_trains_on_a_small_dataset_and_leaves_a_small_checkpoint(small_run):
    _, folder = small_run
    configuration = json.loads((folder / "config.json").read_text())["configuration"]
    assert configuration["optimization"]["batch_size"] == 16 and configuration["objective"]["bank_size"] <= 48
    (checkpoint,) = (folder / "checkpoints").iterdir()
    student = folder / "student" / "student.safetensors"
    assert checkpoint.stat().st_size < student.stat().st_size + 30_000


def test_run__that_has_ended_is_evaluated_again_with_resume(small_run):
    options, folder = small_run
    student = folder / "student" / "student.safetensors"
    expected = load_file(student)
    student.unlink()
    train([*options, "--resume"])
    assert all(torch.equal(value, expected[name]) for name, value in load_file(student).items())
    assert (folder / "results.json").is_file()


def test_run__says_that_its_bank_is_lowered_and_refuses_a_batch_that_does_not_fit(small_run, tmp_path, capsys):
    options = [*small_run[0], "--out", tmp_path / "run", "--no-evaluate"]
    train([*options, "--bank-size", 128_000])
    told = " ".join(capsys.readouterr().out.split())
    assert "clips in all: its memory bank has room for so many, and not for 128000 (--bank-size" in told
    with pytest.raises(SystemExit):
        train([*options, "--out", tmp_path / "other", "--batch-size", 256])
    assert "a batch of 256 on 1 process(es) needs 256 clips, but the data has" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b'{"configuration": {', b'{"configuration": "\xff"}'])
def test_damaged_configuration_of_a_run__is_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged \(.*\): bring it back from a copy"):
        sizes.Start.of(RunFolder(tmp_path))


def test_divide__the_guides_batch_fits_one_to_four_machines():
    """192 for each of eight processes of a machine, as in docs/how_to/many_gpus.md."""
    for begun in (1, 2, 3, 4):
        for now in (1, 2, 3, 4):
            parts = divide(BatchParts(8 * begun, 192), 8 * now, OptimizationConfig(batch_size=192))
            assert 8 * now * parts.batch_size * parts.accumulate == 8 * begun * 192
