"""Checkpoints on disk: how they are written whole or not at all, and how many are kept (``NUM_KEPT``).

A checkpoint is one safetensors file without pickle; ``resume.py`` says what is in it.

Tensors of a nested state go into the file's body, everything else into its JSON header.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.utils.console import console
from crossdistill.utils.tensor_files import join_tensors, split_tensors, write_tensors

FORMAT_VERSION = 1
NUM_KEPT = 2
TRAINING_ALONE = ("optimizer", "task")
"""The parts of a checkpoint that a finished run needs no more."""
KERNELS = ("fused", "foreach")
"""Settings of an optimizer that belong to the device and not to the run."""
_NAME = re.compile(r"step-(\d{8})\.safetensors")


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

    def keep_weights_alone(self) -> None:
        """Replace all checkpoints of a finished run by one of the last step without optimizer, bank and EMA copies.

        With it the run can still be resumed, in order to evaluate it again. Nothing is done if no checkpoint is intact.
        """
        newest = self._newest(without=TRAINING_ALONE)
        if newest is None:
            return
        step, state = newest
        for name in TRAINING_ALONE:
            state.pop(name, None)
        self.save(step, state)
        for other in self.steps():
            if other != step:
                self.path(other).unlink(missing_ok=True)

    def _remove_half_written(self) -> None:
        """Remove temporary files of a killed run."""
        if self.folder.is_dir():
            for path in self.folder.glob(".step-*.tmp"):
                path.unlink(missing_ok=True)

    def load(self, step: int) -> dict[str, Any]:
        """Read the checkpoint of one step."""
        return _read(self.path(step))

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """Return the newest intact checkpoint and its step. Damaged checkpoints are reported and skipped.

        Raises:
            UserError: There are checkpoints, and all of them are damaged, or one cannot be read.
        """
        newest = self._newest()
        if newest is None and self.steps():
            raise UserError(
                f"no checkpoint in {self.folder} is intact: bring one back from a copy, or delete the folder to train "
                "from the beginning"
            )
        return newest

    def num_processes_of_newest(self) -> int | None:
        """Return the number of processes that wrote the newest intact checkpoint; None if there is none."""
        newest = self._newest(without=("trainable", *TRAINING_ALONE))
        return None if newest is None else len(newest[1]["generators"])

    def _newest(self, *, without: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]] | None:
        for step in reversed(self.steps()):
            try:
                return step, _read(self.path(step), without=without)
            except OSError as error:
                raise UserError(
                    f"the checkpoint {self.path(step)} cannot be read ({error.strerror or error}): start again when it "
                    "can, or delete it to continue from an earlier one"
                ) from error
            except (SafetensorError, json.JSONDecodeError, KeyError) as error:
                console.print(f"passing over the checkpoint {self.path(step)}: it is damaged ({error})", style="yellow")
        return None


class CheckpointTimer:
    """Says when a checkpoint is due by the clock.

    Args:
        minutes: Minutes since the last checkpoint, or since the start; 0 for never.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes or float("inf")
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._started = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the minutes are over."""
        return time.monotonic() - self._started >= self._seconds


def _read(path: Path, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a checkpoint, without the tensors of the parts that are named."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        if not header.get("version", "").isdecimal():
            raise SafetensorError("its header is not a checkpoint's")
        if int(header["version"]) > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer crossdistill: update crossdistill")
        names = [name for name in file.keys() if name.partition("/")[0] not in without]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    rest = {name: part for name, part in json.loads(header["state"]).items() if name not in without}
    state: dict[str, Any] = join_tensors(rest, tensors)
    return state


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state as dicts, lists, numbers and tensors."""
    return dict(optimizer.state_dict())


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer state that ``optimizer_state`` returned and that was written to a file."""
    by_parameter = {int(key): value for key, value in state["state"].items()}
    kernels = [{name: group.get(name) for name in KERNELS} for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": by_parameter, "param_groups": state["param_groups"]})
    for group, own in zip(optimizer.param_groups, kernels, strict=True):
        group.update(own)  # how this device computes, not what
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # The memory layout (channels last) of the parameter, which files do not keep.
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
