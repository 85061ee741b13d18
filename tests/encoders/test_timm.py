"""timm's networks: timm's smallest ones of random weights against plain calls of timm, in and out of a student."""

import sys

import pytest
import torch
from in_process import check_configuration
from safetensors.torch import load_file

from crossdistill.distillation.student import load_student, save_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.weights import load_tensors, load_weights, read_public_weights
from crossdistill.errors import UserError
from crossdistill.recipes.config import PairConfig, RunConfig

timm = pytest.importorskip("timm")

# Modality and network: positions of one size, a grid of channels first and last, a convolution after pooling.
NAMES = [
    "image_timm:test_vit",
    "rgb_timm:test_resnet",
    "flow_timm:test_vit",
    "flow_timm:test_convnext",
    "depth_timm:test_efficientnet",
    "depth_timm:test_resnet.r160_in1k",
]


def random_clip(encoder, batch_size=2):
    view = encoder.view
    return torch.randn(batch_size, view.kind.channels, view.num_frames, view.size_px, view.size_px)


def architecture(name):
    return name.partition(":")[2]


@pytest.mark.parametrize("name", NAMES)
def test_student__loads_into_timms_class_and_gives_its_features(name, tmp_path):
    encoder = create_encoder(name, num_frames=2).eval()
    save_student(encoder, tmp_path, facts={})
    model = timm.create_model(architecture(name), num_classes=0, in_chans=encoder.view.kind.channels).eval()
    model.load_state_dict(load_file(tmp_path / "student.safetensors"), strict=True)
    clip = random_clip(encoder)
    with torch.no_grad():
        features = encoder(clip)
        expected = torch.stack([model(clip[:, :, t]) for t in range(2)]).mean(0)
        assert features.shape == (2, encoder.embed_dim) == (2, model.head_hidden_size)
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(load_student(tmp_path)(clip), features)


@pytest.mark.parametrize("name", NAMES)
def test_training__every_parameter_gets_a_gradient_and_the_stem_fits_the_modality(name):
    encoder = create_encoder(name, num_frames=2).train()
    encoder(random_clip(encoder)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder.body.get_submodule(encoder.info.stems[0]).weight.shape[1] == encoder.view.kind.channels


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("image_timm:test_vit", (64, 1, 10, 10)),
        ("rgb_timm:test_resnet", (96, 8, 5, 5)),
        ("flow_timm:test_convnext", (64, 8, 5, 5)),
        ("image_timm:deit_tiny_distilled_patch16_224", (192, 1, 14, 14)),
        ("image_timm:mobilenetv3_small_050", (288, 1, 7, 7)),
    ],
)
def test_check_before_training__builds_it_on_the_meta_device_with_its_tokens(name, grid):
    with torch.device("meta"):
        encoder = create_encoder(name)
        assert {p.device.type for p in encoder.parameters()} == {"meta"}
        assert encoder.embed_with_tokens(random_clip(encoder))[1].shape == (2, *grid)


def test_check_before_training__knows_the_published_weights():
    pair = PairConfig(
        student="flow_timm:test_vit", teacher=("image_timm:test_resnet",), teacher_weights=("pretrained",)
    )
    check_configuration(RunConfig(pair=pair))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_tokens__mean_equals_the_features_of_a_network_that_averages(name):
    """ResNet pools by the mean. The ViT has its class token first, then the tokens row by row."""
    encoder = create_encoder(f"rgb_timm:{name}", num_frames=2).eval()
    clip = random_clip(encoder)
    with torch.no_grad():
        features, tokens = encoder.embed_with_tokens(clip)
        frame = encoder.body.forward_features(clip[:, :, 1])
    frame = frame[:, 1:].transpose(1, 2).unflatten(2, (10, 10)) if frame.dim() == 3 else frame
    torch.testing.assert_close(tokens[:, :, 1], frame)
    if name == "test_resnet":
        torch.testing.assert_close(tokens.mean(dim=(2, 3, 4)), features, atol=1e-5, rtol=1e-5)


