"""Preparing many videos: child processes that crash or hang, the journal, clusters, damaged files."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from killing import PATIENCE_SECONDS
from video_files import moving_frames, write_video

from crossdistill.data.decode import read_frames
from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.__main__ import main
from data_prep.pipeline import guard, jobs
from data_prep.pipeline.guard import stop_children
from data_prep.pipeline.jobs import Job, run_job
from data_prep.pipeline.journal import JOURNAL_NAME, JournalEntry, open_journal, read_journals
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.readers import Input
from data_prep.pipeline.shards import Shard
from data_prep.recipe import Outcome, Recipe

PROJECT_FOLDER = Path(__file__).resolve().parents[2]


def job(path: Path, root: Path, *, time_limit_seconds: float = 60.0) -> Job:
    return Job(
        name=path.stem,
        inputs={"rgb": Input(str(path))},
        stream_paths={"rgb": f"rgb/{path.stem}.mp4", "flow": f"flow/{path.stem}.mp4"},
        root=str(root),
        recipe=Recipe(short_side_px=256, flow_preset="medium"),
        time_limit_seconds=time_limit_seconds,
    )


@pytest.fixture(autouse=True)
def stop_all_children():
    yield
    stop_children()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Six small videos."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        write_video(folder / f"clip{i}.mp4", moving_frames(20 + i, seed=i), codec="libx264")
    return folder


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> Path:
    """A video that takes ten seconds to prepare."""
    frames = moving_frames(40, height=256, width=448)
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", np.tile(frames, (30, 1, 1, 1)), codec="libx264")


def prepare(folder: Path, out: Path, **changes) -> Manifest:
    sources = [SourceVideo(path.stem, {"rgb": path}) for path in sorted(folder.iterdir())]
    options = PrepareOptions(out=out, workers=2, max_bad=1.0, short_side_px=32)
    return prepare_videos("mine", sources, classes=(), options=dataclasses.replace(options, **changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# One job.


def test_run_job__time_limit_skips_the_video_and_the_next_one_is_prepared(long_video, videos, tmp_path):
    outcome = run_job(job(long_video, tmp_path, time_limit_seconds=0.5))
    assert (outcome.status, outcome.reason) == ("skipped", "time limit: took longer than 0.5 s")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "a killed job left files behind"
    assert run_job(job(videos / "clip0.mp4", tmp_path)).status == "ok"


def test_run_job__crash_skips_the_video_and_the_next_one_is_prepared(long_video, videos, tmp_path):
    def kill_when_busy() -> None:
        while not list(tmp_path.rglob("*.tmp")):
            time.sleep(0.01)
        os.kill(guard._all_guards[-1]._child.pid, signal.SIGSEGV)

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    outcome = run_job(job(long_video, tmp_path))
    killer.join()
    assert (outcome.status, outcome.reason) == ("skipped", "crashed: the decoder ended with SIGSEGV")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert run_job(job(videos / "clip1.mp4", tmp_path)).status == "ok"


def test_run_job__pipe_or_missing_file_is_skipped(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert run_job(job(tmp_path / "pipe.mp4", tmp_path)).reason == "no regular file"
    assert run_job(job(tmp_path / "gone.mp4", tmp_path)).status == "skipped"


# The journal.


def entry(name: str, *, version: int = 1, reason: str = "empty") -> JournalEntry:
    return JournalEntry(name, {"rgb": {"version": version}}, Outcome("skipped", reason))


def test_read_journals__incomplete_and_damaged_lines_are_ignored(tmp_path):
    with open_journal(tmp_path, None) as journal:
        for name in ("a", "b"):
            journal.append(entry(name))
    path = tmp_path / JOURNAL_NAME
    path.write_bytes(b"\xff\x00 damaged\n" + path.read_bytes() + b'{"name": "c", "keys": {"ver')
    assert set(read_journals(tmp_path)) == {"a", "b"}
    with open_journal(tmp_path, None) as journal:
        journal.append(entry("d"))
    assert set(read_journals(tmp_path)) == {"a", "b", "d"}


def test_read_journals__last_line_comes_first(tmp_path):
    with open_journal(tmp_path, None) as journal:
        journal.append(entry("a"))
        journal.append(entry("a", version=2, reason="too short: 3 frames"))
    assert read_journals(tmp_path)["a"] == [entry("a", version=2, reason="too short: 3 frames"), entry("a")]


def test_open_journal__second_run_is_refused_but_other_shards_are_not(tmp_path):
    with (
        open_journal(tmp_path, None),
        pytest.raises(UserError, match="another run is preparing"),
        open_journal(tmp_path, None),
    ):
        pass
    with open_journal(tmp_path, Shard(1, 2)), open_journal(tmp_path, Shard(2, 2)):
        pass


def test_open_journal__whose_holder_ends_meanwhile_is_locked_in_its_new_file(tmp_path, monkeypatch):
    """Between open and lock the holder removes the file; a lock on the removed one would keep nobody out."""
    lock = fcntl.flock

    def ends_first(file, flags):
        monkeypatch.setattr(fcntl, "flock", lock)
        Path(file.name).unlink()
        lock(file, flags)

    monkeypatch.setattr(fcntl, "flock", ends_first)
    with (
        open_journal(tmp_path, None),
        pytest.raises(UserError, match="another run is preparing"),
        open_journal(tmp_path, None),
    ):
        pass


@pytest.mark.parametrize(("folder", "said"), [("utd", "stop"), ("utd_depth", "status")])
def test_answer__a_forbidden_target_ends_the_run_and_a_forbidden_source_does_not(tmp_path, monkeypatch, folder, said):
    """The source is beside the target, in a folder whose name begins with the target's."""

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / folder / "clip1"))

    monkeypatch.setitem(jobs.MAKERS, Recipe, forbidden)
    assert said in jobs.answer(jobs._JOB.dump_python(job(tmp_path / "a.mp4", tmp_path / "utd"), mode="json"))


