"""Weights from files, strictly: every tensor finds its place, or the load fails with a sentence."""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.encoders.base import Classifier, Encoder, PublicWeights
from crossdistill.errors import UserError
from crossdistill.utils.tensor_files import read_weights

# torch's libraries end a file's name with the beginning of its SHA-256.
HASH_IN_NAME = re.compile(r"-([a-f0-9]{6,})\.")


def fetch_public_weights(weights: PublicWeights) -> Path:
    """The file of published weights in torch's hub folder, downloaded there at first use with its hash checked.

    Raises:
        UserError: It is not there and cannot be fetched; the sentence says where to put it.
    """
    name = Path(urllib.parse.urlparse(weights.url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if path.is_file():
        return path
    hash_prefix = HASH_IN_NAME.search(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(path), hash_prefix and hash_prefix[1])
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{weights.name} weights cannot be fetched from {weights.url} ({error}): get the file elsewhere and put it "
            f"at {path}, or give another weight file"
        ) from error
    return path


def read_public_weights(weights: PublicWeights) -> Mapping[str, Tensor]:
    """Published weights, fetched at first use.

    Raises:
        UserError: They are not here and cannot be fetched; the sentence says where to put them.
    """
    return read_weights(fetch_public_weights(weights)) if weights.read is None else weights.read()


def load_weights(encoder: Encoder, path: Path, *, adapt_stem: bool = False) -> None:
    """Load a file into an encoder's body, strictly: see ``load_tensors``."""
    load_tensors(encoder, read_weights(path), source=str(path), adapt_stem=adapt_stem)


def load_tensors(encoder: Encoder, tensors: Mapping[str, Tensor], *, source: str, adapt_stem: bool = False) -> None:
    """Load tensors into an encoder's body, strictly.

    What is allowed to differ, and only that: a ``module.`` prefix on all names, the classifier that
    the body does not have, and where asked for the channels of the stem.

    Args:
        encoder: Changed in place.
        tensors: By name.
        source: Where they come from, for the error.
        adapt_stem: Make filters of the modality's channels of RGB filters (see ``match_stem_channels``): a start
            for training, but not the network that the file is of.

    Raises:
        UserError: A tensor is missing, unexpected or of another shape; the sentence names the first.
    """
    weights = {name.removeprefix("module."): value for name, value in tensors.items()}
    dropped = {name for name in weights if encoder.classifier_prefix and name.startswith(encoder.classifier_prefix)}
    classifier = find_classifier([weights[name] for name in sorted(dropped)], embed_dim=encoder.embed_dim)
    weights = {name: value for name, value in weights.items() if name not in dropped}
    own = encoder.body.state_dict()
    for stem in (f"{name}.weight" for name in (encoder.stem, *encoder.more_stems)):
        if stem in weights and stem in own:
            if adapt_stem:
                weights[stem] = match_stem_channels(weights[stem], own[stem])
            _require_same_channels(source, encoder, weights[stem], own[stem])
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    other_shape = [name for name in sorted(own.keys() & weights.keys()) if own[name].shape != weights[name].shape]
    if missing or unexpected or other_shape:
        problems = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", other_shape))
            if names
        ]
        raise UserError(
            f"{source} does not hold the weights of {encoder.name}: of {len(own)} tensors, {', '.join(problems)}; "
            "give a file of the same architecture"
        )
    encoder.body.load_state_dict(weights, strict=True)
    encoder.classifier = classifier


def find_classifier(tensors: Sequence[Tensor], *, embed_dim: int) -> Classifier | None:
    """The linear layer from features to classes, if that is all that a classifier consists of.

    Args:
        tensors: Of the classifier.
        embed_dim: D.
    """
    weights = [tensor for tensor in tensors if tensor.dim() == 2 and tensor.shape[1] == embed_dim]
    biases = [tensor for tensor in tensors if tensor.dim() == 1]
    if len(tensors) != 2 or len(weights) != 1 or len(biases) != 1 or len(weights[0]) != len(biases[0]):
        return None
    return Classifier(weights[0], biases[0])


def _require_same_channels(source: str, encoder: Encoder, stem: Tensor, own_stem: Tensor) -> None:
    """Name the number of channels, which says more than a shape, where a file is of another modality."""
    if stem.dim() == own_stem.dim() > 1 and stem.shape[1] != own_stem.shape[1]:
        raise UserError(
            f"{source} holds a network whose stem takes {stem.shape[1]} channels, and that of {encoder.name} takes "
            f"{own_stem.shape[1]}: give weights of the same modality"
        )


def match_stem_channels(weight: Tensor, like: Tensor) -> Tensor:
    """Give a stem of RGB filters another number of input channels.

    The mean over the input channels is repeated, times old over new channels, so that an input equal in
    all channels excites the filter as before (Wang et al., Temporal Segment Networks, ECCV 2016).

    Args:
        weight: [out, in, ...].
        like: [out, in', ...]; anything else that differs is left for the caller to refuse.
    """
    if weight.dim() != like.dim() or weight.shape[1] == like.shape[1]:
        return weight
    mean = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / like.shape[1])
    return mean.expand(-1, like.shape[1], *[-1] * (weight.dim() - 2)).contiguous()


def weights_hash(encoder: Encoder) -> str:
    """A short SHA-256 over names and values: the same network with the same weights gives the same."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.body.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
