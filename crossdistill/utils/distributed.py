"""Set up the processes of a distributed run, exchange Python objects between them, and end them together.

Processes wait for each other in a group of their own, on the CPU and with the limit ``MAX_WAIT``. In the default group
a wait of ten minutes (NCCL) or thirty (gloo) is an error, and one process alone may work longer: it evaluates, prepares
data, or waits for another run.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import distributed, nn

from crossdistill.errors import STOP_SIGNALS, UserError
from crossdistill.utils.environment import num_cpu_cores

Result = TypeVar("Result")
MAX_WAIT = timedelta(days=30)
LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
"""Set by ``torchrun`` and by ``accelerate launch`` for the processes that they start."""
# The waiting group of a default group. Both are None in a run of one process.
_waiting_groups: dict[Any, Any] = {}


def create_accelerator() -> Accelerator:
    """Return an Accelerator for the processes of this run, without mixed precision, which ``Execution`` chooses.

    Without a GPU, the processes of ``torchrun`` form a group on the CPU. By default, Accelerate would treat each as the
    only process, and all would write to the same folder. If Accelerate joins fewer processes than were started, it is a
    ``UserError``.
    """
    num_started = int(os.environ.get("WORLD_SIZE", "1"))
    is_cpu_group = num_started > 1 and not torch.cuda.is_available()
    with _ended_by_signals() if num_started > 1 else contextlib.nullcontext():
        if num_started > 1:
            _join_after_restart("gloo" if is_cpu_group else "nccl")
        accelerator = Accelerator(mixed_precision="no", cpu=is_cpu_group)
        if accelerator.num_processes > 1:
            _waiting_group()
    if accelerator.num_processes != num_started:
        raise UserError(
            f"{num_started} processes were started, and Accelerate joins {accelerator.num_processes}: start them with "
            "accelerate launch and a file of configs/accelerate, or with torchrun"
        )
    if num_started > 1:
        atexit.register(_destroy_cpu_groups)
    return accelerator


def _join_after_restart(backend: str) -> None:
    """Form the group of processes that ``torchrun`` has started again on one machine.

    ``torchrun`` keeps the store in which processes find each other's addresses, and PyTorch (2.5 and later) would read
    those of the processes that have ended. On several machines the count of restarts is not the same everywhere, and
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` gives each start a store of its own.
    """
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    if count == "0" or not is_kept or distributed.is_initialized():
        return
    rank, num_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    kept = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), num_processes, False)
    store = distributed.PrefixStore(f"restart-{count}", kept)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=num_processes)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal end the process inside the block, with the same exit status as otherwise.

    PyTorch waits for the other processes outside Python, where no handler of Python would run. A process that was
    ended before it joined would leave the others waiting. Nothing is lost here.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS if is_main}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _waiting_group() -> Any:
    """Return the group in which processes wait for each other. All processes make it, at its first use."""
    default = distributed.group.WORLD
    if default not in _waiting_groups:
        _waiting_groups[default] = distributed.new_group(backend="gloo", timeout=MAX_WAIT)
    return _waiting_groups[default]


def gather_objects(accelerator: Accelerator, items: list[Any]) -> list[Any]:
    """Return the concatenated lists of all processes, on every process. Processes may be late by ``MAX_WAIT``."""
    if accelerator.num_processes == 1:
        return items
    lists: list[list[Any] | None] = [None] * accelerator.num_processes
    distributed.all_gather_object(lists, items, group=_waiting_group())
    return [item for part in lists for item in part or []]


def largest_of_processes(accelerator: Accelerator, *numbers: int) -> tuple[int, ...]:
    """Return on every process the largest of each number over all processes. It does not wait for the GPU."""
    if accelerator.num_processes == 1:
        return numbers
    largest = torch.tensor(numbers)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX, group=_waiting_group())
    return tuple(largest.tolist())


def broadcast_buffers(accelerator: Accelerator, module: nn.Module) -> None:
    """Copy the buffers, such as running statistics of BatchNorm, from the first process to all processes."""
    if accelerator.num_processes > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def decide_on_first(accelerator: Accelerator, decide: Callable[[], Result]) -> Result:
    """Call a function on the first process only, and return its result on every process.

    The others wait as long as it takes, up to ``MAX_WAIT``. If the function raises, every process raises the same
    error, so that none waits forever.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = decide()
        except Exception as error:  # noqa: BLE001 - raised again below, on every process
            outcome[1] = error
    if accelerator.num_processes > 1:
        distributed.broadcast_object_list(outcome, group=_waiting_group())
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextlib.contextmanager
def ending_processes() -> Iterator[None]:
    """End the process group after the block, unless it raises. All processes wait for the last one.

    A process that exits with a group may abort, because the group's threads still run.
    """
    yield
    if distributed.is_initialized():
        distributed.barrier(group=_waiting_group())
        _destroy_groups()


def _destroy_cpu_groups() -> None:
    """End the groups of a process that exits with an error, or without a command.

    The others may be inside an operation of the group. NCCL would wait for them, gloo does not.
    """
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        _destroy_groups()


def _destroy_groups() -> None:
    _waiting_groups.clear()
    distributed.destroy_process_group()


def use_all_cores(accelerator: Accelerator) -> None:
    """Divide the cores of the machine among its processes, if they compute on the CPU.

    ``accelerate launch`` and ``torchrun`` set ``OMP_NUM_THREADS=1`` by default, with which each process uses one core.
    Any other value was set by the user and is kept, and so is 1 without these programs. On cores that other work keeps
    busy one thread is far faster than several, which wait for each other.
    """
    is_launched = any(name in os.environ for name in LAUNCHER_VARIABLES)
    of_user = os.environ.get("OMP_NUM_THREADS")
    if accelerator.device.type == "cpu" and (of_user is None or (of_user == "1" and is_launched)):
        num_local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(max(1, num_cpu_cores() // num_local_processes))
