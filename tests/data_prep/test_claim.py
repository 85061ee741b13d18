"""What a second run may do to a prepared dataset: add to it, but not cost it the videos that it holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from video_files import moving_frames, write_video

from crossdistill.data.manifest import Manifest, Video
from crossdistill.errors import UserError
from data_prep.__main__ import main
from data_prep.datasets import folder
from data_prep.datasets import list as listed_videos
from data_prep.pipeline import jobs
from data_prep.pipeline.journal import JOURNAL_NAME
from data_prep.pipeline.summary import MAX_LISTED_REPAIRED, check_share_of_bad, print_summary


@pytest.fixture(autouse=True)
def answer_in_this_process(monkeypatch):
    """Starting a child process takes seconds; these tests are about what the parent decides."""
    monkeypatch.setattr(jobs, "ask", lambda module, request, **limits: jobs.answer(request))


@pytest.fixture
def videos(tmp_path) -> Path:
    for i in range(3):
        write_video(tmp_path / "videos" / f"{i}.avi", moving_frames(9, height=32, width=40, seed=i))
    return tmp_path / "videos"


def prepare(videos: Path, out: Path, **changes) -> Manifest:
    values = {"modalities": ("rgb",), "unlabelled": True, "workers": 1, "short_side_px": 32, **changes}
    return folder.prepare(folder.FolderOptions(videos=videos, out=out, **values))


def prepare_list(videos: Path, out: Path, **changes) -> Manifest:
    names = videos.parent / "list.txt"
    names.write_text("".join(f"{i}.avi {i}\n" for i in range(3)), encoding="utf-8")
    options = listed_videos.ListOptions(
        videos=videos, train_list=(names,), out=out, workers=1, short_side_px=32, modalities=("rgb",), **changes
    )
    return listed_videos.prepare(options)


def state(out: Path) -> dict[str, tuple[bytes, int]]:
    """All files with their content and date."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {path.relative_to(out).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def streams(out: Path) -> dict[str, tuple[bytes, int]]:
    return {name: facts for name, facts in state(out).items() if name.endswith(".mp4")}


# A wrong --out.


def test_prepare__other_videos_do_not_take_the_place_of_prepared_ones(videos, tmp_path):
    out = tmp_path / "out"
    prepare(videos, out)
    before = state(out)
    other = write_video(tmp_path / "other" / "dog.avi", moving_frames(9, height=32, width=40)).parent
    with pytest.raises(
        UserError,
        match=r"--out .*out holds 3 prepared videos that this command does not name, the first is 0\.avi, and the 1 "
        r"videos of this command begin with dog\.avi: give another --out, or add --replace",
    ):
        prepare(other, out)
    assert state(out) == before
    assert [video.name for video in prepare(other, out, replace=True).videos] == ["dog.avi"]
    # The streams are still known: the first command finds them again.
    again = prepare(videos, out, replace=True)
    assert [video.status for video in again.videos] == ["ok"] * 3
    assert {name: streams(out)[name] for name in before if name in streams(out)} == {
        name: facts for name, facts in before.items() if name.endswith(".mp4")
    }


def test_prepare__killed_run_is_not_overwritten_by_other_videos(videos, tmp_path):
    prepare(videos, tmp_path / "out")
    (tmp_path / "out" / "manifest.arrow").unlink()
    with pytest.raises(UserError, match="holds 2 prepared videos that this command does not name"):
        for name in ("0.avi", "1.avi"):
            (videos / name).unlink()
        prepare(videos, tmp_path / "out")


def test_prepare__other_dataset_in_out_is_refused(videos, tmp_path):
    prepare(videos, tmp_path / "out")
    with pytest.raises(UserError, match="holds the dataset 'folder', not 'list': give another --out, or add --replace"):
        prepare_list(videos, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short_side_px": 24}, r"made with --short-side 32, not 24, the first is 0\.avi .*add --replace to make them"),
        ({"keep_original": True}, r"made with --keep-original False, not True"),
        ({"shard": "1/2", "short_side_px": 24}, r"holds 2 prepared videos that were made with --short-side 32, not 24"),
    ],
)
def test_prepare__other_options_do_not_make_finished_streams_again(videos, tmp_path, changes, message):
    out = tmp_path / "out"
    prepare(videos, out)
    before = streams(out)
    with pytest.raises(UserError, match=message):
        prepare(videos, out, **changes)
    assert streams(out) == before
    prepare(videos, out, **changes, replace=True)
    assert streams(out) != before or "keep_original" in changes


def test_prepare__other_files_of_the_same_names_are_refused(videos, tmp_path):
    out = tmp_path / "out"
    prepare(videos, out)
    before = streams(out)
    for i in range(3):
        write_video(tmp_path / "other" / f"{i}.avi", moving_frames(12, height=32, width=40))
    with pytest.raises(
        UserError, match=r"3 prepared videos that were made from other files .*now given: .*other/0\.avi"
    ):
        prepare(tmp_path / "other", out)
    assert streams(out) == before


def test_prepare__more_videos_and_better_copies_need_no_consent(videos, tmp_path):
    out, options = tmp_path / "out", {"g": "10", "cluster_time_limit": "200"}
    cut = write_video(videos / "cut.mkv", moving_frames(60, height=32, width=40), codec="libx264", options=options)
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    assert [video.status for video in prepare(videos, out).videos] == ["ok", "ok", "ok", "repaired"]
    cut.write_bytes(whole)
    write_video(videos / "new.avi", moving_frames(9, height=32, width=40))
    assert [video.status for video in prepare(videos, out).videos] == ["ok"] * 5


# Sources that are away.


