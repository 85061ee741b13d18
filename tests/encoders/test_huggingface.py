"""Hugging Face's networks: tiny ones of random weights against plain calls of transformers, in and out of a student."""

import json
import shutil
import sys

import pytest
import torch
from in_process import check_configuration
from safetensors.torch import load_file, save_file

from crossdistill.distillation.student import load_student, save_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.huggingface_families import FAMILIES
from crossdistill.encoders.weights import load_tensors, read_public_weights
from crossdistill.errors import UserError
from crossdistill.modalities import IMAGE
from crossdistill.recipes.config import PairConfig, RunConfig

transformers = pytest.importorskip("transformers")

WIDTH = 24
SHARED = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SHARED, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
VIDEO = {**SHARED, "intermediate_size": 32, "image_size": 32, "num_frames": 4}
PREDICTOR = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}

# Model type: how its body is built by the library, and which features a plain call of it has.
CLIPS = {
    "videomae": (lambda: transformers.VideoMAEConfig(**VIDEO), lambda out: out.last_hidden_state.mean(1)),
    "vjepa2": (
        lambda: transformers.VJEPA2Config(**SHARED, **PREDICTOR, crop_size=32, frames_per_clip=4),
        lambda out: out.last_hidden_state.mean(1),
    ),
    "timesformer": (lambda: transformers.TimesformerConfig(**VIDEO), lambda out: out.last_hidden_state[:, 0]),
    "vivit": (lambda: transformers.VivitConfig(**VIDEO), lambda out: out.last_hidden_state[:, 0]),
}
PICTURES = {
    "dinov2": (lambda: transformers.Dinov2Config(**SHARED, image_size=32, patch_size=8), lambda out: out.pooler_output),
    "dinov3_vit": (lambda: transformers.DINOv3ViTConfig(**VIT), lambda out: out.pooler_output),
    "vit": (lambda: transformers.ViTConfig(**VIT), lambda out: out.last_hidden_state[:, 0]),
    "clip_vision_model": (lambda: transformers.CLIPVisionConfig(**VIT), lambda out: out.pooler_output),
    "siglip_vision_model": (lambda: transformers.SiglipVisionConfig(**VIT), lambda out: out.pooler_output),
    "resnet": (  # of no family: whatever AutoModel builds
        lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, WIDTH], depths=[1, 1]),
        lambda out: out.pooler_output.flatten(1),
    ),
}
ALL = {**CLIPS, **PICTURES}


def library_model(kind, **changes):
    """Build the library's own class for a configuration, as its users do."""
    config = ALL[kind][0]()
    for key, value in changes.items():
        setattr(config, key, value)
    build = FAMILIES[kind].build if kind in FAMILIES else {}
    torch.manual_seed(3)
    model = transformers.AutoModel.from_config(config, **build).eval()
    for parameter in model.parameters():  # positions and class tokens begin as zeros, which would hide mistakes
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of all models, as their library saves them."""
    root = tmp_path_factory.mktemp("models")
    for kind in ALL:
        library_model(kind).save_pretrained(root / kind)
    return root


@pytest.fixture
def offline(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def encoder_name(folders, kind):
    return f"{'rgb' if kind in CLIPS else 'image'}_hf:{folders / kind}"


def random_clip(encoder, batch_size=2):
    view = encoder.view
    return torch.randn(batch_size, view.kind.channels, view.num_frames, view.size_px, view.size_px)


def with_published(encoder):
    load_tensors(encoder, read_public_weights(encoder.public_weights[0]), source="pretrained")
    return encoder.eval()


def plain_features(kind, model, clip):
    """Return the output of the library's own call for a clip, or for its frames one by one."""
    with torch.no_grad():
        if kind in CLIPS:
            return ALL[kind][1](model(clip.transpose(1, 2)))
        return torch.stack([ALL[kind][1](model(clip[:, :, t])) for t in range(clip.shape[2])]).mean(0)


