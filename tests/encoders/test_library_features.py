"""Features of a video through this package equal those of each library's own network and preprocessing.

The videos have the size to which the library's preprocessing resizes, so nothing is resampled. The tests pin the choice
of frames, the crop, mean, standard deviation and layout.
"""

import av
import numpy as np
import pytest
import torch
from pytorchvideo.models import hub
from torch import nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
from torchvision.models.video import R3D_18_Weights, r3d_18

import crossdistill
from crossdistill.data.dataset import Entry
from crossdistill.data.decode import index_video
from crossdistill.data.manifest import Video
from crossdistill.data.sampling import SampleKey
from crossdistill.encoders import create_encoder

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def make_video(path, *, width_px, height_px, num_frames):
    """Write a lossless file of moving noise."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=30)
        video.width, video.height, video.pix_fmt = width_px, height_px, "bgr0"
        for t in range(num_frames):
            picture = np.ascontiguousarray(np.roll(noise, (2 * t, 5 * t), axis=(0, 1)))
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    return path


def decode(path):
    """Decode to [T, C, H, W] uint8 with the simplest loop."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def embed_middle(encoder, path):
    """Embed the middle of a video, as evaluation does."""
    stream = index_video(path)
    entry = Entry(path.parent, Video("made", streams={"rgb": stream}), -1)
    batch = crossdistill.PairedClips([entry], student_view=encoder.view).read_batch([SampleKey(0, 0)])
    with torch.inference_mode():
        return crossdistill.Execution.choose(encoder.eval(), layout="no").embed(encoder, batch.student)


def centre(frames_tchw, size):
    height, width = frames_tchw.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    return frames_tchw[..., top : top + size, left : left + size]


def test_torchvision_video__r3d_18(tmp_path):
    """At 128x170 pixels: the library's 171 would put the cut between two columns."""
    path = make_video(tmp_path / "video.mkv", width_px=170, height_px=128, num_frames=31)
    encoder, model = create_encoder("rgb_r3d18"), r3d_18().eval()
    model.load_state_dict({**model.state_dict(), **encoder.body.state_dict()})
    model.fc = nn.Identity()
    preset = R3D_18_Weights.DEFAULT.transforms()
    preset.resize_size = (128, 170)
    clip = preset(decode(path)[::2])  # trained at 15 frames a second on videos of 30: 16 frames, every second one
    assert clip.shape == (3, 16, 112, 112)
    with torch.inference_mode():
        torch.testing.assert_close(embed_middle(encoder, path), model(clip[None]), **TOLERANCE)


def test_torchvision_images__mobilenet_v2(tmp_path):
    path = make_video(tmp_path / "video.mkv", width_px=240, height_px=232, num_frames=3)
    encoder, model = create_encoder("image_mobilenet_v2"), mobilenet_v2().eval()
    model.load_state_dict({**model.state_dict(), **encoder.body.state_dict()})
    model.classifier = nn.Identity()
    picture = MobileNet_V2_Weights.DEFAULT.transforms()(decode(path)[1])  # the middle frame
    with torch.inference_mode():
        torch.testing.assert_close(embed_middle(encoder, path), model(picture[None]), **TOLERANCE)


@pytest.mark.parametrize(("name", "num_frames", "stride", "size_px"), [("x3d_xs", 4, 12, 160), ("x3d_s", 13, 6, 160)])
def test_pytorchvideo__with_the_preprocessing_of_its_hub_page(tmp_path, name, num_frames, stride, size_px):
    """Its transforms cannot be imported beside today's torchvision: divide by 255, subtract 0.45, divide by 0.225.

    At the size of its pooling windows: on larger ones the library pools overlapping windows, and we all places alike.
    """
    span = (num_frames - 1) * stride + 1
    path = make_video(tmp_path / "video.mkv", width_px=size_px + 20, height_px=size_px, num_frames=span)
    encoder, model = create_encoder(f"rgb_{name}"), getattr(hub, name)().eval()
    assert (encoder.view.num_frames, encoder.view.stride, encoder.view.size_px) == (num_frames, stride, size_px)
    model.load_state_dict({**model.state_dict(), **encoder.body.state_dict()})
    seen = []
    model.blocks[-1].proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    clip = (centre(decode(path)[::stride], size_px) / 255 - 0.45) / 0.225
    with torch.inference_mode():
        model(clip.transpose(0, 1)[None])
        torch.testing.assert_close(embed_middle(encoder, path), seen[0].flatten(1), **TOLERANCE)


def test_timm__with_its_own_transform(tmp_path):
    timm = pytest.importorskip("timm")
    from PIL import Image

    path = make_video(tmp_path / "video.mkv", width_px=300, height_px=256, num_frames=3)
    encoder = create_encoder("image_timm:mobilenetv3_small_050")
    model = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    model.load_state_dict(encoder.body.state_dict())
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, 224, 224) and data["crop_pct"] == 0.875
    picture = Image.fromarray(decode(path)[1].permute(1, 2, 0).numpy())
    with torch.inference_mode():
        expected = model(timm.data.create_transform(**data, is_training=False)(picture)[None])
        torch.testing.assert_close(embed_middle(encoder, path), expected, **TOLERANCE)


def test_hugging_face__with_its_own_processor(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, **sizes)
    model = transformers.VideoMAEModel(config).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor = transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3]
    )
    processor.save_pretrained(folder)
    path = make_video(tmp_path / "video.mkv", width_px=52, height_px=40, num_frames=13)
    encoder = create_encoder(f"rgb_hf:{folder}")
    encoder.body.load_state_dict(model.state_dict())
    frames = list(decode(path)[::4].numpy())
    pixels = processor(frames, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 4, 3, 32, 32)
    with torch.inference_mode():
        expected = model(pixel_values=pixels).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(embed_middle(encoder, path), expected, **TOLERANCE)
