"""Exact resume: what a checkpoint holds, and how a run continues from it; ``checkpoint.py`` writes the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from crossdistill.distillation.task import Task
from crossdistill.errors import UserError
from crossdistill.training.checkpoint import Checkpoints, load_optimizer_state, optimizer_state
from crossdistill.training.gradient_scaling import GradientScaling
from crossdistill.training.monitor import REMEDY
from crossdistill.training.optimizer import take_groups_of
from crossdistill.utils.console import console
from crossdistill.utils.distributed import decide_on_first, gather_objects


@dataclass
class TrainingState:
    """What changes during training besides weights, optimizer, bank and random generators."""

    step: int = 0
    """Number of finished optimizer steps."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Dataset/video to the reason why it could not be read."""
    seconds: float = 0.0
    """Training time, summed over all the times that the run was resumed."""
    num_skipped: int = 0
    """Number of finished steps that gradient scaling skipped."""


@dataclass(frozen=True)
class Resumable:
    """Everything whose state goes into a checkpoint, besides ``TrainingState``."""

    checkpoints: Checkpoints
    task: Task
    model: nn.Module
    """``task.trainable`` as Accelerate prepared it."""
    optimizer: torch.optim.Optimizer
    scaling: GradientScaling
    accelerator: Accelerator
    num_clips: Mapping[str, int]
    """Clips of the data, of an epoch and of a step, by their names in the checkpoint: other numbers are refused."""

    def restore(self, *, seed: int) -> TrainingState:
        """Continue from the newest intact checkpoint, or start with generators that ``seed`` decides.

        Raises:
            UserError: The run was started with other numbers of clips.
        """
        found: list[dict[str, Any]] = []  # the first process has to read a checkpoint to know that it is intact

        def find_newest() -> int | None:
            step, content = self.checkpoints.load_newest() or (None, {})
            found.append(content)
            return step

        newest = decide_on_first(self.accelerator, find_newest)
        if newest is None:
            torch.manual_seed(seed + self.accelerator.process_index)  # so that dropout differs between processes
            return TrainingState()
        content = found[0] if found else self.checkpoints.load(newest)
        self._require_same_run(content)
        self.accelerator.unwrap_model(self.model).load_state_dict(content["trainable"])
        self.task.load_result_state(content.get("result", {}))
        if "optimizer" in content:  # else the run has ended, and only its weights remain
            take_groups_of(content["optimizer"], self.optimizer, self.task.trainable)
            load_optimizer_state(self.optimizer, content["optimizer"])
            self.scaling.load_state_dict(content.get("scaling", {}))
            self.task.load_resume_state(content["task"])
        num_processes, index = self.accelerator.num_processes, self.accelerator.process_index
        if len(content["generators"]) == num_processes:
            _set_generator_state(content["generators"][index])
        else:  # no process can go on with the draws of another: new ones, which depend on nothing else
            new = np.random.SeedSequence([seed, newest, num_processes, index]).generate_state(1, np.uint64)
            torch.manual_seed(int(new[0]))
        if self.accelerator.is_main_process:
            console.print(f"resuming after step {newest}")
        return TrainingState(
            step=newest,
            unreadable=content["unreadable"],
            seconds=content.get("seconds", 0.0),
            num_skipped=content.get("num_skipped", 0),
        )

    def _require_same_run(self, content: dict[str, Any]) -> None:
        for name, now in self.num_clips.items():
            before = content.get(name, now)  # former versions wrote only the clips of the data
            if before != now:
                raise UserError(
                    f"{name.replace('_', ' ').replace('samples', 'clips')}: {before} at the start of the run, now "
                    f"{now}: resume it with the data of its start"
                )

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint. All processes call this, because their generators are gathered."""
        self.require_finite_weights(state.step)
        state.unreadable.update(gather_objects(self.accelerator, list(state.unreadable.items())))
        content: dict[str, Any] = {
            "trainable": self.accelerator.unwrap_model(self.model).state_dict(),
            "result": self.task.result_state(),
            "optimizer": optimizer_state(self.optimizer),
            "scaling": self.scaling.state_dict(),
            "task": self.task.resume_state(),
            "generators": gather_objects(self.accelerator, [_generator_state()]),
            "unreadable": state.unreadable,
            "seconds": state.seconds,
            "num_skipped": state.num_skipped,
            **self.num_clips,
        }
        decide_on_first(self.accelerator, lambda: str(self.checkpoints.save(state.step, content)))

    def require_finite_weights(self, step: int) -> None:
        """Raise a ``UserError`` before NaN or infinite weights replace a good checkpoint.

        Weights are equal on all processes, so either all processes raise or none.
        """
        if not all_finite(self.model.parameters()):
            steps = self.checkpoints.steps()
            kept = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
            raise UserError(f"NaN or infinite weights at step {step} ({kept}): {REMEDY}")


def all_finite(weights: Iterable[Tensor]) -> bool:
    """Check that no tensor holds NaN or infinite values."""
    return all(bool(torch.isfinite(value).all()) for value in weights)


def _generator_state() -> dict[str, Tensor]:
    """Read torch's generators; nothing here draws from Python's or NumPy's global generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_generator_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
