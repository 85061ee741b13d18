"""The training loop, from top to bottom.

Accelerate handles devices, processes, gradient accumulation and clipping. It does not handle precision: teacher and
student of one run may need different ones, so each encoder brings its own (``encoders/execution.py``), and fp16 its
gradient scaling (``gradient_scaling.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import nn

from crossdistill.data.dataset import PairedClips, make_loader
from crossdistill.data.entries import roots_of
from crossdistill.data.sampling import TrainingBatches
from crossdistill.data.stores import find_store
from crossdistill.distillation.task import Task
from crossdistill.encoders.compilation import compiled
from crossdistill.errors import SAME_COMMAND, OneProcessError, Stopped, UserError
from crossdistill.training.checkpoint import Checkpoints, CheckpointTimer
from crossdistill.training.gradient_scaling import GradientScaling
from crossdistill.training.monitor import Monitor
from crossdistill.training.resume import Resumable, TrainingState
from crossdistill.training.run_folder import MetricsLog, RunFolder
from crossdistill.types import PairedBatch, StepOutput
from crossdistill.utils.console import console
from crossdistill.utils.distributed import largest_of_processes
from crossdistill.utils.stopping import StopRequest

MAX_LISTED_UNREADABLE = 20
MIN_LINES = 20
"""Lines of curves that a run has at least, if it has so many steps."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a training run besides the task and the data."""

    num_epochs: int
    batch_size: int
    """Clips per batch of one process."""
    accumulate: int
    """Batches per optimizer step."""
    epoch_multiple: int
    """See ``TrainingBatches``."""
    learning_rate: Callable[[int, int, int], float]
    """(step, steps of the run, steps of an epoch) to learning rate."""
    clip_norm: float
    """Maximum norm of the gradient; 0 disables clipping."""
    seed: int
    num_workers: int
    checkpoint_every_steps: int
    """Optimizer steps between two checkpoints; 0 for one checkpoint per epoch."""
    checkpoint_every_minutes: float
    """Minutes after which there is a checkpoint beside these; 0 for none."""
    log_every_steps: int
    evaluate_every_steps: Callable[[int, int], int]
    """(steps of the run, steps of an epoch) to steps between two evaluations."""
    max_unreadable: float
    """Share of the clips that may turn out unreadable before the run stops."""
    tracker: str
    is_compiled: bool


