"""Still pictures are read as a viewer shows them, or refused with a reason."""

from __future__ import annotations

import io
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from picture_files import BLUE, GREEN, RED, WHITE, corners, encode, write_file, write_shard
from PIL import Image
from video_files import moving_frames, write_video

from crossdistill.data.clip_reader import ClipReader
from crossdistill.data.dataset import Entry, PairedClips
from crossdistill.data.decode import index_video, read_pictures
from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Manifest, Stream, Video
from crossdistill.data.pictures import READERS, index_picture, inspect_content, read_picture, shrink_for
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import Augmentation, Crop
from crossdistill.errors import UnreadableVideoError
from crossdistill.types import ViewSpec

CORNERS = (RED, GREEN, BLUE, WHITE)
VIEW = ViewSpec("image", num_frames=1, stride=1, size_px=8, mean=(0.5,) * 3, std=(0.5,) * 3)


def with_orientation(number: int, kind: str = "JPEG") -> bytes:
    """The corners picture, stored turned, with the EXIF orientation that turns it back."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of each orientation, as Image.Transpose
    image = Image.fromarray(corners())
    if number in undo:
        image = image.transpose(Image.Transpose(undo[number]))
    exif = Image.Exif()
    exif[0x0112] = number
    return encode(image, kind, exif=exif)


def sixteen_bits() -> bytes:
    gray = np.full((32, 48), 200 * 256 + 17, np.uint16)
    return encode(Image.fromarray(gray), "PNG")


def transparent_on(colour: tuple[int, int, int], kind: str) -> bytes:
    rgba = np.dstack([np.full((32, 48, 3), colour, np.uint8), np.zeros((32, 48), np.uint8)])
    rgba[:16, :, 3] = 255
    return encode(Image.fromarray(rgba), kind, **({"lossless": True} if kind == "WEBP" else {}))


def animation() -> bytes:
    frames = [Image.new("RGB", (48, 32), colour) for colour in (RED, GREEN)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def flat(colour: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    return (colour,) * 4


READABLE = {
    "baseline": (encode(corners()), "jpeg", CORNERS),
    "progressive": (encode(corners(), progressive=True), "jpeg", CORNERS),
    "gray jpeg": (encode(Image.new("L", (48, 32), 77)), "jpeg", flat((77, 77, 77))),
    "cmyk": (encode(Image.new("RGB", (48, 32), RED).convert("CMYK")), "picture", flat(RED)),
    "png": (encode(corners(), "PNG"), "picture", CORNERS),
    "palette": (encode(Image.fromarray(corners()).quantize(8), "PNG"), "picture", CORNERS),
    "16 bits": (sixteen_bits(), "picture", flat((200, 200, 200))),
    "1 bit": (encode(Image.new("1", (48, 32), 1), "PNG"), "picture", flat((255, 255, 255))),
    "alpha png": (transparent_on(BLUE, "PNG"), "picture", (BLUE, BLUE, WHITE, WHITE)),
    "alpha webp": (transparent_on(BLUE, "WEBP"), "picture", (BLUE, BLUE, WHITE, WHITE)),
    "animation": (animation(), "picture", flat(RED)),
    "tiff": (encode(corners(), "TIFF"), "picture", CORNERS),
    **{f"orientation {n}": (with_orientation(n), "picture" if 1 < n < 9 else "jpeg", CORNERS) for n in range(10)},
    "orientation 6 of a tiff": (with_orientation(6, "TIFF"), "picture", CORNERS),
}


@pytest.mark.parametrize("name", READABLE)
def test_read__shows_what_a_viewer_shows(name, tmp_path):
    content, stored_as, colours = READABLE[name]
    stream = index_picture(write_file(tmp_path / "a.jpg", content))
    assert (stream.stored_as, stream.width_px, stream.height_px, stream.num_frames) == (stored_as, 48, 32, 1)
    picture = read_picture(FileRange(Path(stream.path)), stream)
    assert picture.shape == (32, 48, 3) and picture.dtype == np.uint8
    seen = [picture[y, x] for y in (6, 26) for x in (8, 40)]
    np.testing.assert_allclose(seen, colours, atol=20 if name == "palette" else 6)


def bomb() -> bytes:
    """A PNG of a few kilobytes whose header says 20,000 x 20,000 pixels."""
    content = bytearray(encode(Image.new("1", (8, 8)), "PNG"))
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


NOISE = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
UNREADABLE = {
    "cut in the middle": (NOISE[: len(NOISE) // 2], "unreadable: .*truncated"),
    "cut in the header": (NOISE[:100], "unreadable"),
    "png cut": (encode(corners(), "PNG")[:-40], "unreadable"),
    "a web page": (b"<!DOCTYPE html><html>404</html>", "unreadable: is a web page"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unreadable: is a vector graphic"),
    "other bytes": (bytes(range(256)) * 4, "unreadable: is no picture"),
    "a bomb": (bomb(), "too large: .*400000000 pixels"),
    "one pixel": (encode(Image.new("RGB", (1, 1)), "PNG"), "too small: 1x1 pixels"),
    "32 bits": (encode(Image.new("I", (48, 32), 200), "TIFF"), "unreadable: its values have 32 bits"),
    "floats": (encode(Image.new("F", (48, 32)), "TIFF"), "unreadable: its values are floats"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_read__refuses_with_a_reason(name):
    content, reason = UNREADABLE[name]
    with pytest.raises(UnreadableVideoError, match=reason):
        inspect_content(content)


def test_damage_inside_a_jpeg__is_read_as_a_viewer_shows_it(tmp_path):
    """libjpeg goes on behind zeros, so that the upper half is right and the rest is not."""
    middle = len(NOISE) // 2
    content = NOISE[:middle] + bytes(200) + NOISE[middle + 200 :]
    stream = index_picture(write_file(tmp_path / "a.jpg", content))
    read, whole = (READERS[stream.stored_as](each, 1).astype(int) for each in (content, NOISE))
    assert np.array_equal(read[:16], whole[:16]) and not np.array_equal(read[-16:], whole[-16:])


def test_range_of_a_shard__is_read_like_a_file(tmp_path):
    members = {"a.txt": b"x" * 700, "b.jpg": encode(corners()), "c.jpg": NOISE}
    shard = write_shard(tmp_path / "s.tar", members)
    offset = shard.read_bytes().index(members["b.jpg"])
    stream = index_picture(shard, offset=offset, num_bytes=len(members["b.jpg"]))
    file = index_picture(write_file(tmp_path / "b.jpg", members["b.jpg"]))
    assert stream.sha256 == file.sha256 and stream.offset == offset
    np.testing.assert_array_equal(
        read_picture(FileRange(shard, stream.offset, stream.num_bytes), stream),
        read_picture(FileRange(tmp_path / "b.jpg"), file),
    )
    shard.write_bytes(shard.read_bytes()[: offset + 100])
    with pytest.raises(UnreadableVideoError, match="ends before byte"):
        read_picture(FileRange(shard, stream.offset, stream.num_bytes), stream)


def test_file_that_changed__is_an_error_of_one_picture(tmp_path):
    path = write_file(tmp_path / "a.jpg", NOISE)
    stream = index_picture(path)
    path.write_bytes(b"\0" * len(NOISE))
    with pytest.raises(UnreadableVideoError, match="is damaged"):
        read_pictures(tmp_path, stream, [0])
    path.unlink()
    with pytest.raises(UnreadableVideoError, match="cannot be opened"):
        read_pictures(tmp_path, stream, [0])


def test_manifest__keeps_pictures_and_writes_videos_as_before(tmp_path):
    stream = index_picture(write_file(tmp_path / "a.jpg", encode(corners())))
    manifest = Manifest(tmp_path, "images", ("a",), (Video("a.jpg", 0, streams={"rgb": stream}),))
    manifest.save()
    assert Manifest.load(tmp_path).videos[0].to_json() == manifest.videos[0].to_json()
    assert Manifest.load(tmp_path).noun == "pictures"
    zero = np.zeros(1, np.int64)
    assert not {"stored_as", "offset"} & Stream("a.mp4", 4, 4, stream.time_base, zero, zero).to_json().keys()


def test_crop__is_cut_from_a_reduced_picture_and_never_enlarged(tmp_path):
    ramp = np.linspace(0, 255, 320)[None, :, None] * np.ones((240, 1, 3))
    smooth = Image.fromarray(ramp.astype(np.uint8))
    stream = index_picture(write_file(tmp_path / "a.jpg", encode(smooth)))
    reader = ClipReader(tmp_path, {"rgb": stream}, [VIEW])
    crop = Crop(0.25, 0.25, 0.5, 0.5)
    ((reduced,),) = reader.read([0.0], [[crop]])
    part = np.asarray(smooth)[60:180, 80:240]
    expected = cv2.resize(part, (8, 8), interpolation=cv2.INTER_AREA)
    # The edges of the crop are rounded to pixels of the reduced picture: at most half a pixel of the result.
    np.testing.assert_allclose(reduced.frames[0].astype(int), expected, atol=0.5 * 255 / 320 * 20 + 1)
    assert read_picture(FileRange(tmp_path / "a.jpg"), stream, shrink=shrink_for(120, 8)).shape == (30, 40, 3)
    assert [shrink_for(px, 8) for px in (5, 8, 16, 31, 32, 64, 900)] == [1, 1, 2, 2, 4, 8, 8]


def test_pictures_and_video_frames__are_drawn_together(tmp_path):
    video = index_video(write_video(tmp_path / "v.mp4", moving_frames(12, height=48, width=64)))
    picture = index_picture(write_file(tmp_path / "a.jpg", encode(corners())))
    entries = [Entry(tmp_path, Video(s.path, streams={"rgb": s}), -1) for s in (video, picture)]
    clips = PairedClips(entries, student_view=VIEW, teacher_views=[VIEW], augmentation=Augmentation())
    keys = [SampleKey(i, epoch) for epoch in (0, 1) for i in (0, 1)]
    batch = clips.read_batch(keys)
    assert batch.student.values.shape == (4, 3, 1, 8, 8) and not batch.unreadable
    assert torch.equal(batch.student.values, clips.read_batch(keys).teachers[0].values)
    # A cached teacher changes nothing of what the student sees, though a larger teacher decodes more of a JPEG.
    large = replace(VIEW, size_px=24)
    beside = PairedClips(entries, student_view=VIEW, teacher_views=[large], augmentation=Augmentation())
    assert torch.equal(beside.read_batch(keys).student.values, batch.student.values)
