"""Toyactions: files, lists and splits, exact flow and depth, and that a single frame does not tell the class."""

import functools
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.models import resnet18

from crossdistill.data.decode import read_frames
from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.errors import UserError
from crossdistill.modalities import FLOW
from data_prep.__main__ import main
from data_prep.datasets.toyactions import (
    OPTIONS_NAME,
    ClipId,
    ToyactionsOptions,
    clip_ids,
    held_out_groups,
    num_groups,
    prepare,
)
from data_prep.datasets.toyactions_renderer import (
    ACTIONS,
    RENDERER_VERSION,
    Clip,
    Motion,
    Scene,
    SceneKey,
    Track,
    compose_scene,
    render_clip,
)
from data_prep.datasets.toyactions_renderer.appearance import TEXTURE_MARGIN

SIZE_PX, NUM_FRAMES = 48, 12
SMALL = {"clips_per_class": 2, "size": SIZE_PX, "frames": NUM_FRAMES}


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def compose(action: str, *, clip: int = 1, seed: int = 0, size_px: int = 64, num_frames: int = 20) -> Scene:
    return compose_scene(
        action, SceneKey(seed=seed, group=clip % 5 + 1, clip=clip), size_px=size_px, num_frames=num_frames
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Manifest:
    return prepare(ToyactionsOptions(out=tmp_path_factory.mktemp("toyactions") / "data", workers=1, **SMALL))


# Files.


def test_prepare__equal_options_give_equal_bytes_with_any_number_of_workers(dataset, tmp_path):
    again = prepare(ToyactionsOptions(out=tmp_path / "elsewhere", workers=2, **SMALL))
    assert digests(again.root) == digests(dataset.root)
    assert len(digests(again.root)) == 3 * 12 * 2 + 7 + 2  # streams, lists, manifest and options
    assert str(tmp_path).encode() not in (again.root / MANIFEST_NAME).read_bytes()


def test_compose_scene__depends_on_seed_group_clip_and_class():
    base = render_clip(compose("Bounce"), [0]).rgb
    assert np.array_equal(base, render_clip(compose("Bounce"), [0]).rgb)
    for other in (compose("Bounce", seed=1), compose("Bounce", clip=6), compose("Shake")):
        assert np.abs(base - render_clip(other, [0]).rgb).mean() > 0.02


def test_prepare__another_seed_gives_other_streams(dataset, tmp_path):
    other = digests(prepare(ToyactionsOptions(out=tmp_path, workers=1, seed=1, **SMALL)).root)
    same = [path for path, digest in digests(dataset.root).items() if other[path] == digest]
    assert all(path.startswith("lists/") for path in same)


def test_prepare__streams_read_back(dataset):
    for video in dataset.videos[::5]:
        action, group, clip = video.name.removeprefix("v_").split("_")
        key = SceneKey(seed=0, group=int(group[1:]), clip=int(clip[1:]))
        rendered = render_clip(compose_scene(action, key, size_px=SIZE_PX, num_frames=NUM_FRAMES))
        flow, depth, rgb = (
            read_frames(dataset.root, video.streams[name], range(video.streams[name].num_frames), stream_name=name)
            for name in ("flow", "depth", "rgb")
        )
        stored = flow * FLOW.value_scale + FLOW.value_offset
        # Backgrounds that pan at one speed are off by one and the same rounding: up to a half of a level.
        assert np.abs(stored - rendered.flow_px).mean() <= 0.06
        assert np.array_equal(depth, rendered.depth_mm)
        assert rgb.shape == (NUM_FRAMES, SIZE_PX, SIZE_PX, 3)
        # Lossy, with colour at half the resolution.
        assert np.abs(rgb / 255 - rendered.rgb).mean() < 0.06


def test_prepare__timestamps_are_exact(dataset):
    streams = dataset.videos[0].streams
    assert np.array_equal(streams["rgb"].times_seconds, np.arange(NUM_FRAMES) / 16)
    assert np.array_equal(streams["depth"].times_seconds, streams["rgb"].times_seconds)
    assert np.array_equal(streams["flow"].times_seconds, streams["rgb"].times_seconds[:-1])


def test_prepare__resumes_and_keeps_finished_files(dataset, tmp_path):
    root = tmp_path / "data"
    prepare(ToyactionsOptions(out=root, workers=1, **SMALL))
    expected = digests(root)
    kept = root / dataset.videos[0].streams["rgb"].path
    kept_time = kept.stat().st_mtime_ns
    (root / MANIFEST_NAME).unlink()
    lost = root / dataset.videos[-1].streams["depth"].path
    lost.unlink()
    (lost.parent / f".{lost.name}.123.tmp").write_bytes(b"half a file")
    prepare(ToyactionsOptions(out=root, workers=1, **SMALL))
    assert digests(root) == expected
    assert kept.stat().st_mtime_ns == kept_time


def test_prepare__finished_folder_is_not_rendered_again(dataset, monkeypatch):
    monkeypatch.setattr("data_prep.datasets.toyactions.run_jobs", None)
    assert len(prepare(ToyactionsOptions(out=dataset.root, **SMALL)).videos) == 24


# Names, lists, groups.


def test_manifest__facts(dataset):
    assert dataset.dataset == "toyactions"
    assert dataset.classes == tuple(ACTIONS)
    assert not dataset.flip_keeps_label
    assert dataset.streams == ("depth", "flow", "rgb")
    assert dataset.facts["options"] == {**SMALL, "fps": 16, "seed": 0, "renderer_version": RENDERER_VERSION}
    assert dataset.videos[0].name == "v_SlideLeft_g01_c01"
    assert dataset.videos[0].streams["rgb"].path == "rgb/SlideLeft/v_SlideLeft_g01_c01.mp4"


def test_lists__agree_with_manifest(dataset):
    lists = dataset.root / "lists"
    class_lines = (lists / "classInd.txt").read_text().splitlines()
    assert class_lines == [f"{i} {name}" for i, name in enumerate(dataset.classes, start=1)]
    for split in ("1", "2", "3"):
        for part in ("train", "test"):
            expected = []
            for video in (dataset.videos[i] for i in dataset.select(split=split, part=part)):
                label = f" {video.label + 1}" if part == "train" else ""
                expected.append(f"{dataset.classes[video.label]}/{video.name}.mp4{label}")
            assert (lists / f"{part}list0{split}.txt").read_text().splitlines() == expected
            assert len({line.split("/")[0] for line in expected}) == 12


@pytest.mark.parametrize("clips_per_class", [2, 3, 5, 16, 60, 101, 145])
def test_splits__groups_never_mix_and_no_part_is_empty(clips_per_class):
    clips = clip_ids(clips_per_class)
    groups = num_groups(clips_per_class)
    assert len({clip.name for clip in clips}) == len(clips) == 12 * clips_per_class
    groups_of = defaultdict(set)
    for clip in clips:
        groups_of[clip.action].add(clip.group)
    assert all(found == set(range(1, groups + 1)) for found in groups_of.values())
    for split in (1, 2, 3):
        test = [clip for clip in clips if clip.group in held_out_groups(groups, split)]
        share = len(test) / len(clips)
        assert 0 < share < 1
        assert clips_per_class < 16 or 0.2 < share < 0.35
    if groups >= 6:
        assert not held_out_groups(groups, 1) & held_out_groups(groups, 2)


def test_clip_name():
    assert ClipId("SlideLeft", 3, 2).name == "v_SlideLeft_g03_c02"


# Options.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clips_per_class": 1}, "--clips-per-class 1 is out of range: choose a whole number at least 2"),
        ({"size": 30}, "--size 30 is out of range: choose a whole number from 32 to 256"),
        ({"size": 258}, "--size 258 is out of range"),
        ({"size": 49}, "--size 49 is odd, but H.264 needs even sides: choose 48"),
        ({"frames": 3}, "--frames 3 is out of range: choose a whole number at least 4"),
        ({"fps": 0}, "--fps 0 is out of range: choose a whole number from 1 to 240"),
        ({"seed": -1}, "--seed -1 is out of range"),
        ({"workers": 0}, "--workers 0 is out of range: choose a whole number at least 1"),
    ],
)
def test_prepare__refuses_options_out_of_range(tmp_path, given, message):
    with pytest.raises(UserError) as error:
        prepare(ToyactionsOptions(out=tmp_path / "data", **{**SMALL, **given}))
    assert message in str(error.value)
    assert not (tmp_path / "data").exists()


