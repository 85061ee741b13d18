"""UCF101 from lists and .avi files to a prepared dataset, with damaged files and interrupted runs."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from video_files import moving_frames, texture, truncate, write_video

from crossdistill.data.decode import nearest_frames, read_frames
from crossdistill.data.manifest import Manifest
from crossdistill.data.sequential import decode_all
from crossdistill.errors import UserError
from crossdistill.modalities import FLOW
from data_prep.__main__ import main
from data_prep.datasets.ucf101 import Ucf101Options, prepare, read_lists
from data_prep.flow.opencv import dis_flow
from data_prep.pipeline.executor import Engine, run_jobs
from data_prep.pipeline.readers import Input, target_size
from data_prep.pipeline.transcode import transcode
from data_prep.recipe import Recipe

PROJECT_FOLDER = Path(__file__).resolve().parents[2]
CLASSES = ("Archery", "HandstandPushups")


def write_lists(folder: Path, *, train: list[str], test: list[str], split: str = "01") -> Path:
    """Write lists in the official format, with the line ends of Windows."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = "".join(f"{i} {name}\r\n" for i, name in enumerate(CLASSES, start=1))
    (folder / "classInd.txt").write_bytes(f"{classes}\r\n".encode())
    labels = {name.casefold(): i for i, name in enumerate(CLASSES, start=1)}
    lines = [f"{name} {labels[name.split('/')[0].casefold()]}" for name in train]
    (folder / f"trainlist{split}.txt").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    (folder / f"testlist{split}.txt").write_bytes(("\r\n".join(test) + "\r\n\r\n").encode())
    return folder


@pytest.fixture
def small_set(tmp_path: Path) -> Ucf101Options:
    """Three readable videos. The name of one differs in case between list and file."""
    videos = tmp_path / "videos"
    write_video(videos / "Archery" / "v_Archery_g01_c01.avi", moving_frames(24, step_xy=(2, 0)))
    write_video(videos / "Archery" / "v_Archery_g08_c01.avi", moving_frames(24, step_xy=(0, -1)))
    write_video(videos / "HandstandPushups" / "v_HandStandPushups_g08_c02.AVI", moving_frames(17))
    (videos / "Archery" / "._v_Archery_g01_c01.avi").write_bytes(b"left by a file manager")
    lists = write_lists(
        tmp_path / "lists",
        train=["Archery/v_Archery_g08_c01.avi", "HandstandPushups/v_HandstandPushups_g08_c02.avi"],
        test=["Archery/v_Archery_g01_c01.avi"],
    )
    return Ucf101Options(videos=videos, annotations=lists, out=tmp_path / "out", short_side_px=32, workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Lists.


def test_read_lists__reads_official_format(small_set):
    classes, videos = read_lists(small_set.annotations)
    assert classes == list(CLASSES)
    assert [(v.name, v.action, v.label, v.group, v.splits) for v in videos] == [
        ("v_Archery_g01_c01", "Archery", 0, "Archery_g01", {"1": "test"}),
        ("v_Archery_g08_c01", "Archery", 0, "Archery_g08", {"1": "train"}),
        ("v_HandstandPushups_g08_c02", "HandstandPushups", 1, "HandstandPushups_g08", {"1": "train"}),
    ]


def test_read_lists__joins_splits_in_any_case(tmp_path):
    write_lists(
        tmp_path, train=["Archery/v_Archery_g02_c01.avi"], test=["HandstandPushups/v_HandStandPushups_g01_c01.avi"]
    )
    write_lists(tmp_path, train=["HandstandPushups/v_HandstandPushups_g01_c01.avi"], test=[], split="03")
    _, videos = read_lists(tmp_path)
    assert [video.splits for video in videos] == [{"1": "train"}, {"1": "test", "3": "train"}]


def test_read_lists__accepts_the_parent_folder(small_set, tmp_path):
    small_set.annotations.rename(tmp_path / "ucfTrainTestlist")
    assert len(read_lists(tmp_path)[1]) == 3


def test_read_lists__warns_of_group_leakage(tmp_path, capsys):
    read_lists(write_lists(tmp_path, train=["Archery/v_Archery_g01_c01.avi"], test=["Archery/v_Archery_g01_c02.avi"]))
    assert "1 groups of near-duplicates are in both parts of split 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "trainlist01.txt",
            "\r\nArchery/v_Archery_c01.avi 1\r\n",
            r"trainlist01\.txt line 2 is 'Archery/v_Arch.*expected",
        ),
        ("trainlist01.txt", "Archery/v_Archery_g01_c01.avi one", r"trainlist01\.txt line 1 is .*expected Class/"),
        (
            "testlist01.txt",
            "Juggling/v_Juggling_g01_c01.avi",
            r"testlist01\.txt line 1 names the class 'Juggling', which is not in classInd\.txt",
        ),
        ("trainlist01.txt", "Archery/v_Archery_g01_c01.avi 2", r"line 1 gives the label 2, but classInd\.txt gives 1"),
        (
            "trainlist01.txt",
            "Archery/v_Juggling_g01_c01.avi 1",
            r"line 1 puts a file of 'Juggling' into the class 'Archery'",
        ),
        (
            "trainlist01.txt",
            "Archery/v_Archery_g08_c01.avi 1\nArchery/v_archery_g08_c01.avi 1",
            r"trainlist01\.txt line 2 names v_archery_g08_c01, which is already in the train part of split 1",
        ),
        (
            "trainlist01.txt",
            "Archery/v_Archery_g01_c01.avi 1",
            r"testlist01\.txt line 1 names v_Archery_g01_c01, which is already in the train part of split 1",
        ),
        ("classInd.txt", "1 Archery\n3 HandstandPushups\n", r"classInd\.txt line 2 is '3 Hand.*expected the number 2"),
        ("classInd.txt", "\n", r"classInd\.txt names no class"),
    ],
)
def test_read_lists__errors_name_file_and_line(small_set, name, text, message):
    (small_set.annotations / name).write_bytes(text.encode())
    with pytest.raises(UserError, match=message):
        read_lists(small_set.annotations)


