"""A new modality is data: docs/how_to/add_a_modality.md shows the lines that make ``skeleton`` one, and runs."""

import json
import re
import shlex
import textwrap
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from in_process import train

import crossdistill
from crossdistill.commands.main import main as cli
from crossdistill.data.dataset import PairedClips, entries_of
from crossdistill.data.decode import index_video, read_clip, read_frames
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.streams import STREAM_FORMATS, StreamWriter, quantise_joints
from crossdistill.data.transforms import Augmentation, Crop, centre_crop, cut_view, normalise
from crossdistill.encoders.architecture import CLIP_MODALITIES
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.modalities import DEPTH, RGB, SKELETON
from crossdistill.types import View, ViewSpec
from data_prep.__main__ import main as data_prep
from data_prep.datasets import utd_mhad
from data_prep.inspect import STICKS_PX, paint_skeleton
from data_prep.pipeline.readers import read_skeleton
from data_prep.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "how_to" / "add_a_modality.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^`(?P<file>[\w/.]+)`\n\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
NAMES = [f"a{action}_s{person}_t{trial}" for action in (1, 2) for person in (1, 2) for trial in (1, 2, 3, 4)]
NUM_FRAMES = 10
# Two people of two actions and two cores are no match for a whole dataset: what the guide's commands get besides.
TINY_PREPARATION = ["--workers", "1", "--short-side", "24"]
TINY_TRAINING = [
    *("--student-frames", "4", "--teacher-frames", "4", "--epochs", "1", "--batch-size", "4", "--bank-size", "16"),
    *("--workers", "0", "--tracker", "none", "--no-evaluate", "--knn-clips", "0", "--lr", "0.1"),
]
ARMS = {"left": 7, "right": 11}


def guide_blocks(language: str) -> list[tuple[str, str]]:
    """(file, code) of the guide's blocks; a block without a file's name above it is of the file before."""
    found, file = [], ""
    for match in BLOCK.finditer(GUIDE):
        file = match["file"] or file
        if match["language"] == language:
            found.append((file, match["code"]))
    return found


def made_joints(action: int, person: int) -> np.ndarray:
    """[20, 3, T] in metres: a body that stands 2 m away, one of its hands moving."""
    generator = np.random.default_rng([action, person])
    joints = np.repeat(generator.normal((0, 0, 2), 0.3, (20, 3))[:, :, None], NUM_FRAMES, axis=2)
    joints[7 if action == 1 else 11, 1] += np.linspace(0, 0.5, NUM_FRAMES)
    return joints


def make_recordings(folder: Path) -> None:
    """Depth and skeleton files as UTD-MHAD names them; the depth of a frame is 1000 mm plus its number."""
    for name in NAMES:
        action, person, trial = (int(number) for number in re.findall(r"\d+", name))
        depth = np.zeros((24, 32, NUM_FRAMES), dtype=np.uint16)
        depth[4:20, 8 * trial - 6 : 8 * trial] = 1000 + np.arange(NUM_FRAMES)
        for sensor, key, array in (("Depth", "d_depth", depth), ("Skeleton", "d_skel", made_joints(action, person))):
            path = folder / sensor / f"{name}_{sensor.lower()}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            scipy.io.savemat(path, {key: array}, do_compression=True)


def run_command(line: str) -> None:
    words = shlex.split(line)
    if words[:2] == ["crossdistill", "train"]:
        return train([*words[2:], *TINY_TRAINING, *([] if "--student-size" in words else ["--student-size", "32"])])
    if words[0] == "crossdistill":
        return cli([*words[1:], "--protocols", "knn", "--workers", "0", "--json", "numbers.json"])
    return data_prep([*words[3:], *(TINY_PREPARATION if words[3] == "utd_mhad" else ["--clips", "1"])])


