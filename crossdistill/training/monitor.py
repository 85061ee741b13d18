"""Progress bar and curves of a run."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.progress import Progress, TaskID
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.training.checkpoint import Checkpoints
from crossdistill.training.run_folder import MetricsLog
from crossdistill.types import StepOutput
from crossdistill.utils.console import progress_bar

CHECKPOINTS_NAME = "checkpoints"


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a training run besides the task and the data."""

    num_epochs: int
    batch_size: int
    """Clips per batch of one process."""
    accumulate: int
    """Batches per optimizer step."""
    learning_rate: Callable[[int, int, int], float]
    """(step, steps of the run, steps of an epoch) to learning rate."""
    clip_norm: float
    seed: int
    num_workers: int
    checkpoint_every_steps: int
    log_every_steps: int
    evaluate_every_steps: Callable[[int, int], int]
    """(steps of the run, steps of an epoch) to steps between evaluations; 0 for none."""
    max_unreadable: float
    tracker: str


def not_finite(what: str, step: int, checkpoints: Checkpoints) -> UserError:
    """An error that says what, when, and what is left of the run."""
    steps = checkpoints.steps()
    kept = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
    return UserError(
        f"{what} not finite at step {step} ({kept}): lower --lr, add --clip-norm 1 or choose --mixed-precision fp32, "
        "and start again in another --out"
    )


class Monitor:
    """Progress bar and curves of one run; on the first process only, but for the means over processes.

    Args:
        folder: The run's folder.
        plan: Says how often to log.
        accelerator: Averages over processes.
        description: What the progress bar says.
        start_step: Optimizer steps already done.
        num_steps: Optimizer steps of the whole run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        plan: TrainingPlan,
        accelerator: Accelerator,
        description: str,
        start_step: int,
        num_steps: int,
    ) -> None:
        self.checkpoints = Checkpoints(folder / CHECKPOINTS_NAME)
        self.plan = plan
        self.accelerator = accelerator
        self.num_steps = num_steps
        self.start_step = start_step
        self.description = description
        self.log = MetricsLog(folder, start_step=start_step + 1, tracker=plan.tracker) if self._is_main else None
        self.bar: Progress = progress_bar("fields", unit="steps", is_shown=self._is_main)
        self.task_id: TaskID | None = None
        self.values: dict[str, list[Tensor]] = {}
        self.extra: dict[str, float] = {}
        self.notes = ""
        self.clock = time.perf_counter()

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def __enter__(self) -> Monitor:
        self.bar.start()
        self.task_id = self.bar.add_task(self.description, total=self.num_steps, completed=self.start_step, fields="")
        self.clock = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        if self.log is not None:
            self.log.close()

    def add(self, output: StepOutput) -> None:
        """Take in one batch, without waiting for the device."""
        for name, value in {"loss": output.loss.detach(), **output.terms}.items():
            self.values.setdefault(name, []).append(value)

    def note(self, step: int, values: dict[str, float]) -> None:
        """Log the numbers of an evaluation at once, and show them from now on."""
        self.notes = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        if self.log is not None and values:
            self.log.write(step, values)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what happens inside out of clips/s."""
        started = time.perf_counter()
        yield
        self.clock += time.perf_counter() - started

    def finish_step(self, step: int, *, lr: float, bank_fill: float | None) -> None:
        """Advance the bar; log means since the last line when it is time."""
        assert self.task_id is not None
        self.extra = {"lr": lr, **({} if bank_fill is None else {"bank_fill": bank_fill})}
        if step % self.plan.log_every_steps == 0 or step in (self.start_step + 1, self.num_steps):
            self._flush(step)
        self.bar.update(self.task_id, completed=step)

    def _flush(self, step: int) -> None:
        means = self.require_finite(step)
        seconds = time.perf_counter() - self.clock
        num_clips = len(self.values["loss"]) * self.plan.batch_size * self.accelerator.num_processes
        values = {**means, **self.extra, "clips_per_second": num_clips / seconds}
        if self.log is not None:
            self.log.write(step, values)
        if self.task_id is not None:
            self.bar.update(self.task_id, fields=_short(values, self.notes))
        self.values, self.clock = {}, time.perf_counter()

    def require_finite(self, step: int) -> dict[str, float]:
        """Means over processes since the last line; stops where one is no number, on all processes or none."""
        if not self.values:
            return {}
        names = sorted(self.values)
        local = torch.stack([torch.stack(self.values[name]).float().mean() for name in names])
        means = dict(zip(names, self.accelerator.reduce(local, reduction="mean").tolist(), strict=True))
        bad = [name for name, mean in means.items() if not math.isfinite(mean)]
        if not bad:
            return means
        is_bad = ~torch.stack([value.float() for value in self.values["loss"]]).isfinite()
        num_since = int((~is_bad.cummax(dim=0).values).sum())  # batches before the first bad one of this process
        first = step - (len(is_bad) - 1) // self.plan.accumulate + num_since // self.plan.accumulate
        if num_since < len(is_bad):  # else another process was first
            bad = [name for name, values in self.values.items() if not bool(values[num_since].isfinite())]
        terms = " and ".join(name for name in bad if name != "loss") or "loss"
        raise not_finite(f"the loss ({terms}) is", min(first, step), self.checkpoints)


def _short(values: dict[str, float], notes: str) -> str:
    parts = [f"loss {values['loss']:.3f}", f"lr {values['lr']:.1e}", f"{values['clips_per_second']:.0f} clips/s"]
    if "accuracy" in values:
        parts.append(f"accuracy {values['accuracy']:.2f}")
    if "bank_fill" in values:
        parts.append(f"bank {values['bank_fill']:.0%}")
    return "  ".join([*parts, notes] if notes else parts)
