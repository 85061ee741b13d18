"""Set up the processes of a distributed run, and exchange Python objects between them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from crossdistill.errors import UserError
from crossdistill.utils.environment import num_cpu_cores

Result = TypeVar("Result")


def create_accelerator(*, accumulate: int = 1) -> Accelerator:
    """Return an Accelerator for the processes of this run, without mixed precision, which ``Execution`` chooses.

    Without a GPU, the processes of ``torchrun`` form a group on the CPU. By default, Accelerate would treat each as the
    only process, and all would write to the same folder. If Accelerate joins fewer processes than were started, it is a
    ``UserError``.

    Args:
        accumulate: Number of batches per optimizer step.
    """
    num_started = int(os.environ.get("WORLD_SIZE", "1"))
    is_cpu_group = num_started > 1 and not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=accumulate, cpu=is_cpu_group)
    if accelerator.num_processes != num_started:
        raise UserError(
            f"{num_started} processes were started, and Accelerate joins {accelerator.num_processes}: start them with "
            "accelerate launch and a file of configs/accelerate, or with torchrun"
        )
    return accelerator


def gather_objects(accelerator: Accelerator, items: list[Any]) -> list[Any]:
    """Return the concatenated lists of all processes, on every process."""
    if accelerator.num_processes == 1:
        return items
    lists: list[list[Any] | None] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(lists, items)
    return [item for part in lists for item in part or []]


def broadcast_buffers(accelerator: Accelerator, module: nn.Module) -> None:
    """Copy the buffers, such as running statistics of BatchNorm, from the first process to all processes."""
    if accelerator.num_processes > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def decide_on_first(accelerator: Accelerator, decide: Callable[[], Result]) -> Result:
    """Call a function on the first process only, and return its result on every process.

    If the function raises, every process raises the same error, so that none waits forever.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = decide()
        except Exception as error:  # noqa: BLE001 - raised again below, on every process
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def use_all_cores(accelerator: Accelerator) -> None:
    """Divide the cores of the machine among its processes, if they compute on the CPU.

    ``accelerate launch`` and ``torchrun`` set ``OMP_NUM_THREADS=1`` by default, with which each process uses one core.
    A value of 2 or more was set by the user and is kept.
    """
    if accelerator.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        num_local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(max(1, num_cpu_cores() // num_local_processes))
