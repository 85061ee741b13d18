"""Verification of good datasets, and of datasets with damaged, swapped, missing and extra files."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from video_files import moving_frames, truncate, write_video

from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.errors import UserError
from data_prep.__main__ import main
from data_prep.datasets.ucf101 import Ucf101Options, prepare
from data_prep.verify import OK, Finding, StreamCheck, VerifyOptions, extra_files, verify_dataset

RIGHT, DIAGONAL, LONGER = "v_Archery_g01_c01", "v_Archery_g02_c01", "v_Archery_g03_c01"


@pytest.fixture(scope="module")
def made_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prepared videos: two of the same length with different motion, and a longer one."""
    folder = tmp_path_factory.mktemp("made")
    steps = {RIGHT: ((2, 0), 20), DIAGONAL: ((-1, 1), 20), LONGER: ((1, 0), 30)}
    for seed, (name, (step_xy, num_frames)) in enumerate(steps.items()):
        frames = moving_frames(num_frames, step_xy=step_xy, seed=seed)
        write_video(folder / "videos" / f"{name}.avi", frames)
    (folder / "lists").mkdir()
    (folder / "lists" / "classInd.txt").write_text("1 Archery\n")
    (folder / "lists" / "trainlist01.txt").write_text("".join(f"Archery/{name}.avi 1\n" for name in steps))
    prepare(Ucf101Options(videos=folder / "videos", annotations=folder / "lists", out=folder / "out", workers=1))
    return folder / "out"


@pytest.fixture
def folder(made_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made_folder, tmp_path / "out"))


def path_of(folder: Path, stream: str, name: str) -> Path:
    return folder / stream / "Archery" / f"{name}.mp4"


