"""Flow methods: sign and scale of the flow, estimated from pictures and stored in files, and their errors."""

from __future__ import annotations

import dataclasses
import itertools
import urllib.error
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.frame import PictureType
from torchvision.models.optical_flow import raft_large, raft_small
from video_files import mark_rotated, moving_frames, texture, write_video

from crossdistill.data.containers import Orientation
from crossdistill.data.decode import read_frames
from crossdistill.data.manifest import Manifest
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.modalities import FLOW
from data_prep.flow import FLOW_METHODS
from data_prep.flow.motion_vectors import Candidates, best_match, block_field, find_candidates, upright_field
from data_prep.flow.raft import load_raft, raft_flow
from data_prep.frames import NO_VECTORS, ColourFrame, DepthFrame, Motion, look_ahead
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.readers import Input, read_video
from data_prep.pipeline.transcode import transcode
from data_prep.recipe import Recipe

STEPS_XY = [(3, 0), (-3, 0), (0, 4), (-2, -5), (0, 0)]
MARGIN_PX = 16
STEP_XY = (3, -2)
ENCODINGS = {
    "h264": ("libx264", {}),
    "h264 without B": ("libx264", {"bf": "0"}),
    "h264 with one reference": ("libx264", {"bf": "0", "refs": "1"}),
    "mpeg4": ("mpeg4", {"b": "4000000"}),
    "mpeg4 with B": ("mpeg4", {"bf": "2", "b": "4000000"}),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, as the processes that prepare videos do."""
    cv2.setNumThreads(1)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def frame_of(picture: np.ndarray, pts: int = 0) -> ColourFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuv420p")
    return ColourFrame(pts, Fraction(1, 25), frame)


def gliding_frames(num_frames: int, *, height: int = 96, width: int = 128, step_xy=STEP_XY) -> np.ndarray:
    """Make [T, H, W, 3]: a moving texture that is as smooth as most pictures."""
    base = texture(height, width, grain_px=4)
    return np.stack([np.roll(base, (t * step_xy[1], t * step_xy[0]), axis=(0, 1)) for t in range(num_frames)])


def stored_flow(root: Path, source: Path, recipe: Recipe) -> np.ndarray:
    """Prepare the flow of a video; return it as training reads it: [T - 1, H, W, 2] in pixels."""
    outcome = transcode({"rgb": Input(str(source))}, {"flow": "flow.mp4"}, root=root, recipe=recipe)
    assert (outcome.status, outcome.reason) == ("ok", "")
    stream = outcome.streams["flow"]
    coded = read_frames(root, stream, range(stream.num_frames), stream_name="flow")
    return coded * FLOW.value_scale + FLOW.value_offset


# Methods that estimate flow from pictures.


@pytest.mark.parametrize(("method", "tolerance_px"), [("dis", 0.1), ("farneback", 0.1), ("tvl1", 0.1)])
@pytest.mark.parametrize("step_xy", STEPS_XY)
def test_flow__translation_is_found(method, tolerance_px, step_xy):
    first = texture(96, 128, grain_px=3)
    second = np.roll(first, (step_xy[1], step_xy[0]), axis=(0, 1))
    flow = FLOW_METHODS[method].create(Recipe(flow=method))(frame_of(first), frame_of(second))
    assert flow.shape == (96, 128, 2)
    assert flow.dtype == np.float32
    inner = flow[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    np.testing.assert_allclose(inner.mean(axis=(0, 1)), step_xy, atol=tolerance_px)


@pytest.mark.parametrize("method", ["dis", "farneback", "tvl1"])
def test_flow__translation_in_depth_is_found(method):
    """Flow can be estimated from the recording of a depth camera."""
    near = texture(96, 128, grain_px=4)[:, :, 0].astype(np.uint16) * 10 + 500
    frames = [DepthFrame(t, Fraction(1, 30), np.roll(near, (0, 2 * t), axis=(0, 1))) for t in range(2)]
    flow = FLOW_METHODS[method].create(Recipe(flow=method))(*frames)
    inner = flow[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    np.testing.assert_allclose(np.median(inner, axis=(0, 1)), (2, 0), atol=0.25)


@pytest.mark.parametrize("method", ["farneback", "tvl1", "motion-vectors"])
def test_transcode__stored_flow_has_sign_and_scale(method, tmp_path):
    frames = moving_frames(6, height=64, width=96, step_xy=(2, -1))
    source = write_video(tmp_path / "moving.mp4", frames, codec="libx264", options={"crf": "15", "bf": "0"})
    flow = stored_flow(tmp_path, source, Recipe(flow=method, min_frames=4))
    assert flow.shape == (5, 64, 96, 2)
    np.testing.assert_allclose(np.median(flow[:, 8:-8, 8:-8], axis=(1, 2)), [(2, -1)] * 5, atol=0.3)


def test_tvl1__opencv_without_contributed_modules_is_refused(monkeypatch):
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(UserError, match=r"--flow tvl1 needs the contributed modules of OpenCV.*opencv-contrib-python"):
        FLOW_METHODS["tvl1"].check(Recipe(flow="tvl1"))


# Motion vectors.


def vectors_of(*rows: tuple[int, ...]) -> np.ndarray:
    """Make an array of rows (source, w, h, dst_x, dst_y, motion_x, motion_y, motion_scale)."""
    return np.array(list(rows), dtype=NO_VECTORS.dtype)


def test_block_field__every_block_is_at_its_place():
    vectors = vectors_of(
        (-1, 16, 16, 8, 8, -12, 8, 4),
        (-1, 8, 16, 20, 24, 4, 0, 2),
        (1, 8, 8, 28, 4, 6, -6, 1),
        (-2, 8, 8, 28, 12, 6, -6, 1),  # two frames away
        (-1, 16, 16, 40, 8, 7, 7, 1),  # outside
    )
    motion = Motion(vectors, width_px=32, height_px=32)
    past = np.zeros((4, 4, 2))
    past[0:2, 0:2] = (-3, 2)
    past[2:4, 2] = (2, 0)
    past[1, 3] = (3, -3)
    np.testing.assert_array_equal(block_field(motion, is_past=True), past)
    future = np.zeros((4, 4, 2))
    future[0, 3] = (6, -6)
    np.testing.assert_array_equal(block_field(motion, is_past=False), future)
    still = Motion(NO_VECTORS, width_px=32, height_px=32)
    assert block_field(still, is_past=True) is None


@pytest.mark.parametrize("orientation", [Orientation(*flags) for flags in itertools.product([False, True], repeat=3)])
def test_upright_field__turns_mirrors_and_scales_with_the_picture(orientation):
    """Reference: move a point and the tip of its vector as points. The field must hold the vector between them."""
    vectors = vectors_of((-1, 8, 8, 12, 20, -6, 4, 1))
    motion = Motion(vectors, width_px=64, height_px=48, orientation=orientation)
    stored_width_px, stored_height_px = orientation.size_px(32, 24)
    field = block_field(motion, is_past=True)
    upright = upright_field(field, motion, width_px=stored_width_px, height_px=stored_height_px)
    marks = np.zeros((48, 64))
    marks[20, 12], marks[24, 6] = 1, 2
    turned = orientation.apply(marks)
    (y0, x0), (y1, x1) = (np.argwhere(turned == mark)[0] for mark in (1, 2))
    assert upright.shape == (stored_height_px // 2, stored_width_px // 2, 2)
    np.testing.assert_array_equal(upright[int(y0) // 4, int(x0) // 4], ((x1 - x0) / 2, (y1 - y0) / 2))
    assert np.count_nonzero(upright[..., 0]) == 4


def corners(found: Candidates) -> list[tuple[float, float]]:
    """Return the vector of each candidate in the upper left corner."""
    fields = [found.fields[index] * np.float32(factor) for index, factor in found.choices]
    return [tuple(field[0, 0].round(5).tolist()) for field in fields]


def test_find_candidates__past_is_negated_and_the_known_distance_comes_first():
    motion = Motion(vectors_of((-1, 16, 16, 8, 8, -12, 6, 1)), 16, 16, frames_back=3)
    frame = frame_of(texture(16, 16))
    frame.motion = motion
    assert corners(find_candidates(frame)) == [(4, -2), (12, -6), (6, -3), (3, -1.5)]
    frame.motion = Motion(vectors_of((1, 16, 16, 8, 8, 12, -6, 1)), 16, 16)
    assert corners(find_candidates(frame)) == [(12, -6), (6, -3), (4, -2), (3, -1.5)]
    frame.motion = Motion(NO_VECTORS, 16, 16)
    assert corners(find_candidates(frame)) == []


def test_find_candidates__zero_motion_is_one_candidate():
    """A field of zeros is the same at every distance. A second field keeps all its distances."""
    zeros = (-1, 16, 16, 8, 8, 0, 0, 1)
    frame = frame_of(texture(16, 16))
    frame.motion = Motion(vectors_of(zeros), 16, 16, frames_back=2)
    assert corners(find_candidates(frame)) == [(0, 0)]
    frame.motion_ahead = Motion(vectors_of((-1, 16, 16, 8, 8, 24, 0, 1)), 16, 16, frames_back=2)
    assert corners(find_candidates(frame)) == [(-12, 0), (-24, 0), (0, 0), (-8, 0), (-6, 0)]


def test_best_match__every_place_takes_its_best_candidate():
    """The left half moves by 4 pixels, the right half by 12. A flat area matches all and takes the first candidate."""
    first = texture(64, 128, grain_px=8)[:, :, 0]
    first[48:] = 90
    second = np.roll(first, 4, axis=1)
    second[:, 64:] = np.roll(first, 12, axis=1)[:, 64:]
    field = np.zeros((32, 64, 2), dtype=np.float32)
    field[..., 0] = 12
    found = Candidates([field], [(0, 0.5), (0, 1.0), (0, 1 / 3), (0, -1.0)])
    small = [cv2.resize(picture, (64, 32), interpolation=cv2.INTER_AREA) for picture in (first, second)]
    best = best_match(small[0], small[1], found, width_px=128, height_px=64)
    assert best.shape == (32, 64, 2) and best.dtype == np.float32
    np.testing.assert_allclose(best[2:20, 6:24], np.broadcast_to((4, 0), (18, 18, 2)), atol=1e-5)
    np.testing.assert_allclose(best[2:20, 40:54], np.broadcast_to((12, 0), (18, 14, 2)), atol=1e-5)
    np.testing.assert_allclose(best[28:, 4:-4], np.broadcast_to((6, 0), (4, 56, 2)), atol=1e-5)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("short_side_px", [96, 48])
def test_motion_vectors__translation_is_found(encoding, short_side_px, tmp_path):
    codec, options = ENCODINGS[encoding]
    frames = gliding_frames(24)
    source = write_video(tmp_path / "moving.mp4", frames, codec=codec, options=options)
    with av.open(str(source)) as container:
        types = [PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    assert ("B" in types) == (encoding in ("h264", "mpeg4 with B"))
    flow = stored_flow(tmp_path, source, Recipe(flow="motion-vectors", short_side_px=short_side_px))
    inner = flow[:, 12:-12, 12:-12] * (96 / short_side_px)
    # MPEG-4 has no usable vectors for an I picture, nor for the B pictures before it.
    has_vectors = [next(kind for kind in [*types[t + 1 :], "I"] if kind != "B") == "P" for t in range(23)]
    if codec == "libx264":
        has_vectors = [kind != "I" for kind in types[1:]]
    assert sum(has_vectors) >= 12
    medians = np.median(inner, axis=(1, 2))
    for t in range(23):
        if has_vectors[t]:
            np.testing.assert_allclose(medians[t], STEP_XY, atol=0.4, err_msg=f"pair {t} of {types}")
        else:
            np.testing.assert_allclose(inner[t], 0, atol=0.2, err_msg=f"pair {t} of {types}")


def test_motion_vectors__flow_of_a_rotated_file_is_rotated(tmp_path):
    """The left half moves. In the file that is shown rotated clockwise, the upper half moves."""
    frames = gliding_frames(10)
    frames[:, :, 64:] = frames[0, :, 64:]
    source = write_video(tmp_path / "plain.mp4", frames, codec="libx264", options={"bf": "0"})
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(source.read_bytes())
    mark_rotated(turned)
    recipe = Recipe(flow="motion-vectors")
    plain_flow = stored_flow(tmp_path, source, recipe)
    turned_flow = stored_flow(tmp_path, turned, recipe)
    assert turned_flow.shape == (9, 128, 96, 2)
    wanted = np.rot90(plain_flow, k=-1, axes=(1, 2))
    wanted = np.stack([-wanted[..., 1], wanted[..., 0]], axis=-1)
    assert np.abs(turned_flow - wanted).mean() < 0.1
    upper, lower = np.median(turned_flow[:, 8:48, 8:-8], axis=(0, 1, 2)), turned_flow[:, 80:-8, 8:-8]
    np.testing.assert_allclose(upper, (2, 3), atol=0.3)
    np.testing.assert_allclose(np.median(lower, axis=(0, 1, 2)), (0, 0), atol=0.1)


def test_look_ahead__b_pictures_get_the_motion_that_spans_them():
    def frames(kinds: str, *, is_damaged: bool):
        for pts, kind in enumerate(kinds):
            frame = frame_of(np.zeros((16, 16, 3), dtype=np.uint8), pts)
            frame.motion = Motion(NO_VECTORS, 16, 16, is_bidirectional=kind == "B")
            yield frame
        if is_damaged:
            raise UnreadableVideoError("damaged")

    seen = list(look_ahead(frames("IBBPPBB", is_damaged=False)))
    assert [frame.pts for frame in seen] == list(range(7))
    assert [frame.motion.frames_back for frame in seen] == [1, 1, 2, 3, 1, 1, 2]
    ahead = [frame.motion_ahead for frame in seen]
    assert [motion is None for motion in ahead] == [True, False, False, True, True, True, True]
    assert ahead[1] is ahead[2] is seen[3].motion
    iterator, counted = look_ahead(frames("IBBPBB", is_damaged=True)), 0
    with pytest.raises(UnreadableVideoError):
        while next(iterator):
            counted += 1
    assert counted == 6


def test_motion_vectors__codec_without_vectors_is_skipped(tmp_path):
    source = write_video(tmp_path / "stills.avi", moving_frames(12), codec="ffv1")
    paths = {"rgb": "rgb.mp4", "flow": "flow.mp4"}
    recipe = Recipe(flow="motion-vectors")
    outcome = transcode({"rgb": Input(str(source))}, paths, root=tmp_path, recipe=recipe)
    reason = "no motion vectors: FFmpeg finds none in this file; choose another --flow"
    assert (outcome.status, outcome.reason, outcome.streams) == ("skipped", reason, {})
    assert not (tmp_path / "rgb.mp4").exists()


def test_motion_vectors__depth_is_refused(tmp_path):
    sources = [SourceVideo(name="a", inputs={"depth": tmp_path / "a"}, label=0)]
    (tmp_path / "a").mkdir()
    options = PrepareOptions(out=tmp_path / "out", modalities=("flow",), flow="motion-vectors")
    message = "--flow motion-vectors needs rgb, and the videos come with depth only: choose one of dis, farneback, tvl1"
    with pytest.raises(UserError, match=message):
        prepare_videos("cameras", sources, classes=["a"], options=options)
    assert not options.out.exists()
    with pytest.raises(UserError, match=message):
        transcode({"depth": Input("a")}, {"flow": "f.mp4"}, root=tmp_path, recipe=Recipe(flow="motion-vectors"))


def test_read_video__motion_vectors_do_not_change_the_frames(tmp_path):
    source = write_video(tmp_path / "moving.mp4", moving_frames(20), codec="libx264")
    plain, with_motion = (list(read_video(source, Recipe(flow=flow))) for flow in ("dis", "motion-vectors"))
    assert [frame.pts for frame in plain] == [frame.pts for frame in with_motion]
    for a, b in zip(plain, with_motion, strict=True):
        np.testing.assert_array_equal(a.gray, b.gray)
    assert plain[1].motion is None
    assert with_motion[1].motion is not None


# RAFT.


@pytest.fixture(scope="module")
def raft_file(tmp_path_factory) -> Path:
    """Weights of an untrained raft_small."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("raft") / "weights.pth"
    torch.save(raft_small().state_dict(), path)
    return path


def torchvision_flow(network: torch.nn.Module, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    pictures = [torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 * 2 - 1 for picture in (first, second)]
    with torch.no_grad():
        return network(*pictures)[-1][0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
)
def test_raft_flow__equals_torchvision(raft_file, device):
    network = load_raft(str(raft_file)).to(device)
    first, second = texture(128, 136, seed=1), texture(128, 136, seed=2)
    wanted = torchvision_flow(load_raft(str(raft_file)).cpu(), first, second)
    assert np.abs(wanted).max() > 0.1
    tolerance = 1e-4 if device == "cpu" else 0.05
    np.testing.assert_allclose(raft_flow(network, first, second), wanted, atol=tolerance)


def test_raft_flow__sides_are_padded_to_a_multiple_of_8(raft_file):
    network = load_raft(str(raft_file)).cpu()
    first, second = texture(130, 133, seed=1), texture(130, 133, seed=2)
    padded = [np.pad(picture, ((0, 6), (0, 3), (0, 0)), mode="edge") for picture in (first, second)]
    wanted = torchvision_flow(network, *padded)[:130, :133]
    np.testing.assert_allclose(raft_flow(network, first, second), wanted, atol=1e-4)


class ConstantFlow(torch.nn.Module):
    """Return a flow of (8, -4) pixels of the input everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = torch.nn.Parameter(torch.tensor([8.0, -4.0]), requires_grad=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
        assert first.shape == second.shape
        assert min(first.shape[2:]) >= 128
        assert not any(side % 8 for side in first.shape[2:])
        assert first.abs().max() <= 1
        return [self.flow.view(1, 2, 1, 1).expand(1, 2, *first.shape[2:])]


@pytest.mark.parametrize(("height", "width", "scale"), [(64, 96, 2), (32, 300, 4), (128, 200, 1), (200, 201, 1)])
def test_raft_flow__small_pictures_are_enlarged_and_vectors_scaled_back(height, width, scale):
    picture = texture(height, width)
    flow = raft_flow(ConstantFlow(), picture, picture)
    assert flow.shape == (height, width, 2)
    np.testing.assert_allclose(flow, np.broadcast_to((8 / scale, -4 / scale), flow.shape), rtol=1e-5)


def test_load_raft__shapes_in_the_file_decide_the_architecture(raft_file, tmp_path):
    large = tmp_path / "large.pth"
    torch.save(raft_large().state_dict(), large)
    for path, num_parameters in ((raft_file, 990_162), (large, 5_257_536)):
        network = load_raft(str(path))
        assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
        assert not network.training
        for name, tensor in torch.load(path, weights_only=True).items():
            torch.testing.assert_close(network.state_dict()[name].cpu(), tensor, rtol=0, atol=0)


def test_load_raft__missing_or_additional_parameters_are_refused(raft_file, tmp_path):
    state = torch.load(raft_file, weights_only=True)
    name = next(iter(state))
    for wrong in ({k: v for k, v in state.items() if k != name}, {**state, "more": torch.zeros(1)}):
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=r"wrong\.pth holds neither raft_small nor raft_large of torchvision"):
            FLOW_METHODS["raft"].check(Recipe(flow="raft", flow_weights=str(tmp_path / "wrong.pth")))
    with pytest.raises(UserError, match="--flow-weights raft_medium is neither a file nor a name in torchvision"):
        FLOW_METHODS["raft"].check(Recipe(flow="raft", flow_weights="raft_medium"))


@pytest.mark.parametrize("weights", [None, "raft_small", "Raft_Small_Weights.C_T_V2"])
def test_load_raft__uses_the_cache_of_torchvision(weights, raft_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    cached = tmp_path / "checkpoints" / "raft_small_C_T_V2-01064c6d.pth"
    cached.parent.mkdir()
    cached.write_bytes(raft_file.read_bytes())
    wanted = torch.load(raft_file, weights_only=True)
    assert all(torch.equal(tensor.cpu(), wanted[name]) for name, tensor in load_raft(weights).state_dict().items())


def test_prepare__raft_without_internet_is_refused_before_any_work(tmp_path, monkeypatch):
    def offline(url: str, *args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    options = PrepareOptions(out=tmp_path / "out", flow="raft", flow_weights="raft_large")
    with pytest.raises(UserError) as caught:
        prepare_videos("none", [], classes=[], options=options)
    message = str(caught.value)
    assert "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth" in message
    assert str(tmp_path / "cache" / "checkpoints") in message
    assert "--flow-weights" in message
    assert "no route to host" in message
    assert not options.out.exists()


def test_transcode__stored_raft_flow_is_near_the_estimate(raft_file, tmp_path):
    source = write_video(tmp_path / "moving.mp4", moving_frames(3, height=48, width=64), codec="libx264")
    recipe = Recipe(flow="raft", flow_weights=str(raft_file), min_frames=2)
    flow = stored_flow(tmp_path, source, recipe)
    frames = list(read_video(source, recipe))
    network = load_raft(str(raft_file))
    for t in range(2):
        wanted = raft_flow(network, frames[t].rgb, frames[t + 1].rgb)
        assert np.abs(wanted).max() > 1
        assert np.abs(flow[t] - wanted).mean() < 0.1, "the error is larger than that of storage"


def test_raft__network_is_loaded_once_per_process(raft_file, monkeypatch):
    loaded = []
    monkeypatch.setattr("data_prep.flow.raft.load_raft", lambda weights: loaded.append(weights))
    for weights in ("a", "a", "a"):
        FLOW_METHODS["raft"].create(Recipe(flow="raft", flow_weights=weights))
    assert loaded == ["a"]


# Options.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flow_weights": "raft_small"}, "--flow-weights raft_small has no effect with --flow dis: remove"),
        ({"flow": "tvl1", "flow_preset": "medium"}, "--flow-preset medium has no effect with --flow tvl1: remove"),
        ({"modalities": ("rgb",), "flow": "tvl1"}, "--flow tvl1 has no effect without flow in --modalities: add it"),
        ({"modalities": ("rgb",), "flow_preset": "medium"}, "--flow-preset medium has no effect without flow in"),
        ({"modalities": ("rgb",), "flow_weights": "w"}, "--flow-weights w has no effect without flow in"),
    ],
)
def test_prepare__options_without_effect_are_refused(changes, message, tmp_path):
    options = PrepareOptions(out=tmp_path / "out", **changes)
    with pytest.raises(UserError, match=message):
        prepare_videos("none", [], classes=[], options=options)


def test_prepare__each_flow_option_changes_the_stream(tmp_path):
    source = write_video(
        tmp_path / "moving.mp4", moving_frames(10, height=64, width=64, step_xy=(2, 1)), codec="libx264"
    )
    sources = [SourceVideo(name="a", inputs={"rgb": source}, label=0)]
    made = {}
    for i, changes in enumerate(({}, {"flow_preset": "medium"}, {"flow": "farneback"}, {"flow": "motion-vectors"})):
        options = PrepareOptions(out=tmp_path / str(i), modalities=("flow",), workers=1, **changes)
        manifest = prepare_videos("one", sources, classes=["a"], options=options)
        assert dataclasses.asdict(options.recipe) == Manifest.load(options.out).facts["recipe"]
        made[i] = (options.out / manifest.videos[0].streams["flow"].path).read_bytes()
    assert len(set(made.values())) == 4