def test_read_lists__refuses_missing_lists(small_set):
    for name in ("trainlist01.txt", "testlist01.txt"):
        (small_set.annotations / name).unlink()
    with pytest.raises(UserError, match=r"contains no list of videos: expected for example trainlist01\.txt"):
        read_lists(small_set.annotations)
    (small_set.annotations / "classInd.txt").unlink()
    with pytest.raises(
        UserError, match=r"there is no file .*classInd\.txt: give the folder of UCF101's official lists"
    ):
        read_lists(small_set.annotations)


def test_read_lists__official_lists_have_the_published_counts(shared_folder):
    classes, videos = read_lists(shared_folder / "annotations" / "ucf101")
    assert len(classes) == 101
    assert len(videos) == 13_320
    counts = Counter((split, part) for video in videos for split, part in video.splits.items())
    assert counts == {
        ("1", "train"): 9_537,
        ("1", "test"): 3_783,
        ("2", "train"): 9_586,
        ("2", "test"): 3_734,
        ("3", "train"): 9_624,
        ("3", "test"): 3_696,
    }
    assert all(set(video.splits) == {"1", "2", "3"} for video in videos)
    handstand = next(video for video in videos if video.name.casefold() == "v_handstandpushups_g01_c01")
    assert (handstand.action, handstand.label) == ("HandstandPushups", 36)


# Preparation.


