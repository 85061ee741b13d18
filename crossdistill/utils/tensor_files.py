"""Write safetensors files atomically, and read weight files without executing code in them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.utils.files import atomic_path

_TENSOR_KEY = "__tensor__"
# Keys of the state dict in the larger dictionaries that training scripts save.
NESTED_KEYS = ("state_dict", "model_state", "model", "teacher", "student")


def split_tensors(tree: Any, *, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split a nested state of dicts and lists into JSON and named tensors. ``join_tensors`` is the inverse.

    Example:
        >>> rest, tensors = split_tensors({"step": 3, "model": {"weight": torch.zeros(2)}})
        >>> rest
        {'step': 3, 'model': {'weight': {'__tensor__': 'model/weight'}}}
        >>> list(tensors)
        ['model/weight']
    """
    if isinstance(tree, Tensor):
        return {_TENSOR_KEY: path}, {path: tree}
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        items = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return tree, {}
    parts = {key: split_tensors(value, path=f"{path}/{key}" if path else key) for key, value in items}
    tensors = {name: tensor for _, found in parts.values() for name, tensor in found.items()}
    rest = {key: part for key, (part, _) in parts.items()}
    return (rest if isinstance(tree, dict) else list(rest.values())), tensors


def join_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Join what ``split_tensors`` returned. Keys of dictionaries are strings afterwards."""
    if isinstance(tree, dict):
        if _TENSOR_KEY in tree:
            return tensors[tree[_TENSOR_KEY]]
        return {key: join_tensors(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [join_tensors(value, tensors) for value in tree]
    return tree


def write_tensors(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str], advice: str) -> None:
    """Write tensors on any device and in any memory layout to a safetensors file, atomically.

    If the disk is full or not writable, the ``UserError`` ends with ``advice``.
    """
    try:
        with atomic_path(path) as temporary:
            save_file(_contiguous(tensors), temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({error}); {advice}") from error


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as safetensors requires them: on the CPU, contiguous, and without shared memory.

    Only tensors that are not so are copied, because a memory bank may take more than half of the machine's memory.
    """
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()  # no copy if it is already
        storage = here.untyped_storage().data_ptr()
        found[name] = here.clone() if storage in taken else here
        taken.add(storage)
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors``, ``.pth`` or ``.pt`` file to named tensors on the CPU, without executing code in it.

    Raises:
        UserError: The file is missing, damaged, or a pickle with more than tensors.
    """
    if not path.is_file():
        raise UserError(
            f"there is no weight file {path}: give a .safetensors, .pth or .pt file, or a run's student folder"
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a complete safetensors file ({error}): get it again") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickles; the error below replaces it
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} contains more than tensors and could execute unknown code: save only the state_dict(), "
            "preferably as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a complete PyTorch file ({error}): get it again") from error
    # One key may be inside another, as in {"state_dict": {"model": ...}}.
    for key in NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a dictionary of tensors: save the network's state_dict()")
    return dict(content)
