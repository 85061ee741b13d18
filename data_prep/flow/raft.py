"""RAFT: optical flow by a network. It is the most accurate method here and the slowest by far, and needs a GPU.

Teed and Deng, RAFT: Recurrent All-Pairs Field Transforms for Optical Flow, ECCV 2020; the networks and weights are
torchvision's. Every child process holds a network of its own, so ``--workers`` sets how many share the GPU. Results
differ in the last bits between GPUs, CPUs and numbers of threads, so streams are reproducible only on the same kind of
machine.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from crossdistill.data.streams import Picture
from crossdistill.errors import UserError
from data_prep.flow.base import FlowFunction
from data_prep.recipe import Recipe

ARCHITECTURES = ("raft_small", "raft_large")
# The faster network; raft_large is more accurate.
DEFAULT_WEIGHTS = "raft_small"
# The correlation pyramid halves a feature map of an eighth of the size three times, and needs two cells at its top.
SMALLEST_SIDE_PX = 128
SIDES_DIVISIBLE_BY = 8


def raft_flow(network: nn.Module, first: Picture, second: Picture) -> NDArray[np.float32]:
    """Estimate the flow [H, W, 2] between two pictures [H, W, 3], RGB, uint8, on the device of the network.

    A picture with a side below 128 pixels is enlarged. Sides are padded to a multiple of 8 by repeating the last row
    or column. The flow, x and y in pixels as in ``FlowFunction``, is cropped and scaled back.
    """
    height, width = first.shape[:2]
    scale = max(1.0, SMALLEST_SIDE_PX / min(height, width))
    size_px = (round(height * scale), round(width * scale))
    device = next(network.parameters()).device
    with torch.inference_mode():
        # RAFT refines its estimate several times: the last one is the best.
        flow = network(*(_to_input(picture, size_px).to(device) for picture in (first, second)))[-1]
        flow = flow[:, :, : size_px[0], : size_px[1]].float().cpu()
        if scale != 1.0:
            flow = F.interpolate(flow, size=(height, width), mode="bilinear", antialias=True)
            flow = flow * torch.tensor([width / size_px[1], height / size_px[0]]).view(1, 2, 1, 1)
    return np.ascontiguousarray(flow[0].permute(1, 2, 0).numpy(), dtype=np.float32)


def _to_input(picture: Picture, size_px: tuple[int, int]) -> Tensor:
    """Convert a picture [H, W, 3], uint8, to [1, 3, H', W'] in [-1, 1] with sides that the network takes."""
    values = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    if tuple(values.shape[2:]) != size_px:
        values = F.interpolate(values, size=size_px, mode="bilinear")
    bottom, right = (-side % SIDES_DIVISIBLE_BY for side in size_px)
    return F.pad(values, (0, right, 0, bottom), mode="replicate")


def load_raft(weights: str | None) -> nn.Module:
    """Load a RAFT with trained weights, in eval mode, on the GPU if there is one.

    ``weights`` is ``raft_small`` (the default) or ``raft_large`` for the best weights of torchvision, the full name of
    other weights such as ``Raft_Large_Weights.C_T_SKHT_V2``, or a file with the parameters of either network (their
    shapes tell which). A name or file that does not exist, other parameters or a failed download is a ``UserError``.
    """
    weights = weights or DEFAULT_WEIGHTS
    network = _named_network(weights) or _network_of_file(Path(weights))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return network.to(device).eval().requires_grad_(False)


def _named_network(name: str) -> nn.Module | None:
    """Load a network by the name of its weights in torchvision, or return None for an unknown name."""
    from torchvision.models import get_model, get_model_weights

    for architecture in ARCHITECTURES:
        enum = get_model_weights(architecture)
        published = {f"{enum.__name__}.{key}": weights for key, weights in enum.__members__.items()}
        published[architecture] = enum["DEFAULT"]
        if name in published:
            network: nn.Module = get_model(architecture)
            network.load_state_dict(_published_weights(name, published[name]), strict=True)
            return network
    return None


def _published_weights(name: str, weights: Any) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, EOFError, HTTPException, RuntimeError, pickle.UnpicklingError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise UserError(
            f"the weights {name} of --flow raft cannot be downloaded ({error}): download {weights.url} on another "
            f"machine, and copy the file to {folder} or give it with --flow-weights"
        ) from error
    return state


def _network_of_file(path: Path) -> nn.Module:
    """Load the network that has exactly the parameters of a file."""
    from torchvision.models import get_model

    from crossdistill.utils.weight_files import read_weights

    if not path.is_file():
        allowed = f"{' or '.join(ARCHITECTURES)}, or a file with the weights of one of them"
        raise UserError(f"--flow-weights {path} is neither a file nor a name in torchvision: give {allowed}")
    state = read_weights(path)
    found = {name: tensor.shape for name, tensor in state.items()}
    for architecture in ARCHITECTURES:
        network: nn.Module = get_model(architecture)
        if {name: tensor.shape for name, tensor in network.state_dict().items()} == found:
            network.load_state_dict(state, strict=True)
            return network
    raise UserError(
        f"--flow-weights {path} holds neither {' nor '.join(ARCHITECTURES)} of torchvision: give a file that was "
        "saved from one of them (the files of RAFT's authors use other parameter names)"
    )


@lru_cache(maxsize=1)  # one network per process, for all its videos
def _shared_network(weights: str | None) -> nn.Module:
    return load_raft(weights)


def create_raft(recipe: Recipe) -> FlowFunction:
    """Create the function that estimates flow with the network of the recipe."""
    network = _shared_network(recipe.flow_weights)
    return lambda first, second: raft_flow(network, first.rgb, second.rgb)