@pytest.fixture(scope="module")
def worked_example(tmp_path_factory):
    """The folder in which the guide's commands were run, line by line."""
    folder = tmp_path_factory.mktemp("example")
    make_recordings(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _, code in guide_blocks("bash"):
            for line in code.replace("\\\n", " ").splitlines():
                run_command(line)
    return folder


# The page.


def test_guide__shows_the_very_lines_of_the_product():
    shown = guide_blocks("python")
    assert {file for file, _ in shown} == {
        *("crossdistill/modalities.py", "crossdistill/data/streams.py"),
        *("data_prep/pipeline/readers.py", "data_prep/datasets/utd_mhad.py"),
    }
    for file, code in shown:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert code in text or textwrap.indent(code, "    ") in text, f"{file} no longer holds:\n{code}"
    assert "docs/how_to/add_a_modality.md" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_commands__prepare_both_streams_paired_by_time(worked_example):
    manifest = Manifest.load(worked_example / "data" / "utd_mhad")
    assert manifest.streams == ("depth", "skeleton")
    usable = {video.name: video for video in manifest.videos if video.is_usable}
    assert sorted(usable) == sorted(NAMES)
    video = usable["a2_s1_t3"]
    sizes = {name: (stream.height_px, stream.width_px) for name, stream in video.streams.items()}
    assert sizes == {"depth": (24, 32), "skeleton": (20, 1)}
    clip = read_clip(manifest.root, video.streams, [7 / 30, 2 / 30])
    assert clip["depth"].max(axis=(1, 2, 3)).tolist() == [1007, 1002]
    metres = clip["skeleton"][:, :, 0] * SKELETON.value_scale + SKELETON.value_offset
    np.testing.assert_allclose(metres, made_joints(2, 1)[:, :, [7, 2]].transpose(2, 0, 1), atol=0.00051)
    assert (manifest.root / "inspect.png").is_file()


@pytest.mark.parametrize(
    ("run", "student", "size_px"), [("skeleton", "skeleton_r3d10", 20), ("back", "depth_r3d10", 32)]
)
def test_commands__train_students_in_both_directions(worked_example, run, student, size_px):
    encoder = crossdistill.load_student(worked_example / "runs" / run)
    assert (encoder.name, encoder.view.num_frames, encoder.view.size_px) == (student, 4, size_px)
    torch.manual_seed(0)
    fresh = crossdistill.create_encoder(student)
    assert any(not torch.equal(a, b) for a, b in zip(encoder.parameters(), fresh.parameters(), strict=True))
    facts = json.loads((worked_example / "runs" / run / "student" / "student.json").read_text())
    assert facts["training"]["teacher"] == {"skeleton": "depth_r3d10", "back": "skeleton_r3d10"}[run]


def test_commands__evaluate_the_student(worked_example):
    numbers = json.loads((worked_example / "numbers.json").read_text())
    assert numbers["num_test"] == 8
    assert 0 <= numbers["results"]["1-nn"]["top1"] <= 1


# The modality.


def test_joints__are_stored_to_half_a_millimetre(tmp_path):
    metres = np.random.default_rng(0).uniform(-5, 5, (6, 20, 1, 3))
    path = tmp_path / "a.mp4"
    with StreamWriter(path, STREAM_FORMATS["skeleton"], time_base=Fraction(1, 30)) as writer:
        for pts, frame in enumerate(quantise_joints(metres)):
            writer.write(frame, pts)
    stream = index_video(path, stream_format=STREAM_FORMATS["skeleton"])
    assert (stream.height_px, stream.width_px, stream.num_frames) == (20, 1, 6)
    read = read_frames(tmp_path, stream, [5, 0, 3], stream_name="skeleton")
    restored = read * SKELETON.value_scale + SKELETON.value_offset
    assert np.abs(restored - metres[[5, 0, 3]]).max() <= 0.0005 + 1e-9
    assert quantise_joints(np.array([0.0, 99.0, -99.0])).tolist() == [SKELETON.stored_zero, 65535, 1]


def to_metres(joints_metres, crop, *, size_px=20):
    """[3, T, S, S] as an encoder without statistics sees it."""
    clip = cut_view(quantise_joints(joints_metres[:, :, None]), crop, modality=SKELETON, size_px=size_px)
    spec = ViewSpec("skeleton", len(joints_metres), 1, size_px, mean=(0.0,) * 3, std=(1.0,) * 3)
    return normalise(View(clip.values[None], torch.from_numpy(clip.channel_scale)[None]), spec)[0]


def test_crop__leaves_a_body_whole():
    joints = np.random.default_rng(0).normal(0, 0.5, (4, 20, 3))
    whole = to_metres(joints, Crop(0, 0, 1, 1))
    torch.testing.assert_close(to_metres(joints, Crop(0.3, 0.5, 0.4, 0.2)), whole, atol=0, rtol=0)
    expected = torch.from_numpy(joints - joints.mean(axis=(0, 1))).permute(2, 0, 1).float()
    torch.testing.assert_close(whole[..., 0], expected, atol=0.0011, rtol=0)


def test_larger_view__repeats_joints_and_mixes_none():
    joints = np.random.default_rng(0).normal(0, 0.5, (2, 20, 3))
    clip = cut_view(quantise_joints(joints[:, :, None]), Crop(0, 0, 1, 1), modality=SKELETON, size_px=60)
    expected = quantise_joints(joints).repeat(3, axis=1).transpose(2, 0, 1)
    assert (clip.values.numpy() == expected[..., None]).all()


def test_mirror__turns_x_and_exchanges_the_sides():
    joints = np.random.default_rng(0).normal(0, 0.5, (3, 20, 3))
    mirrored = to_metres(joints, Crop(0.1, 0.1, 0.5, 0.5, is_mirrored=True))
    plain = to_metres(joints, Crop(0, 0, 1, 1))
    left, right = plain[:, :, ARMS["left"]], plain[:, :, ARMS["right"]]
    x_of_the_other = torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    torch.testing.assert_close(mirrored[:, :, ARMS["right"]], left * x_of_the_other, atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored[:, :, ARMS["left"]], right * x_of_the_other, atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored[:, :, 0], plain[:, :, 0] * x_of_the_other, atol=1e-5, rtol=0)
    rows = np.asarray(SKELETON.mirrored_rows)
    assert rows[rows].tolist() == list(range(20)), "mirrored twice, everything is where it was"


def test_mirror__of_a_table_keeps_its_columns():
    table = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    kind = replace(RGB, is_picture=False)
    values = cut_view(table, Crop(0, 0, 1, 1, is_mirrored=True), modality=kind, size_px=2).values
    assert (values.numpy()[:, 0] == table[0].transpose(2, 0, 1)).all()


def test_pictures__are_cropped_and_mirrored_as_before():
    depth = np.arange(64, dtype=np.uint16).reshape(1, 8, 8, 1)
    values = cut_view(depth, Crop(0.25, 0.5, 0.5, 0.5, is_mirrored=True), modality=DEPTH, size_px=4).values
    assert values[0, 0].tolist() == depth[0, 4:8, 5:1:-1, 0].tolist()


@pytest.mark.parametrize("order", [("skeleton", "depth"), ("depth", "skeleton")])
def test_crop_of_a_pair__is_drawn_for_the_picture(worked_example, order):
    """A column of joints has no middle square: the picture beside it must not be cut down to a strip."""
    manifest = Manifest.load(worked_example / "data" / "utd_mhad")
    views = {
        "skeleton": ViewSpec("skeleton", 2, 1, 20, mean=(0.0,) * 3, std=(1.0,) * 3),
        "depth": ViewSpec("depth", 2, 1, 24, mean=(0.0,), std=(1.0,)),
    }
    positions = [i for i, video in enumerate(manifest.videos) if video.name == "a1_s1_t2"]
    entries = entries_of(manifest, positions)
    student, teacher = (views[name] for name in order)
    for augmentation in (None, Augmentation(area_min=0.99, ratio_min=0.99, ratio_max=1.01, mirror_probability=0.0)):
        dataset = PairedClips(entries, student_view=student, teacher_views=[teacher], augmentation=augmentation)
        clip = dict(zip(order, dataset[SampleKey(0, 0)].views, strict=True))["depth"]
        crop = centre_crop(width_px=32, height_px=24)
        assert crop == Crop(0.125, 0, 0.75, 1)
        measured = (clip.values[0, 0].int() > 0).float()
        assert measured.sum() == 16 * 6 and measured.any(dim=1).sum() == 16


def test_clip_architectures__take_every_modality_with_time():
    assert "skeleton" in CLIP_MODALITIES and "image" not in CLIP_MODALITIES
    encoder = crossdistill.create_encoder("skeleton_r3d10", num_frames=4, size_px=20)
    assert encoder(torch.randn(2, 3, 4, 20, 20)).shape == (2, 128)


# The reader and the dataset.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"d_depth": np.zeros((20, 3, 9))}, "has no array 'd_skel'"),
        ({"d_skel": np.zeros((25, 3, 9))}, r"'d_skel' is \(25, 3, 9\), not \[20, 3, T\]"),
        ({"d_skel": np.full((20, 3, 9), np.nan)}, "positions that are no numbers of metres"),
        ({"d_skel": np.zeros((20, 3, 9), np.int32)}, "positions that are no numbers of metres"),
    ],
)
def test_reader__refuses_what_are_no_joints(tmp_path, content, reason):
    path = tmp_path / "a1_s1_t1_skeleton.mat"
    scipy.io.savemat(path, content)
    with pytest.raises(UnreadableVideoError, match=reason):
        list(read_skeleton(path, Recipe()))


