"""State of a run on disk: one safetensors file a checkpoint, whole or not there, and no pickle.

Tensors of a nested state go into the file's body, everything else into its JSON header.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crossdistill.console import console
from crossdistill.errors import UserError
from crossdistill.files import atomic_path

FORMAT_VERSION = 1
NUM_KEPT = 2
_NAME = re.compile(r"step-(\d{8})\.safetensors")
_TENSOR_KEY = "__tensor__"


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


class Checkpoints:
    """The checkpoints of one run; the newest two are kept.

    Args:
        folder: Where they are; made when the first is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """File of one checkpoint."""
        return self.folder / f"step-{step:08d}.safetensors"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, flush it to disk, then delete those that are too old or of later steps.

        Raises:
            UserError: The disk is full or cannot be written; earlier checkpoints are untouched.
        """
        rest, tensors = split_tensors(state)
        header = {"version": str(FORMAT_VERSION), "state": json.dumps(rest)}
        path = self.path(step)
        earlier = [kept for kept in self.steps() if kept < step]
        newest = f"the checkpoint of step {earlier[-1]} is kept" if earlier else "there is no earlier checkpoint"
        self._remove_half_written()
        write_tensors(path, tensors, metadata=header, advice=f"{newest}: free space there, then add --resume")
        # Later steps are of a run whose newest checkpoints were damaged: only now is there one that replaces them.
        for other in self.steps():
            if other > step or other in earlier[: 1 - NUM_KEPT]:
                self.path(other).unlink(missing_ok=True)
        return path

    def _remove_half_written(self) -> None:
        """Remove what a killed run left."""
        if self.folder.is_dir():
            for path in self.folder.glob(".step-*.tmp"):
                path.unlink(missing_ok=True)

    def load(self, step: int) -> dict[str, Any]:
        """Read the checkpoint of one step."""
        return _read(self.path(step))

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that is whole, with its step; damaged ones are named and passed over."""
        for step in reversed(self.steps()):
            try:
                return step, _read(self.path(step))
            except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as error:
                console.print(f"passing over the checkpoint {self.path(step)}: it is damaged ({error})", style="yellow")
        return None


def _read(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if not header.get("version", "").isdecimal():
            raise SafetensorError("its header is not a checkpoint's")
        if int(header["version"]) > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer crossdistill: update it")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state: dict[str, Any] = join_tensors(json.loads(header["state"]), tensors)
    return state


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state as dicts, lists, numbers and tensors."""
    return dict(optimizer.state_dict())


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over what ``optimizer_state`` gave, after a way through a file."""
    by_parameter = {int(key): value for key, value in state["state"].items()}
    optimizer.load_state_dict({"state": by_parameter, "param_groups": state["param_groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # The memory layout (channels last) of the parameter, which files do not keep.
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