def test_prepare__skipped_files_are_tried_again_with_retry_or_a_new_source(videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "clip0.mp4").write_bytes(b"not a video")
    first = prepare(folder, tmp_path / "out")
    assert first.videos[0].reason.startswith("unreadable")
    facts = (folder / "clip0.mp4").stat()
    data = (videos / "clip0.mp4").read_bytes()
    (folder / "clip0.mp4").write_bytes(b"not a video".ljust(facts.st_size))
    os.utime(folder / "clip0.mp4", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    line = (tmp_path / "out" / JOURNAL_NAME).read_text()
    (tmp_path / "out" / JOURNAL_NAME).write_text(line.replace("unreadable", "marked"))
    assert prepare(folder, tmp_path / "out").videos[0].reason.startswith("marked"), "the file was tried again"
    assert prepare(folder, tmp_path / "out", retry=True).videos[0].reason.startswith("unreadable")
    (folder / "clip0.mp4").write_bytes(data)
    assert prepare(folder, tmp_path / "out").videos[0].status == "ok", "the new source was not tried"


def test_prepare__new_modality_keeps_the_finished_streams(videos, tmp_path):
    out = tmp_path / "out"
    prepare(videos, out, modalities=("rgb",))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.mp4")}
    manifest = prepare(videos, out, modalities=("flow",), flow="farneback")
    assert manifest.streams == ("flow", "rgb")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert Manifest.load(out).streams == ("flow", "rgb")


def test_prepare__journal_of_older_files_is_not_trusted(videos, tmp_path):
    """Prepare with options A, then B in shards, then A. The files are those of B, and the journal still has A."""
    out = tmp_path / "out"
    first = prepare(videos, out, short_side_px=32)
    for part in ("1/2", "2/2"):
        prepare(videos, out, short_side_px=24, shard=part, replace=True)
    again = prepare(videos, out, short_side_px=32, replace=True)
    assert [video.to_json() for video in again.videos] == [video.to_json() for video in first.videos]
    for video in again.videos:
        assert read_frames(out, video.streams["rgb"], [0]).shape == (1, 32, 42, 3)


def test_prepare__broken_links_are_skipped(videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "good.mp4").write_bytes((videos / "clip0.mp4").read_bytes())
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (folder / "self.mp4").symlink_to("self.mp4")
    arguments = ["folder", "--videos", str(folder), "--out", str(tmp_path / "out"), "--unlabelled", "--max-bad", "1"]
    main(arguments)
    found = {video.name: video.reason for video in Manifest.load(tmp_path / "out").videos}
    assert found == {"gone.mp4": "no regular file", "good.mp4": "", "self.mp4": "no regular file"}


def test_prepare__unknown_codec_is_the_reason(videos, tmp_path):
    folder = tmp_path / "videos"
    write_video(folder / "odd.avi", moving_frames(20))
    data = (folder / "odd.avi").read_bytes()
    (folder / "odd.avi").write_bytes(data.replace(b"FMP4", b"QQQQ").replace(b"XVID", b"QQQQ"))
    assert prepare(folder, tmp_path / "out").videos[0].reason.startswith("unreadable: has a codec")


@pytest.mark.parametrize("keep_original", [False, True])
@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "libx264"), (".webm", "libvpx")])
def test_prepare__cut_matroska_ends_early(tmp_path, suffix, codec, keep_original):
    """The header of Matroska declares the duration, not the number of frames."""
    folder = tmp_path / "videos"
    noise = np.random.default_rng(0).integers(0, 256, (100, 48, 64, 3), dtype=np.uint8)
    options = {"g": "10", "cluster_time_limit": "200"}
    path = write_video(folder / f"cut{suffix}", noise, codec=codec, options=options)
    whole = prepare(folder, tmp_path / "whole", keep_original=keep_original).videos[0]
    assert whole.status == "ok"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cut = prepare(folder, tmp_path / "cut", keep_original=keep_original).videos[0]
    assert cut.status == "repaired" and "ends early" in cut.reason