def test_prepare__streams_stay_in_use_while_their_source_is_away(videos, tmp_path, capsys):
    out = tmp_path / "out"
    first = prepare_list(videos, out)
    before, journal = streams(out), (out / JOURNAL_NAME).read_bytes()
    (videos / "1.avi").rename(tmp_path / "1.avi")
    capsys.readouterr()
    without = prepare_list(videos, out)
    assert [video.to_json() for video in without.videos] == [video.to_json() for video in first.videos]
    assert "1 more videos are prepared, source away" in capsys.readouterr().out
    (tmp_path / "1.avi").rename(videos / "1.avi")
    prepare_list(videos, out)
    assert "3 of 3 videos are already prepared" in capsys.readouterr().out
    assert (streams(out), (out / JOURNAL_NAME).read_bytes()) == (before, journal)


def test_prepare__video_whose_source_is_away_needs_all_streams(videos, tmp_path):
    out = tmp_path / "out"
    prepare_list(videos, out)
    (videos / "1.avi").rename(tmp_path / "1.avi")
    rgb_and_flow = listed_videos.ListOptions(
        videos=videos, train_list=(videos.parent / "list.txt",), out=out, workers=1, short_side_px=32
    )
    manifest = listed_videos.prepare(rgb_and_flow)
    assert [(video.status, video.reason) for video in manifest.videos] == [
        ("ok", ""),
        ("skipped", "missing"),
        ("ok", ""),
    ]
    (tmp_path / "1.avi").rename(videos / "1.avi")
    before = streams(out)
    assert listed_videos.prepare(rgb_and_flow).streams == ("flow", "rgb")
    assert {name: facts for name, facts in streams(out).items() if name != "flow/1.avi.mp4"} == before


def test_prepare__reason_of_a_damaged_video_is_kept_while_it_is_away(videos, tmp_path):
    (videos / "1.avi").write_bytes(b"no video")
    prepare_list(videos, tmp_path / "out", max_bad=1.0)
    journal = (tmp_path / "out" / JOURNAL_NAME).read_bytes()
    (videos / "1.avi").rename(tmp_path / "1.avi")
    assert prepare_list(videos, tmp_path / "out").videos[1].reason == "missing"
    assert (tmp_path / "out" / JOURNAL_NAME).read_bytes() == journal


# Signals.


def test_main__sigterm_stops_like_ctrl_c(videos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def write_half(module, request, **limits):
        (out / "rgb").mkdir(exist_ok=True)
        (out / "rgb" / f".{request['name']}.mp4.1.tmp").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        return {"status": "skipped", "reason": "", "streams": {}}

    monkeypatch.setattr(jobs, "ask", write_half)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            main(["folder", "--unlabelled", "--workers", "1", "--videos", str(videos), "--out", str(out)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143
    assert "stopped: 0 of 3 videos are done: give the same command again" in capsys.readouterr().err
    assert [path.name for path in out.rglob("*") if path.is_file()] == [JOURNAL_NAME]


@pytest.mark.slow  # starts two processes
def test_prepare__sigterm_leaves_no_half_written_file(tmp_path):
    write_video(tmp_path / "videos" / "long.avi", moving_frames(900, height=96, width=128))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_prep", "folder", "--unlabelled", "--workers", "1"]
    run = subprocess.Popen([*command, "--videos", str(tmp_path / "videos"), "--out", str(out)], stderr=subprocess.PIPE)
    while not list(out.rglob("*.tmp")):
        assert run.poll() is None, "the run ended before it wrote anything"
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGTERM)
    _, printed = run.communicate()
    assert run.returncode == 143
    assert b"stopped: 0 of 1 videos are done: give the same command again" in printed
    assert [path.name for path in out.rglob("*") if path.is_file()] == [JOURNAL_NAME]


# What the user is told to do.


def test_summary__names_the_first_repaired_files(tmp_path, capsys):
    reason = "ends early: 20 of 30 frames"
    videos = [Video(f"v{i}", status="repaired", reason=reason, streams={}) for i in range(MAX_LISTED_REPAIRED + 2)]
    print_summary(Manifest(tmp_path, "mine", (), (Video("fine", streams={}), *videos)))
    said = capsys.readouterr().out.splitlines()
    assert f"repaired: v0 ({reason})" in said and f"repaired: v{MAX_LISTED_REPAIRED} ({reason})" not in said
    assert "and 2 more, which the manifest lists" in said and not any("fine" in line for line in said)


def test_summary__remedy_is_that_of_the_most_frequent_reason(tmp_path):
    def manifest(*reasons):
        videos = tuple(Video(str(i), status="skipped", reason=reason) for i, reason in enumerate(reasons))
        return Manifest(tmp_path, "mine", (), videos)

    with pytest.raises(
        UserError, match=r"\(2 of \d+\) is that of 1 \(time limit.*: raise --time-limit and add --retry"
    ):
        check_share_of_bad(manifest("empty", *["time limit: took longer than 1 s"] * 2), 0.1)
    with pytest.raises(UserError, match="lower --min-frames, or raise --max-bad"):
        check_share_of_bad(manifest("too short: 3 frames, fewer than 8"), 0.1)
    with pytest.raises(UserError, match="download them again and add --retry, or raise"):
        check_share_of_bad(manifest("unreadable: cannot be opened"), 0.1)


def test_prepare__lower_min_frames_adds_short_videos_and_keeps_the_others(videos, tmp_path):
    out = tmp_path / "out"
    write_video(videos / "short.avi", moving_frames(5, height=32, width=40))
    prepare(videos, out, max_bad=1.0)
    before = streams(out)
    assert [video.status for video in prepare(videos, out, min_frames=4).videos] == ["ok"] * 4
    assert {name: facts for name, facts in streams(out).items() if "short" not in name} == before
    with pytest.raises(UserError, match="3 prepared videos that were made with --min-frames 8, not 9"):
        prepare(videos, out, min_frames=9)
