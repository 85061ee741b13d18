"""Files from anywhere: which stream is read, which way up, which damage is passed over, and what is refused."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import bomb, break_packet, join_files, moving_frames, set_display_matrix, write_video

from crossdistill.data.containers import MAX_PICTURE_PX, Orientation, check_video, open_video
from crossdistill.data.decode import index_any_video, index_video, read_frames
from crossdistill.data.decoders import DECODERS, get_decoder
from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Manifest, Stream, Video
from crossdistill.data.sequential import decode_all, decode_frames
from crossdistill.data.streams import STREAM_FORMATS, StreamWriter
from crossdistill.errors import UnreadableVideoError, UserError

# Decoders may differ by a few levels of 255. A mirrored picture of these files differs by about 50.
MAX_LEVELS = 8.0


@pytest.fixture(params=list(DECODERS))
def decoder(request) -> str:
    """Name of each decoder that works on this machine."""
    try:
        return get_decoder(request.param).name
    except UserError as error:
        pytest.skip(str(error))


def h264(path: Path, *, num_frames: int = 20, first: int = 0, height: int = 48, width: int = 64) -> Path:
    """A small file without B-frames, whose first timestamp is ``first`` / 25 s."""
    frames = moving_frames(num_frames, height=height, width=width, step_xy=(2, 1))
    pts = [first + n for n in range(num_frames)]
    return write_video(path, frames, codec="libx264", pts=pts, options={"g": "10", "bf": "0", "qp": "10"})


def assert_same_pictures(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare brightness, because videos store colour at half the resolution."""
    assert found.shape == expected.shape
    assert np.abs(found.mean(axis=-1) - expected.mean(axis=-1)).mean() <= MAX_LEVELS


# Which way up.


MATRICES = [(x, 0, 0, y) for x in (1, -1) for y in (1, -1)] + [(0, x, y, 0) for x in (1, -1) for y in (1, -1)]


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_display_matrix__every_decoder_turns_and_mirrors(tmp_path, decoder, matrix):
    """Reference: move each pixel as the matrix says."""
    path = h264(tmp_path / "a.mp4")
    plain = read_frames(tmp_path, index_video(path), [3, 12])
    set_display_matrix(path, *matrix)
    a, b, c, d = matrix
    y, x = np.mgrid[0:48, 0:64]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    expected = np.zeros((2, 64, 48, 3) if b else plain.shape, dtype=np.uint8)
    expected[:, shown_y - shown_y.min(), shown_x - shown_x.min()] = plain[:, y, x]
    stream = index_video(path)
    assert (stream.width_px, stream.height_px) == (expected.shape[2], expected.shape[1])
    assert_same_pictures(read_frames(tmp_path, stream, [3, 12], decoder=decoder), expected)


def test_orientation__mirrors_where_the_determinant_is_negative():
    for flags in itertools.product([False, True], repeat=3):
        orientation = Orientation(*flags)
        corners = orientation.apply(np.array([[0, 1], [2, 3]]))
        is_rotation = any((np.rot90(np.array([[0, 1], [2, 3]]), k) == corners).all() for k in range(4))
        assert orientation.is_mirrored == (not is_rotation)


# Which stream.


