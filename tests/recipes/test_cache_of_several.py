"""Caches of several teachers, with tokens and logits, in int8; their estimate, their verification, their refusals."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from in_process import cache as cache_command
from in_process import train as train_command
from killing import kill_tree
from safetensors.torch import load_file, save_file

from crossdistill.data.clip_reader import ReadingPlan
from crossdistill.distillation.cache_folders import open_caches
from crossdistill.distillation.cache_shards import STORAGE, Shard, cosines, decode, encode
from crossdistill.distillation.heads import GridResampler
from crossdistill.distillation.teacher_cache import TeacherCache
from crossdistill.encoders import create_encoder
from crossdistill.encoders.tokens import pool_tokens
from crossdistill.errors import UserError
from crossdistill.objectives import time_relations_loss
from data_prep.__main__ import main as data_prep

PROJECT = Path(__file__).resolve().parents[2]
STUDENT = ["--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 32]
# Their grids of tokens are 1x2x2; the second one sees fewer frames.
TEACHERS = ["--teacher", "rgb_tiny3d_8", "depth_tiny3d_8", "--teacher-frames", 4, 2, "--teacher-size", 32]
TRAINING = [
    *("--epochs", 1, "--batch-size", 8, "--bank-size", 24, "--workers", 0, "--tracker", "none", "--no-evaluate"),
    *("--knn-clips", 0, "--log-every-steps", 1, "--precision", "fp32", "--lr", 0.002),
]
NUM_CLIPS, NUM_AUGMENTATIONS = 36, 2


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(folder, data, *options):
    train_command([*TRAINING, *STUDENT, "--data", data, "--out", folder, *options])
    return losses(folder)


def cache_options(folder, data, *options):
    own = ["--augmentations", NUM_AUGMENTATIONS, "--clips-per-shard", 20, "--embed-batch-size", 8, "--out", folder]
    return [str(each) for each in [*STUDENT, "--data", data, "--workers", 0, "--precision", "fp32", *own, *options]]


def make_cache(folder, data, *options):
    cache_command(cache_options(folder, data, *options))
    return folder


def refused(capsys, command, *options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command(options)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and len(error.strip().splitlines()) == 1, error
    return error


def rows_of(features):
    return {"features": features[:, None]}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    files = []
    for seed, name in enumerate(("rgb_tiny3d_8", "depth_tiny3d_8")):
        torch.manual_seed(seed)
        files.append(tmp_path_factory.mktemp("weights") / f"{name}.safetensors")
        save_file(create_encoder(name).body.state_dict(), files[-1])
    return [*TEACHERS, "--teacher-weights", *files]


@pytest.fixture(scope="module")
def cache_folder(data_folder, teachers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "several"
    return make_cache(folder, data_folder, *teachers, "--dtype", "fp32", "--tokens", "own")


@pytest.fixture(scope="module")
def small_folder(data_folder, teachers, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache") / "int8", data_folder, *teachers, "--dtype", "int8")


# The strong tests: training from the cache is training with the teachers.


@pytest.mark.parametrize(
    "options",
    [
        ["--objective", "simreg", "rkd", "--standardize", "phi-s", "--teacher-drop", 0.5],
        ["--objective", "mse", "--standardize", "mean-variance"],
        ["--objective", "token-matching", "token-relations", "attention-transfer", "simreg"],
    ],
)
def test_training__with_a_cache_of_several_is_training_with_them(
    data_folder, teachers, cache_folder, tmp_path, options
):
    expected = train(tmp_path / "live", data_folder, *teachers, *options)
    found = train(tmp_path / "cached", data_folder, "--teacher-cache", cache_folder, *options)
    assert len(found) >= 4 and found == pytest.approx(expected, rel=1e-3)
    assert max(found) - min(found) > 1e-3
    facts = json.loads((tmp_path / "cached" / "student" / "student.json").read_text())["training"]
    assert facts["teacher"] == "rgb_tiny3d_8 and depth_tiny3d_8" and facts["num_unreadable"] == 1
    assert [each["num_frames"] for each in facts["teachers"]] == [4, 2]


def test_standardize__from_a_cache_has_the_maps_of_the_live_teachers(data_folder, teachers, cache_folder, tmp_path):
    options = ["--objective", "mse", "--standardize", "mean-variance"]
    train(tmp_path / "live", data_folder, *teachers, *options)
    train(tmp_path / "cached", data_folder, "--teacher-cache", cache_folder, *options)
    live, cached = (load_file(next((tmp_path / name).glob("standardize-*"))) for name in ("live", "cached"))
    assert live.keys() == cached.keys() == {"0.mean", "0.matrix", "1.mean", "1.matrix"}
    for name, values in live.items():
        torch.testing.assert_close(cached[name], values, rtol=1e-4, atol=1e-5)
    stored = open_caches(cache_folder)[1].read(torch.tensor([(i, 0) for i in range(NUM_CLIPS) if i != 3]))
    torch.testing.assert_close(cached["1.mean"], stored.mean(dim=0))


def test_training__with_one_teacher_by_name_keeps_the_clips_of_all(data_folder, cache_folder, tmp_path):
    options = ["--objective", "simreg"]
    by_name = train(
        tmp_path / "name", data_folder, "--teacher-cache", cache_folder, "--teacher", "depth_tiny3d_8", *options
    )
    by_folder = train(tmp_path / "folder", data_folder, "--teacher-cache", cache_folder / "teacher-2", *options)
    assert by_name == by_folder
    facts = json.loads((tmp_path / "name" / "student" / "student.json").read_text())["training"]
    # The lost colour keeps its clip from the depth teacher too, as where both teach.
    assert facts["teacher"] == "depth_tiny3d_8" and facts["num_unreadable"] == 1
    assert by_name != train(
        tmp_path / "first", data_folder, "--teacher-cache", cache_folder, "--teacher", "rgb_tiny3d_8", *options
    )


def test_training__with_int8_is_close(data_folder, teachers, small_folder, tmp_path):
    options = ["--objective", "simreg"]
    expected = train(tmp_path / "live", data_folder, *teachers, *options)
    found = train(tmp_path / "cached", data_folder, "--teacher-cache", small_folder, *options)
    assert found == pytest.approx(expected, abs=5e-3) and found != expected


def test_training__with_pooled_tokens_compares_them_on_the_pooled_grid(data_folder, teachers, tmp_path, monkeypatch):
    """The live twin pools what it computes."""
    folder = make_cache(tmp_path / "cache", data_folder, *teachers, "--dtype", "fp32", "--tokens", "1x1x2")
    options = ["--objective", "token-relations", "simreg"]
    found = train(tmp_path / "cached", data_folder, "--teacher-cache", folder, *options)
    full = train(tmp_path / "full", data_folder, *teachers, *options)

    def halves(tokens, grid):
        return tokens.unflatten(3, (1, 2)).mean(dim=4).unflatten(4, (2, -1)).mean(dim=5)

    class Pooled(torch.nn.Module):
        def __init__(self, grid, pooled_from=None):
            super().__init__()
            self.grid = grid

        def forward(self, tokens):
            return halves(torch.nn.functional.interpolate(tokens, size=self.grid, mode="trilinear"), None)

    from crossdistill.distillation.teachers import FrozenTeacher

    embed = FrozenTeacher.embed
    monkeypatch.setattr("crossdistill.distillation.heads.GridResampler", Pooled)

    def pooled(self, batch, *, with_tokens=False):
        targets = embed(self, batch, with_tokens=with_tokens)
        return {**targets, "tokens": halves(targets["tokens"], None)} if with_tokens else targets

    monkeypatch.setattr(FrozenTeacher, "embed", pooled)
    expected = train(tmp_path / "live", data_folder, *teachers, *options)
    assert found == pytest.approx(expected, rel=1e-3) and found != pytest.approx(full, rel=1e-3)


def test_training__with_the_logits_of_folds_is_training_with_the_networks_of_folds(
    toy_folder, fold_teachers, tmp_path, capsys
):
    view = ["--teacher-frames", 4, "--teacher-size", 16]
    pair = ["--teacher", "rgb_tiny3d_8", *view, "--teacher-weights", *fold_teachers, "--folds", 2]
    options = ["--objective", "kd", "dkd", "dist"]
    folder = make_cache(tmp_path / "cache", toy_folder, *pair, "--dtype", "fp32", "--logits")
    expected = train(tmp_path / "live", toy_folder, *pair, *options)
    assert train(tmp_path / "cached", toy_folder, "--teacher-cache", folder, *options) == pytest.approx(
        expected, rel=1e-3
    )
    without = make_cache(tmp_path / "without", toy_folder, *pair)
    error = refused(
        capsys, train_command, *TRAINING, *STUDENT, "--data", toy_folder, "--teacher-cache", without, *options
    )
    assert "of folds holds none: make it with --logits" in error


# The command.


def test_command__decodes_each_clip_once(data_folder, teachers, tmp_path, monkeypatch):
    read, num_reads = ReadingPlan.read, []
    monkeypatch.setattr(ReadingPlan, "read", lambda plan: num_reads.append(len(plan.crops)) or read(plan))
    folder = make_cache(tmp_path / "cache", data_folder, *teachers)
    assert len(num_reads) == NUM_CLIPS * NUM_AUGMENTATIONS and set(num_reads) == {3}
    caches = open_caches(folder)
    assert [cache.key["teacher"] for cache in caches] == ["rgb_tiny3d_8", "depth_tiny3d_8"]
    assert all(set(cache.unreadable()) == {(3, 0), (3, 1)} and not cache.missing() for cache in caches)


def test_command__embeds_only_what_is_missing(data_folder, teachers, small_folder, tmp_path, monkeypatch, capsys):
    """A command that was killed between the files of two teachers."""
    folder = Path(shutil.copytree(small_folder, tmp_path / "cache"))
    lost = [
        folder / "teacher-1" / "shards" / Shard(1, 20, 36).name,
        folder / "teacher-2" / "shards" / Shard(0, 0, 20).name,
    ]
    kept = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    written, write = [], TeacherCache.write
    monkeypatch.setattr(
        TeacherCache,
        "write",
        lambda self, shard, *rest: written.append((self.folder.name, shard)) or write(self, shard, *rest),
    )
    make_cache(folder, data_folder, *teachers, "--dtype", "int8")
    assert written == [("teacher-2", Shard(0, 0, 20)), ("teacher-1", Shard(1, 20, 36))]
    assert [path.read_bytes() for path in lost] == kept
    assert "2 are finished, 36 clips" in " ".join(capsys.readouterr().out.split())


def test_command__killed_on_two_processes_is_continued(data_folder, teachers, small_folder, tmp_path):
    folder = tmp_path / "cache"
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    launcher += ["--rdzv_endpoint", "localhost:0", "-m", "crossdistill", "cache"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            *launcher,
            *cache_options(folder, data_folder, *teachers, "--dtype", "int8"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(folder.glob("teacher-1/shards/view-*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.001)
    kill_tree(process)
    make_cache(folder, data_folder, *teachers, "--dtype", "int8")
    keys = torch.tensor([(i, a) for a in range(NUM_AUGMENTATIONS) for i in range(NUM_CLIPS) if i != 3])
    for one, other in zip(open_caches(folder), open_caches(small_folder), strict=True):
        assert cosines(one.read(keys), other.read(keys)).min() > 0.9999
        assert one.unreadable().keys() == other.unreadable().keys()


def test_estimate__says_the_size_and_writes_nothing(data_folder, teachers, cache_folder, tmp_path, capsys):
    folder = tmp_path / "cache"
    options = [*teachers, "--dtype", "fp32", "--tokens", "own", "--estimate"]
    make_cache(folder, data_folder, *options)
    said = " ".join(capsys.readouterr().out.split())
    assert not folder.exists()
    num_bytes = sum(cache.bytes_per_clip for cache in open_caches(cache_folder)) * NUM_CLIPS * NUM_AUGMENTATIONS
    assert num_bytes == 2 * NUM_CLIPS * NUM_AUGMENTATIONS * (256 + 4 * 64) * 4
    assert f"{num_bytes / 1000:.3g} KB in 4 shards of each; 0 are finished" in said
    rate = float(re.search(r"at (\S+) clips/s, measured on (\d+) clips", said)[1])
    seconds = float(re.search(r"about (\S+) seconds", said)[1])
    assert seconds == pytest.approx(NUM_CLIPS * NUM_AUGMENTATIONS / rate, rel=0.02)
    one = ["--teacher", "rgb_tiny3d_8", *TEACHERS[3:4], 4, *TEACHERS[-2:], "--teacher-weights", teachers[-2]]
    assert "is of 2 teachers" in refused(
        capsys, cache_command, *cache_options(cache_folder, data_folder, *one, "--estimate")
    )
    make_cache(cache_folder, data_folder, *options)
    assert "4 are finished, 0 clips (0 B) are left" in " ".join(capsys.readouterr().out.split())


def test_int8__says_the_cosine_that_it_keeps(data_folder, cache_folder, small_folder):
    keys = torch.tensor([(i, a) for a in range(NUM_AUGMENTATIONS) for i in range(NUM_CLIPS) if i != 3])
    for small, whole in zip(open_caches(small_folder), open_caches(cache_folder), strict=True):
        measured = cosines(small.read(keys), whole.read(keys))
        said = json.loads((small.folder / "cache.json").read_text())["cosines"]["features"]
        assert said["num_rows"] == len(keys)
        assert said["min"] == pytest.approx(float(measured.min()), abs=1e-6)
        assert said["mean"] == pytest.approx(float(measured.mean()), abs=1e-6)
        assert 0.999 < said["min"] < 0.999999
        assert small.bytes_per_clip == 256 + 4


def test_cache__of_packed_data_is_that_of_loose_files(toy_folder, teachers, tmp_path):
    packed = tmp_path / "packed"
    data_prep(["pack", str(toy_folder), "--out", str(packed), "--shard-size", "200KB"])
    loose = make_cache(tmp_path / "loose", toy_folder, *teachers)
    other = make_cache(tmp_path / "cache", packed, *teachers)
    for one, two in zip(open_caches(loose), open_caches(other), strict=True):
        assert one.key == two.key
        for shard in one.shards():
            assert one.path(shard).read_bytes() == two.path(shard).read_bytes()
    options = ["--objective", "simreg"]
    assert train(tmp_path / "a", toy_folder, "--teacher-cache", other, *options) == train(
        tmp_path / "b", packed, "--teacher-cache", loose, *options
    )


# Verification.


def verify(folder, data, *options):
    cache_command(["verify", folder, "--data", data, "--workers", 0, "--clips", 12, *options])


def test_verify__compares_every_part_of_every_teacher(data_folder, cache_folder, small_folder, capsys):
    verify(cache_folder, data_folder)
    said = " ".join(capsys.readouterr().out.split())
    assert f"8 shards of {cache_folder} are as they were written" in said
    found = [float(each) for each in re.findall(r"at least ([01]\.\d+)", said)]
    assert len(found) == 4 and min(found) > 0.99999 and said.count("tokens of") == 2
    verify(small_folder, data_folder)
    found = [float(each) for each in re.findall(r"at least ([01]\.\d+)", " ".join(capsys.readouterr().out.split()))]
    assert len(found) == 2 and 0.999 < min(found) < 0.999999


def test_verify__finds_what_was_changed(data_folder, small_folder, tmp_path, capsys):
    folder = Path(shutil.copytree(small_folder, tmp_path / "cache"))
    options = ["verify", folder, "--data", data_folder, "--workers", 0]
    shard = sorted((folder / "teacher-2" / "shards").iterdir())[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"{shard} has been changed since it was written" in refused(capsys, cache_command, *options)
    shard.write_bytes(whole[:-1])
    assert "is not an intact shard: delete it" in refused(capsys, cache_command, *options)
    shard.unlink()
    assert "lacks 1 of its 4 shards" in refused(capsys, cache_command, *options)
    cache = open_caches(folder)[1]
    cache.write(Shard(0, 20, 36), rows_of(torch.randn(16, 256)), {})
    assert "which is below 0.99: make the cache again" in refused(capsys, cache_command, *options, "--clips", 72)
    options[1] = folder / "teacher-1"
    error = refused(capsys, cache_command, *options)
    assert f"one of 2 teachers that were cached together: give the folder of the whole cache, {folder}" in error


# Refusals, in one sentence each.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher", "rgb_r3d10"], "holds rgb_tiny3d_8, depth_tiny3d_8, and not rgb_r3d10"),
        (["--teacher", "rgb_tiny3d_8", "rgb_tiny3d_8"], "names a teacher of"),
        (["--objective", "token-matching"], "holds none: make it with --tokens"),
        (["--student-frames", 5], "has student_view.num_frames 4, but this run needs 5"),
        (["--teacher", "depth_tiny3d_8", "--teacher-size", 64], "has teacher_view.size_px 32, but this run needs 64"),
        (["--seed", 3, "--split", "2"], "has split '1', but this run needs '2'"),
    ],
)
def test_training__refuses_another_cache(data_folder, small_folder, tmp_path, capsys, options, said):
    run = [*TRAINING, *STUDENT, "--data", data_folder, "--out", tmp_path / "run", "--teacher-cache", small_folder]
    assert said in refused(capsys, train_command, *run, *options)


def test_command__refuses_other_teachers_parts_and_views(data_folder, teachers, small_folder, tmp_path, capsys):
    one = ["--teacher", "rgb_tiny3d_8", "--teacher-frames", 4, "--teacher-size", 32, *teachers[-3:-1]]
    for folder, options, said in (
        (small_folder, [*one, "--dtype", "int8"], "is of 2 teachers"),
        (small_folder, [*teachers, "--dtype", "int8", "--tokens", "own"], "has tokens None, but this command needs"),
        (small_folder, teachers, "has dtype 'int8', but this command needs 'fp16'"),
        (small_folder, [*teachers, "--dtype", "int8", "--teacher-frames", 4, 3], "has teacher_views [{"),
        (tmp_path / "new", [*teachers, "--tokens", "1x4x4"], "--tokens 1x4x4 is finer than the tokens of rgb_tiny3d_8"),
        (tmp_path / "new", [*teachers, "--tokens", "4"], "give times x rows x columns"),
        (tmp_path / "new", [*teachers, "--logits"], "came without one: remove --logits"),
    ):
        said_now = refused(capsys, cache_command, *cache_options(folder, data_folder, *options))
        assert said in said_now, said_now
    assert not (tmp_path / "new").exists()


def test_caches__that_were_not_made_together_are_refused(small_folder, tmp_path):
    folder = Path(shutil.copytree(small_folder, tmp_path / "cache"))
    path = folder / "teacher-2" / "cache.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "num_views": 3}))
    with pytest.raises(UserError, match="has 3 augmentations and teacher-1 has 2"):
        open_caches(folder)
    path.write_text(json.dumps({**content, "key": {**content["key"], "content": "another"}}))
    with pytest.raises(UserError, match="has content 'another', but teacher-1 beside it needs"):
        open_caches(folder)
    path.write_text(json.dumps({**content, "key": {**content["key"], "dtype": "int3"}}))
    with pytest.raises(UserError, match=r"cache\.json is damaged"):
        open_caches(folder)
    with pytest.raises(UserError, match="is of 2 teachers: give"):
        TeacherCache(folder)


# Parts.


def test_time_relations__of_tokens_pooled_over_space_are_those_of_all_tokens():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 6, 3, 2, 2)
    whole = time_relations_loss(student=GridResampler((3, 2, 2))(student), teacher=teacher, temperature=0.07)
    resample = GridResampler((3, 1, 1), pooled_from=(3, 2, 2))
    pooled = time_relations_loss(student=resample(student), teacher=pool_tokens(teacher, (3, 1, 1)), temperature=0.07)
    torch.testing.assert_close(pooled, whole)
    other = GridResampler((3, 1, 1))(student)  # the middle of the picture is not its mean
    assert not torch.allclose(other, resample(student), atol=1e-3)


def test_int8__is_the_nearest_of_127_steps_on_each_side():
    torch.manual_seed(0)
    rows = torch.randn(3, 4, 16) * torch.logspace(-3, 3, 12).reshape(3, 4, 1)
    rows[1, 2] = 0
    values, scales = encode(rows, STORAGE["int8"])
    assert values.dtype == torch.int8 and scales.shape == (3, 4)
    found = decode(values, scales)
    for clip, row in ((c, r) for c in range(3) for r in range(4)):
        largest = max(abs(float(value)) for value in rows[clip, row])
        for value, kept in zip(rows[clip, row].tolist(), found[clip, row].tolist(), strict=True):
            nearest = min((step * largest / 127 for step in range(-127, 128)), key=lambda step: abs(step - value))
            assert kept == pytest.approx(nearest, rel=1e-5, abs=1e-12)


def test_write__refuses_a_row_whose_direction_int8_loses(tmp_path, small_folder):
    cache = open_caches(small_folder)[0]
    cache = TeacherCache.planned(tmp_path, {**cache.key, "embed_dim": 4096}, num_augmentations=1)
    rows = torch.ones(20, 4096)
    rows[3, 0] = 260.0  # of the others nothing is left
    with pytest.raises(UserError, match=r"int8 does not keep .* \(cosine 0\.\d+, allowed 0.99\).*choose --dtype fp16"):
        cache.write(Shard(0, 0, 20), rows_of(rows), {})