def test_prepare__refuses_a_file_as_out(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match=r"is a file: choose the path of a folder"):
        prepare(ToyactionsOptions(out=tmp_path / "data", **SMALL))


@pytest.mark.parametrize("is_finished", [True, False])
def test_prepare__refuses_a_folder_of_other_options(dataset, tmp_path, is_finished):
    root = dataset.root
    if not is_finished:
        root = tmp_path
        (root / OPTIONS_NAME).write_bytes((dataset.root / OPTIONS_NAME).read_bytes())
    with pytest.raises(UserError, match=r"seed 0 instead of 7 and size 48 instead of 64: choose another --out"):
        prepare(ToyactionsOptions(out=root, **{**SMALL, "size": 64}, seed=7))


def test_prepare__refuses_a_folder_of_another_dataset(tmp_path):
    Manifest(root=tmp_path, dataset="ucf101", classes=(), videos=()).save()
    with pytest.raises(UserError, match=r"contains the dataset 'ucf101', not 'toyactions': choose another --out"):
        prepare(ToyactionsOptions(out=tmp_path, **SMALL))


def test_command__help_is_the_docstring_of_the_module(capsys):
    with pytest.raises(SystemExit):
        main(["toyactions", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "rendered clips of moving bodies" in shown
    assert "--clips-per-class INT Clips of each of the 12 classes" in shown


def test_command__prepares(tmp_path):
    options = ["--clips-per-class", "2", "--size", "32", "--frames", "4", "--fps", "25", "--workers", "1"]
    main(["toyactions", "--out", str(tmp_path / "data"), *options])
    manifest = Manifest.load(tmp_path / "data")
    assert len(manifest.videos) == 24
    assert manifest.videos[0].streams["rgb"].times_seconds.tolist() == pytest.approx([0, 0.04, 0.08, 0.12])


# Exact flow and depth.


def seen_throughout(clip: Clip, t: int) -> np.ndarray:
    """Mask of pixels far from edges whose surface point is also visible in frame t + 1."""
    size_px = clip.surface.shape[1]
    landing = np.moveaxis(clip.flow_px[t], -1, 0) + np.mgrid[:size_px, :size_px][::-1]
    is_inside = ((landing > 1) & (landing < size_px - 2)).all(axis=0)
    kernel = np.ones((5, 5), np.uint8)

    def far_from_edges(surface):
        return cv2.morphologyEx(surface, cv2.MORPH_GRADIENT, kernel) == 0

    x, y = landing.astype(np.float32)
    lands_safely = cv2.remap(far_from_edges(clip.surface[t + 1]).astype(np.float32), x, y, cv2.INTER_LINEAR) > 0.99
    lands_on = cv2.remap(clip.surface[t + 1], x, y, cv2.INTER_NEAREST)
    return is_inside & far_from_edges(clip.surface[t]) & lands_safely & (lands_on == clip.surface[t])


def pull_back(picture: np.ndarray, flow_px: np.ndarray) -> np.ndarray:
    """Warp frame t + 1 to frame t: each pixel takes the value at the place that its flow leads to."""
    size_px = len(picture)
    x, y = (np.moveaxis(flow_px, -1, 0) + np.mgrid[:size_px, :size_px][::-1]).astype(np.float32)
    return cv2.remap(picture, x, y, cv2.INTER_CUBIC)


@pytest.mark.parametrize("action", ACTIONS)
def test_flow__warps_each_frame_onto_the_next(action):
    warped, unwarped = [], []
    for number in range(1, 5):
        clip = render_clip(compose(action, clip=number))
        for t in range(0, 19, 3):
            moving = seen_throughout(clip, t) & (np.hypot(*np.moveaxis(clip.flow_px[t], -1, 0)) > 0.25)
            warped += np.abs(pull_back(clip.rgb[t + 1], clip.flow_px[t]) - clip.rgb[t])[moving].ravel().tolist()
            unwarped += np.abs(clip.rgb[t + 1] - clip.rgb[t])[moving].ravel().tolist()
    assert len(warped) > 1000
    assert np.mean(warped) < 0.2 * np.mean(unwarped)
    assert np.mean(warped) < 0.012


@pytest.mark.parametrize("action", ["SlideLeft", "SpinClockwise", "OrbitAnticlockwise", "Bounce"])
def test_depth__follows_the_flow(action):
    """What a pixel shows is as far away in the next frame as here, but for the growth of its body."""
    scene = compose(action, clip=3)
    clip = render_clip(scene)
    growth = {body.surface: body.radius_px[1:] / body.radius_px[:-1] for body in scene.bodies}
    for t in range(19):
        there = pull_back(clip.depth_mm[t + 1, :, :, 0].astype(np.float32), clip.flow_px[t])
        there *= np.array([growth.get(surface, np.ones(19))[t] for surface in range(4)])[clip.surface[t]]
        error = np.abs(there - clip.depth_mm[t, :, :, 0])[seen_throughout(clip, t)]
        assert error.max() < 20


@pytest.mark.parametrize(("action", "sign"), [("Approach", -1), ("Recede", 1)])
def test_depth__radius_is_proportional_to_inverse_distance(action, sign):
    for number in range(1, 7):
        scene = compose(action, clip=number)
        body = next(body for body in scene.bodies if body.surface == 1)
        assert np.allclose(body.radius_px * body.depth_mm, body.radius_px[0] * body.depth_mm[0])
        clip = render_clip(scene)
        seen = [clip.depth_mm[t, :, :, 0][clip.surface[t] == 1].mean() for t in range(20)]
        assert (np.sign(np.diff(seen)) == sign).mean() > 0.9
        assert np.sign(seen[-1] - seen[0]) == sign
        assert 1.6 < (seen[-1] / seen[0]) ** sign < 3.2


def test_depth__bodies_stay_in_separate_ranges():
    """Otherwise painting from far to near would not be a z-buffer."""
    for number in range(60):
        scene = compose(list(ACTIONS)[number % 12], clip=number)
        nearest_behind_mm = np.inf
        for body in scene.bodies:
            bulge_mm = float(np.hypot(*body.relief_mm))
            assert body.depth_mm.max() + bulge_mm < nearest_behind_mm
            nearest_behind_mm = body.depth_mm.min() - bulge_mm
        assert nearest_behind_mm > 300


@pytest.mark.parametrize("size_px", [64, 256])
def test_flow__stays_within_the_stored_range(size_px):
    largest = 0.0
    for action in ACTIONS:
        for number in range(1, 40 if size_px == 64 else 3):
            scene = compose(action, clip=number, size_px=size_px)
            body = next(body for body in scene.bodies if body.surface == 1)
            centre_step = np.hypot(*np.diff(body.centre_px, axis=0).T).max()
            rim_step = np.hypot(np.diff(body.angle_rad), np.diff(np.log(body.radius_px))) * body.radius_px[:-1]
            background, frame_radius_px = scene.bodies[0], size_px / np.sqrt(2)
            pan = np.hypot(*np.diff(background.centre_px, axis=0).T).max()
            turn = np.hypot(np.diff(background.angle_rad), np.diff(np.log(background.radius_px))).max()
            steps_px = (centre_step + rim_step.max(), pan + turn * frame_radius_px)
            largest = max(largest, max(steps_px) * 256 / size_px)
    assert 10 < largest < 20


def test_background__covers_the_frame_and_always_pans():
    corners = np.array([[-0.5, -0.5], [-0.5, 63.5], [63.5, -0.5], [63.5, 63.5]])
    for number in range(60):
        background = compose(list(ACTIONS)[number % 12], clip=number).bodies[0]
        assert background.surface == 0
        farthest_px = np.hypot(*np.moveaxis(corners - background.centre_px[:, None], -1, 0)).max(axis=1)
        assert (farthest_px < background.radius_px * TEXTURE_MARGIN).all()
        pan_px = np.hypot(*np.diff(background.centre_px, axis=0).T)
        assert 0.99 < pan_px.min() <= pan_px.max() < 2.41


def motion_of_body(action: str, number: int) -> dict[str, np.ndarray]:
    """Mean flow, rotation and expansion of the acting body's pixels, per frame."""
    clip = render_clip(compose(action, clip=number))
    found = defaultdict(list)
    for t, flow in enumerate(clip.flow_px):
        y, x = np.nonzero(clip.surface[t] == 1)
        if len(x) < 30:
            continue
        # Least squares of an affine flow over the body's pixels.
        slopes, *_ = np.linalg.lstsq(np.column_stack([x, y, np.ones(len(x))]), flow[y, x], rcond=None)
        found["x"].append(flow[y, x, 0].mean())
        found["y"].append(flow[y, x, 1].mean())
        found["curl"].append(slopes[0, 1] - slopes[1, 0])
        found["divergence"].append(slopes[0, 0] + slopes[1, 1])
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize(
    ("action", "measure", "sign"),
    [
        ("SlideLeft", "x", -1),
        ("SlideRight", "x", 1),
        ("SlideUp", "y", -1),
        ("SlideDown", "y", 1),
        ("Approach", "divergence", 1),
        ("Recede", "divergence", -1),
        ("SpinClockwise", "curl", 1),
        ("SpinAnticlockwise", "curl", -1),
    ],
)
def test_flow__has_the_sign_of_the_class(action, measure, sign):
    for number in range(1, 6):
        motion = motion_of_body(action, number)
        assert (sign * motion[measure] > 0).all()


@pytest.mark.parametrize(("action", "sign"), [("OrbitClockwise", 1), ("OrbitAnticlockwise", -1)])
def test_flow__orbits_turn_one_way(action, sign):
    for number in range(1, 6):
        motion = motion_of_body(action, number)
        heading = np.unwrap(np.arctan2(motion["y"], motion["x"]))
        assert (sign * np.diff(heading) > 0).all()
        assert np.abs(motion["curl"]).max() < 1e-4


def test_flow__bounce_is_vertical_and_shake_returns():
    for number in range(1, 6):
        bounce, shake = motion_of_body("Bounce", number), motion_of_body("Shake", number)
        assert np.abs(bounce["x"]).max() < 1e-5
        assert (np.diff(np.sign(bounce["y"])) != 0).sum() >= 2
        path_px = np.hypot(shake["x"], shake["y"]).sum()
        assert np.hypot(shake["x"].sum(), shake["y"].sum()) < 0.3 * path_px


# Information about the class in single frames and in flow.

NUM_PROBED_CLIPS = 96
OPPOSITE_PAIRS = [
    ("SlideLeft", "SlideRight"),
    ("SlideUp", "SlideDown"),
    ("Approach", "Recede"),
    ("SpinClockwise", "SpinAnticlockwise"),
    ("OrbitClockwise", "OrbitAnticlockwise"),
]


class Frames:
    """Features of one frame of many clips of each class. Clips of a group share textures.

    There are two kinds of features. ``by_eye``: what an image encoder could use (the embedding of a random ResNet-18,
    raw pixels, and the distance of each region's colour from the frame's median). ``by_truth``: exact place, size and
    distance of the acting body, an upper bound for any encoder.
    """

    def __init__(self, actions: Sequence[str], *, kind: str, earliest: int, latest: int) -> None:
        self.clips = np.arange(NUM_PROBED_CLIPS)
        self.groups = self.clips % 8
        moments = np.random.default_rng(1).integers(earliest, latest + 1, (len(actions), NUM_PROBED_CLIPS))
        describe = {"by_eye": seen_by_encoder, "by_truth": true_geometry}[kind]
        self.features = {
            action: describe([self.render(action, *ids) for ids in zip(self.groups, self.clips, when, strict=True)])
            for action, when in zip(actions, moments, strict=True)
        }

    @staticmethod
    def render(action: str, group: int, clip: int, moment: int) -> Clip:
        key = SceneKey(seed=5, group=int(group), clip=int(clip))
        return render_clip(compose_scene(action, key, size_px=48, num_frames=20), [int(moment)])

    def surprise(self, actions: Sequence[str]) -> float:
        """Accuracy of a linear probe on unseen textures above chance, in standard deviations."""
        features = np.vstack([self.features[action] for action in actions])
        labels = np.repeat(np.arange(len(actions)), NUM_PROBED_CLIPS)
        groups = np.tile(self.groups, len(actions))
        # As much regularisation as the number of features asks for.
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / features.shape[1], max_iter=200))
        found = cross_val_predict(probe, features, labels, groups=groups, cv=GroupKFold(4))
        chance = 1 / len(actions)
        return float((np.mean(found == labels) - chance) / np.sqrt(chance * (1 - chance) / len(labels)))


