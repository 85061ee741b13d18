"""Lists and folders of the datasets: every way to name files, damaged lists, and one small preparation of each."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from in_process import train
from video_files import moving_frames, write_video

from crossdistill.data.decode import read_frames
from crossdistill.data.held_out import held_out_part
from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from crossdistill.evaluation.intervals import units_of
from data_prep.__main__ import COMMANDS, DATASETS, main
from data_prep.datasets import folder, hmdb51, kinetics, ntu, ssv2, ucf101, utd_mhad
from data_prep.datasets import list as listed_videos
from data_prep.pipeline.prepare import PrepareOptions, RunOptions, SourceVideo
from data_prep.pipeline.sources import join_files, select_inputs, walk_files

PREPARED = set(DATASETS) - {"toyactions"}  # toyactions is rendered and has options of its own
BRUSH = "April_09_brush_hair_u_nm_np1_ba_goo"
ODD = "Brushing_[_NEW_]_#1&2;_UPDATED!!!!_brush_hair_h_cm_np1_fr_goo_0"


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def small_video(path: Path, seed: int = 0) -> Path:
    """Nine frames; an .avi inside, whatever the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path.with_suffix(".avi"), moving_frames(9, height=32, width=40, seed=seed)).rename(path)


def assert_readable(manifest: Manifest, *, rgb_frames: int = 9) -> None:
    """What was written to disk can be found and decoded by what the manifest says."""
    loaded = Manifest.load(manifest.root)
    assert [video.to_json() for video in loaded.videos] == [video.to_json() for video in manifest.videos]
    for video in loaded.videos:
        for name, stream in video.streams.items():
            pictures = read_frames(loaded.root, stream, range(stream.num_frames), stream_name=name)
            assert len(pictures) == rgb_frames - (name == "flow")


# Shared by all datasets.


def test_overview__names_every_command(capsys):
    main([])
    overview = capsys.readouterr().out
    for name, command in {**DATASETS, **COMMANDS}.items():
        assert f"\n  {name} " in overview
        options, function, help_text = command.load()
        assert help_text and callable(function) and issubclass(options, RunOptions) == (name in PREPARED)
        assert options.__doc__ == f"Options of ``python -m data_prep {name}``."


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hmdb51", ("test_train_splits.rar", "serre", "--annotations")),
        ("kinetics", ("cvdfoundation", "<id>_<start>_<end>", "--replacement", "--classes")),
        ("ssv2", ("labels.json", "qualcomm", ".webm")),
        ("ntu", ("S001C001P001R001A001_rgb.avi", "xsub", "--depth")),
        ("utd_mhad", ("a1_s1_t1_depth.mat", "--depth")),
        ("folder", ("<split>/<class>/<video>", "--unlabelled", "--test-share")),
        ("list", ("--train-list", "--test-list", "--unlabelled-list", "--classes")),
    ],
)
def test_help__names_the_files_to_download(name, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for word in (*words, "--out"):
        assert word in text, word


def test_walk_files__stops_at_matching_folders(tmp_path):
    touch(tmp_path / "a" / "S1" / "1.png", tmp_path / "a" / "note.txt", tmp_path / ".hidden" / "x")
    assert list(walk_files(tmp_path, stop_at=re.compile(r"S\d"))) == [
        tmp_path / "a" / "S1",
        tmp_path / "a" / "note.txt",
    ]


def test_walk_files__refuses_a_link_to_a_parent(tmp_path):
    touch(tmp_path / "cat" / "a.mp4")
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"again is a link to a folder that contains it"):
        folder.read_folder(folder.FolderOptions(videos=tmp_path, out=tmp_path.parent / "out"))


def test_select_inputs__requires_the_sources_of_all_streams(capsys):
    def inputs(found, *modalities):
        return select_inputs(PrepareOptions(out=Path("unused"), modalities=modalities), found, "ab")

    found = {"rgb": {"a": Path("a.avi"), "b": Path("b.avi")}, "depth": {"a": Path("a")}}
    assert inputs(found, "rgb", "flow") == {"a": {"rgb": Path("a.avi")}, "b": {"rgb": Path("b.avi")}}
    assert inputs({"depth": found["depth"]}, "depth", "flow") == {"a": {"depth": Path("a")}, "b": {}}
    assert capsys.readouterr().out == ""
    assert inputs(found, "depth", "rgb")["b"] == {}
    assert "1 videos have no depth and count as missing" in capsys.readouterr().out
    with pytest.raises(UserError, match="'rgb' cannot be made: it needs rgb, and there is only depth"):
        inputs({"depth": found["depth"]}, "rgb")


# HMDB51.


@pytest.fixture
def hmdb(tmp_path: Path) -> hmdb51.Hmdb51Options:
    lists = tmp_path / "lists" / "testTrainMulti_7030_splits"
    for split, parts in (("1", "120"), ("3", "101")):
        names = (f"{BRUSH}_0", f"{BRUSH}_1", ODD)
        lines = [f"{name}.avi {part} " for name, part in zip(names, parts, strict=True)]
        write(lists / f"brush_hair_test_split{split}.txt", *lines)
        write(lists / f"wave_test_split{split}.txt", "a_wave_u_nm_np1_fr_med_1.avi 2 ", "")
    touch(tmp_path / "videos" / "brush_hair" / f"{BRUSH}_0.avi", tmp_path / "videos" / f"{ODD}.AVI")
    return hmdb51.Hmdb51Options(
        videos=tmp_path / "videos", annotations=tmp_path / "lists", out=tmp_path / "out", workers=1
    )


def test_hmdb51__reads_official_lists(hmdb):
    classes, videos = hmdb51.read_lists(hmdb.annotations)
    assert classes == ["brush_hair", "wave"]
    film = "Brushing_[_NEW_]_#1&2;_UPDATED!!!!"
    assert [(v.name, v.label, v.group, v.splits) for v in videos] == [
        (f"{BRUSH}_0", 0, "April", {"1": "train", "3": "train"}),  # the number may be that of a part of the film
        (f"{BRUSH}_1", 0, "April", {"1": "test"}),
        (ODD, 0, film, {"3": "train"}),
        ("a_wave_u_nm_np1_fr_med_1", 1, "a", {"1": "test", "3": "test"}),
    ]


def test_hmdb51__warns_of_group_leakage(hmdb, capsys):
    hmdb51.read_lists(hmdb.annotations)
    assert "1 groups of near-duplicates are in both parts of split 1" in capsys.readouterr().out


def test_hmdb51__prepares_files_with_odd_names(hmdb):
    for path in walk_files(hmdb.videos):
        small_video(path)
    manifest = hmdb51.prepare(hmdb)
    assert [(v.status, v.reason) for v in manifest.videos] == [
        ("ok", ""),
        ("skipped", "missing"),
        ("ok", ""),
        ("skipped", "missing"),
    ]
    assert manifest.videos[2].name == ODD
    assert_readable(manifest)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("wave_test_split1.txt", "x.avi 3", r"wave_test_split1\.txt line 1 is 'x\.avi 3': expected name\.avi and 1"),
        ("wave_test_split1.txt", "\nx.avi", r"line 2 is 'x\.avi': expected"),
        ("wave_test_split1.txt", "x.avi 1\nX.avi 2", r"line 2 names X\.avi, which is also in an earlier line"),
        ("wave_test_split1.txt", f"{ODD}.avi 1", r"names Brush.*which is also in a list of 'brush_hair'"),
        (
            "jump_test_split1.txt",
            "x.avi 1",
            r"contains no jump_test_split3\.txt, though other classes have a list of split 3",
        ),
        ("copy/wave_test_split1.txt", "x.avi 1", r"belong to the same class and split"),
    ],
)
def test_hmdb51__errors_name_file_and_line(hmdb, name, text, message):
    write(hmdb.annotations / "testTrainMulti_7030_splits" / name, text)
    with pytest.raises(UserError, match=message):
        hmdb51.read_lists(hmdb.annotations)