def test_view__has_timms_statistics_for_pixels_and_the_modalitys_for_flow():
    image, rgb, flow = (create_encoder(f"{modality}_timm:test_vit").view for modality in ("image", "rgb", "flow"))
    data = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    for view in (image, rgb):
        assert (view.mean, view.std, view.size_px) == (data["mean"], data["std"], data["input_size"][-1])
    assert (image.num_frames, image.stride, rgb.num_frames, rgb.stride) == (1, 1, 8, 4)
    assert (flow.mean, flow.std) == (flow.kind.mean, flow.kind.std)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("size_px", [96, 160])
def test_weight_file__with_its_classifier_loads_strictly_at_any_size(name, size_px, tmp_path):
    model = timm.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder = create_encoder(f"image_timm:{name}", size_px=size_px).eval()
    load_weights(encoder, tmp_path / "weights.pth")
    if size_px == 160:
        picture = torch.randn(2, 3, 160, 160)
        with torch.no_grad():
            expected = model.forward_head(model.forward_features(picture), pre_logits=True)
            torch.testing.assert_close(encoder(picture[:, :, None]), expected, atol=1e-5, rtol=1e-5)


def test_size__of_a_network_with_windows_goes_into_its_constructor():
    with torch.device("meta"):
        encoder = create_encoder("image_timm:swin_tiny_patch4_window7_224", size_px=448)
        features, tokens = encoder.embed_with_tokens(random_clip(encoder))
    assert features.shape == (2, 768)
    assert tokens.shape == (2, 768, 1, 14, 14)


@pytest.fixture
def published(monkeypatch):
    """Replace timm's download by tensors."""
    tensors = {}
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: dict(tensors))
    return tensors


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_published_weights__are_read_by_timm_and_keep_their_linear_classifier(name, published):
    published.update(timm.create_model(name).state_dict())
    encoder = create_encoder(f"rgb_timm:{name}", size_px=96)
    (weights,) = encoder.public_weights
    assert (weights.name, weights.modalities) == ("pretrained", ("image", "rgb"))
    tensors = read_public_weights(weights)
    load_tensors(encoder, tensors, source=weights.url)
    assert encoder.classifier.weight.equal(published[f"{encoder.info.classifier_prefix}weight"])
    for key, value in encoder.body.state_dict().items():
        torch.testing.assert_close(value, published[key], rtol=0, atol=0)
    flow = create_encoder(f"flow_timm:{name}")
    load_tensors(flow, tensors, source=weights.url, adapt_stem=True)


def test_published_weights__incomplete_are_refused(published):
    published.update(timm.create_model("test_resnet").state_dict())
    del published["layer4.0.conv1.weight"]
    (weights,) = create_encoder("image_timm:test_resnet").public_weights
    with pytest.raises(UserError, match="published weights of timm's test_resnet cannot be read"):
        read_public_weights(weights)


def test_unreachable_hub__error_asks_for_a_file(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    (weights,) = create_encoder("image_timm:test_vit").public_weights
    with pytest.raises(UserError, match=r"weights of timm's test_vit cannot be read .*--teacher-weights FILE"):
        read_public_weights(weights)


def test_network_without_published_weights__offers_none():
    with torch.device("meta"):
        assert create_encoder("image_timm:test_vit4").public_weights == ()
    pair = PairConfig(student="flow_r3d10", teacher=("image_timm:test_vit4",), teacher_weights=("pretrained",))
    with pytest.raises(UserError, match="pretrained does not exist: give a weight file"):
        check_configuration(RunConfig(pair=pair))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image_timm:resnet5", "has no network 'resnet5': did you mean resnet50"),
        ("image_timm:zzzz", r"has no network 'zzzz': timm\.list_models\(\)"),
        ("image_timm:resnet18.nobody", r"no weights 'nobody' of resnet18: choose one of .*resnet18\.a1_in1k"),
        ("rbg_timm:resnet18", "unknown encoder"),
    ],
)
def test_unknown_names__error_lists_similar_names(name, message):
    with pytest.raises(UserError, match=message):
        create_encoder(name)


def test_impossible_size__is_refused_before_training():
    with pytest.raises(UserError, match=r"image_timm:test_vit cannot take 1 frames of 100 pixels .*1 of 160"):
        create_encoder("image_timm:test_vit", size_px=100)


def test_missing_library__error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm.*pip install 'crossdistill\[hf\]'"):
        create_encoder("image_timm:resnet50")
