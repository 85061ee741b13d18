"""Stop a loop between two steps after Ctrl-C, SIGTERM or SIGUSR1, on all processes after the same step."""

from __future__ import annotations

import os
import signal
import threading
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from crossdistill.errors import SAME_COMMAND, STOP_SIGNALS, Stopped

NOTICE = b"\nstopping after this step; the next Ctrl-C or signal stops at once\n"


class StopRequest:
    """Inside the block, the first of ``STOP_SIGNALS`` is noted, and the second raises ``Stopped``.

    Args:
        accelerator: The processes that stop together.

    Attributes:
        signal_number: The signal of this process; 0 before there is one.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.signal_number = 0
        self._handlers_before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                    self._handlers_before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        if self.signal_number and isinstance(error, RuntimeError):
            raise Stopped(
                SAME_COMMAND, signal_number=self.signal_number
            ) from error  # the signal ended the processes that load data as well

    def _note(self, signal_number: int, frame: object) -> None:
        if self.signal_number:
            raise Stopped(SAME_COMMAND, signal_number=signal_number)
        self.signal_number = signal_number
        # A signal to all processes of a job ends those that load data. PyTorch would raise that inside this step.
        self._handlers_before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self.accelerator.is_local_main_process:
            os.write(2, NOTICE)  # print() may be interrupted in the middle of print()