def test_prepare__whole_dataset(small_set):
    manifest = prepare(small_set)
    assert [(v.name, v.status) for v in manifest.videos] == [
        ("v_Archery_g01_c01", "ok"),
        ("v_Archery_g08_c01", "ok"),
        ("v_HandstandPushups_g08_c02", "ok"),
    ]
    assert manifest.streams == ("flow", "rgb")
    for video, num_frames in zip(manifest.videos, (24, 24, 17), strict=True):
        rgb, flow = video.streams["rgb"], video.streams["flow"]
        assert (rgb.num_frames, flow.num_frames) == (num_frames, num_frames - 1)
        assert (rgb.width_px, rgb.height_px, flow.width_px, flow.height_px) == (42, 32, 42, 32)
        np.testing.assert_array_equal(flow.times_seconds, rgb.times_seconds[:-1])
        np.testing.assert_allclose(rgb.times_seconds, np.arange(num_frames) / 25 + rgb.times_seconds[0])
        assert rgb.keyframes.tolist() == [0, 16]
    loaded = Manifest.load(small_set.out)
    assert [v.to_json() for v in loaded.videos] == [v.to_json() for v in manifest.videos]
    assert not list(small_set.out.rglob("*.tmp"))


def test_prepare__keeps_every_frame_of_the_source(small_set):
    manifest = prepare(small_set)
    for video in manifest.videos[:2]:
        source = small_set.videos / "Archery" / f"{video.name}.avi"
        prepared = read_frames(manifest.root, video.streams["rgb"], range(24)).astype(int)
        wanted = np.stack(
            [cv2.resize(picture, (42, 32), interpolation=cv2.INTER_AREA) for _, _, picture in decode_all(source)]
        )
        errors = np.abs(prepared[:, None] - wanted[None]).mean(axis=(2, 3, 4))
        np.testing.assert_array_equal(errors.argmin(axis=1), np.arange(24))


def test_prepare__flow_has_the_right_size_and_sign(small_set):
    manifest = prepare(dataclasses.replace(small_set, short_side_px=48))
    for video, step_xy in zip(manifest.videos[:2], [(2, 0), (0, -1)], strict=True):
        stream = video.streams["flow"]
        coded = read_frames(manifest.root, stream, range(stream.num_frames), stream_name="flow")
        flow = coded[:, 8:-8, 8:-8] * FLOW.value_scale + FLOW.value_offset
        np.testing.assert_allclose(np.median(flow, axis=(0, 1, 2)), step_xy, atol=0.15)


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
@pytest.mark.parametrize("step_xy", [(3, 0), (-3, 0), (0, 4), (-2, -5), (0, 0)])
def test_dis_flow__finds_translations(preset, step_xy):
    cv2.setNumThreads(1)
    first = cv2.cvtColor(texture(96, 128, grain_px=3), cv2.COLOR_RGB2GRAY)
    second = np.roll(first, (step_xy[1], step_xy[0]), axis=(0, 1))
    flow = dis_flow(preset)(first, second)
    assert flow.shape == (96, 128, 2)
    np.testing.assert_allclose(flow[16:-16, 16:-16].mean(axis=(0, 1)), step_xy, atol=0.1)


def test_flow__has_the_timestamps_of_its_first_frames(small_set, tmp_path):
    """At an uneven frame rate, flow n belongs to frames n and n + 1 and has the time of frame n."""
    pts = np.cumsum([0, 5, 1, 1, 9, 2, 2, 7, 1, 1, 30, 1]).tolist()
    source = write_video(
        tmp_path / "uneven.mp4", moving_frames(12), codec="libx264", pts=pts, time_base=Fraction(1, 600)
    )
    outcome = transcode(
        {"rgb": Input(str(source))}, {"rgb": "rgb.mp4", "flow": "flow.mp4"}, root=tmp_path, recipe=Recipe()
    )
    rgb, flow = outcome.streams["rgb"], outcome.streams["flow"]
    np.testing.assert_allclose(rgb.times_seconds, np.array(pts) / 600, atol=1e-12)
    assert flow.times_seconds.tolist() == rgb.times_seconds[:-1].tolist()
    np.testing.assert_array_equal(nearest_frames(flow, rgb.times_seconds), [*range(11), 10])


