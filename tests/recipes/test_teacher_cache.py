"""Embeddings that are kept: training with them is training with the teacher, without it."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from in_process import cache as cache_command
from in_process import train as train_command
from killing import kill_tree
from safetensors.torch import save_file

from crossdistill import encoders
from crossdistill.data.dataset import PairedClips, Replay, collate, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import Augmentation
from crossdistill.distillation.cache_folders import create_caches
from crossdistill.distillation.cache_shards import Shard
from crossdistill.distillation.student import load_student
from crossdistill.distillation.teacher_cache import TeacherCache, spread
from crossdistill.distillation.teachers import CachedTeacher
from crossdistill.encoders import create_encoder, wrap_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.recipes.recorded_teachers import recorded_teachers
from crossdistill.report.networks import load_teachers
from crossdistill.report.options import ReportOptions
from crossdistill.report.record import read_run
from crossdistill.types import PairedBatch, View

PROJECT = Path(__file__).resolve().parents[2]
TEACHER_VIEW = ["--teacher-frames", 4, "--teacher-size", 32]
STUDENT_VIEW = ["--student-frames", 4]
TRAINING = [
    *(*STUDENT_VIEW, "--student-size", 32, "--batch-size", 8, "--bank-size", 24, "--workers", 0, "--tracker", "none"),
    *("--no-evaluate", "--knn-clips", 0, "--log-every-steps", 1, "--precision", "fp32", "--lr", 0.002),
]
NUM_VIEWS = 2


def strings(*options):
    return [str(option) for option in options]


def make_cache(folder, data, teacher_file, *options, teacher="rgb_r3d10_gn", student="flow_r3d10_gn"):
    pair = ["--teacher", teacher, "--teacher-weights", teacher_file, "--student", student, *TEACHER_VIEW, *STUDENT_VIEW]
    rest = ["--data", data, "--out", folder, "--workers", 0, "--embed-batch-size", 8, "--precision", "fp32", *options]
    cache_command(strings(*pair, "--augmentations", NUM_VIEWS, "--clips-per-shard", 20, *rest))
    return folder


def train(folder, data, *options, student="flow_r3d10_gn", epochs=2):
    train_command(
        strings(*TRAINING, "--student", student, "--data", data, "--epochs", epochs, "--out", folder, *options)
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def live(teacher_file, teacher="rgb_r3d10_gn"):
    return ["--teacher", teacher, "--teacher-weights", teacher_file, *TEACHER_VIEW]


def cached(folder):
    return ["--teacher-cache", folder]


def rows_of(features):
    return {"features": features[:, None]}


def refused(capsys, command, *options):
    with pytest.raises(SystemExit) as stopped:
        command(strings(*options))
    out, error = capsys.readouterr()
    assert stopped.value.code == 2 and len(error.strip().splitlines()) == 1, error
    assert "the run is kept in" not in out  # what is refused says nothing of a run
    return error


@pytest.fixture(scope="module")
def cache_folder(data_folder, teacher_file, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache") / "fp32", data_folder, teacher_file, "--dtype", "fp32")


@pytest.fixture(scope="module")
def live_losses(data_folder, teacher_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live") / "run"
    return train(folder, data_folder, *live(teacher_file), "--objective", "compress-2q", "simreg:0.5")


# The strong tests: the same losses, step by step.


def test_training__with_a_cache_is_training_with_the_teacher(
    data_folder, cache_folder, live_losses, tmp_path, monkeypatch
):
    """Other modalities, an unreadable video of the teacher's, a trained head: and no file of the teacher is left."""
    data = tmp_path / "data"
    shutil.copytree(data_folder, data, ignore=shutil.ignore_patterns("rgb"))
    created = []
    original = encoders.create_encoder
    monkeypatch.setattr(
        "crossdistill.recipes.weights.create_encoder", lambda name, **o: created.append(name) or original(name, **o)
    )
    options = [*cached(cache_folder), "--objective", "compress-2q", "simreg:0.5"]
    losses = train(tmp_path / "run", data, *options)
    assert len(losses) >= 8 and losses == pytest.approx(live_losses, abs=1e-5)
    assert max(losses) - min(losses) > 0.01
    assert set(created) == {"flow_r3d10_gn"}, "the teacher was built"
    facts = json.loads((tmp_path / "run" / "student" / "student.json").read_text())["training"]
    assert facts["teacher"] == "rgb_r3d10_gn" and facts["num_unreadable"] == 1
    assert len(facts["teacher_weights_sha256"]) == 16