def test_hmdb51__refuses_folders_without_lists_or_videos(hmdb, tmp_path):
    with pytest.raises(UserError, match=r"contains no list of HMDB51: expected for example brush_hair_test_split1"):
        hmdb51.read_lists(hmdb.videos)
    (tmp_path / "empty").mkdir()
    message = r"empty and its subfolders contain none of the 4 videos .*expected for example brush_hair/April.*\.avi"
    with pytest.raises(UserError, match=message):
        hmdb51.prepare(dataclasses.replace(hmdb, videos=tmp_path / "empty"))
    for path in walk_files(hmdb.annotations):
        path.write_text(" \n")
    with pytest.raises(UserError, match="name no video"):
        hmdb51.read_lists(hmdb.annotations)


def test_hmdb51__official_lists_have_the_published_counts(shared_folder, capsys):
    classes, videos = hmdb51.read_lists(shared_folder / "annotations" / "hmdb51")
    assert (len(classes), len(videos)) == (51, 6_766)
    counts = Counter(place for video in videos for place in video.splits.items())
    assert counts == {(split, part): n for split in "123" for part, n in (("train", 3_570), ("test", 1_530))}
    assert all(video.group for video in videos)
    assert "near-duplicates" not in capsys.readouterr().out  # the official splits keep the clips of a film in one part


# Kinetics.

HEADER = "label,youtube_id,time_start,time_end,split"
IDS = ("---QUuC4vJs", "_0123456789", "abc_def-ghi", "ABC_def-ghi", "plain012345", "zzzzzzzzzzz")


@pytest.fixture
def clips(tmp_path: Path) -> kinetics.KineticsOptions:
    """One clip for each way to name files. Two ids differ in case only, and one clip is missing."""
    lists = tmp_path / "lists"
    write(
        lists / "train.csv",
        f"{HEADER},is_cc",
        f"dancing charleston,{IDS[0]},84,94,train,0",
        f'"playing ""air"", drums",{IDS[1]},1,11,train,1',
        f"dancing charleston,{IDS[2]},5,15,train,0",
    )
    write(
        lists / "val.csv",
        "youtube_id,split,time_end,time_start,label",
        f"{IDS[3]},validate,15,5,dancing charleston",
        f"{IDS[5]},val,15.0,5.0,dancing charleston",
    )
    write(lists / "test.csv", "youtube_id,time_start,time_end,split", f"{IDS[4]},7,17,test")
    videos = tmp_path / "videos"
    touch(
        videos / "train" / "dancing charleston" / f"{IDS[0]}_000084_000094.mp4",
        videos / "train" / "playing_drums" / f"{IDS[1]}_1_11.webm",
        videos / f"{IDS[2]}.mkv",
        videos / f"{IDS[3]}_000005_000015.MP4",
        videos / f"{IDS[4]}.avi",
        videos / f"{IDS[4]}.jpg",
        videos / "readme.mp4",
    )
    return kinetics.KineticsOptions(videos=videos, annotations=(lists,), out=tmp_path / "out", workers=1)


def kinetics_files(options: kinetics.KineticsOptions) -> dict[str, str | None]:
    classes, rows = kinetics.read_lists(options.annotations)
    replacements = kinetics.find_clips(options.replacement) if options.replacement else {}
    sources = kinetics.join_clips(rows, classes, kinetics.find_clips(options.videos), replacements)
    return {s.name[:11]: s.inputs["rgb"].relative_to(options.videos.parent).as_posix() for s in sources if s.inputs}


def test_kinetics__reads_columns_in_any_order(clips):
    classes, rows = kinetics.read_lists(clips.annotations)
    assert classes == ["dancing charleston", 'playing "air", drums']
    assert {row.name: (row.action, row.part) for row in rows} == {
        f"{IDS[0]}_000084_000094": (classes[0], "train"),
        f"{IDS[1]}_000001_000011": (classes[1], "train"),
        f"{IDS[2]}_000005_000015": (classes[0], "train"),
        f"{IDS[3]}_000005_000015": (classes[0], "validation"),
        f"{IDS[5]}_000005_000015": (classes[0], "validation"),
        f"{IDS[4]}_000007_000017": ("", "test"),
    }


def test_kinetics__finds_files_named_in_any_way(clips):
    assert kinetics_files(clips) == {
        IDS[0]: f"videos/train/dancing charleston/{IDS[0]}_000084_000094.mp4",
        IDS[1]: f"videos/train/playing_drums/{IDS[1]}_1_11.webm",
        IDS[2]: f"videos/{IDS[2]}.mkv",
        IDS[3]: f"videos/{IDS[3]}_000005_000015.MP4",
        IDS[4]: f"videos/{IDS[4]}.avi",
    }


def test_kinetics__replacements_are_found_by_id(clips, tmp_path, capsys):
    replacement = tmp_path / "replacement"
    touch(replacement / "x" / f"{IDS[1]}_000003_000013.mp4", replacement / f"{IDS[5]}.mp4")
    files = kinetics_files(dataclasses.replace(clips, replacement=replacement))
    assert files[IDS[1]] == f"replacement/x/{IDS[1]}_000003_000013.mp4"
    assert files[IDS[5]] == f"replacement/{IDS[5]}.mp4"
    assert files[IDS[0]] == f"videos/train/dancing charleston/{IDS[0]}_000084_000094.mp4"
    assert "1 clips are in no list, or replaced" in capsys.readouterr().out
    touch(replacement / f"{IDS[1]}_000004_000014.mp4")
    with pytest.raises(UserError, match="could both replace _0123456789_000001_000011"):
        kinetics_files(dataclasses.replace(clips, replacement=replacement))