@pytest.mark.parametrize("kind", ALL)
def test_published_weights__give_the_librarys_own_features(folders, kind):
    encoder = with_published(create_encoder(encoder_name(folders, kind)))
    clip = random_clip(encoder)
    with torch.no_grad():
        features = encoder(clip)
    assert features.shape == (2, encoder.embed_dim) == (2, WIDTH)
    torch.testing.assert_close(features, plain_features(kind, library_model(kind), clip), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_training__every_trainable_parameter_gets_a_gradient(folders, kind):
    encoder = create_encoder(encoder_name(folders, kind)).train()
    encoder(random_clip(encoder)).square().mean().backward()
    for name, parameter in encoder.body.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad or "mask_token" in name or name.startswith("predictor."), name
    assert encoder.body.get_submodule(encoder.info.stems[0]).weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", ALL)
def test_student__loads_into_the_librarys_class_and_without_the_folder(folders, kind, tmp_path):
    moved = tmp_path / kind
    shutil.copytree(folders / kind, moved)
    modality = "flow" if kind in CLIPS else "image"
    encoder = create_encoder(f"{modality}_hf:{moved}", stride=3).eval()
    save_student(encoder, tmp_path / "student", facts={})
    shutil.rmtree(moved)
    clip = random_clip(encoder)
    with torch.no_grad():
        expected = encoder(clip)
    facts = json.loads((tmp_path / "student" / "student.json").read_text())
    config = transformers.AutoConfig.for_model(**facts["config"])
    model = transformers.AutoModel.from_config(config, **(FAMILIES[kind].build if kind in FAMILIES else {})).eval()
    model.load_state_dict(load_file(tmp_path / "student" / "student.safetensors"), strict=True)
    torch.testing.assert_close(plain_features(kind, model, clip), expected, atol=1e-5, rtol=1e-5)
    again = load_student(tmp_path / "student")
    assert again.view == encoder.view
    with torch.no_grad():
        torch.testing.assert_close(again(clip), expected)


def test_student__of_a_changed_size_loads(folders, tmp_path):
    encoder = create_encoder(encoder_name(folders, "timesformer"), num_frames=2, size_px=48).eval()
    save_student(encoder, tmp_path / "student", facts={})
    clip = random_clip(encoder)
    torch.testing.assert_close(load_student(tmp_path / "student")(clip), encoder(clip))


@pytest.mark.parametrize("kind", ALL)
def test_check_before_training__builds_it_on_the_meta_device(folders, kind):
    name = encoder_name(folders, kind)
    check_configuration(
        RunConfig(pair=PairConfig(student="flow_r3d10", teacher=(name,), teacher_weights=("pretrained",)))
    )
    with torch.device("meta"):
        encoder = create_encoder(name)
        assert {p.device.type for p in encoder.parameters()} == {"meta"}
        assert encoder(random_clip(encoder)).shape == (2, WIDTH)


@pytest.mark.parametrize("kind", CLIPS)
def test_tokens__are_in_the_order_of_time_rows_columns(folders, kind):
    """Without attention, a change at the lower right of the last frames changes the token there most."""
    encoder = create_encoder(encoder_name(folders, kind)).eval()
    for name, parameter in encoder.body.named_parameters():
        if "layer" in name and "norm" not in name:  # every block becomes the identity
            parameter.data.zero_()
    clip = random_clip(encoder, batch_size=1)
    changed = clip.clone()
    changed[:, :, -1:, 16:, 16:] += 1
    with torch.no_grad():
        before, after = (encoder.embed_with_tokens(one)[1] for one in (clip, changed))
    num_times = 4 // encoder.info.token_layer.frames_per_token
    assert before.shape == (1, WIDTH, num_times, 2, 2)
    is_changed = (before != after).any(dim=1)[0]
    assert is_changed.nonzero().tolist() == [[num_times - 1, 1, 1]]


@pytest.mark.parametrize("kind", [kind for kind in PICTURES if kind in FAMILIES])
def test_tokens__of_pictures_have_a_time_for_each_frame(folders, kind):
    encoder = create_encoder(encoder_name(folders, kind), num_frames=3, size_px=40)
    assert encoder.embed_with_tokens(random_clip(encoder))[1].shape == (2, WIDTH, 3, 5, 5)


@pytest.mark.parametrize("kind", [kind for kind in PICTURES if kind in FAMILIES])
def test_pictures__of_another_size_take_published_weights(folders, kind):
    encoder = with_published(create_encoder(encoder_name(folders, kind), size_px=48))
    clip = random_clip(encoder)
    needs = {"interpolate_pos_encoding": True} if kind in ("vit", "clip_vision_model", "siglip_vision_model") else {}
    with torch.no_grad():
        expected = ALL[kind][1](library_model(kind)(clip[:, :, 0], **needs))
        torch.testing.assert_close(encoder(clip), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_clips__whose_positions_are_computed_take_published_weights_at_any_size(folders, kind):
    changes = {"videomae": ("num_frames", "image_size"), "vjepa2": ("frames_per_clip", "crop_size")}[kind]
    encoder = with_published(create_encoder(encoder_name(folders, kind), num_frames=6, size_px=48))
    model = library_model(kind, **dict(zip(changes, (6, 48), strict=True)))
    model.load_state_dict(library_model(kind).state_dict())
    clip = random_clip(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder(clip), plain_features(kind, model, clip), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["timesformer", "vivit"])
def test_clips__whose_positions_are_learned_refuse_published_weights_at_another_size(folders, kind):
    encoder = create_encoder(encoder_name(folders, kind), num_frames=8, size_px=48)
    assert encoder(random_clip(encoder)).shape == (2, WIDTH)
    with pytest.raises(UserError, match=r"8 frames of 48 pixels .*: remove the options that change its view"):
        read_public_weights(encoder.public_weights[0])


def test_network_of_pictures__embeds_a_clip_frame_by_frame(folders):
    rgb, depth = (create_encoder(f"{modality}_hf:{folders / 'dinov2'}") for modality in ("rgb", "depth"))
    assert (rgb.view.num_frames, rgb.view.stride, rgb.takes) == (8, 4, "frames")
    assert rgb.public_weights[0].modalities == ("image", "rgb")
    assert depth(random_clip(depth)).shape == (2, WIDTH)


def test_flow_student__starts_from_published_rgb_filters(folders):
    name = f"flow_hf:{folders / 'videomae'}"
    encoder = create_encoder(name)
    tensors = read_public_weights(encoder.public_weights[0])
    with pytest.raises(UserError, match="stem takes 3 channels, and the stem of flow_hf"):
        load_tensors(encoder, tensors, source="pretrained")
    load_tensors(encoder, tensors, source="pretrained", adapt_stem=True)
    gray = torch.randn(1, 1, 4, 32, 32)
    rgb = with_published(create_encoder(encoder_name(folders, "videomae")))
    responses = [
        e.body.get_submodule(e.info.stems[0])(gray.expand(-1, e.view.kind.channels, -1, -1, -1)) for e in (rgb, encoder)
    ]
    torch.testing.assert_close(*responses, atol=1e-5, rtol=1e-5)


def test_weights__are_read_from_a_classifier_and_from_a_two_tower_model(tmp_path):
    classifier = transformers.VideoMAEForVideoClassification(CLIPS["videomae"][0]())
    classifier.save_pretrained(tmp_path / "classifier")
    encoder = with_published(create_encoder(f"rgb_hf:{tmp_path / 'classifier'}"))
    torch.testing.assert_close(encoder.body.state_dict(), classifier.videomae.state_dict(), rtol=0, atol=0)
    text = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    two = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=PICTURES["clip_vision_model"][0]().to_dict())
    )
    two.save_pretrained(tmp_path / "two")
    encoder = with_published(create_encoder(f"image_hf:{tmp_path / 'two'}"))
    assert type(encoder.body) is transformers.CLIPVisionModel
    clip = random_clip(encoder)
    expected = two.eval().vision_model(clip[:, :, 0]).pooler_output
    torch.testing.assert_close(encoder(clip), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("videomae", "VideoMAEImageProcessor"),
        ("vivit", "VivitImageProcessor"),
        ("vjepa2", "VJEPA2VideoProcessor"),
        ("siglip_vision_model", "SiglipImageProcessor"),
        ("clip_vision_model", "CLIPImageProcessor"),
    ],
)
def test_statistics__equal_the_preprocessing_of_bytes(folders, tmp_path, kind, processor):
    """For the family's default, and for the preprocessing saved with the model."""
    shutil.copytree(folders / kind, tmp_path / kind)
    preprocess = getattr(transformers, processor)(do_resize=False, do_center_crop=False)
    frames = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    given = list(frames.numpy()) if kind in ("videomae", "vivit") else frames
    for is_saved in (False, True):
        if is_saved:
            preprocess.image_mean, preprocess.image_std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
            preprocess.save_pretrained(tmp_path / kind)
        elif kind == "videomae":  # the published models bring ImageNet's values, not the default of this class
            preprocess.image_mean, preprocess.image_std = IMAGE.mean, IMAGE.std
        encoder = create_encoder(encoder_name(tmp_path, kind))
        expected = next(iter(preprocess(given, return_tensors="pt").values())).reshape(4, 3, 32, 32)
        mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.view.mean, encoder.view.std))
        torch.testing.assert_close((frames / 255 - mean) / std, expected, atol=1e-4, rtol=1e-4)


