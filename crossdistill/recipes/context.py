"""``RunContext``: configuration, datasets, folder and processes of a run."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator

from crossdistill.data.manifest import Manifest
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.hardware import choose_precision
from crossdistill.evaluation.settings import ReadSettings
from crossdistill.recipes.config import RunConfig
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.console import console
from crossdistill.utils.distributed import decide_on_first


@dataclass(frozen=True)
class BatchParts:
    """How the clips of one optimizer step are divided.

    Example:
        >>> print(BatchParts(num_processes=4, batch_size=3))
        12 clips a step (4 processes x 3)
    """

    num_processes: int
    batch_size: int
    """Clips per batch of one process."""
    accumulate: int = 1
    """Batches per step."""

    @property
    def clips_per_batch(self) -> int:
        """Clips of one batch of all processes."""
        return self.num_processes * self.batch_size

    @property
    def clips_per_step(self) -> int:
        """The global batch."""
        return self.clips_per_batch * self.accumulate

    @property
    def factors(self) -> str:
        """The division in words."""
        processes = f"{self.num_processes} process{'es' if self.num_processes > 1 else ''}"
        batches = f" x {self.accumulate} batches" if self.accumulate > 1 else ""
        return f"{processes} x {self.batch_size}{batches}"

    def __str__(self) -> str:
        return f"{self.clips_per_step} clips a step ({self.factors})"


@dataclass(frozen=True)
class Batches:
    """How the steps of a run were divided at its start, and how they are now: other processes may have resumed it."""

    start: BatchParts
    now: BatchParts


@dataclass(frozen=True)
class RunContext:
    """One run, before and while it trains."""

    config: RunConfig
    manifests: list[Manifest]
    folder: RunFolder
    accelerator: Accelerator
    batches: Batches
    """Their start has the sizes of ``config``."""

    def choose_execution(self, encoder: Encoder, *, is_trained: bool = False, is_sharded: bool = False) -> Execution:
        """Choose precision and memory layout of an encoder. All processes use the choice of the first."""
        return choose_execution(self.config, encoder, self.accelerator, is_trained=is_trained, is_sharded=is_sharded)

    @property
    def reading(self) -> ReadSettings:
        """How videos are read for evaluation."""
        data = self.config.data
        return ReadSettings(num_workers=self.config.machine.workers, decoder=data.decoder, short_clips=data.short_clips)

    def announce(self, text: str) -> None:
        """Print a line on the first process."""
        announce(self.accelerator, text)


def choose_execution(
    config: RunConfig,
    encoder: Encoder,
    accelerator: Accelerator,
    *,
    is_trained: bool = False,
    is_sharded: bool = False,
) -> Execution:
    """Choose precision and memory layout of an encoder. All processes use the choice of the first.

    Args:
        config: Configuration of the run.
        encoder: The network. It is moved to the device in place, unless it is sharded.
        accelerator: Determines the device.
        is_trained: Whether the encoder trains, so that its gradients are checked before ``auto`` takes bf16 on a CPU.
        is_sharded: Whether the encoder will be divided among the processes, which needs the usual layout.
    """
    batch_size = config.optimization.batch_size if is_trained else None
    setting, device = config.machine.precision, accelerator.device
    precision = decide_on_first(
        accelerator, lambda: choose_precision(encoder, setting=setting, device=device, training_batch_size=batch_size)
    )
    layout = "no" if is_sharded else config.machine.channels_last
    return Execution.choose(encoder, device=device, precision=precision, layout=layout, is_placed=not is_sharded)


def announce(accelerator: Accelerator, text: str) -> None:
    """Print a line on the first process, unwrapped so that paths can be copied from it."""
    if accelerator.is_main_process:
        console.print(text, highlight=False, soft_wrap=True)
