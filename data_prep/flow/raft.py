"""Optical flow by a network: RAFT (Teed and Deng, ECCV 2020), as torchvision has it.

The best flow here and by far the most work: give it a GPU. Every process that prepares videos holds a
network of its own, so ``--workers`` sets how many share the GPU. Results on a GPU, on a CPU and with another
number of threads differ in the last bits, so streams are equal byte by byte only on the same kind of machine.

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
from data_prep.flow.base import FlowFunction, FlowMethod
from data_prep.recipe import Recipe

ARCHITECTURES = ("raft_small", "raft_large")
# The faster of the two; raft_large is nearer to the truth.
DEFAULT_WEIGHTS = "raft_small"
# The correlation pyramid halves an eighth of the picture three times, and wants two cells to be left.
SMALLEST_SIDE_PX = 128
SIDES_DIVISIBLE_BY = 8


def raft_flow(network: nn.Module, first: Picture, second: Picture) -> NDArray[np.float32]:
    """Motion between two pictures by a RAFT of torchvision's.

    Pictures with a side under 128 pixels are enlarged; sides that 8 does not divide are continued with
    their last row or column. Either is taken back in the result.

    Args:
        network: In eval mode; runs where its parameters are.
        first: [H, W, 3], RGB, uint8.
        second: [H, W, 3], RGB, uint8.

    Returns:
        [H, W, 2], x and y in pixels: what is at p in the first is at p + flow[p] in the second.
    """
    height, width = first.shape[:2]
    scale = max(1.0, SMALLEST_SIDE_PX / min(height, width))
    size_px = (round(height * scale), round(width * scale))
    device = next(network.parameters()).device
    with torch.inference_mode():
        flow = network(*(_to_input(picture, size_px).to(device) for picture in (first, second)))[-1]
        flow = flow[:, :, : size_px[0], : size_px[1]].float().cpu()
        if scale != 1.0:
            flow = F.interpolate(flow, size=(height, width), mode="bilinear", antialias=True)
            flow = flow * torch.tensor([width / size_px[1], height / size_px[0]]).view(1, 2, 1, 1)
    return np.ascontiguousarray(flow[0].permute(1, 2, 0).numpy(), dtype=np.float32)


def _to_input(picture: Picture, size_px: tuple[int, int]) -> Tensor:
    """[H, W, 3], uint8, to [1, 3, H', W'] in [-1, 1] of a size that the network takes."""
    values = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    if tuple(values.shape[2:]) != size_px:
        values = F.interpolate(values, size=size_px, mode="bilinear")
    bottom, right = (-side % SIDES_DIVISIBLE_BY for side in size_px)
    return F.pad(values, (0, right, 0, bottom), mode="replicate")


def load_raft(weights: str | None) -> nn.Module:
    """Make a RAFT with trained weights, in eval mode, on the GPU if there is one.

    Args:
        weights: ``raft_small`` or ``raft_large`` for torchvision's best weights of that network, the full
            name of others such as ``Raft_Large_Weights.C_T_SKHT_V2``, or a file with the parameters of
            either network, which is recognised by their shapes; None takes ``raft_small``.

    Raises:
        UserError: There is no such file or name, the file holds something else, or a download fails.
    """
    weights = weights or DEFAULT_WEIGHTS
    network = _named_network(weights) or _network_of_file(Path(weights))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return network.to(device).eval().requires_grad_(False)


def _named_network(name: str) -> nn.Module | None:
    """A network with weights of torchvision's, downloaded if they are not in its cache; None for other names."""
    from torchvision.models import get_model, get_model_weights

    for architecture in ARCHITECTURES:
        enum = get_model_weights(architecture)
        published = {
            architecture: enum["DEFAULT"],
            **{f"{enum.__name__}.{key}": w for key, w in enum.__members__.items()},
        }
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
            f"the weights {name} of --flow raft cannot be had ({error}): download {weights.url} on a machine that is "
            f"online, and put the file into {folder} or give it with --flow-weights"
        ) from error
    return state


def _network_of_file(path: Path) -> nn.Module:
    """The network whose parameters a file holds, all of them and no others."""
    from torchvision.models import get_model

    from crossdistill.utils.tensor_files import read_weights

    if not path.is_file():
        raise UserError(
            f"--flow-weights {path} is neither a file nor a name of torchvision's: give {' or '.join(ARCHITECTURES)}, "
            "or a file with the weights of one of them"
        )
    state = read_weights(path)
    found = {name: tensor.shape for name, tensor in state.items()}
    for architecture in ARCHITECTURES:
        network: nn.Module = get_model(architecture)
        if {name: tensor.shape for name, tensor in network.state_dict().items()} == found:
            network.load_state_dict(state, strict=True)
            return network
    raise UserError(
        f"{path} holds the weights of neither {' nor '.join(ARCHITECTURES)} of torchvision's: give a file that was "
        "saved from one of them (the files of RAFT's authors name their parameters differently)"
    )


@lru_cache(maxsize=1)
def _shared_network(weights: str | None) -> nn.Module:
    """One per process, whatever the number of videos."""
    return load_raft(weights)


def _create(recipe: Recipe) -> FlowFunction:
    network = _shared_network(recipe.flow_weights)
    return lambda first, second: raft_flow(network, first.rgb, second.rgb)


def _check(recipe: Recipe) -> None:
    load_raft(recipe.flow_weights)


RAFT = FlowMethod(create=_create, check=_check)
