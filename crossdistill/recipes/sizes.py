"""The batch and the memory bank of a run, where its configuration leaves them to the data."""

from __future__ import annotations

import json
from dataclasses import replace

from accelerate import Accelerator

from crossdistill.recipes.config import RunConfig, with_current_names
from crossdistill.recipes.context import announce
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


def fit_to_data(config: RunConfig, num_clips: int, folder: RunFolder, accelerator: Accelerator) -> RunConfig:
    """Choose the batch size and the bank size if the configuration has none, and say so.

    A resumed run keeps the sizes that it started with, also those that were defaults of version 0.1.

    Args:
        config: Configuration of the run.
        num_clips: Number of training clips.
        folder: The run's folder.
        accelerator: The processes that train.
    """
    optimization, objective = config.optimization, config.objective
    started = decide_on_first(accelerator, lambda: _sizes_of_start(folder) if config.machine.resume else (None, None))
    chosen: list[str] = []
    if optimization.batch_size is None:
        size = started[0] or batch_size_for(num_clips, accelerator.num_processes)
        optimization = replace(optimization, batch_size=size)
        chosen += [f"--batch-size {size}"] if size != PAPER_BATCH_SIZE else []
    if objective.bank_size is None:
        size = started[1] or bank_size_for(num_clips)
        objective = replace(objective, bank_size=size)
        chosen += [f"--bank-size {size}"] if size != PAPER_BANK_SIZE and not config.pair.supervised else []
    if chosen and started == (None, None):
        announce(accelerator, f"chosen for {num_clips} training clips: {' and '.join(chosen)}")
    return replace(config, optimization=optimization, objective=objective)


def _sizes_of_start(folder: RunFolder) -> tuple[int | None, int | None]:
    """Return batch size and bank size of the run in a folder; None for each that is unknown."""
    if not folder.config.is_file():
        return None, None
    written = with_current_names(json.loads(folder.config.read_text(encoding="utf-8"))["configuration"])
    return written.get("optimization", {}).get("batch_size"), written.get("objective", {}).get("bank_size")


def fillable_bank_size(config: RunConfig, num_clips: int, num_processes: int) -> int:
    """Return ``bank_size``, or the number of clips that the whole run draws if it is lower.

    The bank of a run that never wraps around is the same at any size.
    """
    options = config.optimization
    global_batch = options.clips_per_batch * num_processes
    num_steps = num_clips // global_batch * options.epochs // options.accumulate
    assert config.objective.bank_size is not None, "fit_to_data comes first"
    return max(1, min(config.objective.bank_size, num_steps * options.accumulate * global_batch))