def train(
    task: Task,
    dataset: PairedClips,
    optimizer: torch.optim.Optimizer,
    *,
    plan: TrainingPlan,
    accelerator: Accelerator,
    folder: RunFolder,
    evaluate: Callable[[], dict[str, float]] | None = None,
    description: str = "training",
) -> TrainingState:
    """Train a task to the end of its plan, from its newest checkpoint if there is one, and return the final state.

    Ctrl-C, SIGTERM and SIGUSR1 raise ``Stopped`` after a step, once its checkpoint is written.

    Args:
        task: What is trained.
        dataset: The training clips.
        optimizer: Over ``task.trainable``.
        plan: How long, how fast, how often.
        accelerator: Devices and processes.
        folder: Gets checkpoints, curves and the tracker's files.
        evaluate: Called from time to time; its numbers go into the curves.
        description: The text of the progress bar.
    """
    model, optimizer = accelerator.prepare(task.trainable, optimizer)
    accelerator.gradient_accumulation_steps = plan.accumulate
    task.wrap(lambda _: compiled(model, name=task.trainable.encoder.name) if plan.is_compiled else model)
    batches = _create_batches(plan, accelerator, num_samples=len(dataset))
    num_steps, num_clips = _count_steps(len(batches), plan.accumulate), _count_clips(batches, plan.accumulate)
    steps_per_epoch = max(1, num_clips["samples_per_epoch"] // num_clips["samples_per_step"])
    scaling = GradientScaling(task.execution.precision, accelerator.device)
    resumable = Resumable(Checkpoints(folder.checkpoints), task, model, optimizer, scaling, accelerator, num_clips)
    state = resumable.restore(seed=plan.seed)
    state.unreadable = _of_present_data(state.unreadable, dataset)
    batches = replace(batches, start_batch=state.step * plan.accumulate)
    checkpoint_every = plan.checkpoint_every_steps or steps_per_epoch
    evaluate_every = plan.evaluate_every_steps(num_steps, steps_per_epoch) if evaluate else num_steps + 1
    loader = make_loader(dataset, batches, num_workers=plan.num_workers, pin_memory=accelerator.device.type == "cuda")
    started = time.perf_counter() - state.seconds
    monitor = _create_monitor(folder, plan, accelerator, state.step, num_steps, batches, started, description, dataset)
    task.train()
    timer = CheckpointTimer(plan.checkpoint_every_minutes if accelerator.is_main_process else 0)
    with monitor, StopRequest(accelerator) as stop:
        if evaluate is not None and state.step and state.step % evaluate_every == 0 and monitor.lacks_evaluation:
            monitor.note(state.step, evaluate())  # the run ended between checkpoint and evaluation
        for batch in monitor.watch(loader) if state.step < num_steps else ():
            _count_unreadable(state, batch, plan, accelerator, len(dataset))
            lr = plan.learning_rate(state.step, num_steps, steps_per_epoch)
            output, has_moved = _step(
                task, model, optimizer, scaling, batch, lr=lr, clip_norm=plan.clip_norm, accelerator=accelerator
            )
            monitor.add(output)
            if not accelerator.sync_gradients:
                continue  # the optimizer steps every `accumulate` batches
            task.after_step(has_moved=has_moved)
            # A skipped step counts too: the rate and the place in the data follow the batches.
            state.step += 1
            state.num_skipped += not has_moved
            monitor.finish_step(state.step, lr=lr, bank_fill=task.bank_fill)
            is_due = evaluate is not None and state.step % evaluate_every == 0
            stopped_by, is_time = largest_of_processes(accelerator, stop.signal_number, timer.is_over)
            if is_due or state.step % checkpoint_every == 0 or state.step == num_steps or stopped_by or is_time:
                state.seconds = time.perf_counter() - started
                monitor.require_finite(state.step)
                resumable.save(state)
                timer.restart()
            if stopped_by:
                raise Stopped(SAME_COMMAND, signal_number=stopped_by)
            # After saving, because it may take longer than a cluster waits between its signal and the end.
            if evaluate is not None and is_due:
                with monitor.pause():
                    monitor.note(state.step, evaluate())
            if state.step == num_steps:
                break
    if accelerator.is_main_process:
        _report(state)
    accelerator.free_memory()  # else the next run of this process would keep this run's optimizer
    return state


def _step(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaling: GradientScaling,
    batch: PairedBatch,
    *,
    lr: float,
    clip_norm: float,
    accelerator: Accelerator,
) -> tuple[StepOutput, bool]:
    """Run forward and backward on one batch, and the optimizer if enough batches have been accumulated.

    Return the loss, and whether the optimizer moved the weights.
    """
    has_moved = False
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    with accelerator.accumulate(model):
        output = task(batch.to(accelerator.device))
        accelerator.backward(scaling.scale(output.loss))
        if accelerator.sync_gradients:
            scaling.unscale(optimizer)
            if clip_norm:
                accelerator.clip_grad_norm_(model.parameters(), clip_norm)
            has_moved = scaling.step(optimizer)
        optimizer.zero_grad()
    return output, has_moved


def _create_batches(plan: TrainingPlan, accelerator: Accelerator, *, num_samples: int) -> TrainingBatches:
    return TrainingBatches(
        num_samples=num_samples,
        batch_size=plan.batch_size,
        num_epochs=plan.num_epochs,
        seed=plan.seed,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        epoch_multiple=plan.epoch_multiple,
    )


def _count_clips(batches: TrainingBatches, accumulate: int) -> dict[str, int]:
    """Return the clips of the data, of an epoch and of a step, which must stay the same when a run is resumed."""
    return {
        "num_samples": batches.num_samples,
        "samples_per_epoch": batches.samples_per_epoch,
        "samples_per_step": batches.batch_size * accumulate * batches.num_processes,
    }


def _count_steps(num_batches: int, accumulate: int) -> int:
    """Return the number of optimizer steps of a run. Raise a ``UserError`` if it is 0."""
    if num_batches < accumulate:
        raise UserError(
            f"--accumulate {accumulate} needs {accumulate} batches per optimizer step, and the whole run has "
            f"{num_batches}: lower it or --batch-size, or raise --epochs"
        )
    return num_batches // accumulate


def _create_monitor(
    folder: RunFolder,
    plan: TrainingPlan,
    accelerator: Accelerator,
    start_step: int,
    num_steps: int,
    batches: TrainingBatches,
    started: float,
    description: str,
    dataset: PairedClips,
) -> Monitor:
    is_main = accelerator.is_main_process
    return Monitor(
        MetricsLog(folder, start_step=start_step + 1, tracker=plan.tracker) if is_main else None,
        accelerator=accelerator,
        batch_size=plan.batch_size,
        log_every_steps=max(1, min(plan.log_every_steps, num_steps // MIN_LINES)),
        start_step=start_step,
        num_steps=num_steps,
        steps_per_epoch=batches.samples_per_epoch / (plan.batch_size * plan.accumulate * accelerator.num_processes),
        started=started,
        description=description,
        remedies=_faster_reading(dataset),
    )


def _faster_reading(dataset: PairedClips) -> list[str]:
    """Return what makes the clips of a dataset faster to read, other than what it does already."""
    remedies = ["give more --workers if cores are free"]
    if any(find_store(root) is not None for root in roots_of(dataset.entries)):
        remedies.append("copy the shards to a disk of this machine, or link them with a larger --copy-size")
    # The first video stands for all: a list of millions is not read for a sentence.
    if dataset.decoded is None and any(each.is_video for each in dataset.entries[0].video.streams.values()):
        remedies.append("keep decoded videos in memory if they fit (--keep-decoded-gb)")
    remedies.append("prepare smaller ones (--short-side)")
    if any(dataset.is_read[1:]):
        remedies.append("cache the teacher (crossdistill cache): then its view is not read")
    return remedies


def _of_present_data(unreadable: dict[str, str], dataset: PairedClips) -> dict[str, str]:
    """Leave out videos below another folder: the data was moved since, and its videos are found unreadable again."""
    folders = tuple(f"{root}/" for root in roots_of(dataset.entries))
    return {video: reason for video, reason in unreadable.items() if video.startswith(folders)}


def _count_unreadable(
    state: TrainingState, batch: PairedBatch, plan: TrainingPlan, accelerator: Accelerator, num_samples: int
) -> None:
    """Record unreadable videos. Raise if there are too many, or if a batch could not be filled."""
    state.unreadable.update(batch.unreadable)
    is_short = len(batch) < plan.batch_size
    if is_short or len(state.unreadable) > plan.max_unreadable * num_samples:
        video, reason = next(iter(state.unreadable.items()))
        limit = "no other clip could replace one" if is_short else f"over --max-unreadable {plan.max_unreadable}"
        raise OneProcessError(
            f"{len(state.unreadable)} of {num_samples} clips could not be read ({limit}; {video}: {reason}): "
            "repair the data or raise the limit, then add --resume"
        )


def _report(state: TrainingState) -> None:
    """Say which clips could not be read, and how many steps were skipped."""
    if state.num_skipped:
        console.print(f"{state.num_skipped} of {state.step} steps were skipped: their gradients overflowed in fp16")
    if state.unreadable:
        console.print(f"{len(state.unreadable)} clips could not be read; other clips replaced them:", style="yellow")
        for video, reason in sorted(state.unreadable.items())[:MAX_LISTED_UNREADABLE]:
            console.print(f"  {video}: {reason}", highlight=False)