def test_training__with_a_cache_has_the_running_statistics_of_training_with_the_teacher(
    data_folder, cache_folder, teacher_file, tmp_path
):
    options = ["--objective", "unic", "--standardize", "running"]
    expected = train(tmp_path / "live", data_folder, *live(teacher_file), *options)
    losses = train(tmp_path / "cached", data_folder, *cached(cache_folder), *options)
    assert len(losses) >= 8 and losses == pytest.approx(expected, abs=1e-4)
    raw = train(
        tmp_path / "raw", data_folder, *cached(cache_folder), "--objective", "unic", "--standardize", "none", epochs=1
    )
    assert abs(raw[0] - losses[0]) > 0.05


@pytest.fixture(scope="module")
def half_folder(data_folder, teacher_file, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache") / "fp16", data_folder, teacher_file)


def test_training__with_fp16_is_close(data_folder, half_folder, live_losses, tmp_path):
    """In the first steps; later ones amplify whatever differs, as they do the rounding of other kernels."""
    options = ["--objective", "compress-2q", "simreg:0.5"]
    losses = train(tmp_path / "run", data_folder, *cached(half_folder), *options, epochs=1)
    assert losses[:3] == pytest.approx(live_losses[:3], abs=1e-3) and losses[:3] != live_losses[:3]


def test_training__resumes_with_its_cache(data_folder, cache_folder, live_losses, tmp_path, monkeypatch):
    """Killed in the second view, resumed, and every loss is that of the live run."""
    options = [*cached(cache_folder), "--objective", "compress-2q", "simreg:0.5", "--checkpoint-every-steps", 2]
    read, calls = TeacherCache.read, []

    def read_until_killed(self, keys):
        calls.append(keys)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return read(self, keys)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(TeacherCache, "read", read_until_killed)
        train(tmp_path / "run", data_folder, *options)
    assert {view for keys in calls for _, view in keys.tolist()} == {0, 1}
    losses = train(tmp_path / "run", data_folder, *options, "--resume")
    assert losses == pytest.approx(live_losses, abs=1e-5)


def test_training__image_teacher_and_depth_student(data_folder, tmp_path):
    torch.manual_seed(1)
    weights = tmp_path / "image.safetensors"
    save_file(create_encoder("image_squeezenet1_0").body.state_dict(), weights)
    pair = {"teacher": "image_squeezenet1_0", "student": "depth_r3d10_gn"}
    view = ["--teacher-frames", 2, "--teacher-size", 32]
    folder = make_cache(tmp_path / "cache", data_folder, weights, "--dtype", "fp32", "--teacher-frames", 2, **pair)
    options = ["--objective", "compress-1q", "--seed", 0]
    teacher = ["--teacher", pair["teacher"], "--teacher-weights", weights, *view]
    expected = train(tmp_path / "live", data_folder, *teacher, *options, student=pair["student"], epochs=1)
    losses = train(tmp_path / "run", data_folder, *cached(folder), *options, student=pair["student"], epochs=1)
    assert losses == pytest.approx(expected, abs=1e-5) and max(losses) > 0.01


# Replay.


def paired(folder, **options):
    manifest = Manifest.load(folder)
    student, teacher = (create_encoder(name, num_frames=4, size_px=32).view for name in ("flow_r3d10", "rgb_r3d10"))
    return PairedClips(
        entries_of(manifest, range(8)),
        student_view=student,
        teacher_views=[teacher],
        augmentation=Augmentation(),
        seed=3,
        replace_unreadable=True,
        **options,
    )


def test_replay__repeats_views_with_their_stand_ins(data_folder):
    clips = paired(data_folder)
    lost = [entry.key for entry in clips.entries if not (entry.root / entry.video.streams["rgb"].path).is_file()]
    position = {entry.key: i for i, entry in enumerate(clips.entries)}
    unreadable = {(position[key], view): "lost" for key in lost for view in range(3)}
    replayed = clips.replayed(Replay(seed=3, num_augmentations=3, unreadable=unreadable))
    for index in range(len(clips)):
        for epoch in (0, 2):
            live = clips[SampleKey(index, epoch)]
            for again in (epoch, epoch + 3):
                repeated = replayed[SampleKey(index, again)]
                assert repeated.views[1] is None and (repeated.index, repeated.epoch) == (live.index, epoch)
                assert torch.equal(repeated.views[0].values, live.views[0].values)
                assert [name for name, _ in repeated.unreadable] == [name for name, _ in live.unreadable]


def test_replay__a_stand_in_looks_as_it_does_in_its_own_place(data_folder, tmp_path):
    data = Path(shutil.copytree(data_folder, tmp_path / "data"))
    clips = paired(data)
    (data / clips.entries[2].video.streams["flow"].path).unlink()
    item = clips[SampleKey(2, 5)]
    own = clips[SampleKey(item.index, 5)]
    assert item.index != 2 and item.unreadable[0][0] == clips.entries[2].key
    for view, other in zip(item.views, own.views, strict=True):
        assert torch.equal(view.values, other.values)
    assert collate([item], num_items=1).sample_keys.tolist() == [[item.index, 5]]


def test_of_teacher__reads_the_teachers_view_alone(data_folder, tmp_path):
    data = Path(shutil.copytree(data_folder, tmp_path / "data", ignore=shutil.ignore_patterns("flow")))
    expected = paired(data_folder).read_batch([SampleKey(0, 1), SampleKey(1, 1)])
    batch = paired(data).of_teachers().read_batch([SampleKey(0, 1), SampleKey(1, 1)])
    assert torch.equal(batch.teachers[0].values, expected.teachers[0].values) and batch.student.values.numel() == 0


# The command.


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}