def test_prepare__accepts_a_flat_folder_and_counts_unlisted_files(small_set, capsys):
    for path in sorted(small_set.videos.glob("*/v_*")):
        path.rename(small_set.videos / path.name)
    shutil.copy(small_set.videos / "v_Archery_g01_c01.avi", small_set.videos / "v_Archery_g25_c07.avi")
    manifest = prepare(small_set)
    assert [video.status for video in manifest.videos] == ["ok"] * 3
    assert "1 videos are in no list" in capsys.readouterr().out


def test_prepare__adds_a_stream_to_those_that_exist(small_set):
    both = contents(prepare(small_set).root)
    part = dataclasses.replace(small_set, out=small_set.out.with_name("parts"), modalities=("rgb",))
    assert prepare(part).streams == ("rgb",)
    assert prepare(dataclasses.replace(part, modalities=("flow",))).streams == ("flow", "rgb")
    assert contents(part.out) == both


# Damage.


def test_prepare__bad_files_are_marked_and_counted(small_set, capsys):
    archery = small_set.videos / "Archery"
    listed = [f"Archery/v_Archery_g{group:02d}_c01.avi" for group in range(8, 14)]
    write_lists(small_set.annotations, train=listed, test=["Archery/v_Archery_g01_c01.avi"])
    truncate(write_video(archery / "v_Archery_g09_c01.avi", moving_frames(60), options={"g": "1"}), 0.7)
    (archery / "v_Archery_g10_c01.avi").touch()
    (archery / "v_Archery_g11_c01.avi").write_bytes(b"an error page, not a video" * 100)
    write_video(archery / "v_Archery_g12_c01.avi", moving_frames(5))
    with pytest.raises(UserError, match=r"3 of 6 files are unusable, more than --max-bad 0\.05.*g10_c01 \(empty"):
        prepare(small_set)
    videos = {video.name[10:13]: video for video in Manifest.load(small_set.out).videos}
    found = {name: (video.status, video.reason) for name, video in videos.items()}
    num_readable = videos["g09"].streams["rgb"].num_frames
    assert 8 < num_readable < 50
    assert found == {
        "g01": ("ok", ""),
        "g08": ("ok", ""),
        "g09": (
            "repaired",
            f"bad packets (Invalid data found when processing input): 1, {num_readable} of 60 frames",
        ),
        "g10": ("skipped", "empty"),
        "g11": ("skipped", "unreadable: cannot be opened (Invalid data found when processing input)"),
        "g12": ("skipped", "too short: 5 frames, fewer than 8"),
        "g13": ("skipped", "missing"),
    }
    table = capsys.readouterr().out
    for row in (
        "ok .* 2",
        "repaired: bad packets .* 1",
        "skipped: empty .* 1",
        "skipped: missing .* 1",
        "warning: 1 of .* listed files do not exist, the first is .*g13",
        "skipped: too short .* 1",
    ):
        assert re.search(row, table), row
    manifest = prepare(dataclasses.replace(small_set, max_bad=0.5))
    assert not (manifest.root / "rgb" / "Archery" / "v_Archery_g12_c01.mp4").exists()


def test_transcode__keeps_frames_before_and_after_the_damage(shared_folder, tmp_path):
    source = shared_folder / "media" / "corrupted.mp4"
    outcome = transcode({"rgb": Input(str(source))}, {"rgb": "rgb.mp4"}, root=tmp_path, recipe=Recipe(short_side_px=64))
    assert outcome.status == "repaired"
    reason = "bad packets (Invalid data found when processing input): 1, 49 of 50 frames"
    assert outcome.reason == reason
    assert outcome.streams["rgb"].num_frames == 49
    outcome = transcode({"rgb": Input(str(source))}, {"rgb": "b.mp4"}, root=tmp_path, recipe=Recipe(min_frames=50))
    assert (outcome.status, outcome.reason, outcome.streams) == ("skipped", f"unreadable: {reason}", {})
    assert not (tmp_path / "b.mp4").exists()