def test_kinetics__prepares_official_splits(clips, tmp_path):
    for path in walk_files(clips.videos):
        if path.suffix != ".jpg":
            small_video(path)
    manifest = kinetics.prepare(clips)
    assert {v.name[:11]: (v.label, v.splits, v.status) for v in manifest.videos} == {
        IDS[0]: (0, {"1": "train"}, "ok"),
        IDS[1]: (1, {"1": "train"}, "ok"),
        IDS[2]: (0, {"1": "train"}, "ok"),
        IDS[3]: (0, {"1": "test"}, "ok"),
        IDS[4]: (None, {}, "ok"),
        IDS[5]: (0, {"1": "test"}, "skipped"),
    }
    assert_readable(manifest)
    lists = clips.annotations[0]
    alone = dataclasses.replace(clips, annotations=(lists / "test.csv",), out=tmp_path / "unlabelled")
    manifest = kinetics.prepare(alone)
    assert (manifest.classes, manifest.splits, len(manifest.videos)) == ((), (), 1)
    write(lists / "test.csv", HEADER, f"dancing charleston,{IDS[4]},7,17,test")
    manifest = kinetics.prepare(dataclasses.replace(clips, out=tmp_path / "labelled_test"))
    places = Counter(place for video in manifest.videos for place in video.splits.items())
    assert places == {("1", "train"): 3, ("test", "train"): 3, ("1", "test"): 2, ("test", "test"): 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["label,youtube_id,time_start,split", "a,abcdefghijk,1,train"],
            r"bad\.csv has no column time_end: the first line must name",
        ),
        ([], r"bad\.csv has no column youtube_id"),
        ([HEADER], r"bad\.csv name no video"),
        ([HEADER, "a,short,1,2,train"], r"bad\.csv line 2 has the youtube_id 'short': expected 11"),
        ([HEADER, "a,abcdefghijk,1,2"], r"line 2 has the split '': expected one of train, val"),
        ([HEADER, "a,abcdefghijk,1,2,trian"], r"line 2 has the split 'trian'"),
        ([HEADER, "a,abcdefghijk,one,2,train"], r"line 2 has the times 'one' and '2'"),
        ([HEADER, "a,abcdefghijk,inf,2,train"], r"line 2 has the times 'inf' and '2'"),
        ([HEADER, ",abcdefghijk,1,2,val"], r"line 2 has no label, but its split is 'val'"),
        (
            [HEADER, "a,abcdefghijk,1,2,train", "b,abcdefghijk,1.0,2,val"],
            r"line 3 names the clip abcdefghijk_000001_000002, which is also in .*bad\.csv line 2: remove",
        ),
        ([HEADER, "a,abcdefghijk,1,2,train," + "x" * 200_000], r"is not valid CSV \(field larger than"),
    ],
)
def test_kinetics__errors_name_file_and_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        kinetics.read_lists((write(tmp_path / "bad.csv", *rows),))


def test_kinetics__refuses_binary_or_missing_lists(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(UserError):
        kinetics.read_lists((path,))
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.csv: give a list of Kinetics"):
        kinetics.read_lists((tmp_path / "nowhere.csv",))


def test_kinetics__ignores_other_csv_files(clips, tmp_path, capsys):
    write(clips.annotations[0] / "kinetics_400_labels.csv", "id,name", "0,abseiling")
    assert len(kinetics.read_lists(clips.annotations)[1]) == 6
    assert "also contains kinetics_400_labels.csv, which is not a list" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="contains no list of Kinetics"):
        kinetics.read_lists((clips.videos,))
    with pytest.raises(UserError, match="--annotations is empty"):
        kinetics.read_lists(())


def test_kinetics__takes_class_index_from_a_file(clips, tmp_path):
    names = write(tmp_path / "classes.txt", 'playing "air", drums', "abseiling", "dancing charleston")
    classes, _ = kinetics.read_lists(clips.annotations, classes=names)
    assert classes.index("dancing charleston") == 2
    write(names, "abseiling", "dancing charleston")
    with pytest.raises(
        UserError, match=r"train\.csv line 3 names the class 'playing \"air\", drums', which is not in .*classes"
    ):
        kinetics.read_lists(clips.annotations, classes=names)
    write(names, "abseiling", "abseiling")
    with pytest.raises(UserError, match=r"classes\.txt line 2 names the class 'abseiling' again"):
        kinetics.read_lists(clips.annotations, classes=names)


def test_kinetics__refuses_two_lines_with_one_file(clips):
    with (clips.annotations[0] / "train.csv").open("a") as file:
        file.write(f"dancing charleston,{IDS[2]},50,60,train,0\n")
    with pytest.raises(
        UserError, match=rf"{IDS[2]}\.mkv is the file of both .*train\.csv line 4 and .*train\.csv line 5"
    ):
        kinetics.prepare(clips)


def test_kinetics__refuses_two_files_of_a_clip_and_folders_without_clips(clips, tmp_path):
    touch(clips.videos / "copy" / f"{IDS[0]}_84_94.mp4")
    with pytest.raises(UserError, match="belong to the same clip: give a folder that holds only one of them"):
        kinetics.prepare(clips)
    with pytest.raises(
        UserError, match=r"lists and its subfolders contain none of the 6 videos that the lists in .*lists name"
    ):
        kinetics.prepare(dataclasses.replace(clips, videos=clips.annotations[0]))


def test_kinetics__official_list_has_the_published_counts(shared_folder):
    classes, rows = kinetics.read_lists((shared_folder / "annotations" / "kinetics",))
    assert (len(classes), len(rows)) == (400, 19_906)
    assert {row.part for row in rows} == {"validation"}
    assert (classes[0], classes[-1]) == ("abseiling", "zumba")


# Something-Something v2.

TEMPLATES = {"Pushing something from left to right": "1", "Holding something": "0"}


@pytest.fixture
def somethings(tmp_path: Path) -> ssv2.Ssv2Options:
    lists = tmp_path / "labels"
    push = {"id": "151201", "template": "Pushing [something] from left to right", "label": "pushing a cup"}
    write(lists / "labels.json", json.dumps(TEMPLATES))
    write(lists / "train.json", json.dumps([push]))
    write(lists / "validation.json", json.dumps([{"id": 7, "template": "Holding [something]"}]))
    write(lists / "test.json", json.dumps([{"id": "42"}]))
    touch(tmp_path / "videos" / "151201.webm", tmp_path / "videos" / "42.webm")
    return ssv2.Ssv2Options(videos=tmp_path / "videos", annotations=lists, out=tmp_path / "out", workers=1)


def test_ssv2__reads_lists_of_both_releases(somethings):
    wanted = (
        ["Holding something", "Pushing something from left to right"],
        [("7", 0, {"1": "test"}), ("42", None, {}), ("151201", 1, {"1": "train"})],
    )
    classes, videos = ssv2.read_lists(somethings.annotations)
    assert (classes, [(v.name, v.label, v.splits) for v in videos]) == wanted
    for path in list(somethings.annotations.iterdir()):
        path.rename(path.with_name(f"something-something-v2-{path.name}"))
    classes, videos = ssv2.read_lists(somethings.annotations)
    assert (classes, [(v.name, v.label, v.splits) for v in videos]) == wanted


def test_ssv2__prepares_files_found(somethings):
    for path in walk_files(somethings.videos):
        small_video(path)
    manifest = ssv2.prepare(somethings)
    assert [(v.name, v.status) for v in manifest.videos] == [("7", "skipped"), ("42", "ok"), ("151201", "ok")]
    assert not Manifest.load(manifest.root).flip_keeps_label
    assert_readable(manifest)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.json", "[{", r"train\.json line 2 is not valid JSON"),
        ("train.json", '{"id": "1"}', r"train\.json is not a list of videos"),
        ("train.json", '[{"template": "Holding [something]"}]', r"train\.json entry 1 has no numeric id"),
        ("train.json", '["1"]', r"train\.json entry 1 has no numeric id"),
        (
            "train.json",
            '[{"id": "1", "template": "Eating"}]',
            r"entry 1 names the class 'Eating', which is not in labels\.json",
        ),
        (
            "train.json",
            '[{"id": "7", "template": "Holding [something]"}]',
            r"validation\.json entry 1 names the video 7 again",
        ),
        ("labels.json", "[]", r"labels\.json is not a list of classes"),
        ("labels.json", '{"Holding something": "one"}', r"labels\.json is not a list of classes"),
        ("labels.json", '{"Holding something": "1"}', r"labels\.json does not number its 1 classes from 0"),
    ],
)
def test_ssv2__errors_name_file_and_line(somethings, name, content, message):
    write(somethings.annotations / name, content)
    with pytest.raises(UserError, match=message):
        ssv2.read_lists(somethings.annotations)


