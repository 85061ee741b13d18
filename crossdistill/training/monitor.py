"""The progress bar and the curves of a run."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from rich.progress import Progress, TaskID
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.training.run_folder import MetricsLog
from crossdistill.types import StepOutput
from crossdistill.utils.console import console, progress_bar
from crossdistill.utils.distributed import decide_on_first, largest_of_processes

Batch = TypeVar("Batch")
REMEDY = "lower --lr, add --clip-norm 1 or choose --precision fp32, and start again in another --out"

MUCH_WAITING = 0.1
"""Share of the time of a step that training may wait for clips."""
WAITING_LINES = 5
"""Lines of the curves in a row with more than that, before advice is given."""


class Monitor:
    """Progress bar and curves of one run. All processes compute the means; the first one shows and writes them.

    Args:
        log: The curves; None on the other processes.
        accelerator: Averages over the processes.
        batch_size: Clips per batch of one process.
        log_every_steps: Steps between two lines of the curves.
        start_step: Optimizer steps that are already done.
        num_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of an epoch, for the curves; an epoch may end inside a step.
        started: Value of ``time.perf_counter()`` when the run began, moved by the time that it was stopped.
        description: The text of the progress bar.
        remedies: What would help if training waited for clips, at least two things.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        *,
        accelerator: Accelerator,
        batch_size: int,
        log_every_steps: int,
        start_step: int,
        num_steps: int,
        steps_per_epoch: float,
        started: float,
        description: str,
        remedies: Sequence[str],
    ) -> None:
        self.remedies = remedies
        self.log, self.accelerator, self.batch_size = log, accelerator, batch_size
        self.log_every_steps, self.start_step, self.num_steps = log_every_steps, start_step, num_steps
        self.steps_per_epoch, self.started, self.wait_seconds = steps_per_epoch, started, 0.0
        self.bar: Progress = progress_bar("fields", unit="steps", is_shown=accelerator.is_main_process)
        self.task_id: TaskID = self.bar.add_task(description, total=num_steps, completed=start_step, fields="")
        self.values: dict[str, list[Tensor]] = {}
        self.notes, self.shown = "", ""
        self.num_waiting_lines, self.is_advised = 0, False
        self.clock = time.perf_counter()

    def __enter__(self) -> Monitor:
        self.bar.start()
        self.clock = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        if self.log is not None:
            self.log.close()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure how long training waits for them."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.wait_seconds += time.perf_counter() - asked
            yield batch

    def add(self, output: StepOutput) -> None:
        """Record one batch, without waiting for the device."""
        for name, value in {"loss": output.loss.detach(), **output.terms}.items():
            self.values.setdefault(name, []).append(value)

    def finish_step(self, step: int, *, lr: float, bank_fill: float | None) -> None:
        """Advance the bar; log the means since the last line when it is time."""
        if step % self.log_every_steps == 0 or step in (self.start_step + 1, self.num_steps):
            state = {"lr": lr} if bank_fill is None else {"lr": lr, "bank_fill": bank_fill}
            self._log_means(step, state)
        self.bar.update(self.task_id, completed=step, fields=f"epoch {step / self.steps_per_epoch:.1f}  {self.shown}")

    def note(self, step: int, values: dict[str, float]) -> None:
        """Log the numbers of an evaluation, and show them in the bar from now on."""
        self.notes = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        if self.log is not None and values:
            self.log.write(step, {**values, **self._when(step, time.perf_counter())})

    @property
    def lacks_evaluation(self) -> bool:
        """Whether the curves have no evaluation of the step at which the run starts. All processes call this."""
        return decide_on_first(self.accelerator, lambda: self.log is not None and not self.log.starts_evaluated)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time of the block from clips/s."""
        started = time.perf_counter()
        yield
        self.clock += time.perf_counter() - started

    def require_finite(self, step: int) -> dict[str, float]:
        """Return the mean of each value over all processes since the last logged line, and check that it is finite.

        Raises:
            UserError: One of them is NaN or infinite. Every process raises, because the means are equal on all.
        """
        if not self.values:
            return {}
        names = sorted(self.values)
        local = torch.stack([torch.stack(self.values[name]).float().mean() for name in names])
        means = dict(zip(names, self.accelerator.reduce(local, reduction="mean").tolist(), strict=True))
        bad = [name for name, mean in means.items() if not math.isfinite(mean)]
        if bad:
            first, terms = self._first_bad_step(step, bad)
            named = " and ".join(name for name in terms if name != "loss") or "loss"
            raise UserError(f"NaN or infinite loss ({named}) at step {first}: {REMEDY}")
        return means

    def _first_bad_step(self, step: int, bad: list[str]) -> tuple[int, list[str]]:
        """Find this process's first bad batch: its step and terms; ``step`` and ``bad`` if other processes had it."""
        is_finite = torch.stack(self.values["loss"]).float().isfinite().tolist()
        if False not in is_finite:
            return step, bad
        batch = is_finite.index(False)
        num_later_steps = (len(is_finite) - 1 - batch) // self.accelerator.gradient_accumulation_steps
        return step - num_later_steps, [name for name, values in self.values.items() if not values[batch].isfinite()]

    def _when(self, step: int, now: float) -> dict[str, float]:
        return {"epoch": step / self.steps_per_epoch, "seconds": now - self.started}

    def _log_means(self, step: int, state: dict[str, float]) -> None:
        means = self.require_finite(step)
        num_clips = len(self.values["loss"]) * self.batch_size * self.accelerator.num_processes
        now = time.perf_counter()
        # The slowest process decides: the others wait for it in the step.
        (wait_us,) = largest_of_processes(self.accelerator, int(1e6 * self.wait_seconds))
        values = {
            **means,
            **state,
            "clips_per_second": num_clips / (now - self.clock),
            "data_wait": wait_us / 1e6 / (now - self.clock),
            **self._when(step, now),
        }
        if self.log is not None:
            self.log.write(step, values)
            self._advise(values["data_wait"])
        terms = [name for name in means if name not in ("loss", "accuracy")]
        self.shown = _bar_text(values, terms, self.notes)
        self.values, self.clock, self.wait_seconds = {}, now, 0.0

    def _advise(self, data_wait: float) -> None:
        """Say once what helps, when training has waited for clips over several lines of the curves in a row."""
        self.num_waiting_lines = self.num_waiting_lines + 1 if data_wait > MUCH_WAITING else 0
        if self.num_waiting_lines == WAITING_LINES and not self.is_advised:
            self.is_advised = True
            *others, last = self.remedies
            console.print(
                f"training waits for clips in {data_wait:.0%} of its time: {', '.join(others)}, or {last}",
                highlight=False,
                soft_wrap=True,
            )


def _bar_text(values: dict[str, float], terms: Collection[str], notes: str) -> str:
    """Return the numbers of the bar, the ones that matter most first: a narrow terminal cuts the text at its end."""
    parts = [f"loss {values['loss']:.3f}"]
    parts += [f"{name} {values[name]:.3f}" for name in terms] if len(terms) > 1 else []
    parts += [f"accuracy {values['accuracy']:.2f}"] if "accuracy" in values else []
    parts += [notes] if notes else []
    parts += [f"bank {values['bank_fill']:.0%}"] if "bank_fill" in values else []
    speed = f"{values['clips_per_second']:.0f} clips/s"
    return "  ".join([*parts, speed, f"waiting {values['data_wait']:.0%}", f"lr {values['lr']:.1e}"])