def test_transcode__reports_a_file_cut_between_frames(tmp_path):
    """Decoders take such a file for a shorter one; only the header has the true length."""
    source = write_video(tmp_path / "cut.avi", moving_frames(60), options={"g": "1"})
    data = source.read_bytes()
    chunks = [match.start() for match in re.finditer(b"00dc", data[: data.index(b"idx1")])]
    source.write_bytes(data[: chunks[-35]])
    outcome = transcode({"rgb": Input(str(source))}, {"rgb": "rgb.mp4"}, root=tmp_path, recipe=Recipe())
    assert (outcome.status, outcome.reason) == ("repaired", "ends early: 25 of 60 frames")
    assert outcome.streams["rgb"].num_frames == 25


def test_transcode__skips_tiny_pictures(tmp_path):
    source = write_video(tmp_path / "tiny.avi", moving_frames(12, height=8, width=64))
    outcome = transcode({"rgb": Input(str(source))}, {"flow": "flow.mp4"}, root=tmp_path, recipe=Recipe())
    assert (outcome.status, outcome.reason) == ("skipped", "too small: 64x8 pixels")


@pytest.mark.parametrize(
    ("given", "short_side_px", "wanted"),
    [
        ((320, 240), 112, (150, 112)),
        ((320, 240), 256, (320, 240)),
        ((321, 241), 256, (320, 240)),
        ((1080, 1920), 256, (256, 456)),
        ((240, 240), 128, (128, 128)),
    ],
)
def test_target_size__keeps_aspect_ratio_with_even_sides(given, short_side_px, wanted):
    assert target_size(*given, short_side_px) == wanted


def test_prepare__refuses_a_folder_without_listed_videos(small_set, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    message = r"elsewhere and its subfolders contain none of the 3 videos .*Archery/v_Archery_g01_c01\.avi"
    with pytest.raises(UserError, match=message):
        prepare(dataclasses.replace(small_set, videos=tmp_path / "elsewhere"))
    assert not small_set.out.exists()


def test_prepare__refuses_a_missing_folder(small_set, tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere: give the folder that holds the files"):
        prepare(dataclasses.replace(small_set, videos=tmp_path / "nowhere"))


def test_prepare__refuses_two_files_with_one_name(small_set):
    path = small_set.videos / "Archery" / "v_Archery_g01_c01.avi"
    shutil.copy(path, small_set.videos / path.name)
    with pytest.raises(UserError, match="have the same name"):
        prepare(small_set)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short_side_px": 113}, "--short-side 113 is invalid: give an even number >= 16"),
        ({"min_frames": 1}, "--min-frames 1 is invalid: give 2 or more"),
        ({"modalities": ()}, "--modalities is empty"),
        ({"max_bad": 5.0}, "--max-bad 5.0 is invalid: give a share from 0 to 1"),
        ({"workers": 0}, "--workers 0 is invalid: give 1 or more"),
    ],
)
def test_prepare__refuses_options_out_of_range(small_set, change, message):
    with pytest.raises(UserError, match=message):
        prepare(dataclasses.replace(small_set, **change))


# Repeated and interrupted runs.


def test_prepare__second_run_keeps_all_files(small_set):
    prepare(small_set)
    before = {p: p.stat().st_mtime_ns for p in small_set.out.rglob("*.mp4")}
    prepare(small_set)
    assert {p: p.stat().st_mtime_ns for p in small_set.out.rglob("*.mp4")} == before


def test_prepare__changed_sources_and_options_are_prepared_again(small_set):
    prepare(small_set)
    before = contents(small_set.out)
    source = small_set.videos / "Archery" / "v_Archery_g01_c01.avi"
    write_video(source, moving_frames(30, seed=5))
    manifest = prepare(dataclasses.replace(small_set, replace=True))
    changed = {name for name, data in contents(small_set.out).items() if before.get(name) != data}
    assert {name.split("/")[-1].split(".")[0] for name in changed if "/" in name} == {"v_Archery_g01_c01"}
    assert manifest.videos[0].streams["rgb"].num_frames == 30
    smaller = prepare(dataclasses.replace(small_set, short_side_px=24, replace=True))
    assert {video.streams["flow"].height_px for video in smaller.videos} == {24}