def test_prepare__out_inside_the_sources_is_refused(videos, tmp_path):
    with pytest.raises(SystemExit):
        main(["folder", "--unlabelled", "--videos", str(videos), "--out", str(videos / "out")])
    original = tmp_path / "data" / "rgb" / "a.mp4"
    original.parent.mkdir(parents=True)
    original.write_bytes((videos / "clip0.mp4").read_bytes())
    with pytest.raises(UserError, match="would be overwritten"):
        prepare(original.parent, tmp_path / "data")
    assert original.read_bytes() == (videos / "clip0.mp4").read_bytes()


# Options.


def test_keep_original__source_files_are_the_rgb_stream(videos, tmp_path):
    before = contents(videos)
    manifest = prepare(videos, tmp_path / "out", keep_original=True, modalities=("rgb", "flow"))
    assert contents(videos) == before
    assert not (tmp_path / "out" / "rgb").exists()
    video = Manifest.load(tmp_path / "out").videos[0]
    assert Path(video.streams["rgb"].path) == (videos / "clip0.mp4").resolve()
    assert (video.streams["rgb"].height_px, video.streams["flow"].height_px) == (48, 32)
    frames = read_frames(manifest.root, video.streams["rgb"], [0, 19])
    assert np.abs(frames.astype(int) - moving_frames(20)[[0, 19]]).mean() < 20  # neighbours differ by 50


def test_dry_run__prints_an_estimate_and_writes_nothing(videos, tmp_path, capsys):
    prepare(videos, tmp_path / "out", dry_run=True)
    output = capsys.readouterr().out
    assert "6 videos listed, 6 found" in output and "minutes with 2 workers" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b"])
def test_shard__invalid_part_is_refused(videos, tmp_path, shard):
    with pytest.raises(UserError, match=f"--shard {shard} is invalid: give I/N"):
        prepare(videos, tmp_path / "out", shard=shard)