def with_cover_first(path: Path) -> Path:
    """A Matroska file whose first track is one picture, and whose second is a video of 20 frames."""
    frames = moving_frames(20)
    with av.open(str(path), "w") as container:
        cover, video = container.add_stream("mjpeg", rate=25), container.add_stream("libx264", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.options = {"qp": "10"}
        picture = av.VideoFrame.from_ndarray(frames[0, :32, :32].copy(), format="rgb24").reformat(format="yuvj420p")
        picture.pts, picture.time_base = 0, Fraction(1, 25)
        container.mux(cover.encode(picture) + cover.encode())
        for pts, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


def test_cover_picture__every_decoder_reads_the_video(tmp_path, decoder):
    stream = index_video(with_cover_first(tmp_path / "a.mkv"))
    assert (stream.num_frames, stream.width_px, stream.height_px) == (20, 64, 48)
    assert_same_pictures(read_frames(tmp_path, stream, [0, 19], decoder=decoder), moving_frames(20)[[0, 19]])


# Damage that decoding passes over.


def test_bad_packet__is_passed_over_and_counted(tmp_path, decoder):
    path = break_packet(h264(tmp_path / "a.mp4"), 5)
    with pytest.raises(UnreadableVideoError, match=r"bad packets \(Invalid data .*\): 1$"):
        index_video(path)
    stream, damage = index_any_video(path)
    assert damage == "bad packets (Invalid data found when processing input): 1"
    assert stream.pts.tolist() == [pts for pts in range(0, 20 * 512, 512) if pts != 5 * 512]
    # Seeking to the second keyframe, and decoding from the first across the damage.
    pictures = {pts: picture for pts, _, picture in _until_damage(path)}
    found = read_frames(tmp_path, stream, [12, 8], decoder=decoder)
    assert_same_pictures(found, np.stack([pictures[13 * 512], pictures[9 * 512]]))


def _until_damage(path: Path):
    frames = decode_all(path)
    try:
        yield from frames
    except UnreadableVideoError:
        return


def test_bad_packets__all_of_them_are_an_error(tmp_path):
    path = h264(tmp_path / "a.mp4", num_frames=3)
    for position in range(3):
        break_packet(path, position)
    with pytest.raises(UnreadableVideoError, match=r"bad packets .*: 3$"):
        index_any_video(path)


@pytest.mark.parametrize(("first", "second"), [(0, 3600 * 25), (3600 * 25, 0)], ids=["forth", "back"])
def test_joined_transport_streams__gap_is_closed(tmp_path, decoder, first, second):
    parts = [h264(tmp_path / f"{n}.ts", first=start) for n, start in enumerate((first, second))]
    path = join_files(tmp_path / "joined.ts", parts)
    stream, damage = index_any_video(path)
    assert damage == "timestamps jump, the gaps are closed: 1"
    assert np.diff(stream.pts).tolist() == [3600] * 39
    found = read_frames(tmp_path, stream, [5, 25, 39], decoder=decoder)
    assert_same_pictures(found, moving_frames(20, step_xy=(2, 1))[[5, 5, 19]])


def test_pause__of_a_container_without_jumps_is_kept(tmp_path):
    pts = [*range(10), *range(10 + 3600 * 25, 20 + 3600 * 25)]
    path = write_video(tmp_path / "pause.mkv", moving_frames(20), codec="libx264", pts=pts)
    assert index_video(path).times_seconds[10] == pytest.approx(3600.4)


def test_changing_size__is_read_at_the_size_of_the_first_picture(tmp_path, decoder):
    parts = [h264(tmp_path / "0.ts"), h264(tmp_path / "1.ts", first=20, height=96, width=128)]
    stream = index_video(join_files(tmp_path / "joined.ts", parts))
    assert (stream.num_frames, stream.width_px, stream.height_px, stream.is_plain) == (40, 64, 48, False)
    read = read_frames(tmp_path, stream, [5, 25], decoder=decoder)
    large = moving_frames(20, height=96, width=128, step_xy=(2, 1))[5]
    halved = large.reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
    assert_same_pictures(read[1], halved)


def test_metadata__need_not_be_utf8(tmp_path, decoder):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf\u00e9"
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for rgb in moving_frames(3):
            container.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(video.encode())
    data = path.read_bytes()
    assert b"caf\xc3\xa9" in data
    path.write_bytes(data.replace(b"caf\xc3\xa9", b"caf\xe9\xe9"))
    assert read_frames(tmp_path, index_video(path), [2], decoder=decoder).shape == (1, 48, 64, 3)


# Names and other files.


def test_colon_in_name__is_no_protocol(tmp_path, monkeypatch, decoder):
    h264(tmp_path / "a.mp4").rename(tmp_path / "2024-05-01T12:30:05.mp4")
    monkeypatch.chdir(tmp_path)
    stream = index_video(Path("2024-05-01T12:30:05.mp4"))
    assert len(read_frames(Path(), stream, [0, 19], decoder=decoder)) == 2
    frame = np.zeros((48, 64, 3), dtype=np.uint8)
    with StreamWriter(Path("b:c.mp4"), STREAM_FORMATS["rgb"], time_base=Fraction(1, 25)) as writer:
        writer.write(frame, 0)
    assert Path("b:c.mp4").is_file()


def test_url_in_manifest__is_a_file_that_does_not_exist(tmp_path, monkeypatch, decoder):
    stream = index_video(h264(tmp_path / "a.mp4"))
    monkeypatch.chdir(tmp_path)
    for url in ("http://127.0.0.1:9/a.mp4", "concat:a.mp4|a.mp4", "subfile,,start,0,end,0,,:a.mp4"):
        with pytest.raises(UnreadableVideoError, match="No such file"):
            read_frames(Path(), stream.at(url), [0], decoder=decoder)


def test_playlist_with_the_name_of_a_video__is_refused(tmp_path, decoder):
    stream = index_video(h264(tmp_path / "secret.mp4"))
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n", encoding="utf-8")
    with av.open(str(path)) as container:
        assert container.format.name == "concat"  # if not, this test proves nothing
    with pytest.raises(UnreadableVideoError, match=r"list\.mp4: is in no video format that is read here"):
        read_frames(tmp_path, stream.at("list.mp4"), [0], decoder=decoder)


def test_pipe__is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UnreadableVideoError, match="is no regular file"):
        open_video(tmp_path / "pipe.mp4")


