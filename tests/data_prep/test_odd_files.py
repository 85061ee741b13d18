"""Preparation of files that FFmpeg reads and that are not plain: jumps, mirrors, damage, sizes, names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from video_files import bomb, break_packet, join_files, moving_frames, set_display_matrix, write_video

from crossdistill.data.containers import MAX_PICTURE_PX
from crossdistill.data.decode import index_any_video, index_video, read_frames
from crossdistill.data.manifest import Stream
from crossdistill.utils.files import MAX_NAME_BYTES
from data_prep.datasets.folder import FolderOptions
from data_prep.pipeline import jobs
from data_prep.pipeline.tasks import SourceVideo, TaskMaker
from data_prep.recipe import Recipe
from data_prep.verify import OK, StreamCheck


def h264(path: Path, *, num_frames: int = 20, first: int = 0, height: int = 48, width: int = 64) -> Path:
    frames = moving_frames(num_frames, height=height, width=width, step_xy=(2, 1))
    pts = [first + n for n in range(num_frames)]
    return write_video(path, frames, codec="libx264", pts=pts, options={"g": "10", "bf": "0"})


def prepare(path: Path, *, modalities: tuple[str, ...] = ("rgb",), name: str = "", **options: object) -> dict:
    """Prepare one file in this process, into the folder ``out`` beside it; return what the child would answer."""
    given = FolderOptions(videos=path.parent, out=path.parent / "out", modalities=modalities, **options)
    task = TaskMaker(given, {})(SourceVideo(name=name or path.name, inputs={"rgb": path}))
    return jobs.answer(jobs._JOB.dump_python(task.job, mode="json"))


def stream_of(answered: dict, name: str = "rgb") -> Stream:
    return Stream.from_json(answered["streams"][name])


def test_joined_transport_streams__are_repaired(tmp_path):
    parts = [h264(tmp_path / f"{n}.ts", first=start) for n, start in enumerate((0, 3600 * 25))]
    answered = prepare(join_files(tmp_path / "joined.ts", parts), modalities=("rgb", "flow"))
    assert answered["status"] == "repaired"
    assert answered["reason"].startswith("timestamps jump, the gaps are closed: 1")
    for name, num_frames in (("rgb", 40), ("flow", 39)):
        stream = stream_of(answered, name)
        np.testing.assert_allclose(np.diff(stream.times_seconds), 1 / 25, atol=1e-6)
        assert stream.num_frames == num_frames


def test_mirrored_file__is_stored_as_it_is_shown(tmp_path):
    plain = prepare(h264(tmp_path / "a.mp4"))
    mirrored = prepare(set_display_matrix(h264(tmp_path / "b.mp4"), 1, 0, 0, -1))
    pictures = [read_frames(tmp_path / "out", stream_of(answered), [7])[0] for answered in (plain, mirrored)]
    assert np.abs(pictures[0][::-1].astype(int) - pictures[1]).mean() < 8
    assert (mirrored["status"], stream_of(mirrored).is_plain) == ("ok", True)


def test_bad_packet__is_counted_in_the_reason(tmp_path):
    path = break_packet(h264(tmp_path / "a.mp4"), 5)
    reason = "bad packets (Invalid data found when processing input): 1, 19 of 20 frames"
    for keep_original in (False, True):
        answered = prepare(path, keep_original=keep_original)
        assert (answered["status"], answered["reason"]) == ("repaired", reason)
        stream = stream_of(answered)
        assert stream.num_frames == 19
        assert StreamCheck(tmp_path / "out", "rgb", stream).find().kind == OK


def test_keep_original__changing_size_can_be_read_and_verified(tmp_path):
    parts = [h264(tmp_path / "0.ts"), h264(tmp_path / "1.ts", first=20, height=96, width=128)]
    answered = prepare(join_files(tmp_path / "joined.ts", parts), keep_original=True)
    stream, out = stream_of(answered), tmp_path / "out"
    assert answered["status"] == "ok"
    assert read_frames(out, stream, [15, 25]).shape == (2, 48, 64, 3)
    assert StreamCheck(out, "rgb", stream).find().kind == OK
    # Manifests of early versions take the file for a plain one. Its clips cannot be read, and verify must say so.
    finding = StreamCheck(out, "rgb", dataclasses.replace(stream, is_plain=True)).find()
    assert (finding.kind, finding.details) == ("other picture", "frame 20: 128x96 pixels instead of 64x48")


def test_verify__reads_as_training_reads(tmp_path, monkeypatch):
    """A finding if decoding from the start succeeds, but reading clips does not."""
    stream, _ = index_any_video(h264(tmp_path / "a.mp4"))
    check = StreamCheck(tmp_path, "rgb", stream.at(str(tmp_path / "a.mp4")))
    assert check.find().kind == OK

    def fails(*args: object) -> None:
        raise ValueError("seeks to another frame")

    monkeypatch.setattr("crossdistill.data.decoders.pyav._read_by_seeking", fails)
    assert check.find().kind == "clips unreadable"


@pytest.mark.parametrize("name", [80 * "好" + ".mp4", "a/" + 251 * "x" + ".mp4"], ids=["244 bytes", "255 bytes"])
def test_long_name__is_cut_where_the_file_system_needs_it(tmp_path, name):
    answered = prepare(h264(tmp_path / "a.mp4"), name=name)
    assert (answered["status"], answered["reason"]) == ("ok", "")
    path = Path(stream_of(answered).path)
    assert len(path.name.encode()) <= MAX_NAME_BYTES and path.suffix == ".mp4"
    assert index_video(tmp_path / "out" / path).num_frames == 20
    assert path != Path(stream_of(prepare(tmp_path / "a.mp4", name=name.replace(".mp4", "y.mp4"))).path)


def test_large_pictures__are_skipped_with_the_reason(tmp_path):
    answered = prepare(bomb(tmp_path / "bomb.mov", side_px=10_000))
    reason = f"bad packets (the size of its pictures is unknown or above {MAX_PICTURE_PX} pixels)"
    assert (answered["status"], answered["reason"]) == ("skipped", f"unreadable: {reason}")


def test_memory_error__is_a_skipped_video(tmp_path, monkeypatch):
    def fails(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setitem(jobs.MAKERS, Recipe, fails)
    answered = prepare(h264(tmp_path / "a.mp4"))
    assert (answered["status"], answered["reason"]) == ("skipped", "memory limit: needs more than 4 GiB")


def test_memory_limit__is_not_for_networks():
    assert not Recipe().uses_network
    assert Recipe(flow="raft").uses_network and Recipe(depth_model="a/b").uses_network
