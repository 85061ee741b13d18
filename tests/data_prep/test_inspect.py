"""Tables and contact sheets of prepared datasets."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from video_files import moving_frames

from crossdistill.data.decode import index_video
from crossdistill.data.manifest import Manifest, Video
from crossdistill.data.streams import STREAM_FORMATS, StreamWriter
from crossdistill.errors import UserError
from data_prep.__main__ import main
from data_prep.inspect import (
    SHEET_FRAMES,
    InspectOptions,
    choose_clips,
    draw_sheet,
    flow_wheel,
    inspect_dataset,
    paint_depth,
    paint_flow,
    read_strips,
)


def write_stream(root: Path, name: str, stream: str, frames, pts, time_base=Fraction(1, 10)):
    path = root / stream / f"{name}.mp4"
    with StreamWriter(path, STREAM_FORMATS[stream], time_base=time_base) as writer:
        for frame, at in zip(frames, pts, strict=True):
            writer.write(frame, at)
    return index_video(path, relative_to=root, stream_format=STREAM_FORMATS[stream])


@pytest.fixture
def mixed(tmp_path: Path) -> Manifest:
    """Labelled, unlabelled and bad videos; one has depth of another size and frame rate."""
    frames = moving_frames(20)
    gray = np.full((10, 24, 32, 1), 1500, np.uint16)
    gray[:, :, :4] = 0
    a = {
        "rgb": write_stream(tmp_path, "a", "rgb", frames, range(20)),
        "depth": write_stream(tmp_path, "a", "depth", gray, range(0, 20, 2)),
    }
    b = {"rgb": write_stream(tmp_path, "b", "rgb", frames, [i + (i > 9) * 5 for i in range(20)])}
    videos = (
        Video("a", label=1, splits={"1": "train", "2": "val"}, streams=a),
        Video("b", splits={"1": "test"}, status="repaired", reason="ends early: 20 of 30 frames", streams=b),
        *(Video(f"c{i}", label=0, status="skipped", reason="unreadable: odd") for i in range(5)),
    )
    manifest = Manifest(root=tmp_path, dataset="mixed", classes=("Archery", "Surfing"), videos=videos)
    manifest.save()
    return manifest


def printed_rows(text: str) -> list[list[str]]:
    """Return the cells of all printed tables."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if "  " in line.strip()]


def test_inspect__prints_clips_statuses_and_streams(mixed, capsys):
    main(["inspect", str(mixed.root)])
    text = capsys.readouterr().out
    rows = printed_rows(text)
    assert "mixed: 2 classes, 2 usable clips" in text
    assert ["all", "2", "1/1", "1"] in rows  # split 1 train/test, split 2 val
    assert ["unlabelled", "1", "0/1", "0"] in rows
    assert ["Archery", "0", "0/0", "0"] in rows
    assert ["Surfing", "1", "1/0", "1"] in rows
    assert rows.index(["unlabelled", "1", "0/1", "0"]) < rows.index(["Archery", "0", "0/0", "0"])
    assert ["repaired: ends early", "1", "b"] in rows
    assert ["skipped: unreadable", "5", "c0, c1, c2, ..."] in rows
    assert ["frames", "10", "40"] in rows
    assert ["pixels", "32x24", "64x48"] in rows
    assert ["frames per second", "5", "10 in 1 of 2"] in rows
    hours = next(row for row in rows if row[0] == "hours")
    # 10 frames at 5 per second; 20 frames at 10 per second twice, one of them with a pause of half a second.
    assert [float(hour) for hour in hours[1:]] == pytest.approx([2 / 3600, 4.5 / 3600], rel=0.01)
    size_mb = sum(path.stat().st_size for path in (mixed.root / "rgb").iterdir()) / 1e6
    per_hour = next(row for row in rows if row[0] == "MB per hour")
    assert float(per_hour[2]) == pytest.approx(size_mb * 3600 / 4.5, abs=1)
    assert f"contact sheet: {mixed.root / 'inspect.png'}" in text.replace("\n", "")


def test_inspect__counts_missing_files(mixed, capsys):
    (mixed.root / "rgb" / "b.mp4").unlink()
    main(["inspect", str(mixed.root)])
    assert ["files", "1", "2, 1 are missing"] in printed_rows(capsys.readouterr().out)


