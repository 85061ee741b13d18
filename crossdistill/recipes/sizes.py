"""The batch and the memory bank of a run, where its configuration leaves them to the data.

A run keeps the global batch that it started with, however many processes resume it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from accelerate import Accelerator

from crossdistill.errors import UserError
from crossdistill.recipes.config import OptimizationConfig, RunConfig, with_current_names
from crossdistill.recipes.context import Batches, BatchParts, announce
from crossdistill.training.checkpoint import Checkpoints
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.distributed import decide_on_first

PAPER_BATCH_SIZE = 256
PAPER_BANK_SIZE = 128_000
# An epoch of fewer steps than this is too little for the paper's learning rate and number of epochs.
MIN_STEPS_PER_EPOCH = 16
# A smaller batch has too few clips for BatchNorm.
SMALLEST_BATCH_SIZE = 16


def batch_size_for(num_clips: int, num_processes: int = 1) -> int:
    """Choose the clips per batch of one process: the paper's 256 from 4,096 clips on, fewer below.

    Example:
        >>> [batch_size_for(num_clips) for num_clips in (10_000, 1_000, 62, 5)]
        [256, 62, 16, 5]
    """
    wanted = max(SMALLEST_BATCH_SIZE, num_clips // (MIN_STEPS_PER_EPOCH * num_processes))
    return max(1, min(PAPER_BATCH_SIZE, wanted, num_clips // num_processes))


def bank_size_for(num_clips: int) -> int:
    """Choose the number of anchors: the paper's 128,000, but no clip more than once."""
    return max(1, min(PAPER_BANK_SIZE, num_clips))


SIZES = ("optimization.batch_size", "optimization.accumulate", "objective.bank_size")
"""Fields of a run's configuration that ``fit_to_data`` decides."""


@dataclass(frozen=True)
class Start:
    """What the folder of a run says about its start; nothing if no run started there."""

    is_begun: bool = False
    """Whether there is a checkpoint or a student, so that the run must go on with the same global batch."""
    num_processes: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    bank_size: int | None = None

    @staticmethod
    def of(folder: RunFolder) -> Start:
        """Read what a folder says."""
        if not folder.config.is_file():
            return Start()
        content = folder.read_config()
        written = with_current_names(content["configuration"])
        optimization = written.get("optimization", {})
        return Start(
            is_begun=folder.is_started,
            num_processes=content.get("num_processes") or Checkpoints(folder.checkpoints).num_processes_of_newest(),
            batch_size=optimization.get("batch_size"),
            accumulate=optimization.get("accumulate", 1),
            bank_size=written.get("objective", {}).get("bank_size"),
        )


def fit_to_data(
    config: RunConfig, num_clips: int, folder: RunFolder, accelerator: Accelerator, *, like: Batches | None = None
) -> tuple[RunConfig, Batches]:
    """Choose the batch size and the bank size if the configuration has none, and say so.

    A resumed run keeps the bank size and the global batch of its start, also those that were defaults of version 0.1.

    Args:
        config: Configuration of the run.
        num_clips: Number of training clips.
        folder: The run's folder.
        accelerator: The processes that train.
        like: The batches of another run that this one is a part of, and whose options ``config`` has.

    Returns:
        The configuration with the sizes of the run's start, and how its steps are divided into batches.

    Raises:
        UserError: The processes, or the options that are new, cannot have the global batch of the start.
    """
    start = decide_on_first(accelerator, lambda: Start.of(folder) if config.machine.resume else Start())
    batches = _batches_of(config, start, num_clips, accelerator.num_processes, like)
    batch_size, bank_size = batches.start.batch_size, config.objective.bank_size
    chosen: list[str] = []
    if config.optimization.batch_size is None and batch_size != PAPER_BATCH_SIZE:
        chosen.append(f"--batch-size {batch_size}")
    if bank_size is None:
        bank_size = start.bank_size or bank_size_for(num_clips)
        chosen += [f"--bank-size {bank_size}"] if bank_size != PAPER_BANK_SIZE and not config.pair.supervised else []
    if chosen and start == Start():
        announce(accelerator, f"chosen for {num_clips} training clips: {' and '.join(chosen)}")
    if start.is_begun and batches.now != batches.start:
        announce(accelerator, _what_changes(batches))
    optimization = replace(config.optimization, batch_size=batch_size, accumulate=batches.start.accumulate)
    return replace(config, optimization=optimization, objective=replace(config.objective, bank_size=bank_size)), batches