def test_shards__are_named_by_view_and_hold_rows(cache_folder):
    cache = TeacherCache(cache_folder)
    assert [shard.name for shard in cache.shards()] == sorted(shard_bytes(cache_folder))
    assert len(cache.shards()) == 4 and cache.missing() == []
    assert set(cache.unreadable()) == {(3, 0), (3, 1)}
    rows = cache.read(torch.tensor([[35, 1], [0, 0], [20, 1]]))
    assert rows.shape == (3, 128) and rows.isfinite().all() and rows.norm(dim=1).min() > 0
    assert not cache.read(torch.tensor([[3, 0]])).any(), "an unreadable clip has no embedding"


def test_command__resumes_an_interrupted_cache_and_adds_views(
    data_folder, teacher_file, half_folder, tmp_path, monkeypatch
):
    folder = Path(shutil.copytree(half_folder, tmp_path / "cache"))
    first = sorted((folder / "shards").iterdir())[0]
    first.unlink()
    (folder / "shards" / ".view-0000-000000000.safetensors.1.tmp").write_bytes(b"half")
    written = []
    write = TeacherCache.write
    monkeypatch.setattr(
        TeacherCache, "write", lambda self, shard, *rest: written.append(shard) or write(self, shard, *rest)
    )
    make_cache(folder, data_folder, teacher_file)
    assert written == [Shard(0, 0, 20)] and shard_bytes(folder) == shard_bytes(half_folder)
    make_cache(folder, data_folder, teacher_file)
    assert len(written) == 1
    make_cache(folder, data_folder, teacher_file, "--augmentations", 3)
    assert [shard.augmentation for shard in written[1:]] == [2, 2] and TeacherCache(folder).num_augmentations == 3