def test_inspect__writes_a_reproducible_sheet(toy_folder, tmp_path):
    out = tmp_path / "new" / "sheet.png"
    before = {p: p.stat().st_mtime_ns for p in toy_folder.rglob("*")}
    inspect_dataset(InspectOptions(folder=toy_folder, out=out, clips=2))
    picture = cv2.imread(str(out))
    assert picture is not None
    assert {p: p.stat().st_mtime_ns for p in toy_folder.rglob("*")} == before, "nothing but --out is written"
    one = tmp_path / "one.png"
    inspect_dataset(InspectOptions(folder=toy_folder, out=one, clips=1))
    assert picture.shape[1] == cv2.imread(str(one)).shape[1] and picture.shape[0] > cv2.imread(str(one)).shape[0]
    again = tmp_path / "again.png"
    inspect_dataset(InspectOptions(folder=toy_folder, out=again, clips=1))
    assert again.read_bytes() == one.read_bytes()
    other = tmp_path / "other.png"
    inspect_dataset(InspectOptions(folder=toy_folder, out=other, clips=1, seed=1))
    assert other.read_bytes() != one.read_bytes()


def test_draw_sheet__shows_every_stream_with_class_name_and_times(toy_folder):
    manifest = Manifest.load(toy_folder)
    video = manifest.videos[0]
    figure = draw_sheet(manifest, [video])
    words = [text.get_text() for text in figure.texts]
    assert manifest.classes[video.label] in words
    assert any(word.startswith(f"{video.name} ") for word in words)
    assert any(word.startswith("flow\nup to ") for word in words) and any(word.startswith("depth\n") for word in words)
    times = [float(word.removesuffix(" s")) for word in words if word.endswith(" s")]
    assert len(times) == SHEET_FRAMES and times == sorted(times)
    assert set(times) <= set(video.streams["rgb"].times_seconds.round(2).tolist())
    assert len(figure.axes) == 3 * SHEET_FRAMES + 1, "three streams and the wheel"


def test_read_strips__pairs_streams_by_time(mixed):
    rgb, depth = read_strips(mixed, mixed.videos[0])
    assert rgb.pictures.shape == (SHEET_FRAMES, 48, 64, 3)
    assert np.abs(rgb.times_seconds - depth.times_seconds).max() <= 0.1 + 1e-9, "half of depth's step of 0.2 s"
    assert rgb.times_seconds[-1] > 1.5
    (alone,) = read_strips(mixed, mixed.videos[1])
    assert np.diff(alone.times_seconds).max() > 0.5, "the pause"


def test_read_strips__handles_short_and_unreadable_clips(mixed):
    frames = moving_frames(2)
    streams = {"rgb": write_stream(mixed.root, "short", "rgb", frames, range(2))}
    (short,) = read_strips(mixed, Video("short", streams=streams))
    assert short.times_seconds.tolist() == [0.0, 0.1]
    (mixed.root / "depth" / "a.mp4").write_bytes(b"damaged")
    rgb, depth = read_strips(mixed, mixed.videos[0])
    assert (len(rgb.pictures), len(depth.pictures), depth.label) == (SHEET_FRAMES, 0, "depth\nunreadable")
    draw_sheet(mixed, mixed.videos[:1])


def test_paint_flow__colours_direction_and_speed():
    codes = np.full((1, 2, 3, 2), 128, np.uint8)
    codes[0, 0, 0] = (128 + 127, 128)  # 20 px to the right: red
    codes[0, 0, 1] = (128, 128 + 127)  # 20 px down: yellow
    pictures, label = paint_flow(codes)
    assert label == "flow\nup to 20.0 px"
    assert pictures[0, 0, 0].tolist() == [255, 0, 0]
    red, green, blue = pictures[0, 0, 1].tolist()
    assert min(red, green) > 200 and blue < 20
    assert pictures[0, 1].tolist() == [[255, 255, 255]] * 3
    still, label = paint_flow(np.full((1, 2, 3, 2), 128, np.uint8))
    assert (label, still.min()) == ("flow\nno motion", 255)