def test_prepare__paths_with_spaces_quotes_and_unicode(videos, tmp_path):
    folder = tmp_path / 'it\'s a "folder" – Ünïcode 視頻'
    folder.mkdir()
    for i, name in enumerate(["a b.mp4", "it's.mp4", '"q".mp4', "видео.mp4", "100%[x]*.mp4", "-dash.mp4"]):
        (folder / name).write_bytes((videos / f"clip{i}.mp4").read_bytes())
    manifest = prepare(folder, tmp_path / "out put")
    assert [video.status for video in manifest.videos] == ["ok"] * 6
    for video in Manifest.load(tmp_path / "out put").videos:
        for name, stream in video.streams.items():
            assert len(read_frames(manifest.root, stream, [0, 3], stream_name=name)) == 2


def test_prepare__full_disk_is_one_sentence_and_finished_files_are_kept(videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes((videos / "clip0.mp4").read_bytes())
    write_video(folder / "b.mp4", np.random.default_rng(0).integers(0, 256, (60, 256, 256, 3), dtype=np.uint8))
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
        "from data_prep.__main__ import main; main(sys.argv[1:])"
    )
    arguments = ["ucf101", "--videos", str(folder), "--annotations", str(tmp_path), "--out", str(tmp_path / "out")]
    (tmp_path / "classInd.txt").write_text("1 A\n")
    for part, group in (("train", "g01"), ("test", "g02")):
        (tmp_path / f"{part}list01.txt").write_text(f"A/v_A_{group}_c01.avi\n")
    (folder / "a.mp4").rename(folder / "v_A_g01_c01.avi")
    (folder / "b.mp4").rename(folder / "v_A_g02_c01.avi")
    command = [sys.executable, "-c", limited, *arguments, "--workers", "1", "--modalities", "rgb"]
    done = subprocess.run(command, cwd=PROJECT_FOLDER, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr and "finished files are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "rgb" / "A" / "v_A_g01_c01.mp4").is_file()
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_prepare__unwritable_out_is_one_sentence(videos, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="is not writable"):
        prepare(videos, tmp_path / "file" / "out")


# Clusters.


def test_dask__cluster_gives_the_same_bytes(videos, tmp_path):
    distributed = pytest.importorskip("distributed")
    here = prepare(videos, tmp_path / "here")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        there = prepare(videos, tmp_path / "there", engine="dask", address=cluster.scheduler_address, workers=None)
    assert [video.to_json() for video in there.videos] == [video.to_json() for video in here.videos]
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.slow
def test_ray__cluster_gives_the_same_manifest(videos, tmp_path):
    pytest.importorskip("ray")
    here = prepare(videos, tmp_path / "here")
    there = prepare(videos, tmp_path / "there", engine="ray", workers=2)
    assert [video.to_json() for video in there.videos] == [video.to_json() for video in here.videos]


def test_dask__needs_an_address(videos, tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(UserError, match="--engine dask needs --address"):
        prepare(videos, tmp_path / "out", engine="dask")


def test_dask__closed_port_is_one_sentence_after_the_configured_time(videos, tmp_path):
    pytest.importorskip("distributed")
    dask_config = pytest.importorskip("dask.config")
    with socket.socket() as taken:  # bound without a listener: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with (
            dask_config.set({"distributed.comm.timeouts.connect": "300ms"}),
            pytest.raises(UserError, match=f"^no Dask scheduler at --address {address}: start it") as raised,
        ):
            prepare(videos, tmp_path / "out", engine="dask", address=address)
    assert "\n" not in str(raised.value) and "after 0.3 s" in str(raised.value)
    with pytest.raises(UserError, match="unknown address scheme 'http'"):
        prepare(videos, tmp_path / "out", engine="dask", address="http://127.0.0.1:1")


def test_dask__default_timeout_is_ten_seconds(videos, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    waited = []

    def refuse(address: str, *, timeout: str) -> None:
        waited.append(timeout)
        raise OSError("refused")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(UserError, match=r"start it, or correct the address \(refused\)$"):
        prepare(videos, tmp_path / "out", engine="dask", address="tcp://127.0.0.1:1")
    assert waited == ["10s"]


def test_address__without_a_cluster_is_refused(videos, tmp_path):
    with pytest.raises(UserError, match=r"^--address tcp://a:8786 has no effect without a cluster: add --engine"):
        prepare(videos, tmp_path / "out", address="tcp://a:8786")
    assert not list((tmp_path / "out").rglob("*.mp4"))


# Damage.


def damaged_copy(data: bytes, kind: str, rng: random.Random) -> bytes:
    if kind == "empty":
        return b""
    if kind == "text":
        return b"<html>quota exceeded</html>\n" * 200
    changed = bytearray(data)
    if kind == "bits":
        for _ in range(rng.choice([1, 10, 200])):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "truncated":
        del changed[rng.randrange(1, len(changed)) :]
    elif kind == "zeros":
        start = rng.randrange(len(changed))
        end = min(len(changed), start + rng.choice([100, 5_000, 100_000]))
        changed[start:end] = bytes(end - start)
    elif kind == "header":
        for i in range(min(64, len(changed))):
            changed[i] = rng.randrange(256)
    return bytes(changed)


def prepare_damaged(originals: list[Path], folder: Path, out: Path, *, num_copies: int) -> Manifest:
    rng = random.Random(0)
    kinds = ["bits", "truncated", "zeros", "header", "empty", "text"]
    folder.mkdir()
    for i in range(num_copies):
        original = originals[i % len(originals)]
        suffix = ".mp4" if kinds[i % 6] == "text" else original.suffix
        copy = damaged_copy(original.read_bytes(), kinds[i % 6], rng)
        (folder / f"{i:03d}_{kinds[i % 6]}{suffix}").write_bytes(copy)
    manifest = prepare(folder, out, time_limit=30.0)
    assert len(manifest.videos) == num_copies
    for video in manifest.videos:
        assert video.status in ("ok", "repaired", "skipped")
        assert (video.status == "ok") == (video.reason == ""), video
        assert bool(video.streams) == video.is_usable
        for name, stream in video.streams.items():
            frames = read_frames(out, stream, [0, stream.num_frames - 1], stream_name=name)
            assert len(frames) == 2
        assert not video.reason.startswith(("crashed", "time limit", "failed")), video
    assert not list(out.rglob("*.tmp"))
    statuses = {video.name.split("_")[1]: set() for video in manifest.videos}
    for video in manifest.videos:
        statuses[video.name.split("_")[1]].add(video.status)
    assert statuses["empty"] == statuses["text"] == {"skipped"}
    for video in manifest.videos:
        number, kind = video.name.split("_")
        # The headers of MPEG program streams, and of WebM without a duration, declare no length.
        can_tell = originals[int(number) % len(originals)].suffix not in (".mpg", ".webm")
        assert not (kind == "truncated" and video.status == "ok" and can_tell), video
    assert statuses["bits"] & {"ok", "repaired"}, "every copy with changed bits was skipped"
    return manifest


def test_prepare__every_damaged_file_has_a_status(videos, tmp_path):
    prepare_damaged(sorted(videos.iterdir()), tmp_path / "videos", tmp_path / "out", num_copies=60)


@pytest.mark.slow
def test_prepare__every_one_of_200_damaged_real_files_has_a_status(shared_folder, tmp_path):
    clips = sorted((shared_folder / "data" / "ucf101_mini" / "videos").rglob("*.avi"))[::9]
    media = [p for p in sorted((shared_folder / "media").iterdir()) if 0 < p.stat().st_size < 700_000]
    prepare_damaged([*clips, *media], tmp_path / "videos", tmp_path / "out", num_copies=200)