def test_reader__frames_are_joints_by_channel(tmp_path):
    joints = made_joints(1, 1)
    scipy.io.savemat(tmp_path / "a.mat", {"d_skel": joints})
    frames = list(read_skeleton(tmp_path / "a.mat", Recipe(), Fraction(25)))
    assert [(frame.pts, frame.time_base, frame.stored.shape) for frame in frames[:2]] == [
        (0, Fraction(1, 25), (20, 1, 3)),
        (1, Fraction(1, 25), (20, 1, 3)),
    ]
    assert frames[9].stored[7, 0].tolist() == [round(metres * 1000) + 32768 for metres in joints[7, :, 9]]


def test_utd_mhad__mistakes_with_skeletons(tmp_path):
    (tmp_path / "Depth").mkdir()
    (tmp_path / "Depth" / "a1_s1_t1_depth.mat").touch()
    options = utd_mhad.UtdMhadOptions(depth=tmp_path / "Depth", out=tmp_path / "out", modalities=("depth", "skeleton"))
    with pytest.raises(UserError, match="'skeleton' cannot be made: it needs skeleton, and there is only depth"):
        utd_mhad.read_recordings(options)
    with pytest.raises(
        UserError, match=r"contain none of the 861 videos .*expected for example a1_s1_t1_skeleton\.mat"
    ):
        utd_mhad.read_recordings(replace(options, skeleton=tmp_path / "Depth"))
    with pytest.raises(
        UserError, match="has no effect without skeleton in --modalities: add skeleton there, or remove"
    ):
        utd_mhad.read_recordings(replace(options, skeleton=tmp_path / "Depth", modalities=("depth",)))