@functools.cache
def random_encoder() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = resnet18(weights=None).eval()
    encoder.fc = torch.nn.Identity()
    return encoder


def seen_by_encoder(clips: list[Clip]) -> np.ndarray:
    frames = np.concatenate([clip.rgb for clip in clips])
    with torch.inference_mode():
        deep = random_encoder()((torch.from_numpy(frames).permute(0, 3, 1, 2) - 0.45) / 0.225).numpy()
    odd = np.abs(frames - np.median(frames, axis=(1, 2), keepdims=True)).mean(axis=3, keepdims=True)
    pixels = np.concatenate([frames, odd], axis=3)
    return np.hstack([deep, [cv2.resize(p, (8, 8), interpolation=cv2.INTER_AREA).ravel() for p in pixels]])


def true_geometry(clips: list[Clip]) -> np.ndarray:
    rows = []
    for clip in clips:
        y, x = np.nonzero(clip.surface[0] == 1)
        distance_m = clip.depth_mm[0, y, x, 0].mean() / 1000
        rows.append([x.mean(), y.mean(), x.std(), y.std(), len(x), distance_m, clip.depth_mm.mean() / 1000])
    return np.array(rows)


def assert_guessing(surprises: dict[str, float]) -> None:
    """Check bounds that about one run in some hundreds exceeds by chance; fixed seeds make the result repeatable."""
    values = list(surprises.values())
    assert max(values) < 3.3, surprises
    assert sum(values) / np.sqrt(len(values)) < 3, surprises


