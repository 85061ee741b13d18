"""Nested states as JSON and named tensors, and safetensors files that are written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.utils.files import atomic_path

_TENSOR_KEY = "__tensor__"


def split_tensors(tree: Any, *, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split a nested state of dicts and lists into JSON and named tensors. ``join_tensors`` is the inverse.

    Example:
        >>> import torch
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