def test_ssv2__refuses_folders_without_lists_or_videos(somethings):
    with pytest.raises(UserError, match="contain none of the 3 videos"):
        ssv2.prepare(dataclasses.replace(somethings, videos=somethings.annotations))
    with pytest.raises(UserError, match=r"there is no file .*labels\.json: give the folder of Something"):
        ssv2.read_lists(somethings.videos)
    for name in ("train", "validation", "test"):
        (somethings.annotations / f"{name}.json").unlink()
    with pytest.raises(UserError, match=r"contains no list of videos: expected for example train\.json"):
        ssv2.read_lists(somethings.annotations)


# NTU RGB+D.


def depth_folder(path: Path, num_frames: int = 9) -> Path:
    """Write a folder of 16-bit pictures: frame i is 1000 mm + 10 mm * i everywhere."""
    path.mkdir(parents=True)
    for i in range(num_frames):
        picture = np.full((32, 40), 1000 + 10 * i, dtype=np.uint16)
        cv2.imwrite(str(path / f"MDepth-{i + 1:08d}.png"), picture)
    return path


def ntu_sources(**options):
    sources, classes = ntu.read_recordings(ntu.NtuOptions(out=Path("unused"), **options))
    return {source.name: source for source in sources}, classes


def test_ntu__reads_labels_and_splits_from_names(tmp_path):
    names = ("S001C001P001R001A001", "S017C002P003R002A060", "S002C003P038R001A024")
    touch(*(tmp_path / "nturgb+d_rgb" / f"{name}_rgb.avi" for name in names))
    touch(tmp_path / "S001C001P001R001A001.skeleton", tmp_path / "S001C001P001R001A002_ir.avi")
    sources, classes = ntu_sources(videos=tmp_path, modalities=("rgb", "flow"))
    assert {name: (s.label, s.splits) for name, s in sources.items()} == {
        names[0]: (0, {"xsub": "train", "xview": "test"}),
        names[1]: (59, {"xsub": "test", "xview": "train"}),
        names[2]: (23, {"xsub": "train", "xview": "train"}),
    }
    assert (len(classes), classes[0], classes[59]) == (60, "drink water", "walking apart")
    assert len(ntu.TRAIN_PEOPLE) == 20
    assert [source.group for source in sources.values()] == ["P001", "P038", "P003"]


def test_ntu__linear_sweep_and_intervals_keep_a_person_together(tmp_path):
    """In xset, every person and every performance may be in both parts: they must not be so within the train part."""
    names = [
        f"S{s:03d}C{c:03d}P{p:03d}R001A0{a:02d}" for s in (18, 20) for c in (1, 2) for p in range(1, 11) for a in (1, 2)
    ]
    touch(*(tmp_path / f"{name}_rgb.avi" for name in names))
    sources, _ = ntu_sources(videos=tmp_path, modalities=("rgb",))
    groups = [source.group for source in sources.values()]
    assert set(units_of((list(sources), groups))[0].names) == {f"P{p:03d}" for p in range(1, 11)}
    is_held, by = held_out_part(torch.tensor([s.label for s in sources.values()]), groups, share=0.2, seed=0, advice="")
    sides = {
        is_in: {n[8:12] for n, h in zip(sources, is_held.tolist(), strict=True) if h is is_in}
        for is_in in (True, False)
    }
    assert by == "group" and len(sides[True]) == 2 and not sides[True] & sides[False]


def test_ntu__has_120_classes_with_the_files_of_ntu_120(tmp_path):
    names = ("S001C001P001R001A001", "S018C001P045R001A061", "S031C002P044R001A120")
    touch(*(tmp_path / f"{name}_rgb.avi" for name in names))
    sources, classes = ntu_sources(videos=tmp_path, modalities=("rgb",))
    assert {name: (s.label, s.splits) for name, s in sources.items()} == {
        names[0]: (0, {"xsub": "train", "xview": "test", "xsub120": "train", "xset": "test"}),
        names[1]: (60, {"xsub120": "train", "xset": "train"}),
        names[2]: (119, {"xsub120": "test", "xset": "test"}),
    }
    assert (len(set(classes)), classes[119]) == (120, "rock-paper-scissors")
    assert len(ntu.TRAIN_PEOPLE_120) == 53


def test_ntu__prepares_both_sensors(tmp_path, capsys):
    names = [f"S001C00{camera}P001R001A001" for camera in (1, 2, 3)]
    for name in names[:2]:
        small_video(tmp_path / "rgb" / f"{name}_rgb.avi")
    for name in names[1:]:
        depth_folder(tmp_path / "nturgb+d_depth_masked" / name)
    options = ntu.NtuOptions(
        videos=tmp_path / "rgb", depth=tmp_path / "nturgb+d_depth_masked", out=tmp_path / "out", workers=1
    )
    manifest = ntu.prepare(options)
    assert [v.status for v in manifest.videos] == ["skipped", "ok", "skipped"]
    assert "1 videos have no depth and count as missing" in " ".join(capsys.readouterr().out.split())
    assert manifest.streams == ("depth", "flow", "rgb")
    depth = manifest.videos[1].streams["depth"]
    np.testing.assert_allclose(depth.times_seconds, np.arange(9) / 30)
    values = read_frames(manifest.root, depth, range(9), stream_name="depth")
    assert len(np.unique(values)) == 9
    assert_readable(manifest)
    alone = dataclasses.replace(options, videos=None, modalities=("depth", "flow"), out=tmp_path / "depth_alone")
    manifest = ntu.prepare(alone)
    assert [(v.name, v.status) for v in manifest.videos] == [(names[1], "ok"), (names[2], "ok")]
    assert manifest.streams == ("depth", "flow")


def test_ntu__errors_say_what_is_missing(tmp_path):
    touch(tmp_path / "a" / "S001C001P001R001A001_rgb.avi")
    (tmp_path / "none").mkdir()
    with pytest.raises(
        UserError, match="there is nothing to prepare: give --videos, --depth, --skeleton or several of them"
    ):
        ntu_sources()
    with pytest.raises(UserError, match=r"depth.*--depth-model"):
        ntu_sources(videos=tmp_path)
    with pytest.raises(UserError, match="'rgb' cannot be made: it needs rgb, and there is only depth"):
        ntu_sources(depth=tmp_path / "none")
    with pytest.raises(
        UserError,
        match="no recording has all files that --modalities rgb flow depth needs: found 1 videos, 0 depth folders and "
        "0 skeletons with names like S001C001P001R001A001",
    ):
        ntu_sources(videos=tmp_path / "a", depth=tmp_path / "none")
    touch(tmp_path / "a" / "S001C001P001R001A061_rgb.avi")
    with pytest.raises(UserError, match="A061 has the class 61, but the dataset has 60 classes"):
        ntu_sources(videos=tmp_path / "a", modalities=("rgb",))
    for kind in ("nturgb+d_depth", "nturgb+d_depth_masked"):
        touch(tmp_path / kind / "S001C001P001R001A001" / "1.png")
    with pytest.raises(UserError, match="belong to the same recording: give a folder that holds only one of them"):
        ntu_sources(depth=tmp_path, modalities=("depth",))