SLIDES = ("SlideLeft", "SlideRight", "SlideUp", "SlideDown")


@pytest.mark.parametrize("kind", ["by_eye", "by_truth"])
def test_middle_frame__does_not_tell_the_class(kind):
    frames = Frames(list(ACTIONS), kind=kind, earliest=9, latest=10)  # twenty frames have two in the middle
    sets = [SLIDES, *OPPOSITE_PAIRS, ("Approach", "SpinClockwise"), ("SlideUp", "OrbitClockwise", "Bounce", "Shake")]
    assert_guessing({"/".join(actions): frames.surprise(actions) for actions in sets})


def test_any_frame__does_not_tell_the_direction():
    actions = [action for pair in OPPOSITE_PAIRS for action in pair]
    frames = Frames(actions, kind="by_truth", earliest=0, latest=19)
    assert_guessing({"/".join(pair): frames.surprise(pair) for pair in OPPOSITE_PAIRS})


@pytest.mark.parametrize(("kind", "shift"), [("by_eye", 0.12), ("by_truth", 0.05)])
def test_probe__finds_a_leak(monkeypatch, kind, shift):
    """Bodies shifted towards the side that they come from exceed the bounds, so the bounds can fail."""
    for action, sign in (("SlideLeft", 1), ("SlideRight", -1)):
        monkeypatch.setitem(ACTIONS, action, shifted(ACTIONS[action], sign * shift))
    assert Frames(SLIDES[:2], kind=kind, earliest=9, latest=10).surprise(SLIDES[:2]) > 3.3