def test_command__killed_on_two_processes_leaves_whole_shards(data_folder, teacher_file, half_folder, tmp_path):
    folder = tmp_path / "cache"
    pair = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--student", "flow_r3d10_gn"]
    options = [*pair, *TEACHER_VIEW, *STUDENT_VIEW, "--data", data_folder, "--out", folder, "--workers", 0]
    options += ["--augmentations", NUM_VIEWS, "--clips-per-shard", 20, "--embed-batch-size", 8, "--precision", "fp32"]
    launcher = ["torch.distributed.run", "--nproc_per_node", 2, "--rdzv_backend", "c10d"]
    launcher += ["--rdzv_endpoint", "localhost:0", "-m", "crossdistill", "cache"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        strings(sys.executable, "-W", "ignore", "-m", *launcher, *options),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list((folder / "shards").glob("view-*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    kill_tree(process)
    finished = set(shard_bytes(folder)) & set(shard_bytes(half_folder))
    assert len(finished) > 0
    make_cache(folder, data_folder, teacher_file)
    made = shard_bytes(folder)
    assert made.keys() == shard_bytes(half_folder).keys()
    one, other = TeacherCache(folder), TeacherCache(half_folder)
    keys = torch.tensor([(i, v) for v in range(NUM_VIEWS) for i in range(36)])
    torch.testing.assert_close(one.read(keys), other.read(keys), atol=1e-3, rtol=1e-3)
    assert one.unreadable().keys() == other.unreadable().keys()


def test_command__without_room_changes_nothing(data_folder, teacher_file, cache_folder, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(cache_folder, tmp_path / "cache")
    description = (folder / "cache.json").read_bytes()
    monkeypatch.setattr("crossdistill.recipes.cache.shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    make_cache(folder, data_folder, teacher_file, "--dtype", "fp32")  # complete, so it needs no room
    capsys.readouterr()
    with pytest.raises(SystemExit):
        make_cache(folder, data_folder, teacher_file, "--dtype", "fp32", "--augmentations", 10**12)
    assert "and 0 B are free there: free space" in " ".join(capsys.readouterr().err.split())
    assert (folder / "cache.json").read_bytes() == description


def test_command__stops_where_too_much_is_unreadable(data_folder, teacher_file, tmp_path, capsys):
    data = Path(shutil.copytree(data_folder, tmp_path / "data", ignore=shutil.ignore_patterns("rgb")))
    with pytest.raises(SystemExit):
        make_cache(tmp_path / "cache", data, teacher_file)
    assert "20 of 20 clips could not be read" in capsys.readouterr().err
    assert not (tmp_path / "cache" / "shards").exists()


def test_verify__compares_with_the_live_teacher(data_folder, teacher_file, half_folder, tmp_path, capsys):
    options = ["verify", half_folder, "--data", data_folder, "--teacher-weights", teacher_file, "--workers", 0]
    cache_command(strings(*options, "--clips", 12))
    found = float(re.search(r"at least\s+([01]\.\d+)", capsys.readouterr().out)[1])
    assert 0.9999 <= found <= 1.00001
    spoilt = Path(shutil.copytree(half_folder, tmp_path / "cache"))
    cache = TeacherCache(spoilt)
    for shard in cache.shards():
        cache.write(shard, rows_of(torch.randn(shard.num_clips, cache.embed_dim)), {})
    options[1] = spoilt
    assert "below 0.9999" in refused(capsys, cache_command, *options)
    torch.manual_seed(9)
    save_file(create_encoder("rgb_r3d10_gn").body.state_dict(), tmp_path / "other.safetensors")
    options[5] = tmp_path / "other.safetensors"
    assert "has teacher_weights_sha256 " in refused(capsys, cache_command, *options)


def test_verify__takes_the_weights_of_the_cache(data_folder, half_folder, teacher_file, capsys):
    assert TeacherCache(half_folder).weights == (str(teacher_file),)
    cache_command(strings("verify", half_folder, "--data", data_folder, "--workers", 0, "--clips", 4))
    assert "4 clips" in capsys.readouterr().out


def test_verify__runs_no_file_that_a_foreign_cache_names(data_folder, half_folder, tmp_path, capsys):
    foreign, ran = Path(shutil.copytree(half_folder, tmp_path / "cache")), tmp_path / "ran"
    code = tmp_path / "theirs.py"
    code.write_text(f"open({str(ran)!r}, 'w').close()\n")
    content = json.loads((foreign / "cache.json").read_text())
    content["key"]["teacher"] = f"{code}:make"
    (foreign / "cache.json").write_text(json.dumps(content))
    options = ["verify", foreign, "--data", data_folder, "--workers", 0]
    said = refused(capsys, cache_command, *options)
    assert f"is built by the Python file {code}:make" in said and "--allow-code" in said and not ran.exists()
    assert "has no function 'make'" in refused(capsys, cache_command, *options, "--allow-code") and ran.exists()


def test_training__records_the_weights_of_the_cache_and_says_its_precision(
    data_folder, half_folder, teacher_file, tmp_path, capsys
):
    cache = Path(shutil.copytree(half_folder, tmp_path / "cache"))
    content = json.loads((cache / "cache.json").read_text())
    content["key"]["precision"] = "bf16"
    (cache / "cache.json").write_text(json.dumps(content))
    run = tmp_path / "run"
    train(run, data_folder, *cached(cache), epochs=1)
    assert f"embeddings in {cache} were computed in bf16, and this run computes in fp32" in capsys.readouterr().out
    record = read_run(run)
    (teacher,) = recorded_teachers(record.training)
    assert teacher.weights == str(teacher_file) and teacher.num_frames == 4 and teacher.size_px == 32
    assert teacher.weights_sha256 == content["key"]["teacher_weights_sha256"] and record.teachers == "rgb_r3d10_gn"
    (network,) = load_teachers(record, load_student(run), None, ReportOptions())
    assert network.encoder.view.size_px == 32


def test_command__resumes_only_with_the_same_decoder(data_folder, teacher_file, half_folder, capsys):
    with pytest.raises(SystemExit):
        make_cache(half_folder, data_folder, teacher_file, "--decoder", "decord")
    assert "has decoder 'pyav', but this command needs 'decord'" in capsys.readouterr().err


# Refusals, in one sentence each.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--student-frames", 5], "has student_view.num_frames 4, but this run needs 5"),
        (["--teacher", "rgb_r3d10"], "has teacher 'rgb_r3d10_gn', but this run needs 'rgb_r3d10'"),
        (["--teacher-size", 64], "has teacher_view.size_px 32, but this run needs 64"),
        (["--teacher-weights", "elsewhere"], "has teacher_weights '"),
        (["--crop-area-min", 0.5], "has crop_area_min 0.2, but this run needs 0.5"),
        (["--mirror", "no"], "has mirror True, but this run needs False"),
        (["--split", "2"], "has split '1', but this run needs '2'"),
        (["--objective", "token-matching"], "holds none: make it with --tokens"),
        (["--objective", "kd"], "came without a linear classifier"),
        (["--supervised"], "remove one of them"),
    ],
)
def test_training__refuses_another_cache(data_folder, cache_folder, tmp_path, capsys, options, said):
    run = ["--student", "flow_r3d10_gn", "--data", data_folder, "--out", tmp_path / "run", *cached(cache_folder)]
    assert said in refused(capsys, train_command, *TRAINING, *run, *options)
    assert not (tmp_path / "run").exists()


def test_training__refuses_other_data_and_incomplete_caches(data_folder, cache_folder, tmp_path, capsys):
    data = Path(shutil.copytree(data_folder, tmp_path / "data", ignore=shutil.ignore_patterns("*.mp4", "*.mkv")))
    manifest = Manifest.load(data)
    video = manifest.videos[manifest.select(split="1", part="train")[0]]
    later = dataclasses.replace(video.streams["rgb"], pts=video.streams["rgb"].pts + 1)
    changed = dataclasses.replace(video, streams={**video.streams, "rgb": later})
    videos = tuple(changed if each.name == video.name else each for each in manifest.videos)
    dataclasses.replace(manifest, videos=videos).save()
    run = [*TRAINING, "--student", "flow_r3d10_gn", "--out", tmp_path / "run"]
    assert "has content '" in refused(capsys, train_command, *run, "--data", data, *cached(cache_folder))
    folder = Path(shutil.copytree(cache_folder, tmp_path / "cache"))
    shard = sorted((folder / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    run += ["--data", data_folder]
    assert "is not an intact shard" in refused(capsys, train_command, *run, *cached(folder))
    shard.unlink()
    assert "lacks 1 of its 4 shards" in refused(capsys, train_command, *run, *cached(folder))
    (folder / "cache.json").write_text("{}")
    assert "is damaged" in refused(capsys, train_command, *run, *cached(folder))
    assert "no teacher cache in" in refused(capsys, train_command, *run, *cached(tmp_path))


def test_command__refuses_another_folder(data_folder, cache_folder, teacher_file, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for folder, options, said in (
        (tmp_path, (), "holds something that is no teacher cache"),
        (cache_folder, ("--dtype", "fp32", "--seed", 4), "has seed 0, but this command needs 4"),
        (cache_folder, ("--dtype", "fp32", "--augmentations", 1), "has 2 augmentations, but this command wants 1"),
        (tmp_path / "new", ("--augmentations", 0), "--augmentations is 0: give 1 or more"),
        (tmp_path / "new", ("--teacher", "self"), "--teacher self changes during training"),
    ):
        with pytest.raises(SystemExit):
            make_cache(folder, data_folder, teacher_file, *options)
        assert said in capsys.readouterr().err


# Parts.


KEY = {"teacher": "rgb_x", "teacher_weights_sha256": "0", "embed_dim": 3, "seed": 0, "num_clips": 5}


def small_cache(folder, *, classes=None):
    encoder = wrap_encoder(torch.nn.Identity(), name="rgb_x", view=create_encoder("rgb_r3d10").view, embed_dim=3)
    encoder.classifier = classes
    key = {**KEY, "dtype": "fp16", "clips_per_shard": 2, "teacher_view": dataclasses.asdict(encoder.view)}
    create_caches(folder, [TeacherCache.planned(folder, key, num_augmentations=2)], [encoder.classifier])
    return TeacherCache(folder)


def test_rows__come_back_as_they_were_written(tmp_path):
    cache = small_cache(tmp_path)
    table = torch.randn(2, 5, 3)
    for shard in cache.shards():
        cache.write(shard, rows_of(table[shard.augmentation, shard.start : shard.stop]), {})
    keys = torch.tensor([[i, v] for i in range(5) for v in range(2)])
    assert torch.equal(cache.read(keys), table.half().float()[keys[:, 1], keys[:, 0]])


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (1e6, "embeddings that are NaN or infinite in fp16"),  # beyond 65504
        (1e-7, r"fp16 does not keep the direction .* \(cosine 0\.\d+, allowed 0.9999\)"),  # multiples of 6e-8
        (1e-9, r"fp16 does not keep the direction .* \(cosine 0\.0000, allowed 0.9999\)"),  # all zeros
    ],
)
def test_write__refuses_what_fp16_cannot_hold(tmp_path, scale, said):
    cache = small_cache(tmp_path)
    rows = torch.tensor([[1.0, 2.0, 3.0], [1.03, -2.01, 3.07]])
    rows[1] *= scale
    with pytest.raises(UserError, match=rf"{said} \(augmentation 0, samples 0 to 1\): choose --dtype fp32"):
        cache.write(Shard(0, 0, 2), rows_of(rows), {})
    assert len(cache.missing()) == len(cache.shards())


def test_write__takes_rows_of_any_size_that_fp16_holds(tmp_path):
    cache = small_cache(tmp_path)
    rows = torch.tensor([[2e4, -6e4, 1e4], [3e-3, 1e-2, -7e-3]])
    cache.write(Shard(0, 0, 2), rows_of(rows), {})
    cache.write(Shard(1, 0, 2), rows_of(torch.zeros(2, 3)), {1: "it could not be read"})
    torch.testing.assert_close(cache.read(torch.tensor([[0, 0], [1, 0]])), rows, rtol=1e-3, atol=0)


def test_cached_teacher__has_the_logits_of_its_classifier(tmp_path):
    layer = Classifier(torch.randn(4, 3), torch.randn(4))
    cache = small_cache(tmp_path, classes=layer)
    for shard in cache.shards():
        cache.write(shard, rows_of(torch.randn(shard.num_clips, 3)), {})
    keys = torch.tensor([[4, 1], [0, 0]])
    empty = View(torch.empty(0, dtype=torch.uint8), torch.empty(0))
    batch = PairedBatch(student=empty, teachers=(), sample_ids=keys[:, 0], labels=keys[:, 0], sample_keys=keys)
    outputs = CachedTeacher(TeacherCache(tmp_path), torch.device("cpu"), split="1").embed(batch)
    torch.testing.assert_close(outputs["logits"], outputs["features"] @ layer.weight.T + layer.bias)


def test_spread__draws_each_clip_once():
    shards = [Shard(0, 0, 4), Shard(0, 4, 5), Shard(1, 0, 4)]
    assert spread(shards, num_clips=99, seed=0) == [*((i, 0) for i in range(5)), *((i, 1) for i in range(4))]
    some = spread(shards, num_clips=5, seed=1)
    assert len(set(some)) == 5 and set(some) <= set(spread(shards, num_clips=99, seed=0))
