"""Diving48, UCF101-DS and skeletons of NTU RGB+D: lists in the documented format, damaged ones, preparations."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from video_files import moving_frames, write_video

from crossdistill.data.decode import read_frames
from crossdistill.data.transforms import Crop, cut_view
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.modalities import SKELETON
from data_prep.datasets import diving48, ntu, ucf101_ds
from data_prep.pipeline.ntu_skeleton import main_bodies

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


# Skeletons of NTU RGB+D.

NAMES = ("S001C001P001R001A001", "S001C002P003R002A060")


def joints_of(frame, body):
    """Joints [25, 3] that are different in every frame, body and axis."""
    return np.arange(75).reshape(25, 3) / 100 + frame / 10 + body


def skeleton_lines(frames):
    """The lines of a file; ``frames`` has the bodies of each frame."""
    lines = [str(len(frames))]
    for number, bodies in enumerate(frames):
        lines.append(str(len(bodies)))
        for body in bodies:
            lines += [f"720575940379{body:05d} 0 1 1 1 1 0 0.02 -0.1 2", "25"]
            for x, y, z in joints_of(number, body):
                lines.append(f"{x:.4f} {y:.4f} {z:.4f} 277.4 191.8 1036.2 519.1 -0.2 0.03 0.98 -0.02 2")
    return lines


def write_skeleton(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\r\n".join(skeleton_lines(frames)) + "\r\n")
    return path


@pytest.fixture
def skeletons(tmp_path):
    write_skeleton(tmp_path / "nturgb+d_skeletons" / f"{NAMES[0]}.skeleton", [[], [2, 1], [1], [1, 2], [], *[[1]] * 5])
    write_skeleton(tmp_path / "nturgb+d_skeletons" / f"{NAMES[1]}.skeleton", [[]] * 9)
    return ntu.NtuOptions(
        skeleton=tmp_path / "nturgb+d_skeletons", modalities=("skeleton",), out=tmp_path / "out", workers=1, max_bad=1.0
    )


KINECT1 = [3, 20, 1, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]


def test_ntu_skeleton__has_a_column_for_each_body_with_the_joints_of_a_kinect1(skeletons):
    manifest = ntu.prepare(skeletons)
    assert [(v.name, v.label, v.splits, v.status, v.reason.split(":")[0]) for v in manifest.videos] == [
        (NAMES[0], 0, {"xsub": "train", "xview": "test"}, "ok", ""),
        (NAMES[1], 59, {"xsub": "test", "xview": "train"}, "skipped", "unreadable"),
    ]
    assert "has no body in any of its 9 frames" in manifest.videos[1].reason
    stream = manifest.videos[0].streams["skeleton"]
    stored = read_frames(manifest.root, stream, range(stream.num_frames), stream_name="skeleton")
    metres = stored * SKELETON.value_scale + SKELETON.value_offset
    # Body 1, which moves more, is not in the frames 0 and 4; body 2 is in the frames 1 and 3 alone. Before its first
    # frame a body is there already, and later it stays.
    of_frame = {1: [1, 1, 2, 3, 3, 5, 6, 7, 8, 9], 2: [1, 1, 1, 3, 3, 3, 3, 3, 3, 3]}
    for column, (body, frames) in enumerate(of_frame.items()):
        expected = np.stack([joints_of(frame, body)[KINECT1] for frame in frames])
        np.testing.assert_allclose(metres[:, :, column], expected, atol=SKELETON.value_scale)
    assert metres.shape == (10, 20, 2, 3)


def upright(num_frames, *, x=0.0, start=0, step=0.02):
    """Joints of a standing body by frame; it is 1.7 m high, 0.5 m wide, and moves by ``step`` metres a frame."""
    body = np.stack([np.linspace(-0.25, 0.25, 25), np.linspace(-0.9, 0.8, 25), np.full(25, 2.5)], axis=1)
    return {start + i: body + np.array([x + step * i, 0, 0]) for i in range(num_frames)}


def wide(num_frames, **options):
    """The same, lying: as wide as it was high."""
    return {number: joints[:, [1, 0, 2]] for number, joints in upright(num_frames, **options).items()}


def write_tracks(path, num_frames, tracks):
    lines = [str(num_frames)]
    for number in range(num_frames):
        present = [(identity, track[number]) for identity, track in enumerate(tracks) if number in track]
        lines.append(str(len(present)))
        for identity, joints in present:
            lines += [f"{identity} 0 1 1 1 1 0 0.02 -0.1 2", "25"]
            lines += [" ".join(map(repr, map(float, joint))) + " 1 2 3 4 5 6 7 8 2" for joint in joints]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("tracks", "people"),
    [
        ([upright(30)], [[0]]),
        # The one that moves more is first.
        ([upright(30, step=0.01), upright(30, x=1, step=0.03)], [[1], [0]]),
        # Lost and found again with another identity: the same person.
        ([upright(12), upright(16, start=14)], [[1, 0]]),
        ([upright(30, step=0.05), upright(12, x=1), upright(12, x=1, start=15)], [[0], [1, 2]]),
        # Noise: too short, too wide, a third body.
        ([upright(30), upright(11, x=1, step=0.3)], [[0]]),
        ([upright(30), wide(30, x=1, step=0.3)], [[0]]),
        ([upright(30), upright(30, x=1, step=0.03), upright(30, x=2, step=0.01)], [[1], [0]]),
        # Nothing better is there.
        ([upright(9), upright(5, x=1, step=0.01)], [[0], [1]]),
        ([wide(30)], [[0]]),
        ([wide(30, step=0.05), upright(11, x=1)], [[0]]),
    ],
)
def test_ntu_skeleton__people(tmp_path, tracks, people):
    found = main_bodies(write_tracks(tmp_path / "a.skeleton", 30, tracks))
    assert found.shape == (20, 3, 30, len(people))
    for column, own in enumerate(people):
        known = {number: joints for i in own for number, joints in tracks[i].items()}
        latest = known[min(known)]
        for number in range(30):
            latest = known.get(number, latest)
            assert np.array_equal(found[:, :, number, column], latest[KINECT1])


def test_ntu_skeleton__order_of_people_equals_a_naive_twin(tmp_path):
    """Bodies that move differently, some of their frames wide, which then do not count for the motion."""
    generator = np.random.default_rng(0)
    for trial in range(5):
        tracks = []
        for body in range(2):
            track = upright(20, x=body, step=generator.uniform(0, 0.04))
            lying = wide(20, x=body, step=generator.uniform(0, 0.04))
            track |= {number: lying[number] for number in generator.choice(20, 6, replace=False).tolist()}
            tracks.append(track)
        motions = []
        for track in tracks:
            standing = [j for j in track.values() if np.ptp(j[:, 0]) <= 0.8 * np.ptp(j[:, 1])]
            sums = [sum(np.var([j[:, axis] for j in some]) for axis in range(3)) for some in (track.values(), standing)]
            motions.append(min(sums))
        found = main_bodies(write_tracks(tmp_path / f"{trial}.skeleton", 20, tracks))
        for column, own in enumerate(np.argsort(motions)[::-1]):
            assert np.array_equal(found[:, :, 0, column], tracks[own][0][KINECT1])


def test_ntu_skeleton__view_has_one_body_in_both_halves_and_two_bodies_in_one_each():
    generator = np.random.default_rng(0)
    one, two = generator.integers(1, 65535, (2, 20, 1, 3)).astype(np.uint16)
    whole = Crop(0.3, 0.3, 0.1, 0.1)  # is not applied
    alone = cut_view([one], whole, modality=SKELETON, size_px=20).frames[0]
    both = cut_view([np.concatenate([one, two], axis=1)], whole, modality=SKELETON, size_px=20).frames[0]
    assert (alone == one).all() and (both[:, :10] == one).all() and (both[:, 10:] == two).all()
    mirrored = cut_view(
        [np.concatenate([one, two], axis=1)],
        dataclasses.replace(whole, is_mirrored=True),
        modality=SKELETON,
        size_px=20,
    ).frames[0]
    swapped = two[list(SKELETON.mirrored_rows)].astype(int)
    swapped[..., 0] = np.clip(65536 - swapped[..., 0], 0, 65535)
    assert (mirrored[:, 10:] == swapped).all()


def test_ntu_skeleton__leaves_out_the_missing_list(skeletons, tmp_path):
    (tmp_path / "missing.txt").write_text(f"The samples with missing skeletons:\n\n{NAMES[1]}\n")
    manifest = ntu.prepare(dataclasses.replace(skeletons, missing=tmp_path / "missing.txt"))
    assert [video.name for video in manifest.videos] == [NAMES[0]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[:40], "is cut short"),
        (lambda lines: ["many", *lines[1:]], "is damaged (invalid literal for int() with base 10: 'many')"),
        (lambda lines: [*lines[:4], "24", *lines[5:]], "is damaged (a body has 24 joints instead of 25)"),
        (lambda lines: [*lines[:5], "0.1 0.2", *lines[6:]], "is damaged"),
        (lambda lines: [*lines[:5], "nan 0.2 0.1 0", *lines[6:]], "is damaged (a joint has no position)"),
    ],
)
def test_ntu_skeleton__damaged_files_are_skipped_with_a_reason(tmp_path, change, reason):
    path = tmp_path / "a.skeleton"
    path.write_text("\n".join(change(skeleton_lines([[], *[[1]] * 8]))))
    with pytest.raises(UnreadableVideoError) as error:
        main_bodies(path)
    assert reason in str(error.value)


def test_ntu_skeleton__options_without_effect_are_one_sentence(skeletons, tmp_path):
    with pytest.raises(UserError, match=r"--skeleton .* has no effect without skeleton in --modalities"):
        ntu.read_recordings(dataclasses.replace(skeletons, modalities=("rgb",)))
    with pytest.raises(UserError, match=r"--missing .* has no effect without --skeleton"):
        ntu.read_recordings(
            ntu.NtuOptions(videos=tmp_path, missing=tmp_path / "m", modalities=("rgb",), out=tmp_path / "out")
        )
    (tmp_path / "empty.txt").write_text("nothing\n")
    with pytest.raises(UserError, match=r"empty.txt names no recording: expected lines such as S001C002P005R002A008"):
        ntu.read_recordings(dataclasses.replace(skeletons, missing=tmp_path / "empty.txt"))