def shifted(motion: Motion, shift: float) -> Motion:
    def move(rng, instants):
        track = motion(rng, instants)
        return Track(offset=track.offset + np.array([shift, 0]), angle_rad=track.angle_rad, scale=track.scale)

    return move


def background_motion(flow_px: np.ndarray) -> np.ndarray:
    """Fit an affine motion [H, W, 2] to a frame's flow, first to its margin, then to what moves likewise."""
    y, x = np.mgrid[: flow_px.shape[0], : flow_px.shape[1]]
    places, flow = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3), flow_px.reshape(-1, 2)
    taken = np.minimum(np.minimum(x, y), np.minimum(x[::-1, ::-1], y[::-1, ::-1])).ravel() < 3
    for _ in range(6):
        slopes = np.linalg.lstsq(places[taken], flow[taken], rcond=None)[0]
        error_px = np.hypot(*(flow - places @ slopes).T)
        taken = error_px <= np.quantile(error_px, 0.5)
    return (places @ slopes).reshape(flow_px.shape)


def flow_statistics(flow_px: np.ndarray) -> np.ndarray:
    """Statistics of a clip's flow [T, H, W, 2]: mean motion, its turning and variation, rotation and expansion."""
    flow = flow_px[:, ::2, ::2]
    apart = flow - np.stack([background_motion(frame) for frame in flow])
    weight = (np.hypot(apart[..., 0], apart[..., 1]) > 0.1) + 1e-6
    y, x = np.mgrid[: flow.shape[1], : flow.shape[2]]
    total = weight.sum(axis=(1, 2))
    u, v = ((flow[..., i] * weight).sum(axis=(1, 2)) / total for i in (0, 1))
    dx, dy = (c - ((c * weight).sum(axis=(1, 2)) / total)[:, None, None] for c in (x, y))
    spread = ((dx**2 + dy**2) * weight).sum(axis=(1, 2))
    curl = ((dx * flow[..., 1] - dy * flow[..., 0]) * weight).sum(axis=(1, 2)) / spread
    divergence = ((dx * flow[..., 0] + dy * flow[..., 1]) * weight).sum(axis=(1, 2)) / spread
    turn = (u[:-1] * v[1:] - v[:-1] * u[1:]) / (np.hypot(u, v)[:-1] * np.hypot(u, v)[1:] + 1e-3)
    jolt = np.hypot(np.diff(u), np.diff(v))
    steady = [np.median(values) for values in (u, v, curl, divergence, turn)]
    return np.array([*steady, np.std(u), np.std(v), np.mean(jolt), np.mean(np.hypot(u, v)), np.std(turn)])


def test_flow__tells_the_class():
    features, labels, groups = [], [], []
    for label, action in enumerate(ACTIONS):
        for number in range(32):
            features.append(flow_statistics(render_clip(compose(action, clip=number)).flow_px))
            labels.append(label)
            groups.append(number % 4)
    probe = make_pipeline(StandardScaler(), RandomForestClassifier(100, random_state=0))
    found = cross_val_predict(probe, np.array(features), labels, groups=groups, cv=GroupKFold(4))
    shares = [(found == labels)[np.array(labels) == label].mean() for label in range(12)]
    assert np.mean(shares) > 0.85, shares
    assert min(shares) > 0.6, shares
