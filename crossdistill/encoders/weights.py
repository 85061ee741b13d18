"""Weights from files. Loading is strict: a tensor that does not fit the network raises an error that names it.

A student may start from weights of another modality: ``match_stem_channels`` then converts the first convolution.

Shapes: D features, N classes.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.encoders.base import Classifier, Encoder, PublicWeights
from crossdistill.encoders.state_names import find_state
from crossdistill.errors import UserError
from crossdistill.utils.console import say_once
from crossdistill.utils.files import sha256_of
from crossdistill.utils.weight_files import read_weights

# File names of PyTorch's libraries end with the first digits of the file's SHA-256.
HASH_IN_NAME = re.compile(r"-([a-f0-9]{6,})\.")


def fetch_public_weights(weights: PublicWeights) -> Path:
    """Return the file of published weights in torch's hub folder; download it on first use.

    PyTorch's libraries publish the first digits of the SHA-256 in the file's name, and they are checked. pytorchvideo
    publishes no hash; a notice then gives that of the downloaded file, to be compared with other copies.

    Raises:
        UserError: The file is absent and cannot be downloaded; the sentence says where to put it.
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
            f"{weights.name} weights cannot be downloaded from {weights.url} ({error}): get the file elsewhere and "
            f"put it at {path}, or give another weight file"
        ) from error
    if hash_prefix is None:
        say_once(f"{path} was downloaded, and its publisher states no hash to check: its SHA-256 is {sha256_of(path)}")
    return path


def read_public_weights(weights: PublicWeights) -> Mapping[str, Tensor]:
    """Read published weights, downloaded on first use.

    Raises:
        UserError: They are absent and cannot be downloaded; the sentence says where to put them.
    """
    return read_weights(fetch_public_weights(weights)) if weights.read is None else weights.read()


def load_weights(encoder: Encoder, path: Path, *, adapt_stem: bool = False) -> None:
    """Load a file into an encoder's body; see ``load_tensors``."""
    load_tensors(encoder, read_weights(path), source=str(path), adapt_stem=adapt_stem)


def load_tensors(encoder: Encoder, tensors: Mapping[str, Tensor], *, source: str, adapt_stem: bool = False) -> None:
    """Load tensors into an encoder's body, strictly.

    A prefix that the body's names have in the file is removed (see ``state_names``). What the file holds besides the
    body (a projector, a momentum encoder) is left out, and a notice lists it; a linear classifier becomes
    ``encoder.classifier``. Everything else must match.

    ``source`` says in errors where the tensors come from. ``adapt_stem`` converts the filters of the stems to the
    modality's channels (see ``match_stem_channels``): training may start from that, but it is another network.

    Raises:
        UserError: A tensor is missing, unexpected or has another shape; the sentence names the first.
    """
    own = encoder.body.state_dict()
    head = encoder.info.classifier_prefix
    try:
        found = find_state(tensors, own, head=head, aliases=encoder.info.aliases)
    except UserError as error:
        raise UserError(f"{source} cannot be loaded into {encoder.name}, because {error}") from error
    weights = {name: value for name, value in found.tensors.items() if not (head and name.startswith(head))}
    layer = {name: value for name, value in found.tensors.items() if name not in weights}
    classifier = None
    if not found.is_self_supervised:
        classifier = find_classifier([layer[name] for name in sorted(layer)], embed_dim=encoder.embed_dim)
    if classifier is None:
        found.left_out.extend(found.prefix + name for name in layer)
    for stem in (f"{name}.weight" for name in encoder.info.stems):
        if stem in weights and stem in own:
            if adapt_stem:
                weights[stem] = match_stem_channels(weights[stem], own[stem])
            _require_same_channels(source, encoder, weights[stem], own[stem])
    _require_same_tensors(source, encoder, weights, own, prefix=found.prefix)
    encoder.body.load_state_dict(weights, strict=True)
    encoder.classifier = classifier
    if found.left_out:
        under = f"the weights of {encoder.name} are those under {found.prefix!r}; " if found.prefix else ""
        say_once(f"{source}: {under}left out: {found.summary()}")


