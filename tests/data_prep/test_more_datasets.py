"""Diving48 and UCF101-DS: lists in the documented format, damaged ones, and one small preparation of each."""

from __future__ import annotations

import dataclasses
import json

import pytest
from video_files import moving_frames, write_video

from crossdistill.errors import UserError
from data_prep.datasets import diving48, ucf101_ds

VOCABULARY = [
    ["Back", "15som", "05Twis", "FREE"],
    ["Back", "15som", "15Twis", "FREE"],
    ["Forward", "Dive", "NoTwis", "PIKE"],
]


def entry(name, label, first=0, last=9):
    return {"vid_name": name, "label": label, "start_frame": first, "end_frame": last}


def small_video(path, seed=0):
    write_video(path.with_suffix(".avi"), moving_frames(9, height=32, width=40, seed=seed)).rename(path)


@pytest.fixture
def dives(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "Diving48_vocab.json").write_text(json.dumps(VOCABULARY))
    (lists / "Diving48_V2_train.json").write_text(json.dumps([entry("a-b_c_00001", 2), entry("a-b_c_00002", 0)]))
    (lists / "Diving48_V2_test.json").write_text(json.dumps([entry("xyz_00001", 1)]))
    return diving48.Diving48Options(videos=tmp_path / "rgb", annotations=lists, out=tmp_path / "out", workers=1)


def test_diving48__prepares_what_the_lists_name(dives):
    for name in ("a-b_c_00001", "xyz_00001"):
        small_video(dives.videos / f"{name}.mp4")
    manifest = diving48.prepare(dives)
    assert manifest.classes == ("Back 15som 05Twis FREE", "Back 15som 15Twis FREE", "Forward Dive NoTwis PIKE")
    assert [(v.name, v.label, v.group, v.splits, v.status) for v in manifest.videos] == [
        ("a-b_c_00001", 2, "a-b_c", {"1": "train"}, "ok"),
        ("a-b_c_00002", 0, "a-b_c", {"1": "train"}, "skipped"),
        ("xyz_00001", 1, "xyz", {"1": "test"}, "ok"),
    ]
    assert manifest.videos[0].streams["rgb"].path == "rgb/a-b_c/a-b_c_00001.mp4"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Diving48_V2_train.json", "[{", r"train.json line 1 is not valid JSON"),
        ("Diving48_V2_train.json", {"a": 1}, r"train.json is not a list of videos"),
        ("Diving48_V2_train.json", [{"label": 1}], r"train.json entry 1 has no vid_name"),
        ("Diving48_V2_train.json", [7], r"train.json entry 1 has no vid_name"),
        ("Diving48_V2_train.json", [entry("a", 3)], r"entry 1 has the class 3, and Diving48_vocab.json has 3 classes"),
        ("Diving48_V2_train.json", [entry("a", "1")], r"entry 1 has the class '1'"),
        ("Diving48_V2_train.json", [entry("a", 1, 9, 9)], r"entry 1 has the frames 9 to 9"),
        ("Diving48_V2_train.json", [entry("xyz_00001", 1)], r"test.json entry 1 names the video xyz_00001 again"),
        ("Diving48_vocab.json", ["Back"], r"vocab.json is not the vocabulary"),
        ("Diving48_vocab.json", [["Back"], ["Back"]], r"vocab.json names a dive twice"),
    ],
)
def test_diving48__damaged_lists_are_one_sentence(dives, name, content, message):
    (dives.annotations / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        diving48.read_lists(dives.annotations)


def test_diving48__missing_lists_and_videos_are_one_sentence(dives):
    with pytest.raises(UserError, match=r"contain none of the 3 videos that the lists .* expected for example"):
        diving48.prepare(dataclasses.replace(dives, videos=dives.annotations))
    (dives.annotations / "Diving48_V2_train.json").unlink()
    (dives.annotations / "Diving48_V2_test.json").unlink()
    with pytest.raises(UserError, match=r"contains no list of videos: expected for example Diving48_V2_train.json"):
        diving48.read_lists(dives.annotations)
    (dives.annotations / "Diving48_vocab.json").unlink()
    with pytest.raises(UserError, match=r"there is no file .*Diving48_vocab.json: give the folder of Diving48's lists"):
        diving48.read_lists(dives.annotations)


@pytest.fixture
def shifted(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 HandstandPushups\n")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g02_c01.avi 1\n")
    (lists / "testlist01.txt").write_text("HandstandPushups/v_HandStandPushups_g01_c01.avi\n")
    (lists / "testlist02.txt").write_text("Archery/v_Archery_g03_c01.avi\n")
    return ucf101_ds.Ucf101DsOptions(
        shifts=tmp_path / "ds",
        videos=tmp_path / "ucf",
        annotations=lists,
        out=tmp_path / "out",
        workers=1,
        modalities=("rgb",),
    )


def test_ucf101_ds__tests_each_shift_with_the_training_part_of_ucf101(shifted):
    for name in ("v_Archery_g02_c01", "v_HandStandPushups_g01_c01"):
        small_video(shifted.videos / f"{name}.avi")
    for path in ("fog/archery/a.mp4", "fog/HandstandPushups/a.mp4", "night/Archery/b.mp4"):
        small_video(shifted.shifts / path)
    manifest = ucf101_ds.prepare(shifted)
    train = {"1": "train", "fog": "train", "night": "train", "shifted": "train"}
    assert [(v.name, v.label, v.splits, v.status) for v in manifest.videos] == [
        ("v_Archery_g02_c01", 0, train, "ok"),
        ("v_HandStandPushups_g01_c01", 1, {"1": "test"}, "ok"),
        ("fog/HandstandPushups/a", 1, {"fog": "test", "shifted": "test"}, "ok"),
        ("fog/Archery/a", 0, {"fog": "test", "shifted": "test"}, "ok"),
        ("night/Archery/b", 0, {"night": "test", "shifted": "test"}, "ok"),
    ]
    assert manifest.classes == ("Archery", "HandstandPushups")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("fog/Swimming/a.mp4", r"the folder .*fog/Swimming has the name of no class of UCF101"),
        ("fog/a.mp4", r"fog/a.mp4 is not in a folder .*ds/<shift>/<class>: move it there"),
        ("1/Archery/a.mp4", r"the shift .*ds/1 has the name of another split: rename the folder"),
        ("fog/Archery/notes.txt", r"ds holds no video: expected for example .*ds/fog/Archery/clip.mp4"),
    ],
)
def test_ucf101_ds__wrong_folders_are_one_sentence(shifted, path, message):
    small_video(shifted.videos / "v_Archery_g02_c01.avi")
    (shifted.shifts / path).parent.mkdir(parents=True)
    (shifted.shifts / path).touch()
    with pytest.raises(UserError, match=message):
        ucf101_ds.prepare(shifted)
