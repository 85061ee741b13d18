"""Encoders around modules that take plain tensors."""

import pytest
import torch
from torch import nn

from crossdistill.encoders import create_encoder, wrap_module
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError


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


class Named(nn.Module):
    """Returns a dict, as many libraries do."""

    def forward(self, batch):
        return {"features": batch}


@pytest.mark.parametrize(
    ("module", "given"),
    [(nn.Flatten(), r"shape \[2, 12\]"), (nn.Identity(), r"shape \[2, 3, 2, 2\]"), (Named(), "type dict")],
)
def test_wrap_module__other_features_than_stated_are_one_sentence(module, given):
    encoder = wrap_module(module, 7)
    with pytest.raises(UserError, match=rf"returned features of {given}, expected a tensor \[B, 7\]"):
        encoder(torch.zeros(2, 3, 2, 2))


def test_wrap_module__has_no_tokens():
    with pytest.raises(UserError, match="no features before pooling"):
        wrap_module(nn.Flatten(), 12).embed_with_tokens(torch.zeros(2, 3, 2, 2))


def test_encoder__embeds_pictures_as_clips_of_one_frame():
    encoder = create_encoder("image_resnet18", size_px=32).eval()
    pictures = torch.randn(2, 3, 32, 32)
    features, tokens = encoder.embed_with_tokens(pictures)
    assert torch.equal(features, encoder(pictures[:, :, None]))
    assert tokens.shape == (2, 512, 1, 1, 1)