def _batches_of(config: RunConfig, start: Start, num_clips: int, num_processes: int, like: Batches | None) -> Batches:
    """Return the batches that a folder's run started with, those of ``like``, or new ones."""
    options = config.optimization
    before = None
    if start.batch_size is not None:
        before = BatchParts(start.num_processes or num_processes, start.batch_size, start.accumulate)
        if not start.is_begun and not _is_as_at_start(before, options):
            before = None  # nothing would be lost: the run starts again, with other options
    if like is not None and before in (None, like.start):
        return like
    if before is not None:
        return Batches(before, divide(before, num_processes, options))
    size = options.batch_size or batch_size_for(num_clips, num_processes)
    parts = BatchParts(num_processes, size, options.accumulate)
    return Batches(parts, parts)


def divide(start: BatchParts, num_processes: int, options: OptimizationConfig) -> BatchParts:
    """Divide the global batch of a run's start among other processes, or by other options.

    With the options of the start, the batch of one process stays as it is, or becomes the next smaller one that fits:
    so the run needs no more memory than before. Other options must fit as they are.

    Raises:
        UserError: The global batch does not divide.

    Example:
        >>> divide(BatchParts(4, 3), 2, OptimizationConfig(batch_size=3))
        BatchParts(num_processes=2, batch_size=3, accumulate=2)
        >>> divide(BatchParts(4, 3), 3, OptimizationConfig())
        BatchParts(num_processes=3, batch_size=2, accumulate=2)
    """
    total, size, accumulate = start.clips_per_step, options.batch_size, options.accumulate
    share, left = divmod(total, num_processes)
    if left:
        fewer = [number for number in _divisors(total) if number < num_processes]
        more = [number for number in _divisors(total) if number > num_processes]
        raise UserError(
            f"the run takes {start}, which {num_processes} processes cannot share equally: resume it with "
            f"{' or '.join(map(str, fewer[-1:] + more[:1]))} processes"
        )
    fitting = max(number for number in _divisors(share) if number <= start.batch_size)
    if _is_as_at_start(start, options):
        return start if num_processes == start.num_processes else BatchParts(num_processes, fitting, share // fitting)
    if size is None and share % accumulate == 0:
        return BatchParts(num_processes, share // accumulate, accumulate)
    if size is not None and size * accumulate == share:
        return BatchParts(num_processes, size, accumulate)
    if size is not None and share % size == 0:
        fitting = size
    given = f"--accumulate {accumulate}" if size is None else f"--batch-size {size} and --accumulate {accumulate}"
    raise UserError(
        f"the run takes {start}, and {given} do not give the {share} of each of {num_processes} process(es): resume it "
        f"with two numbers whose product is {share}, for example --batch-size {fitting} --accumulate {share // fitting}"
    )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _is_as_at_start(start: BatchParts, options: OptimizationConfig) -> bool:
    return options.batch_size in (None, start.batch_size) and options.accumulate == start.accumulate


def _what_changes(batches: Batches) -> str:
    return (
        f"the run takes {batches.start}, now as {batches.now.factors}: the clips of each step, their order and the "
        "memory bank stay the same; dropout, other draws of the networks and what depends on the batch of one process "
        "(batch statistics, relations inside a batch) do not"
    )


def fillable_bank_size(config: RunConfig, num_clips: int, batches: Batches) -> int:
    """Return ``bank_size``, or the number of clips that the whole run draws if it is lower.

    The bank of a run that never wraps around is the same at any size.
    """
    start = batches.start
    num_drawn = num_clips // start.clips_per_batch * start.clips_per_batch * config.optimization.epochs
    assert config.objective.bank_size is not None, "fit_to_data comes first"
    return max(1, min(config.objective.bank_size, num_drawn // start.clips_per_step * start.clips_per_step))
