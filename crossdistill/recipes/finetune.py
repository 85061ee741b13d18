"""Fine-tune a student on labels: a supervised run that starts from the student's weights, for ``evaluate``."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import WEIGHTS_NAME, find_student, read_facts
from crossdistill.errors import Stopped, UserError
from crossdistill.evaluation.settings import FineTuning
from crossdistill.recipes.config import RunConfig, from_dict, load_yaml, merge
from crossdistill.recipes.config_files import find_config_file
from crossdistill.recipes.run import run
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.distributed import decide_on_first
from crossdistill.utils.files import sha256_of
from crossdistill.utils.records import without

# Options of train that ``evaluate`` calls --finetune-batch-size and so on.
OPTION_OF_TRAINING = re.compile(r"--(batch-size|epochs|lr)\b")


NOT_OF_A_RECIPE = ("student_weights", "data", "split")
"""Options of training that ``evaluate`` has by itself. It replaces a recipe's ``student``."""


def read_recipe(name: str) -> tuple[dict[str, Any], RunConfig]:
    """Read a configuration file of training for ``--finetune-config``: its sections, and the whole configuration.

    Its student, which is an example, is left out.

    Args:
        name: Path of the file, or the name of a recipe that comes with the package, for example ``finetune``.

    Raises:
        UserError: There is no such file, a key is unknown, or it names weights, a teacher or data.
    """
    values = load_yaml(find_config_file(name))
    config = from_dict(values, source=name)
    (values.get("pair") or {}).pop("student", None)
    named = [key for section in ("pair", "data") for key in values.get(section) or {}]
    for key in named:
        if key in NOT_OF_A_RECIPE or key.startswith(("teacher", "proxy")):
            raise UserError(
                f"--finetune-config {name} has {key}, and the student and its data are those of evaluate: give a "
                "recipe without it, for example finetune or finetune_conv"
            )
    return values, config


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
    if settings.recipe:
        recipe = settings.recipe
        given = {name: values["optimization"][name] for name in ("epochs", "lr", "batch_size")}
        values = merge(values, recipe, {name: values[name] for name in ("pair", "machine")}, {"optimization": given})
    values["machine"] |= {
        "out": str(_folder(values, student, data=data, split=split)),
        "resume": True,
        "workers": settings.workers,
        "evaluate": False,
        "knn_clips": 0,
        "tracker": "none",
    }
    return from_dict(values, source="fine-tuning")


def _folder(values: dict[str, Any], student: Path, *, data: Path, split: str) -> Path:
    """Return the run's folder, whose name has a digest of the options and of the content of dataset and student.

    A finished run is found again: the text of the digest must not change. The values have the names of version 0.1,
    which ``from_dict`` reads. Version 0.1 knew dataset and student by their paths too.
    """
    weights, content = sha256_of(student / WEIGHTS_NAME), Manifest.load(data).content_digest
    without_paths = without(without(values, "data.data"), "pair.student_weights")
    name, former_name = (
        f"finetune-{split}-{hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]}"
        for described in ([without_paths, weights, content], [values, weights])
    )
    folder = RunFolder.of_student(student).path
    return folder / (former_name if (folder / former_name).is_dir() else name)


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
        return run(config, accelerator, is_common=True)
    except UserError as error:  # names the options of train, which have other names here
        raise type(error)(OPTION_OF_TRAINING.sub(r"--finetune-\1", str(error))) from error
    except KeyboardInterrupt as error:  # evaluate has no --resume
        raise Stopped.by(error, f"the fine-tuning is kept in {out}, and the same command continues it") from None
