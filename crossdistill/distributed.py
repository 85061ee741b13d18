"""Exchange between processes of what Accelerate does not carry: Python objects and decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")


def gather_objects(accelerator: Accelerator, items: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other, on every process."""
    if accelerator.num_processes == 1:
        return items
    lists: list[list[Any] | None] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(lists, items)
    return [item for part in lists for item in part or []]


def decide_on_first(accelerator: Accelerator, decide: Callable[[], Result]) -> Result:
    """Call a function on the first process only, and give every process its result.

    If it raises there, every process raises the same error, so that none waits for ever.
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
    result: Result = outcome[0]
    return result