def test_view__has_the_size_of_the_preprocessing_and_the_frames_of_the_configuration(folders, tmp_path):
    shutil.copytree(folders / "dinov2", tmp_path / "dinov2")
    size = {"height": 16, "width": 16}
    transformers.BitImageProcessor(crop_size=size, do_center_crop=True).save_pretrained(tmp_path / "dinov2")
    assert create_encoder(encoder_name(tmp_path, "dinov2")).view.size_px == 16
    view = create_encoder(encoder_name(folders, "timesformer")).view
    assert (view.num_frames, view.stride, view.size_px, view.layout) == (4, 32, 32, "BTCHW")


def test_masked_autoencoder__embeds_the_whole_picture(tmp_path):
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT)).save_pretrained(tmp_path)
    encoder = with_published(create_encoder(f"image_hf:{tmp_path}"))
    clip = random_clip(encoder)
    torch.testing.assert_close(encoder(clip), encoder(clip), atol=1e-5, rtol=1e-5)


def test_wrong_modality__error_gives_the_right_name(folders):
    with pytest.raises(UserError, match=r"network of clips .videomae.*not image: name it rgb_hf:"):
        create_encoder(f"image_hf:{folders / 'videomae'}")


def test_network_of_text__is_refused(tmp_path):
    transformers.BertConfig(**SHARED, intermediate_size=8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a bert does not take pictures"):
        create_encoder(f"image_hf:{tmp_path}")


def test_impossible_view__is_refused_before_training(folders):
    with pytest.raises(UserError, match=r"cannot take 1 frames of 32 pixels .*its own view is 4 of 32"):
        create_encoder(encoder_name(folders, "videomae"), num_frames=1)


def test_unreachable_hub__error_asks_for_a_folder(offline):
    with pytest.raises(UserError, match=r"'nobody/nothing' is not a local folder.*give <modality>_hf:/path/to/folder"):
        create_encoder("rgb_hf:nobody/nothing")


def test_folder_without_a_configuration__error_names_it(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        create_encoder(f"rgb_hf:{tmp_path}")


def test_code_of_a_model__does_not_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    (tmp_path / "own.py").write_text("raise SystemExit('untrusted code ran')")
    with pytest.raises(UserError, match="without code of its own"):
        create_encoder(f"image_hf:{tmp_path}")


def test_weights__absent_or_incomplete_are_refused(folders, tmp_path, offline):
    shutil.copytree(folders / "vit", tmp_path / "vit")
    (read_from,) = create_encoder(encoder_name(tmp_path, "vit")).public_weights
    path = tmp_path / "vit" / "model.safetensors"
    tensors = load_file(path)
    del tensors[sorted(tensors)[-1]]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 of its tensors are missing .first: "):
        read_public_weights(read_from)
    torch.save(tensors, tmp_path / "vit" / "pytorch_model.bin")  # the library's other format, which can hold code
    path.unlink()
    with pytest.raises(UserError, match=r"cannot be read .*with its model\.safetensors"):
        read_public_weights(read_from)


def test_missing_library__error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers.*pip install 'crossdistill\[hf\]'"):
        create_encoder("rgb_hf:MCG-NJU/videomae-base")