# UTD-MHAD.


def test_utd_mhad__lists_all_published_recordings(tmp_path):
    touch(tmp_path / "a27_s8_t3_depth.mat")
    sources = utd_mhad.read_recordings(utd_mhad.UtdMhadOptions(depth=tmp_path, out=tmp_path))
    assert len({source.name for source in sources}) == 861
    assert [source.name for source in sources if source.inputs] == ["a27_s8_t3"]
    assert Counter(source.splits["1"] for source in sources) == {"train": 431, "test": 430}
    assert all({source.splits["1"], source.splits["2"]} == {"train", "test"} for source in sources)
    assert {source.label for source in sources} == set(range(27))
    assert len(set(utd_mhad.CLASSES)) == 27


def test_utd_mhad__finds_all_published_files(shared_folder, tmp_path):
    folder = shared_folder / "data" / "utd_mhad"
    sources = utd_mhad.read_recordings(utd_mhad.UtdMhadOptions(depth=folder, out=tmp_path))
    assert all(source.inputs["depth"].is_file() for source in sources)
    assert len(sources) == len(list((folder / "Depth").glob("*.mat")))


def test_utd_mhad__prepares_real_recordings(shared_folder, tmp_path):
    names = ("a1_s1_t1", "a14_s2_t3", "a27_s8_t3")
    for name in names:
        path = tmp_path / "Depth" / f"{name}_depth.mat"
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(shared_folder / "data" / "utd_mhad" / "Depth" / path.name)
    options = utd_mhad.UtdMhadOptions(depth=tmp_path / "Depth", out=tmp_path / "out", short_side_px=64, workers=1)
    manifest = utd_mhad.prepare(options)
    usable = {v.name: (v.status, v.label, v.group, v.splits) for v in manifest.videos if v.is_usable}
    assert usable == {
        "a1_s1_t1": ("ok", 0, "s1", {"1": "train", "2": "test"}),
        "a14_s2_t3": ("ok", 13, "s2", {"1": "test", "2": "train"}),
        "a27_s8_t3": ("ok", 26, "s8", {"1": "test", "2": "train"}),
    }
    assert (len(manifest.videos), manifest.streams, manifest.flip_keeps_label) == (861, ("depth", "flow"), False)


def test_utd_mhad__errors_say_what_is_missing(tmp_path):
    touch(tmp_path / "a1_s1_t1_inertial.mat")
    with pytest.raises(
        UserError,
        match=r"contain none of the 861 videos that the dataset has: expected for example a1_s1_t1_depth\.mat",
    ):
        utd_mhad.prepare(utd_mhad.UtdMhadOptions(depth=tmp_path, out=tmp_path / "out"))
    with pytest.raises(UserError, match="'rgb' cannot be made: it needs rgb, and there is only depth"):
        utd_mhad.prepare(utd_mhad.UtdMhadOptions(depth=tmp_path, out=tmp_path / "out", modalities=("rgb",)))


# Folders.


def folder_places(root: Path, **options):
    classes, sources = folder.read_folder(folder.FolderOptions(videos=root, out=root.parent / "out", **options))
    return classes, {source.name: (source.label, source.splits) for source in sources}


def test_folder__reads_splits_and_classes_from_folders(tmp_path):
    root = tmp_path / "videos"
    touch(root / "Training" / "cat" / "a.mp4", root / "Training" / "dog" / "in" / "a.MOV")
    touch(root / "val" / "cat" / "b.mp4", root / "val" / "cat" / "notes.txt", root / "readme.txt")
    classes, places = folder_places(root)
    assert classes == ["cat", "dog"]
    assert places == {
        "Training/cat/a.mp4": (0, {"1": "train"}),
        "Training/dog/in/a.MOV": (1, {"1": "train"}),
        "val/cat/b.mp4": (0, {"1": "test"}),
    }
    touch(root / "test" / "dog" / "c.mp4")
    places = folder_places(root)[1]
    assert places["val/cat/b.mp4"] == (0, {"1": "val"}) and places["test/dog/c.mp4"] == (1, {"1": "test"})


def test_folder__draws_test_videos_of_each_class(tmp_path):
    root = tmp_path / "videos"
    touch(*(root / name / f"{i}.mp4" for name in ("cat", "dog") for i in range(10)), root / "owl" / "only.mp4")
    classes, places = folder_places(root)
    assert classes == ["cat", "dog", "owl"]
    assert {part for _, splits in places.values() for part in splits.values()} == {"train"}
    drawn = folder_places(root, test_share=0.3)[1]
    counts = Counter((label, splits["1"]) for label, splits in drawn.values())
    assert counts == {(0, "train"): 7, (0, "test"): 3, (1, "train"): 7, (1, "test"): 3, (2, "train"): 1}
    assert folder_places(root, test_share=0.3)[1] == drawn
    assert folder_places(root, test_share=0.3, seed=1)[1] != drawn


def test_folder__test_share_draws_whole_groups(tmp_path):
    root = tmp_path / "videos"
    touch(*(root / name / f"S{i:02d}_{j}.mp4" for name in ("cat", "dog") for i in range(10) for j in range(3)))
    places = folder_places(root, test_share=0.3, group_pattern=r"S\d+")[1]
    people = {
        part: {name[4:7] for name, (_, splits) in places.items() if splits["1"] == part} for part in ("train", "test")
    }
    assert len(people["test"]) == 3 and not people["train"] & people["test"]
    with pytest.raises(UserError, match="all videos are in one group"):
        folder_places(root, test_share=0.3, group_pattern="S")


def test_folder__class_numbers_are_sorted_as_numbers(tmp_path):
    touch(*(tmp_path / "videos" / str(i) / "a.mp4" for i in (10, 9, 0)))
    assert folder_places(tmp_path / "videos")[0] == ["0", "9", "10"]


def test_folder__class_may_be_called_train(tmp_path):
    root = tmp_path / "videos"
    touch(root / "train" / "a.mp4", root / "bus" / "b.mp4")
    assert folder_places(root)[0] == ["bus", "train"]


def test_folder__takes_camera_and_web_suffixes_and_prints_what_it_passes_over(tmp_path, capsys):
    root = tmp_path / "videos"
    suffixes = (".MTS", ".m2ts", ".ogv", ".gif", ".VOB", ".f4v", ".asf")
    touch(*(root / "a" / f"{i}{suffix}" for i, suffix in enumerate(suffixes)))
    touch(root / "a" / "notes.txt", root / "a" / "1.wav", root / "a" / "2.wav", root / "a" / "LICENSE")
    classes, places = folder_places(root)
    assert (classes, len(places)) == (["a"], len(suffixes))
    printed = capsys.readouterr().out
    assert "passed over, not named like videos: 2 .wav, 1 without a suffix, 1 .txt" in printed
    assert list(places) == sorted(f"a/{i}{suffix}" for i, suffix in enumerate(suffixes))


