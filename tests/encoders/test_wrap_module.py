"""Encoders around modules that take plain tensors."""

import pytest
import torch
from torch import nn

from crossdistill.encoders import create_encoder, wrap_encoder, wrap_module
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec


@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 2), (2, 3, 4, 4), (2, 48)])
def test_wrap_module__computes_what_the_module_computes_on_the_same_tensor(shape):
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    encoder = wrap_module(module, 5, name="mine")
    batch = torch.randn(shape)
    assert encoder.name == "mine" and encoder.body is module and encoder.embed_dim == 5
    assert torch.equal(encoder(batch), module(batch))
    execution = Execution.choose(encoder, precision="fp32")
    assert torch.equal(execution.embed(encoder, batch), module(batch))


def test_wrap_module__keeps_the_data_type_of_its_input():
    tokens = nn.EmbeddingBag(10, 4)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert torch.equal(wrap_module(tokens, 4)(ids), tokens(ids))


@pytest.mark.parametrize("attribute", ["embed_dim", "num_features"])
def test_wrap_module__takes_the_size_from_the_module(attribute):
    module = nn.Flatten()
    setattr(module, attribute, 12)
    encoder = wrap_module(module)
    assert encoder.embed_dim == 12 and encoder.name == "flatten"
    assert encoder(torch.zeros(2, 3, 2, 2)).shape == (2, 12)


def test_wrap_module__without_a_size_is_one_sentence():
    with pytest.raises(UserError, match=r"flatten has no embed_dim or num_features .* pass embed_dim"):
        wrap_module(nn.Flatten())


class Returns(nn.Module):
    """Returns what a function makes of its features [B, 4] and tokens [B, 6, 4]."""

    def __init__(self, make):
        super().__init__()
        self.make = make
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, clip):
        tokens = self.scale * clip.flatten(1)[:, :24].unflatten(1, (6, 4))
        return self.make(tokens.mean(dim=1), tokens)


OUTPUTS = {
    "tensor": lambda features, tokens: features,
    "tuple": lambda features, tokens: (tokens, features),
    "list": lambda features, tokens: [features],
    "unknown name": lambda features, tokens: {"feat": features, "tokens": tokens},
    "pooler_output": lambda features, tokens: {"last_hidden_state": 0 * tokens, "pooler_output": features},
    "last_hidden_state": lambda features, tokens: {"last_hidden_state": tokens, "pooler_output": None},
    "ModelOutput": lambda features, tokens: model_output(last_hidden_state=tokens),
}


def model_output(**named):
    return pytest.importorskip("transformers").modeling_outputs.BaseModelOutput(**named)


@pytest.mark.parametrize("modality", ["rgb", "image"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_features__are_found_in_what_a_network_returns(kind, modality):
    size = {"num_frames": 2 if modality == "rgb" else 1, "stride": 1, "size_px": 4}
    view = ViewSpec(modality, **size, mean=(0.5,) * 3, std=(0.5,) * 3)
    batch = torch.randn(3, 3, view.num_frames, 4, 4)
    wanted = wrap_encoder(Returns(OUTPUTS["tensor"]), view=view, embed_dim=4)(batch)
    given = wrap_encoder(Returns(OUTPUTS[kind]), view=view, embed_dim=4)(batch)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize(
    ("module", "given"),
    [
        (nn.Flatten(), r"a tensor \[2, 12\]"),
        (nn.Identity(), r"a tensor \[2, 3, 2, 2\]"),
        (Returns(lambda features, tokens: {"feat": features}), r"a dict of feat \[2, 4\]"),
        (Returns(lambda features, tokens: (features, 1)), r"a tuple of \[2, 4\], int"),
        (Returns(lambda features, tokens: None), "NoneType"),
        (Returns(lambda features, tokens: [tokens.flatten(1)[:, :7]] * 2), r"a list of .*, 2 of them \[B, 7\]"),
    ],
)
def test_features__that_are_not_there_are_one_sentence(module, given):
    encoder = wrap_module(module, 7)
    with pytest.raises(UserError, match=rf"returned {given}, expected features \[B, 7\]"):
        encoder(torch.zeros(2, 3, 2, 2) if not isinstance(module, Returns) else torch.zeros(2, 3, 4, 4))


def test_wrap_module__has_no_tokens():
    with pytest.raises(UserError, match="no features before pooling"):
        wrap_module(nn.Flatten(), 12).embed_with_tokens(torch.zeros(2, 3, 2, 2))


def test_encoder__embeds_pictures_as_clips_of_one_frame():
    encoder = create_encoder("image_resnet18", size_px=32).eval()
    pictures = torch.randn(2, 3, 32, 32)
    features, tokens = encoder.embed_with_tokens(pictures)
    assert torch.equal(features, encoder(pictures[:, :, None]))
    assert tokens.shape == (2, 512, 1, 1, 1)
