"""Depth estimated from colour: a tiny network with random weights against direct calls of transformers."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from video_files import moving_frames, texture, write_video

from crossdistill.data.decode import read_frames
from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from crossdistill.modalities import disparity_per_clip
from data_prep.__main__ import main
from data_prep.depth import create_depth
from data_prep.depth.coding import InverseDepthCoder, code_metres
from data_prep.depth.huggingface import IS_METRIC, DepthNetwork, load_depth_network
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.readers import Input, read_video
from data_prep.pipeline.transcode import transcode
from data_prep.recipe import Recipe

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def one_thread_and_no_internet(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def save_network(folder: Path, **settings: object) -> str:
    """Save an untrained Depth Anything of 0.1 M parameters in the format of Hugging Face."""
    torch.manual_seed(11)
    stages = [f"stage{i}" for i in range(1, 5)]
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        out_features=stages,
        reshape_hidden_states=False,
        initializer_range=0.2,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
        initializer_range=0.2,
        **settings,
    )
    network = transformers.DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        network.head.conv3.weight.mul_(0.02)
        network.head.conv3.bias.fill_(2)  # keeps all depth finite
    network.save_pretrained(folder)
    processor = transformers.DPTImageProcessor(
        size={"height": 56, "width": 56}, ensure_multiple_of=14, keep_aspect_ratio=True, resample=2
    )
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def relative_model(tmp_path_factory) -> str:
    return save_network(tmp_path_factory.mktemp("relative"))


@pytest.fixture(scope="module")
def metric_model(tmp_path_factory) -> str:
    return save_network(tmp_path_factory.mktemp("metric"), depth_estimation_type="metric", max_depth=10)


@pytest.fixture
def video(tmp_path) -> Path:
    """Ten frames of 64x48."""
    return write_video(tmp_path / "videos" / "wave" / "a.mp4", moving_frames(10), codec="libx264")


def reference_depth(model: str, pictures: list[np.ndarray]) -> np.ndarray:
    """The output [T, H, W] of the network, computed as the documentation of transformers shows."""
    processor = transformers.AutoImageProcessor.from_pretrained(model)
    network = transformers.AutoModelForDepthEstimation.from_pretrained(model)
    estimated = []
    for picture in pictures:
        with torch.no_grad():
            outputs = network(**processor(images=picture, return_tensors="pt"))
        enlarged = F.interpolate(outputs.predicted_depth[:, None], size=picture.shape[:2], mode="bicubic")
        estimated.append(enlarged[0, 0].numpy())
    return np.stack(estimated)


def stored_depth(model: str, video: Path, root: Path, **recipe: object) -> np.ndarray:
    """Prepare the depth of a video; return the stored values [T, H, W], uint16."""
    outcome = transcode(
        {"rgb": Input(str(video))}, {"depth": "depth.mp4"}, root=root, recipe=Recipe(depth_model=model, **recipe)
    )
    assert (outcome.status, outcome.reason) == ("ok", "")
    stream = outcome.streams["depth"]
    return read_frames(root, stream, range(stream.num_frames), stream_name="depth")[..., 0]


# Stored values.


def test_transcode__disparity_of_relative_depth_is_the_inverse_depth_of_the_network(relative_model, video, tmp_path):
    stored = stored_depth(relative_model, video, tmp_path)
    wanted = reference_depth(relative_model, [frame.rgb for frame in read_video(video, Recipe())])
    assert stored.shape == wanted.shape == (10, 48, 64)
    assert stored.dtype == np.uint16
    assert wanted.std() > 0.2 * wanted.mean(), "the network does not depend on its input"
    clip = torch.from_numpy(stored.astype(np.float32))[None, None]
    disparity = disparity_per_clip(clip)[0, 0].numpy()
    is_far = wanted < 0.05 * wanted.max()
    assert is_far.mean() < 0.2
    np.testing.assert_allclose(disparity[~is_far], (wanted / wanted.max())[~is_far], atol=2e-3)
    assert (disparity[is_far] < 0.06).all()


def test_transcode__metric_depth_is_stored_in_millimetres(metric_model, video, tmp_path):
    stored = stored_depth(metric_model, video, tmp_path)
    wanted_metres = reference_depth(metric_model, [frame.rgb for frame in read_video(video, Recipe())])
    assert 1 < wanted_metres.min() < wanted_metres.max() - 1
    np.testing.assert_allclose(stored, wanted_metres * 1000, atol=2)


def test_transcode__depth_has_the_size_and_times_of_colour(relative_model, video, tmp_path):
    outcome = transcode(
        {"rgb": Input(str(video))},
        {"rgb": "rgb.mp4", "flow": "flow.mp4", "depth": "depth.mp4"},
        root=tmp_path,
        recipe=Recipe(depth_model=relative_model, short_side_px=32),
    )
    streams = outcome.streams
    assert {(stream.width_px, stream.height_px) for stream in streams.values()} == {(42, 32)}
    assert streams["depth"].times_seconds.tolist() == streams["rgb"].times_seconds.tolist()


def test_code_metres__range_and_missing_values():
    depth_metres = np.array([[0.0, -1.0, np.nan, np.inf], [0.0001, 1.2344, 65.5, 100.0]], dtype=np.float32)
    np.testing.assert_array_equal(code_metres(depth_metres), [[0, 0, 0, 0], [1, 1234, 65500, 65535]])


def test_inverse_depth_coder__first_frame_sets_the_scale_of_all():
    scale = InverseDepthCoder()
    first = np.full((10, 10), 2.0, dtype=np.float32)
    first[0, :4] = (0.0, -3.0, np.nan, 1.0)
    stored = scale(first)
    assert stored[0, :4].tolist() == [65535, 65535, 0, 2000]
    assert (stored[1:] == 1000).all()
    later = scale(np.array([[20.0, 0.02, 1e6]], dtype=np.float32))
    assert later.tolist() == [[100, 65535, 1]]


def test_inverse_depth_coder__first_frame_with_finite_depth_sets_the_scale():
    scale = InverseDepthCoder()
    assert (scale(np.zeros((4, 4), dtype=np.float32)) == 65535).all()
    assert (scale(np.full((4, 4), 7.0, dtype=np.float32)) == 1000).all()


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_inverse_depth_coder__unit_of_the_network_does_not_matter(unit):
    inverse_depth = np.random.default_rng(0).uniform(0.5, 5, size=(3, 20, 20)).astype(np.float32)
    scale, other = InverseDepthCoder(), InverseDepthCoder()
    for frame in inverse_depth:
        np.testing.assert_allclose(other(frame * unit), scale(frame), atol=1)


@pytest.mark.parametrize(
    ("family", "settings", "is_metric"),
    [
        ("depth_anything", {}, False),
        ("depth_anything", {"depth_estimation_type": "metric"}, True),
        ("dpt", {}, False),
        ("dpt", {"add_projection": True}, True),
        ("zoedepth", {}, True),
        ("glpn", {}, True),
    ],
)
def test_is_metric__by_family(family, settings, is_metric):
    config = transformers.AutoConfig.for_model(family, **settings)
    assert IS_METRIC[family](config) is is_metric


def test_estimate__padding_of_zoedepth_is_cropped(tmp_path):
    """ZoeDepth pads pictures with a mirrored margin, which must not be part of the depth."""

    class Padding:
        def __call__(self, images, **kwargs):
            return transformers.BatchFeature({"pixel_values": torch.zeros(1, 3, 8, 8)})

        def post_process_depth_estimation(self, outputs, source_sizes, target_sizes):
            assert source_sizes == target_sizes == [(6, 9)]
            return [{"predicted_depth": torch.ones(1, 6, 9)}]

    class Network(torch.nn.Linear):
        config = transformers.AutoConfig.for_model("zoedepth")

        def forward(self, pixel_values):
            return None

    network = DepthNetwork(Network(1, 1), Padding(), is_metric=True)
    assert network.estimate(np.zeros((6, 9, 3), dtype=np.uint8)).shape == (6, 9)


# From the command line.


def test_command_line__depth_from_colour(relative_model, video, tmp_path):
    out = tmp_path / "out"
    arguments = ["folder", "--videos", str(video.parent.parent), "--out", str(out), "--workers", "1"]
    main([*arguments, "--modalities", "rgb", "depth", "--depth-model", relative_model])
    manifest = Manifest.load(out)
    stream = manifest.videos[0].streams["depth"]
    made = read_frames(out, stream, range(stream.num_frames), stream_name="depth")[..., 0]
    np.testing.assert_allclose(made, stored_depth(relative_model, video, tmp_path), rtol=2e-3, atol=2)
    assert manifest.facts["recipe"]["depth_model"].startswith("sha256:")  # its content, not its path


# Errors.


def prepare_depth(video: Path, out: Path, **changes: object) -> None:
    sources = [SourceVideo(name="a", inputs={"rgb": video}, label=0)]
    prepare_videos("one", sources, classes=["a"], options=PrepareOptions(out=out, workers=1, **changes))


def test_prepare__depth_from_colour_needs_a_network(video, tmp_path):
    message = "--modalities depth cannot be made, because the videos come with rgb only: give --depth-model"
    with pytest.raises(UserError, match=message):
        prepare_depth(video, tmp_path / "out", modalities=("rgb", "depth"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=message):
        transcode({"rgb": Input(str(video))}, {"depth": "d.mp4"}, root=tmp_path, recipe=Recipe())


def test_prepare__depth_model_without_effect_is_refused(relative_model, video, tmp_path):
    with pytest.raises(UserError, match=r"--depth-model .* has no effect without depth in --modalities: add it"):
        prepare_depth(video, tmp_path / "out", depth_model=relative_model)
    sources = [SourceVideo(name="a", inputs={"depth": video}, label=0)]
    options = PrepareOptions(out=tmp_path / "out", modalities=("depth",), depth_model=relative_model)
    with pytest.raises(UserError, match=r"--depth-model .* has no effect: all videos come with depth; remove it"):
        prepare_videos("one", sources, classes=["a"], options=options)


def test_prepare__transformers_missing_is_one_sentence(relative_model, video, tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "transformers":
            raise ImportError("No module named 'transformers'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"--depth-model needs transformers: pip install 'crossdistill\[depth\]'"):
        prepare_depth(video, tmp_path / "out", modalities=("depth",), depth_model=relative_model)


@pytest.mark.parametrize("name", ["nobody/no-such-network", "no such name", "/no/such/folder"])
def test_load_depth_network__unknown_name_is_one_sentence(name):
    with pytest.raises(UserError) as caught:
        load_depth_network(name)
    message = str(caught.value)
    assert message.startswith(f"--depth-model {name} cannot be loaded (")
    assert "hf download" in message
    assert "depth-anything/Depth-Anything-V2-Small-hf" in message
    assert "\n" not in message


def test_load_depth_network__folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json: give the folder of a saved model"):
        load_depth_network(str(tmp_path))


def test_load_depth_network__other_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(UserError, match="belongs to the family 'resnet': choose one of the families depth_any"):
        load_depth_network(str(tmp_path))


def test_load_depth_network__incomplete_model_is_refused(relative_model, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(relative_model, tmp_path / "part")
    path = tmp_path / "part" / "model.safetensors"
    state = load_file(path)
    del state["head.conv3.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its parameters \(the first is head\.conv3\.weight\)"):
        load_depth_network(str(path.parent))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"part cannot be loaded \("):
        load_depth_network(str(path.parent))


def test_load_depth_network__runs_no_code_of_the_model(relative_model, tmp_path):
    folder, ran = Path(shutil.copytree(relative_model, tmp_path / "model")), tmp_path / "ran"
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "theirs.Config", "AutoModelForDepthEstimation": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    load_depth_network(str(folder))
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")  # a format that can hold code
    weights.unlink()
    with pytest.raises(UserError, match=r"model cannot be loaded \("):
        load_depth_network(str(folder))
    assert not ran.exists()


def test_create_depth__network_is_loaded_once_per_process(relative_model, monkeypatch):
    loaded = []
    network = load_depth_network(relative_model)
    monkeypatch.setattr("data_prep.depth.load_depth_network", lambda name: loaded.append(name) or network)
    for _ in range(3):
        estimate = create_depth(Recipe(depth_model="a name"))
    assert loaded == ["a name"]
    assert callable(estimate)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_load_depth_network__runs_on_the_gpu(relative_model):
    network = load_depth_network(relative_model)
    assert next(network.model.parameters()).is_cuda
    picture = texture(48, 64)
    np.testing.assert_allclose(network.estimate(picture), reference_depth(relative_model, [picture])[0], rtol=0.02)


def test_import_prepare__does_not_import_transformers_or_torchvision():
    import subprocess

    heavy = ("transformers", "torchvision")
    code = f"import sys, data_prep.pipeline.prepare; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