def test_manifest__names_no_file_outside_the_dataset(tmp_path):
    stream = index_video(h264(tmp_path / "a.mp4"))
    with pytest.raises(UnreadableVideoError, match="leaves the folder"):
        read_frames(tmp_path / "set", stream.at("../a.mp4"), [0])

    def save(path: str, **recipe: object) -> Manifest:
        video = Video("a", streams={"rgb": stream.at(path)})
        Manifest(tmp_path / "set", "mine", (), (video,), facts={"recipe": recipe}).save()
        return Manifest.load(tmp_path / "set")

    (tmp_path / "set").mkdir()
    for path in ("rgb/../../a.mp4", str(tmp_path / "a.mp4")):
        with pytest.raises(UserError, match="outside the dataset, which only originals that are used in place may be"):
            save(path)
    assert save(str(tmp_path / "a.mp4"), keep_original=True).videos
    assert save(f"{tmp_path}/set/../a.mp4", keep_original=True).videos
    assert save("rgb/a..b.mp4").videos


# Pictures that are too large.


def test_large_pictures__are_refused_before_decoding(tmp_path):
    path = bomb(tmp_path / "bomb.mov", side_px=10_000)
    assert path.stat().st_size < 1e6
    with pytest.raises(UnreadableVideoError, match=rf"is unknown or above {MAX_PICTURE_PX} pixels\): 10$"):
        next(decode_frames(path, num_threads=1))
    fine = bomb(tmp_path / "fine.mov", side_px=100)
    assert [frame.width for _, _, frame in decode_frames(fine, num_threads=1)] == [100] * 10


def test_large_pictures__declared_by_the_container(tmp_path):
    path = tmp_path / "raw.avi"
    with av.open(str(path), "w") as container:
        video = container.add_stream("rawvideo", rate=25)
        video.width, video.height, video.pix_fmt, video.time_base = 12_000, 12_000, "gray", Fraction(1, 25)
        packet = av.Packet(b"few bytes")
        packet.stream, packet.pts, packet.dts = video, 0, 0
        container.mux(packet)
    with pytest.raises(UnreadableVideoError, match=rf"is unknown or above {MAX_PICTURE_PX} pixels"):
        index_video(path)
    with pytest.raises(UnreadableVideoError, match=rf"is unknown or above {MAX_PICTURE_PX} pixels"):
        check_video(FileRange(path))  # which other decoders than PyAV need


def test_stream__new_field_is_optional():
    stream = Stream("a.mp4", 64, 48, Fraction(1, 25), np.arange(3), np.arange(1))
    stored = stream.to_json()
    assert "is_plain" not in stored and Stream.from_json(stored).is_plain