def test_utd_mhad__every_skeleton_has_an_entry_per_frame_of_depth(shared_folder):
    folder = shared_folder / "data" / "utd_mhad"
    for name in utd_mhad.recording_names()[::100]:
        lengths = {
            scipy.io.whosmat(folder / sensor / f"{name}_{sensor.lower()}.mat")[0][1][2]
            for sensor in ("Depth", "Skeleton")
        }
        assert len(lengths) == 1, name


# The contact sheet.


def test_paint_skeleton__up_is_up_and_right_is_right():
    metres = np.zeros((1, 20, 3))
    metres[0, :4, 1] = [1.0, 0.5, 0.0, -0.5]  # head to hip
    metres[0, 8:12] = [[0.5, 0.5, 0]] * 4
    metres[0, 4:8, 1] = 0.5
    metres[0, 12:, 1] = -0.5
    pictures, label = paint_skeleton(quantise_joints(metres[:, :, None]))
    assert (pictures.shape, label) == ((1, STICKS_PX, STICKS_PX, 3), "skeleton\n1.50 m high")
    rows, columns = np.nonzero((pictures[0] < 255).any(axis=-1))
    assert rows.min() < 12 and rows.max() > 147, "the higher side fills the picture"
    arm = np.argwhere((pictures[0] == [40, 90, 200]).all(axis=-1))
    assert arm[:, 1].max() > columns.min() + 40 and arm[:, 0].mean() < STICKS_PX / 2


def test_paint_skeleton__a_body_that_is_one_point():
    pictures, _ = paint_skeleton(np.full((2, 20, 1, 3), SKELETON.stored_zero, np.uint16))
    assert pictures.shape == (2, STICKS_PX, STICKS_PX, 3)