def verify(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Run the command; return its exit status and output."""
    capsys.readouterr()
    try:
        main(["verify", str(folder), "--workers", "1", *options])
    except SystemExit as stopped:
        said = str(stopped.code)
        assert said.startswith("crossdistill: error: ") and "\n" not in said
        return 1, capsys.readouterr().out + said
    return 0, capsys.readouterr().out


def find(folder: Path, stream: str, name: str) -> Finding:
    """Check one stream in this process."""
    video = next(video for video in Manifest.load(folder).videos if video.name == name)
    return StreamCheck(folder, stream, video.streams[stream]).find()


def test_verify__accepts_a_good_dataset(folder, capsys):
    status, printed = verify(folder, capsys)
    assert status == 0
    rows = [line.replace("│", " ").split() for line in printed.splitlines()]
    assert ["ok", "3", "3"] in rows and ["all", "3", "3"] in rows
    assert "not in the manifest" not in printed


def test_verify__finds_a_changed_label(folder, capsys):
    """Files are as the manifest says, and the manifest is not what was written."""
    path = folder / MANIFEST_NAME
    with pa.ipc.open_file(path) as file:
        schema, (batch, trailer) = file.schema, map(file.get_batch_with_custom_metadata, range(2))
    labels = batch.batch["label"].to_pylist()
    column = pa.array([1 - labels[0], *labels[1:]], batch.batch["label"].type)
    changed = batch.batch.set_column(batch.batch.schema.get_field_index("label"), schema.field("label"), column)
    with pa.ipc.new_file(path, schema) as writer:
        writer.write_batch(changed)
        writer.write_batch(trailer.batch, custom_metadata=trailer.custom_metadata)
    assert Manifest.load(folder).videos[0].label == 1 - labels[0]
    with pytest.raises(UserError, match="is damaged: a name, label, split or entry of a file is not what was written"):
        verify_dataset(VerifyOptions(folder=folder))


def test_verify__accepts_depth(toy_folder, capsys):
    status, printed = verify(toy_folder, capsys)
    assert status == 0 and "depth" in printed


def test_verify__names_every_bad_file(folder, capsys):
    path_of(folder, "rgb", RIGHT).unlink()
    truncate(path_of(folder, "flow", RIGHT), 0.5)
    shutil.copy(path_of(folder, "rgb", LONGER), path_of(folder, "rgb", DIAGONAL))
    path_of(folder, "flow", DIAGONAL).write_bytes(b"")
    status, printed = verify(folder, capsys)
    assert status == 1
    assert f"rgb/Archery/{RIGHT}.mp4: missing" in printed
    assert f"flow/Archery/{RIGHT}.mp4: damaged" in printed
    assert f"rgb/Archery/{DIAGONAL}.mp4: frames differ: 30 frames instead of 20" in printed
    assert f"flow/Archery/{DIAGONAL}.mp4: damaged" in printed
    assert LONGER not in printed
    assert "4 files of" in printed and "repeat the command that prepared the dataset" in printed


def test_verify__accepts_a_repaired_dataset(folder, made_folder, capsys):
    path_of(folder, "rgb", RIGHT).unlink()
    assert verify(folder, capsys)[0] == 1
    source = made_folder.parent
    prepare(Ucf101Options(videos=source / "videos", annotations=source / "lists", out=folder, workers=1))
    assert verify(folder, capsys)[0] == 0


def test_verify__finds_a_file_of_another_clip(folder, capsys):
    shutil.copy(path_of(folder, "rgb", DIAGONAL), path_of(folder, "rgb", RIGHT))
    status, printed = verify(folder, capsys)
    assert status == 1
    assert f"rgb/Archery/{RIGHT}.mp4: changed: decodes, but differs from the manifest's checksum" in printed
    assert DIAGONAL not in printed


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_verify__finds_a_flipped_bit(folder, stream):
    """Most decoders conceal it."""
    path = path_of(folder, stream, LONGER)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert find(folder, stream, LONGER).kind in ("changed", "damaged")


def test_verify__finds_swapped_streams(folder):
    rgb, flow = path_of(folder, "rgb", RIGHT), path_of(folder, "flow", RIGHT)
    kept = rgb.read_bytes()
    shutil.copy(flow, rgb)
    flow.write_bytes(kept)
    assert find(folder, "rgb", RIGHT) == Finding("other picture", "64x96 pixels instead of 64x48")
    assert find(folder, "flow", RIGHT) == Finding("other picture", "64x24 pixels instead of 64x48")


def test_verify__finds_8_bits_instead_of_16(toy_folder, tmp_path):
    folder = Path(shutil.copytree(toy_folder, tmp_path / "toy"))
    streams = Manifest.load(folder).videos[0].streams
    shutil.copy(folder / streams["rgb"].path, folder / streams["depth"].path)
    finding = StreamCheck(folder, "depth", streams["depth"]).find()
    assert finding == Finding("other picture", "8 bits per value instead of 16")


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_verify__finds_overwritten_bytes(folder, stream):
    path = path_of(folder, stream, LONGER)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(range(256)) + bytes(44)
    path.write_bytes(data)
    assert find(folder, stream, LONGER).kind == "damaged"


def test_verify__finds_a_file_that_is_not_a_video(folder):
    path_of(folder, "rgb", LONGER).write_text("not a video\n" * 100)
    assert find(folder, "rgb", LONGER).kind == "damaged"


def test_verify__compares_timestamps_and_keyframes(folder):
    stream = next(v for v in Manifest.load(folder).videos if v.name == LONGER).streams["rgb"]

    def found(**changes: object) -> Finding:
        return StreamCheck(folder, "rgb", dataclasses.replace(stream, **changes)).find()

    assert found() == Finding(OK)
    later = stream.pts.copy()
    later[7:] += 1
    finding = found(pts=later)
    assert finding.kind == "timestamps differ"
    assert finding.details.startswith("23 of 30, the first is frame 7: 0.28 s instead of 0.28")
    finding = found(time_base=stream.time_base / 2)
    assert (finding.kind, "in units of" in finding.details) == ("timestamps differ", True)
    assert stream.keyframes.tolist() == [0, 16]
    finding = found(keyframes=stream.keyframes + np.array([0, 1]))
    assert finding == Finding("keyframes differ", "1 of 2, the first is frame 17")


def test_verify__checks_indexed_originals(made_folder, tmp_path, capsys):
    source = made_folder.parent
    shutil.copytree(source / "videos", tmp_path / "videos")
    options = Ucf101Options(
        videos=tmp_path / "videos",
        annotations=source / "lists",
        out=tmp_path / "out",
        workers=1,
        keep_original=True,
        modalities=("rgb",),
    )
    prepare(options)
    assert verify(tmp_path / "out", capsys)[0] == 0
    truncate(tmp_path / "videos" / f"{LONGER}.avi", 0.5)
    status, printed = verify(tmp_path / "out", capsys)
    assert status == 1
    assert f"{LONGER}.avi: " in printed


def test_verify__lists_extra_files(folder, capsys):
    (folder / "rgb" / "Archery" / ".v_left.mp4.123.tmp").write_bytes(b"half")
    (folder / "flow" / "old.mp4").write_bytes(b"old")
    (folder / "notes.txt").write_text("not in a stream's folder")
    assert extra_files(Manifest.load(folder)) == [
        Path("flow/old.mp4"),
        Path("rgb/Archery/.v_left.mp4.123.tmp"),
    ]
    status, printed = verify(folder, capsys)
    assert status == 0
    assert "2 files in the streams' folders are not in the manifest" in printed
    assert "flow/old.mp4" in printed


# Decoders that hang or crash.


def test_verify__file_over_the_time_limit_is_bad(folder, tmp_path, monkeypatch, capsys):
    """Uses one file only: every file over the limit costs a child process, which takes seconds to start."""
    (tmp_path / "children" / "sitecustomize.py").parent.mkdir()
    (tmp_path / "children" / "sitecustomize.py").write_text(
        "import time, av\nav.open = lambda *_, **__: time.sleep(3600)\n"  # children of this process never finish
    )
    monkeypatch.syspath_prepend(tmp_path / "children")
    manifest = Manifest.load(folder)
    video = next(video for video in manifest.videos if video.name == LONGER)
    one = dataclasses.replace(video, streams={"rgb": video.streams["rgb"]})
    dataclasses.replace(manifest, videos=[one]).save()
    status, printed = verify(folder, capsys, "--time-limit", "0.5")
    assert status == 1
    assert f"rgb/Archery/{LONGER}.mp4: time limit: decoding took longer than 0.5 s" in printed
    assert "1 files of" in printed


# Wrong options.


def test_verify__refuses_wrong_options(tmp_path, folder):
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(tmp_path)])
    assert stopped.value.code == 2
    with pytest.raises(UserError, match="--time-limit -1 is out of range"):
        verify_dataset(VerifyOptions(folder=folder, time_limit=-1.0))
    with pytest.raises(UserError, match="--workers 0 is invalid"):
        verify_dataset(VerifyOptions(folder=folder, workers=0))