def test_paint_depth__paints_near_bright_and_unmeasured_black():
    depth = np.array([[[[0], [800], [1600], [4000]]]], np.uint16)
    pictures, label = paint_depth(depth)
    assert label == "depth\n0.80–4.00 m"
    brightness = pictures[0, 0].astype(int).sum(axis=1)
    assert brightness[0] == 0 and brightness[1] > brightness[2] > brightness[3] > 100
    empty, label = paint_depth(np.zeros((2, 4, 4, 1), np.uint16))
    assert (label, empty.shape, empty.max()) == ("depth\nnothing measured", (2, 4, 4, 3), 0)
    flat, _ = paint_depth(np.full((1, 4, 4, 1), 700, np.uint16))
    assert flat.sum(axis=3).min() > 100


def test_flow_wheel__right_is_red():
    wheel = flow_wheel(41)
    assert wheel[20, 40].tolist() == [255, 0, 0, 255]
    assert wheel[20, 20].tolist() == [255, 255, 255, 255]
    assert wheel[0, 0, 3] == 0


def test_choose_clips__spreads_over_classes():
    videos = [Video(f"v{label}_{i}", label=label) for label in (0, 1, 2, None) for i in range(5)]

    def choose(videos, count, *, seed):
        manifest = Manifest(Path("x"), "mine", ("a", "b", "c"), videos)
        return choose_clips(manifest, np.arange(len(videos)), count, seed=seed)

    chosen = choose(videos, 4, seed=0)
    assert [video.label for video in chosen] == [0, 1, 2, None]
    counts = Counter(video.label for video in choose(videos[:15], 7, seed=0))
    assert sorted(counts.values()) == [2, 2, 3]
    assert len(choose(videos, 100, seed=0)) == 20
    assert choose(videos, 4, seed=0) != choose(videos, 4, seed=1)
    many = [Video(f"v{label}", label=label) for label in range(50)]
    assert len({v.label for v in choose(many, 6, seed=0)}) == 6


def test_inspect__handles_an_unlabelled_dataset(mixed, tmp_path, capsys):
    video = dataclasses.replace(mixed.videos[0], label=None, splits={})
    dataclasses.replace(mixed, classes=(), videos=(video,)).save()
    main(["inspect", str(mixed.root), "--clips", "1"])
    text = capsys.readouterr().out
    assert "mixed: no classes, 1 usable clip" in " ".join(text.split())
    assert ["unlabelled", "1"] in printed_rows(text)
    assert (mixed.root / "inspect.png").stat().st_size > 10_000


def test_inspect__writes_no_sheet_without_usable_clips(mixed, capsys):
    dataclasses.replace(mixed, videos=mixed.videos[2:]).save()
    main(["inspect", str(mixed.root)])
    text = " ".join(capsys.readouterr().out.split())
    assert f"{mixed.root} has no usable clip, so there is no contact sheet" in text
    assert "skipped: unreadable" in text
    assert not (mixed.root / "inspect.png").exists()


def test_inspect__refuses_wrong_options(mixed, tmp_path):
    for changes, message in (
        ({"out": tmp_path / "sheet.jpg"}, r"sheet\.jpg is not a PNG file"),
        ({"clips": 0}, "--clips 0 is out of range: give a number from 1 to 30"),
        ({"folder": tmp_path / "nowhere"}, "there is no folder .*nowhere: correct the path"),
        ({"out": mixed.root / "manifest.arrow" / "sheet.png"}, "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            inspect_dataset(dataclasses.replace(InspectOptions(folder=mixed.root), **changes))


def test_inspect__writes_the_sheet_into_the_folder_by_default(toy_folder, tmp_path):
    folder = Path(shutil.copytree(toy_folder, tmp_path / "toy"))
    inspect_dataset(InspectOptions(folder=folder, clips=1))
    assert (folder / "inspect.png").is_file()
    assert not list(folder.glob(".*.tmp"))


def test_command_line__suggests_the_nearest_command(capsys):
    main([])
    text = capsys.readouterr().out
    for command in ("inspect", "verify", "merge"):
        assert f"\n  {command} " in text
    with pytest.raises(SystemExit) as stopped:
        main(["verfy", "somewhere"])
    assert stopped.value.code == 2
    assert "did you mean 'verify'?" in capsys.readouterr().err