def test_folder__unlabelled_takes_any_layout(tmp_path):
    root = tmp_path / "videos"
    touch(root / "a.mp4", root / "train" / "b.webm", root / "deep" / "er" / "a.mp4", root / "c.mp3")
    assert folder_places(root, unlabelled=True) == (
        [],
        {"a.mp4": (None, {}), "train/b.webm": (None, {}), "deep/er/a.mp4": (None, {})},
    )


def test_folder__errors_say_where_to_move_files(tmp_path):
    root = tmp_path / "videos"
    touch(root / "notes.txt")
    with pytest.raises(UserError, match="contain no video: give a folder of videos"):
        folder_places(root)
    touch(root / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4 is in no class folder: move it to .*<class>/, or give --unlabelled"):
        folder_places(root)
    touch(root / "train" / "cat" / "a.mp4")
    with pytest.raises(UserError, match=r"a\.mp4 is in no split folder: move it to .*train/<class>/"):
        folder_places(root)
    (root / "a.mp4").rename(root / "train" / "b.mp4")
    with pytest.raises(UserError, match=r"b\.mp4 is in no class folder: move it to .*train/<class>/"):
        folder_places(root)
    (root / "train" / "b.mp4").unlink()
    with pytest.raises(UserError, match="already has folders by split: remove --test-share"):
        folder_places(root, test_share=0.5)
    touch(root / "test" / "Cat" / "a.mp4")
    with pytest.raises(UserError, match="has the class 'Cat', which has no training video"):
        folder_places(root)
    touch(root / "dog" / "a.mp4")
    with pytest.raises(
        UserError, match=r"folders train and dog: beside a split train only test.*move dog away; or rename train"
    ):
        folder_places(root)
    with pytest.raises(UserError, match=r"--test-share 1 is out of range: give a share between 0 and 1"):
        folder_places(root, test_share=1.0)
    with pytest.raises(
        UserError, match="--test-share draws from each class, but --unlabelled has no classes: remove one"
    ):
        folder_places(root, test_share=0.5, unlabelled=True)
    with pytest.raises(UserError, match="out is inside --videos"):
        folder.prepare(folder.FolderOptions(videos=root, out=root / "out"))


@pytest.mark.skipif(os.name == "nt", reason="file names are always text on Windows")
def test_folder__refuses_a_name_that_is_not_utf8(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    try:
        (root / "caf\udce9.mp4").touch()
    except OSError:
        pytest.skip("this file system refuses such a name")
    with pytest.raises(UserError, match=r"caf\\udce9\.mp4' is not UTF-8: rename the file"):
        folder_places(root, unlabelled=True)


ODD_PLACES = (
    "Katze & Hund/mein video.mp4",
    'o\'neil "x"/50% [1].avi',
    "犬/走る 犬.mp4",
    "a;b#c/x .. %03d .mp4",
    "-v/-i.mp4",
)


def test_folder__prepares_odd_names(tmp_path):
    root = tmp_path / "meine Videos"
    for seed, place in enumerate(ODD_PLACES):
        small_video(root / place, seed)
    arguments = ["--videos", str(root), "--out", str(tmp_path / "aus gabe"), "--workers", "1"]
    main(["folder", *arguments])
    manifest = Manifest.load(tmp_path / "aus gabe")
    assert sorted(video.name for video in manifest.videos) == sorted(ODD_PLACES)
    assert {video.status for video in manifest.videos} == {"ok"}
    assert set(manifest.classes) == {place.split("/")[0] for place in ODD_PLACES}
    assert_readable(manifest)
    assert not list(tmp_path.rglob("*.tmp"))


# Lists.


def list_places(root: Path, **options):
    options = {name: tuple(paths) if isinstance(paths, list) else paths for name, paths in options.items()}
    classes, sources = listed_videos.read_lists(listed_videos.ListOptions(videos=root, out=root / "out", **options))
    return classes, {s.name: (s.label, s.splits.get("1"), bool(s.inputs)) for s in sources}


def test_list__reads_class_numbers(tmp_path):
    touch(tmp_path / "a b.mp4", tmp_path / "sub" / "c.mp4", tmp_path / "d,e.avi")
    trains = write(tmp_path / "train.txt", "a b.mp4 0", "./sub/c.mp4,2", "", '"d,e.avi"\t1')
    tests = write(tmp_path / "test.txt", f"{tmp_path}/f.mp4 1")
    assert list_places(tmp_path, train_list=[trains], test_list=[tests]) == (
        ["0", "1", "2"],
        {
            "a b.mp4": (0, "train", True),
            "sub/c.mp4": (2, "train", True),
            "d,e.avi": (1, "train", True),
            "f.mp4": (1, "test", False),
        },
    )
    names = write(tmp_path / "classes.txt", "run", "sit", "walk", "fly")
    assert list_places(tmp_path, train_list=[trains], classes=names)[0] == ["run", "sit", "walk", "fly"]


def test_list__reads_class_names(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b", tmp_path / "c.mp4")
    trains = write(tmp_path / "train.txt", "a.mp4,riding a bike", "b\tbowling", "c.mp4 riding a bike")
    assert list_places(tmp_path, train_list=[trains]) == (
        ["bowling", "riding a bike"],
        {"a.mp4": (1, "train", True), "b": (0, "train", True), "c.mp4": (1, "train", True)},
    )


@pytest.mark.parametrize(
    ("line", "rest"),
    [
        ("a.mp4 50 0", "50 0"),  # path, frames, label, as mmaction2 and TSN write them
        ("a.mp4 0 1", "0 1"),  # several labels
        ("a.mp4 50 archery", "50 archery"),
        ("a.mp4 archery 50", "archery 50"),
        ("a.mp4 1 50 0", "1 50 0"),
        ("a.mp4,0,train", "0,train"),
        ("a.mp4,0,1", "0,1"),
        ("a.mp4 0,1", "0,1"),
        ("a.mp4,archery,train", "archery,train"),
        ("a.mp4\tarchery train", "archery train"),
        ("a.mp4;50;0", "50;0"),
        ('"a.mp4",50,0', "50,0"),
        ("frames 50 0", "50 0"),
        ("frames,50,0", "50,0"),
    ],
)
def test_list__refuses_more_than_a_class_after_a_path(tmp_path, line, rest):
    touch(tmp_path / "a.mp4")
    trains = write(tmp_path / "train.txt", line)
    with pytest.raises(UserError, match=rf"train\.txt line 1 has '{rest}' after the path, but frame counts, second"):
        list_places(tmp_path, train_list=[trains])


@pytest.mark.parametrize(
    ("lines", "classes"),
    [
        (["path,label", "a.mp4,10", "b.mp4,9"], [str(i) for i in range(11)]),
        (["Video Path;Class", '"a.mp4";"draw; then fire"', "b.mp4;run"], ["draw; then fire", "run"]),
        (["label\tsplit\tfile", "run\ttrain\ta.mp4", "sit\ttrain\tb.mp4"], ["run", "sit"]),
        (["path,num_frames,label", "a.mp4,50,run", "b.mp4,60,sit,"], ["run", "sit"]),
        (["path label", "a.mp4 run", "b.mp4 sit"], ["run", "sit"]),
        (["# path label", "a.mp4 run", "#c.mp4 old", "b.mp4 sit"], ["run", "sit"]),
        (['"a.mp4","drum, play"', 'b.mp4,"say ""hi"""'], ["drum, play", 'say "hi"']),
        (['a.mp4 "3 point shot"', "b.mp4 slam dunk"], ["3 point shot", "slam dunk"]),
        (["a.mp4 , run ,", "b.mp4  sit"], ["run", "sit"]),
        (["a.mp4 10", "b.mp4 bowling"], ["10", "bowling"]),
        (["a.mp4,1.0", "b.mp4,0.0"], ["0", "1"]),
    ],
)
def test_list__reads_headers_comments_and_quotes(tmp_path, lines, classes):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    found, places = list_places(tmp_path, train_list=[write(tmp_path / "train.csv", *lines)])
    assert (found, set(places)) == (classes, {"a.mp4", "b.mp4"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["clip,target_class", "a.mp4,0"], r"line 1 is 'clip,target_class', which names no video: name the columns"),
        (["label,youtube_id", "run,abc"], r"names the columns label, youtube_id, but none is called path"),
        (["path,frames", "a.mp4,0"], r"names the columns path, frames, but none is called label"),
        (["path,label,class", "a.mp4,0,run"], r"line 1: the columns label and class may both be the label: rename"),
        (
            ["path,label", "a.mp4,drum, play"],
            r"line 2 has 3 columns, but the first line names 2: put a text that holds",
        ),
        (["path,label", "a.mp4"], r"line 2 is 'a\.mp4': expected a path and a class"),
        (["path,label,split", "a.mp4,0,all"], r"line 2 has the split 'all': expected one of train, training, test"),
        (["a.mp4 " + "x" * 200_000], r"train\.csv cannot be read as text"),
    ],
)
def test_list__refuses_headers_that_it_cannot_use(tmp_path, lines, message):
    touch(tmp_path / "a.mp4")
    trains = write(tmp_path / "train.csv", *lines)
    with pytest.raises(UserError, match=message):
        list_places(tmp_path, train_list=[trains])


def test_list__column_of_splits_decides_the_part(tmp_path, capsys):
    touch(*(tmp_path / f"{i}.mp4" for i in range(4)))
    rows = ["path,label,split", "0.mp4,a,train", "1.mp4,b,Training", "2.mp4,a,val"]
    table = write(tmp_path / "all.csv", *rows)
    parts = {
        name: part for name, (_, part, _) in list_places(tmp_path, train_list=[table], test_list=[table])[1].items()
    }
    assert parts == {"0.mp4": "train", "1.mp4": "train", "2.mp4": "test"}
    assert "not prepared" not in capsys.readouterr().out
    assert set(list_places(tmp_path, train_list=[table])[1]) == {"0.mp4", "1.mp4"}
    assert "1 rows of" in capsys.readouterr().out
    write(table, *rows, "3.mp4,b,test")
    places = list_places(tmp_path, train_list=[table], test_list=[table])[1]
    assert (places["2.mp4"][1], places["3.mp4"][1]) == ("val", "test")


def test_list__groups_come_from_a_column_or_from_names(tmp_path, capsys):
    touch(*(tmp_path / f"S{i}_{j}.mp4" for i in range(2) for j in range(2)))
    names = [f"S{i}_{j}.mp4" for i in range(2) for j in range(2)]
    table = write(tmp_path / "all.csv", "path,label,person", *(f"{name},0,person {name[1]}" for name in names))
    plain = write(tmp_path / "train.txt", *(f"{name} 0" for name in names))

    def groups(**options):
        listed = listed_videos.ListOptions(videos=tmp_path, out=tmp_path / "out", **options)
        return [source.group for source in listed_videos.read_lists(listed)[1]]

    assert groups(train_list=(table,)) == ["person 0", "person 0", "person 1", "person 1"]
    assert groups(train_list=(plain,), group_pattern=r"S\d") == ["S0", "S0", "S1", "S1"]
    assert groups(train_list=(plain,), group_pattern=r"_(\d)") == ["0", "1", "0", "1"]
    assert groups(train_list=(plain,)) == [None] * 4
    with pytest.raises(UserError, match=r"--group-pattern T is not in the name 'S0_0\.mp4': give a pattern"):
        groups(train_list=(plain,), group_pattern="T")
    with pytest.raises(UserError, match=r"--group-pattern \( is no regular expression"):
        groups(train_list=(plain,), group_pattern="(")
    capsys.readouterr()
    write(plain, "S0_0.mp4 0")
    tests = write(tmp_path / "test.txt", "S0_1.mp4 1")
    groups(train_list=(plain,), test_list=(tests,), group_pattern=r"S\d")
    assert "1 groups of near-duplicates are in both parts" in capsys.readouterr().out


def test_list__classes_that_start_at_1_have_no_class_0(tmp_path, capsys):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    trains = write(tmp_path / "train.txt", "a.mp4 1", "b.mp4 3")
    classes, places = list_places(tmp_path, train_list=[trains])
    assert classes == ["1", "2", "3"] and [label for label, *_ in places.values()] == [0, 2]
    printed = capsys.readouterr().out
    assert "classes are numbered from 1: the class 1 gets the index 0" in printed
    assert "nothing shows one of these 1 classes, which keep their numbers: 2" in printed
    names = write(tmp_path / "classes.txt", "run", "sit", "walk")
    classes, places = list_places(tmp_path, train_list=[trains], classes=names)
    assert classes[places["b.mp4"][0]] == "walk"
    write(names, "none", "run", "sit", "walk")
    classes, places = list_places(tmp_path, train_list=[trains], classes=names)
    assert classes[places["b.mp4"][0]] == "walk"


def test_list__official_lists_are_read_right(shared_folder, tmp_path):
    """UCF101's lists number classes from 1; those of Kinetics and of UCF101's test part have no path and label."""
    official = shared_folder / "annotations"
    first = (official / "ucf101" / "trainlist01.txt").read_text().split()[0]
    touch(tmp_path / first)
    classes, places = list_places(tmp_path, train_list=[official / "ucf101" / "trainlist01.txt"])
    assert (len(classes), len(places), places[first]) == (101, 9_537, (0, "train", True))
    for path, message in (
        (official / "ucf101" / "testlist01.txt", "expected a path, then a space"),
        (official / "kinetics" / "kinetics-400_val.csv", "none is called path"),
    ):
        with pytest.raises(UserError, match=message):
            list_places(tmp_path, train_list=[path])


def test_list__reads_unlabelled_lists_and_absolute_paths(tmp_path):
    outside = tmp_path / "else where" / "x.mp4"
    touch(outside, tmp_path / "videos" / "my clip.mp4", tmp_path / "videos" / "y.mp4", tmp_path / "z.mp4")
    unlabelled = write(tmp_path / "all.txt", "my clip.mp4", "y.mp4 17", str(outside), "../z.mp4")
    classes, places = list_places(tmp_path / "videos", unlabelled_list=[unlabelled])
    inside = tmp_path.relative_to(tmp_path.anchor).as_posix()
    names = ("my clip.mp4", "y.mp4", f"{inside}/else where/x.mp4", f"{inside}/z.mp4")
    assert (classes, places) == ([], dict.fromkeys(names, (None, None, True)))


@pytest.mark.parametrize(
    ("trains", "tests", "message"),
    [
        (["a.mp4"], [], r"train\.txt line 1 is 'a\.mp4': expected a path, then a space"),
        (["my a.mp4"], [], r"train\.txt line 1 is 'my a\.mp4': expected a path"),
        (
            ["", "a.mp4 0", "./a.mp4 1"],
            [],
            r"train\.txt line 3 names .*a\.mp4, which is also in .*train\.txt line 2: remove",
        ),
        (["a.mp4 0"], ["a.mp4 0"], r"test\.txt line 1 names .*a\.mp4, which is also in .*train\.txt line 1: remove"),
        (["a.mp4 -1"], [], r"line 1 gives the class -1: give numbers from 0"),
        (["a.mp4 123456789"], [], r"line 1 gives the class 123456789: give numbers from 0 to 99999"),
        (["nowhere.mp4 0"], [], r"contain none of the 1 videos that .*train\.txt, .*nowhere\.mp4"),
        ([" "], [], r"train\.txt names no video"),
    ],
)
def test_list__errors_name_file_and_line(tmp_path, trains, tests, message):
    touch(tmp_path / "a.mp4")
    train_list, test_list = write(tmp_path / "train.txt", *trains), write(tmp_path / "test.txt", *tests)
    with pytest.raises(UserError, match=message):
        list_places(tmp_path, train_list=[train_list], test_list=[test_list])


@pytest.mark.parametrize("action", ["2", "-1", "swim"])
def test_list__refuses_classes_outside_the_index(tmp_path, action):
    touch(tmp_path / "a.mp4")
    names = write(tmp_path / "classes.txt", "run", "sit")
    trains = write(tmp_path / "train.txt", f"a.mp4 {action}")
    with pytest.raises(
        UserError, match=rf"gives the class {action}, but .*classes\.txt has the 2 classes run \(0\) to"
    ):
        list_places(tmp_path, train_list=[trains], classes=names)


def test_list__refuses_missing_lists(tmp_path):
    with pytest.raises(UserError, match="no list was given: give --train-list"):
        list_places(tmp_path)
    with pytest.raises(UserError, match=r"there is no file .*train\.txt: give"):
        list_places(tmp_path, train_list=[tmp_path / "train.txt"])
    with pytest.raises(UserError, match="cannot be read"):
        list_places(tmp_path, train_list=[tmp_path])


def test_list__prepares_odd_names(tmp_path):
    for seed, place in enumerate(ODD_PLACES):
        small_video(tmp_path / "videos" / place, seed)
    trains = write(tmp_path / "train.txt", *(f"{place} {i % 2}" for i, place in enumerate(ODD_PLACES)))
    arguments = ["--videos", str(tmp_path / "videos"), "--train-list", str(trains), "--out", str(tmp_path / "out")]
    main(["list", *arguments, "--workers", "1"])
    manifest = Manifest.load(tmp_path / "out")
    assert {video.name: video.label for video in manifest.videos} == {p: i % 2 for i, p in enumerate(ODD_PLACES)}
    assert {video.status for video in manifest.videos} == {"ok"}
    assert_readable(manifest)


def test_commands__errors_are_one_sentence(tmp_path, capsys):
    for arguments in (
        ["hmdb51", "--videos", "a", "--annotations", str(tmp_path)],
        ["kinetics", "--videos", "a", "--annotations", str(tmp_path)],
        ["ssv2", "--videos", "a", "--annotations", str(tmp_path)],
        ["ntu"],
        ["utd_mhad", "--depth", str(tmp_path)],
        ["folder", "--videos", str(tmp_path / "nowhere")],
        ["list"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--out", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert (stopped.value.code, error.count("\n")) == (2, 1), error
        assert not (tmp_path / "out").exists()


# Training on prepared datasets.


def test_training__on_a_labelled_and_an_unlabelled_set(toy_folder, teacher_file, tmp_path):
    toy = Manifest.load(toy_folder)
    for video in toy.videos[:5]:
        copy = tmp_path / "pile" / f"{video.name}.mp4"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((toy.root / video.streams["rgb"].path).read_bytes())
    pile = folder.prepare(
        folder.FolderOptions(videos=tmp_path / "pile", out=tmp_path / "prepared", unlabelled=True, workers=1)
    )
    options = [
        *("--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--student", "flow_r3d10"),
        *("--student-frames", 4, "--student-size", 32, "--teacher-frames", 4, "--teacher-size", 32),
        *("--epochs", 1, "--batch-size", 8, "--bank-size", 40, "--workers", 0, "--tracker", "none"),
        *("--precision", "fp32", "--channels-last", "no", "--knn-every-epochs", 1),
        *("--data", pile.root, toy_folder, "--out", tmp_path / "run"),
    ]
    train([str(option) for option in options])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results) == [str(toy_folder)]
    num_tests = len(toy.select(split="1", part="test"))
    assert {evaluation["num_test"] for evaluation in results[str(toy_folder)].values()} == {num_tests}
    facts = json.loads((tmp_path / "run" / "student" / "student.json").read_text())["training"]
    assert facts["num_clips"] == len(toy.select(split="1", part="train")) + len(pile.videos)
    assert facts["datasets"] == ["folder", "toyactions"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("knn" in row for row in rows)


# Official lists against complete trees of empty files: every file is found, whatever its name looks like.


def touch_all(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def assert_whole(sources: Sequence[SourceVideo], num_videos: int) -> None:
    assert len(sources) == num_videos
    paths = [source.inputs.get("rgb") for source in sources]
    assert None not in paths and len(set(paths)) == num_videos


@pytest.mark.parametrize("naming", ["{action}/{name}.avi", "{name}.avi", "{action}/{name}.AVI"])
def test_ucf101__official_lists_find_every_file(shared_folder, tmp_path, naming):
    lists = shared_folder / "annotations" / "ucf101"
    _, listed = ucf101.read_lists(lists)
    touch_all(tmp_path, (naming.format(action=video.action, name=video.name) for video in listed))
    assert_whole(join_files(listed, tmp_path, suffixes=(".avi",), lists=lists), 13_320)


@pytest.mark.parametrize("naming", ["{action}/{name}.avi", "{name}.avi"])
def test_hmdb51__official_lists_find_every_file(shared_folder, tmp_path, naming):
    lists = shared_folder / "annotations" / "hmdb51"
    _, listed = hmdb51.read_lists(lists)
    touch_all(tmp_path, (naming.format(action=video.action, name=video.name) for video in listed))
    assert_whole(join_files(listed, tmp_path, suffixes=(".avi",), lists=lists), 6_766)


@pytest.mark.parametrize(
    "naming",
    [
        "{action}/{id}_{start:06d}_{end:06d}.mp4",
        "{underscored}/{id}_{start}_{end}.mkv",
        "val/{action}/{id}.mp4",
        "{id}_{start:06d}_{end:06d}.mp4",
    ],
)
def test_kinetics__official_list_finds_every_file(shared_folder, tmp_path, naming):
    classes, rows = kinetics.read_lists([shared_folder / "annotations" / "kinetics"])
    names = (
        naming.format(
            action=row.action,
            underscored=row.action.replace(" ", "_"),
            id=row.youtube_id,
            start=row.start_seconds,
            end=row.end_seconds,
        )
        for row in rows
    )
    touch_all(tmp_path, names)
    assert_whole(kinetics.join_clips(rows, classes, kinetics.find_clips(tmp_path), {}), 19_906)
