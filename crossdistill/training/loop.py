"""The training loop, from top to bottom.

Accelerate does devices, processes, accumulation and clipping. Precision is chosen per encoder
(``hardware.py``), because teacher and student of one command may need different ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from crossdistill.data.dataset import PairedClips, make_loader
from crossdistill.data.sampling import TrainingBatches
from crossdistill.errors import OneProcessError, UserError
from crossdistill.training.checkpoint import Checkpoints, load_optimizer_state, optimizer_state
from crossdistill.training.monitor import CHECKPOINTS_NAME, Monitor, TrainingPlan, not_finite
from crossdistill.training.task import Task
from crossdistill.types import PairedBatch, StepOutput
from crossdistill.utils.console import console
from crossdistill.utils.distributed import decide_on_first, gather_objects


@dataclass
class TrainingState:
    """What changes while training besides weights, optimizer, bank and generators."""

    step: int = 0
    """Optimizer steps done."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Dataset/video to reason."""
    seconds: float = 0.0
    """Time that training took, in all the processes that it was resumed in."""


def train(
    task: Task,
    dataset: PairedClips,
    optimizer: torch.optim.Optimizer,
    *,
    plan: TrainingPlan,
    accelerator: Accelerator,
    folder: Path,
    evaluate: Callable[[], dict[str, float]] | None = None,
    description: str = "training",
) -> TrainingState:
    """Train a task to the end of its plan, from its newest checkpoint if there is one.

    Args:
        task: What is trained.
        dataset: Where its batches come from.
        optimizer: Over ``task.trainable``.
        plan: How long, how fast, how often.
        accelerator: Devices and processes.
        folder: Gets ``checkpoints/``, ``metrics.jsonl`` and TensorBoard's files.
        evaluate: Called from time to time; its numbers go into the curves.
        description: What the progress bar says.

    Returns:
        The final state, with the videos that could not be read.
    """
    started = time.perf_counter()
    checkpoints = Checkpoints(folder / CHECKPOINTS_NAME)
    model, optimizer = accelerator.prepare(task.trainable, optimizer)
    state = _resume(checkpoints, task, model, optimizer, accelerator, seed=plan.seed, num_samples=len(dataset))
    batches = TrainingBatches(
        num_samples=len(dataset),
        batch_size=plan.batch_size,
        num_epochs=plan.num_epochs,
        seed=plan.seed,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        start_batch=state.step * plan.accumulate,
    )
    steps_per_epoch = max(1, batches.batches_per_epoch // plan.accumulate)
    num_steps = _count_steps(batches.batches_per_epoch * plan.num_epochs, plan.accumulate)
    started -= state.seconds
    checkpoint_every = plan.checkpoint_every_steps or steps_per_epoch
    evaluate_every = plan.evaluate_every_steps(num_steps, steps_per_epoch) if evaluate else 0
    loader = make_loader(dataset, batches, num_workers=plan.num_workers, pin_memory=accelerator.device.type == "cuda")
    monitor = Monitor(
        folder, plan=plan, accelerator=accelerator, description=description, start_step=state.step, num_steps=num_steps
    )
    outputs: list[StepOutput] = []
    task.trainable.train()
    with monitor:
        for batch in loader if state.step < num_steps else ():
            _count_unreadable(state, batch, plan, accelerator, len(dataset))
            lr = plan.learning_rate(state.step, num_steps, steps_per_epoch)
            output = _descend(task, model, optimizer, batch, lr=lr, clip_norm=plan.clip_norm, accelerator=accelerator)
            outputs.append(output)
            monitor.add(output)
            if not accelerator.sync_gradients:
                continue
            task.after_step(outputs)
            outputs.clear()
            state.step += 1
            monitor.finish_step(state.step, lr=lr, bank_fill=task.bank_fill)
            # Evaluated before it is saved: whoever goes on after a step has its evaluation in the curves.
            if evaluate is not None and evaluate_every and state.step % evaluate_every == 0:
                monitor.require_finite(state.step)
                _require_finite(model.parameters(), state.step, checkpoints)
                with monitor.pause():
                    monitor.note(state.step, evaluate())
            if state.step % checkpoint_every == 0 or state.step == num_steps:
                state.seconds = time.perf_counter() - started
                monitor.require_finite(state.step)
                _save(checkpoints, state, task, model, optimizer, accelerator, len(dataset))
            if state.step == num_steps:
                break
    _report_unreadable(state, accelerator)
    accelerator.free_memory()  # or the next run of this process would keep this one's optimizer
    return state


def _descend(
    task: Task,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: PairedBatch,
    *,
    lr: float,
    clip_norm: float,
    accelerator: Accelerator,
) -> StepOutput:
    """Forward and backward of one batch; weights move when as many batches as one step takes have been added up."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    with accelerator.accumulate(model):
        output = task.compute(model, batch.to(accelerator.device))
        accelerator.backward(output.loss)
        if accelerator.sync_gradients and clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    return output


def _count_steps(num_batches: int, accumulate: int) -> int:
    """Optimizer steps of a run, at least one."""
    if num_batches < accumulate:
        raise UserError(
            f"--accumulate {accumulate} wants more batches for one step than the {num_batches} of the whole run: "
            "lower it or --batch-size, or raise --epochs"
        )
    return num_batches // accumulate


def _require_finite(weights: Iterable[Tensor], step: int, checkpoints: Checkpoints) -> None:
    """Stop before weights that are not numbers are saved over good ones."""
    if not all(bool(torch.isfinite(value).all()) for value in weights):
        raise not_finite("weights are", step, checkpoints)


def _count_unreadable(
    state: TrainingState, batch: PairedBatch, plan: TrainingPlan, accelerator: Accelerator, num_samples: int
) -> None:
    """Remember unreadable videos; stop where they are too many or a batch is no longer full."""
    state.unreadable.update(batch.unreadable)
    is_short = len(batch) < plan.batch_size
    if is_short or len(state.unreadable) > plan.max_unreadable * num_samples:
        video, reason = next(iter(state.unreadable.items()))
        limit = "no other clip could stand in" if is_short else f"over --max-unreadable {plan.max_unreadable}"
        raise OneProcessError(
            f"{len(state.unreadable)} of {num_samples} clips could not be read ({limit}; {video}: {reason}): "
            "repair the data or raise the limit, then add --resume"
        )


def _report_unreadable(state: TrainingState, accelerator: Accelerator) -> None:
    if state.unreadable and accelerator.is_main_process:
        console.print(f"{len(state.unreadable)} clips could not be read; others stood in for them:", style="yellow")
        for video, reason in sorted(state.unreadable.items())[:20]:
            console.print(f"  {video}: {reason}", highlight=False)


def _resume(
    checkpoints: Checkpoints,
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    *,
    seed: int,
    num_samples: int,
) -> TrainingState:
    """Take over the newest whole checkpoint, if there is one."""
    found: list[dict[str, Any]] = []  # on the first process, which has to read it to know that it is whole

    def find_newest() -> int | None:
        step, content = checkpoints.load_newest() or (None, {})
        found.append(content)
        return step

    newest = decide_on_first(accelerator, find_newest)
    if newest is None:
        torch.manual_seed(seed + accelerator.process_index)  # dropout differs between processes
        return TrainingState()
    content = found[0] if found else checkpoints.load(newest)
    generators = content["generators"]
    if len(generators) != accelerator.num_processes or content["num_samples"] != num_samples:
        raise UserError(
            f"the run was started with {len(generators)} process(es) and {content['num_samples']} clips, now there are "
            f"{accelerator.num_processes} and {num_samples}: resume it with what it was started with"
        )
    accelerator.unwrap_model(model).load_state_dict(content["trainable"])
    load_optimizer_state(optimizer, content["optimizer"])
    task.load_state_dict(content["task"])
    _set_generator_state(generators[accelerator.process_index])
    if accelerator.is_main_process:
        console.print(f"going on after step {newest}")
    return TrainingState(step=newest, unreadable=content["unreadable"], seconds=content.get("seconds", 0.0))


def _save(
    checkpoints: Checkpoints,
    state: TrainingState,
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    num_samples: int,
) -> None:
    """Write everything that a resumed run needs; on every process, because generators are gathered."""
    _require_finite(model.parameters(), state.step, checkpoints)  # equal on all processes, so all stop or none
    generators = gather_objects(accelerator, [_generator_state()])
    state.unreadable.update(gather_objects(accelerator, list(state.unreadable.items())))
    content: dict[str, Any] = {
        "trainable": accelerator.unwrap_model(model).state_dict(),
        "optimizer": optimizer_state(optimizer),
        "task": task.state_dict(),
        "generators": generators,
        "unreadable": state.unreadable,
        "seconds": state.seconds,
        "num_samples": num_samples,
    }
    decide_on_first(accelerator, lambda: str(checkpoints.save(state.step, content)))


def _generator_state() -> dict[str, Tensor]:
    """Of torch; nothing here draws from Python's or NumPy's global generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_generator_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
