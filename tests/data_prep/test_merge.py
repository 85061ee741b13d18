"""Joining the parts of a job array gives the dataset of one run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from video_files import moving_frames, write_video

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.__main__ import main
from data_prep.datasets.ucf101 import Ucf101Options, prepare
from data_prep.merge import MergeOptions, merge_parts

NAMES = [
    "Archery/v_Archery_g01_c01",
    "Archery/v_Archery_g02_c01",
    "Archery/v_Archery_g03_c01",
    "Surfing/v_Surfing_g01_c01",
    "Surfing/v_Surfing_g02_c01",
    "Surfing/v_Surfing_g03_c01",
    "Surfing/v_Surfing_g04_c01",
]


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files except journals and manifests of parts."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {n: data for n, data in files.items() if not n.startswith("journal") and "-of-" not in n}


@pytest.fixture(scope="module")
def made_set(tmp_path_factory: pytest.TempPathFactory) -> Ucf101Options:
    """Seven listed videos of two classes: five readable, one damaged, one missing."""
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(NAMES[:6]):
        write_video(folder / "videos" / f"{name}.avi", moving_frames(10 + seed, height=32, width=48, seed=seed))
    (folder / "videos" / f"{NAMES[4]}.avi").write_bytes(b"")
    lists = folder / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Surfing\n")
    (lists / "trainlist01.txt").write_text("".join(f"{n}.avi {1 + ('Surf' in n)}\n" for n in NAMES[1:]))
    (lists / "testlist01.txt").write_text(f"{NAMES[0]}.avi\n")
    return Ucf101Options(videos=folder / "videos", annotations=lists, out=folder / "whole", workers=1, max_bad=1.0)


@pytest.fixture(scope="module")
def made_parts(made_set: Ucf101Options) -> Path:
    """Prepared in three parts, the last one first."""
    out = made_set.out.with_name("parts")
    for i in (3, 1, 2):
        prepare(dataclasses.replace(made_set, out=out, shard=f"{i}/3"))
    return out


@pytest.fixture
def parts(made_parts: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made_parts, tmp_path / "parts"))


def test_merge__equals_one_run_byte_for_byte(made_set, parts, capsys):
    prepare(made_set)
    assert not (parts / "manifest.arrow").exists()
    capsys.readouterr()
    main(["merge", str(parts)])
    assert contents(parts) == contents(made_set.out)
    manifest = Manifest.load(parts)
    assert [video.name for video in manifest.videos] == [name.split("/")[1] for name in NAMES]
    assert [video.status for video in manifest.videos] == ["ok"] * 4 + ["skipped", "ok", "skipped"]
    printed = capsys.readouterr().out
    assert "skipped: missing" in printed and "skipped: empty" in printed and str(parts) in printed


def test_merge__follows_a_changed_part(parts):
    whole = merge_parts(MergeOptions(folder=parts))
    before = (parts / "manifest.arrow").read_bytes()
    part = Manifest.load(parts, "manifest.2-of-3.arrow")
    changed = dataclasses.replace(part.videos[1], status="repaired", reason="changed here")
    dataclasses.replace(part, videos=(part.videos[0], changed)).save("manifest.2-of-3.arrow")
    again = merge_parts(MergeOptions(folder=parts))
    assert (parts / "manifest.arrow").read_bytes() != before
    assert [i for i, (a, b) in enumerate(zip(whole.videos, again.videos, strict=True)) if a.status != b.status] == [4]


def test_merge__accepts_more_parts_than_videos(made_set, tmp_path):
    out = tmp_path / "many"
    options = dataclasses.replace(made_set, out=out, modalities=("rgb",))
    for i in range(1, 10):
        prepare(dataclasses.replace(options, shard=f"{i}/9"))
    merged = merge_parts(MergeOptions(folder=out))
    assert [video.name for video in merged.videos] == [name.split("/")[1] for name in NAMES]
    assert [len(video.streams) for video in merged.videos] == [1, 1, 1, 1, 0, 1, 0]


def test_merge__names_missing_parts(parts):
    (parts / "manifest.1-of-3.arrow").unlink()
    (parts / "manifest.3-of-3.arrow").unlink()
    with pytest.raises(UserError, match=r"parts lacks 2 of 3 parts: run --shard 1/3, 3/3 first"):
        merge_parts(MergeOptions(folder=parts))
    assert not (parts / "manifest.arrow").exists()


def test_merge__refuses_parts_with_different_n(parts):
    shutil.copy(parts / "manifest.1-of-3.arrow", parts / "manifest.1-of-4.arrow")
    with pytest.raises(UserError, match=r"contains parts of --shard I/N with different N \(3, 4\): remove"):
        merge_parts(MergeOptions(folder=parts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "hmdb51"}, r"dataset is 'ucf101' in part 1 and 'hmdb51' in part 2"),
        ({"classes": ("Archery",)}, r"number of classes is 2 in part 1 and 1 in part 2"),
        ({"flip_keeps_label": False}, r"flip_keeps_label is True in part 1 and False in part 2"),
        ({"facts": {}}, r"facts is .* in part 1 and \[\] in part 2"),
    ],
)
def test_merge__refuses_parts_with_different_headers(parts, change, message):
    name = "manifest.2-of-3.arrow"
    dataclasses.replace(Manifest.load(parts, name), **change).save(name)
    with pytest.raises(UserError, match=message):
        merge_parts(MergeOptions(folder=parts))


def test_merge__refuses_parts_with_different_options(made_set, parts):
    prepare(dataclasses.replace(made_set, out=parts, shard="3/3", short_side_px=16, replace=True))
    message = r"recipe\.short_side_px is 256 in part 1 and 16 in part 3; prepare all parts with the same options"
    with pytest.raises(UserError, match=message):
        merge_parts(MergeOptions(folder=parts))


def test_merge__refuses_parts_of_different_lists(parts):
    part = Manifest.load(parts, "manifest.1-of-3.arrow")
    dataclasses.replace(part, videos=part.videos[:1]).save("manifest.1-of-3.arrow")
    with pytest.raises(UserError, match=r"part 1 of 3 has 1 videos, but its share of 5 is 2"):
        merge_parts(MergeOptions(folder=parts))


def test_merge__refuses_a_video_in_two_parts(parts):
    part = Manifest.load(parts, "manifest.1-of-3.arrow")
    dataclasses.replace(part, videos=(part.videos[0], part.videos[0], part.videos[2])).save("manifest.1-of-3.arrow")
    with pytest.raises(UserError, match=r"two videos are named 'v_Archery_g01_c01'"):
        merge_parts(MergeOptions(folder=parts))


@pytest.mark.parametrize(
    ("name", "message"), [("empty", "contains no manifest such as"), ("gone", "there is no folder")]
)
def test_merge__refuses_folders_without_parts(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        merge_parts(MergeOptions(folder=tmp_path / name))


def test_merge__refuses_a_damaged_part(parts):
    path = parts / "manifest.2-of-3.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"manifest\.2-of-3\.arrow is damaged or cut short"):
        merge_parts(MergeOptions(folder=parts))


def test_prepare__part_prints_the_merge_command(made_set, tmp_path, capsys):
    prepare(dataclasses.replace(made_set, out=tmp_path / "out", shard="2/3", modalities=("rgb",)))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"python -m data_prep merge {tmp_path / 'out'}" in printed