def fits(encoder: Encoder, tensors: Mapping[str, Tensor]) -> bool:
    """Whether ``load_tensors`` takes these tensors; the encoder may be on the meta device.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> narrow, wide = create_encoder("rgb_tiny3d_8"), create_encoder("rgb_tiny3d_16")
        >>> fits(narrow, narrow.body.state_dict()), fits(wide, narrow.body.state_dict())
        (True, False)
    """
    own, head = encoder.body.state_dict(), encoder.info.classifier_prefix
    try:
        found = find_state(tensors, own, head=head, aliases=encoder.info.aliases).tensors
    except UserError:
        return False
    shapes = {name: value.shape for name, value in found.items() if not (head and name.startswith(head))}
    return shapes == {name: value.shape for name, value in own.items()}


def _require_same_tensors(
    source: str, encoder: Encoder, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, prefix: str
) -> None:
    """Raise a ``UserError`` unless names and shapes are the same."""
    missing, unexpected = ([name for name in a if name not in b] for a, b in ((own, weights), (weights, own)))
    other_shape = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if not (missing or unexpected or other_shape):
        return
    problems = [
        f"{len(names)} {what} (first: {names[0]})"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if other_shape:
        name = other_shape[0]
        shapes = f"{list(weights[name].shape)} instead of {list(own[name].shape)}"
        problems.append(f"{len(other_shape)} of another shape (first: {name}, {shapes})")
    under = f" under {prefix!r}" if prefix else ""
    raise UserError(
        f"{source} does not hold the weights of {encoder.name}{under}: of {len(own)} tensors, {', '.join(problems)}; "
        "give a file of the same architecture, width and depth"
    )


def find_classifier(tensors: Sequence[Tensor], *, embed_dim: int) -> Classifier | None:
    """Return a classifier's linear layer, or None if its tensors, sorted by name, are anything else.

    Example:
        >>> layer = find_classifier([torch.zeros(7), torch.zeros(7, 4)], embed_dim=4)
        >>> layer.weight.shape, layer.bias.shape
        (torch.Size([7, 4]), torch.Size([7]))
    """
    weights = [tensor for tensor in tensors if tensor.dim() == 2 and tensor.shape[1] == embed_dim]
    biases = [tensor for tensor in tensors if tensor.dim() == 1]
    if len(tensors) != 2 or len(weights) != 1 or len(biases) != 1 or len(weights[0]) != len(biases[0]):
        return None
    return Classifier(weights[0], biases[0])


def _require_same_channels(source: str, encoder: Encoder, stem: Tensor, own_stem: Tensor) -> None:
    """Raise a ``UserError`` about channels for weights of another modality; one about shapes would be less clear."""
    if stem.dim() == own_stem.dim() > 1 and stem.shape[1] != own_stem.shape[1]:
        raise UserError(
            f"{source} holds a network whose stem takes {stem.shape[1]} channels, and the stem of {encoder.name} takes "
            f"{own_stem.shape[1]}: give weights of the same modality"
        )


def match_stem_channels(weight: Tensor, like: Tensor) -> Tensor:
    """Give the filters of a stem another number of input channels.

    The mean over the input channels is repeated and scaled by old / new channels. An input with equal channels then
    gives the same output as before (Wang et al., Temporal Segment Networks, ECCV 2016). Shapes are [out, in, ...] and
    [out, in', ...]; other differences in shape are not resolved here, so the caller refuses them.

    Example:
        >>> match_stem_channels(torch.ones(8, 3, 7, 7), torch.empty(8, 2, 7, 7))[0, :, 0, 0]
        tensor([1.5000, 1.5000])
    """
    if weight.dim() != like.dim() or weight.shape[1] == like.shape[1]:
        return weight
    mean = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / like.shape[1])
    return mean.expand(-1, like.shape[1], *[-1] * (weight.dim() - 2)).contiguous()


def weights_hash(encoder: Encoder) -> str:
    """Return 16 digits of a SHA-256 over the names and values of the body's tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.body.state_dict().items()):
        digest.update(name.encode())
        # Viewed as bytes, because NumPy has no bf16.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