def test_prepare__removes_streams_of_a_source_that_became_unreadable(small_set):
    prepare(small_set)
    (small_set.videos / "Archery" / "v_Archery_g01_c01.avi").write_bytes(b"")
    manifest = prepare(dataclasses.replace(small_set, max_bad=1.0, replace=True))
    assert (manifest.videos[0].status, manifest.videos[0].streams) == ("skipped", {})
    assert not [p for p in small_set.out.rglob("*") if p.stem == "v_Archery_g01_c01"]


def test_prepare__resumed_after_kill_matches_uninterrupted_run(tmp_path):
    names = [f"Archery/v_Archery_g{group:02d}_c01.avi" for group in range(1, 13)]
    lists = write_lists(tmp_path / "lists", train=names[4:], test=names[:4])
    for i, name in enumerate(names):
        write_video(tmp_path / "videos" / name, moving_frames(60, height=96, width=128, seed=i))
    options = Ucf101Options(videos=tmp_path / "videos", annotations=lists, out=tmp_path / "whole", workers=1)
    prepare(options)
    arguments = ["--videos", str(options.videos), "--annotations", str(lists), "--out", str(tmp_path / "killed")]
    command = [sys.executable, "-m", "data_prep", "ucf101", *arguments, "--workers", "2"]
    process = subprocess.Popen(command, cwd=PROJECT_FOLDER, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "killed").rglob("rgb/*/*.mp4"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    num_done = len(list((tmp_path / "killed").rglob("rgb/*/*.mp4")))
    assert 3 <= num_done < len(names), "it was not killed half-way"
    assert not (tmp_path / "killed" / "manifest.arrow").exists()
    main(["ucf101", *arguments, "--workers", "1"])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


# Jobs and the command line.


@pytest.mark.parametrize("workers", [1, 2])
def test_run_jobs__returns_results_in_order(workers):
    def square(number: int) -> int:
        if number < 0:
            raise UserError(f"{number} is negative")
        return number**2

    assert run_jobs(square, list(range(20)), engine=Engine(workers=workers)) == [n**2 for n in range(20)]
    assert run_jobs(square, [], engine=Engine(workers=workers)) == []
    with pytest.raises(UserError, match="-3 is negative"):
        run_jobs(square, [1, 2, -3, 4], engine=Engine(workers=workers))


def test_help__names_the_files_to_download(capsys):
    with pytest.raises(SystemExit):
        main(["ucf101", "--help"])
    text = capsys.readouterr().out
    for words in (
        "UCF101.rar",
        "UCF101TrainTestSplits-RecognitionTask.zip",
        "crcv.ucf.edu",
        "--short-side",
        "--max-bad",
    ):
        assert words in text


def test_command_line__errors_are_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["ucf101", "--videos", "a", "--annotations", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_prepare__keeps_timestamps_of_real_clips(shared_folder, tmp_path):
    source = shared_folder / "data" / "ucf101_mini"
    paths = sorted((source / "videos").rglob("*.avi"))[::18]
    for path in paths:
        (tmp_path / "videos").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "videos")
    options = Ucf101Options(
        videos=tmp_path / "videos",
        annotations=source / "ucfTrainTestlist",
        out=tmp_path / "out",
        short_side_px=64,
        workers=1,
    )
    manifest = prepare(options)
    assert Counter((v.status, v.reason) for v in manifest.videos) == {("ok", ""): 3, ("skipped", "missing"): 51}
    for path in paths:
        video = next(v for v in manifest.videos if v.name == path.stem)
        times = [float(pts * time_base) for pts, time_base, _ in decode_all(path, picture_format="gray")]
        np.testing.assert_allclose(video.streams["rgb"].times_seconds, times, atol=1e-12)
        assert video.streams["flow"].times_seconds.tolist() == video.streams["rgb"].times_seconds[:-1].tolist()
