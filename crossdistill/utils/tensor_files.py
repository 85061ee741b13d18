"""Tensors in files: safetensors, written whole or not at all, and weight files read without executing anything."""

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
# Keys under which training scripts keep the network's weights inside a larger dictionary.
NESTED_KEYS = ("state_dict", "model_state", "model", "teacher", "student")


def split_tensors(tree: Any, *, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Part a nested state of dicts and lists into JSON and named tensors; ``join_tensors`` undoes it."""
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
    """The inverse of ``split_tensors``; keys of dictionaries come back as strings."""
    if isinstance(tree, dict):
        if _TENSOR_KEY in tree:
            return tensors[tree[_TENSOR_KEY]]
        return {key: join_tensors(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [join_tensors(value, tensors) for value in tree]
    return tree


def write_tensors(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str], advice: str) -> None:
    """Write a safetensors file, whole or not at all, flushed to disk.

    Args:
        path: The file.
        tensors: On any device, in any memory layout.
        metadata: Of the file's header.
        advice: Ends the sentence of the error.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            save_file(_apart(tensors), temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({error}); {advice}") from error


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU as safetensors wants them: contiguous, and none in the memory of another.

    What is so already is no copy: a memory bank may take more than half of the machine's memory.
    """
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        storage = here.untyped_storage().data_ptr()
        found[name] = here.clone() if storage in taken else here
        taken.add(storage)
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or a ``.pth``/``.pt`` file without executing anything in it.

    Raises:
        UserError: The file is missing, damaged, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise UserError(
            f"there is no weight file {path}: give a .safetensors, .pth or .pt file, or a run's student folder"
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file ({error}): get it again") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's own about pickles; the sentence below says it
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, and loading it could run a stranger's code: save its state_dict() "
            "alone, best as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a whole PyTorch file ({error}): get it again") from error
    for key in NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is not a dictionary of tensors: save the network's state_dict()")
    return dict(content)
