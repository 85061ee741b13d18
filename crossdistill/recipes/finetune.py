"""Fine-tune a student on labels: a supervised run that starts from the student's weights, for ``evaluate``."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from crossdistill.distillation.student import WEIGHTS_NAME, find_student, read_facts
from crossdistill.errors import UserError
from crossdistill.evaluation.settings import FineTuning
from crossdistill.recipes.config import RunConfig, from_dict
from crossdistill.recipes.run import run
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.distributed import decide_on_first
from crossdistill.utils.files import sha256_of

# Options of train that ``evaluate`` calls --finetune-batch-size and so on.
OPTION_OF_TRAINING = re.compile(r"--(batch-size|epochs|lr)\b")


def finetune_config(settings: FineTuning, student: Path, *, data: Path, split: str) -> RunConfig:
    """Build the configuration of the run; different configurations get different folders.

    Args:
        settings: Epochs, learning rate and so on.
        student: Folder with ``student.json``.
        data: A prepared, labelled dataset.
        split: Name of the split on whose train part the student learns.
    """
    facts = read_facts(student)[1]
    values: dict[str, Any] = {
        "pair": {
            "student": facts["encoder"],
            "supervised": True,
            "student_weights": str(student),
            "precision": facts.get("quantize"),
        },
        "data": {"data": [str(data)], "split": split, "decoder": settings.decoder, "short_clips": settings.short_clips},
        "optimization": {
            "epochs": settings.epochs,
            "lr": settings.lr,
            "batch_size": settings.batch_size,
            "optimizer": "adamw",
            "weight_decay": 0.05,
            "schedule": "cosine",
            "warmup_epochs": 1.0 if settings.epochs > 1 else 0.0,
        },
        "machine": {"seed": settings.seed, "mixed_precision": settings.precision},
    }
    # The digest names the run's folder, so that a finished run is found again: its text must not change, and so the
    # values have the names of version 0.1, which ``from_dict`` reads.
    described = json.dumps([values, sha256_of(student / WEIGHTS_NAME)], sort_keys=True)
    name = f"finetune-{split}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"
    values["machine"] |= {
        "out": str(RunFolder.of_student(student).path / name),
        "resume": True,
        "workers": settings.workers,
        "evaluate": False,
        "knn_clips": 0,
        "tracker": "none",
    }
    return from_dict(values, source="fine-tuning")


def fine_tune(settings: FineTuning, student: Path, *, data: Path, split: str, accelerator: Accelerator) -> Path:
    """Fine-tune a student unless the same run was finished before.

    Args:
        settings: Epochs, learning rate and so on.
        student: Folder with ``student.json``.
        data: A prepared, labelled dataset.
        split: Name of the split on whose train part the student learns.
        accelerator: The processes that train.

    Returns:
        Folder of the run, beside the student.
    """
    config = finetune_config(settings, student, data=data, split=split)
    out = config.machine.out
    assert out is not None
    if decide_on_first(accelerator, lambda: find_student(out) is not None):
        return out
    try:
        return run(config, accelerator)
    except UserError as error:  # names the options of train, which have other names here
        raise type(error)(OPTION_OF_TRAINING.sub(r"--finetune-\1", str(error))) from error
