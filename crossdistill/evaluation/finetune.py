"""Fine-tuning: the whole student and a linear layer learn the labels, starting from the student's weights.

This is a supervised run (``crossdistill.recipes.run``) from ``--student-weights``, kept in a folder of its own beside
the student, and then classified by its own layer on the test views.

Shapes: N videos, V views of a video, D features, C classes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from crossdistill.distillation.student import WEIGHTS_NAME, find_student, read_facts
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.evaluation.probes import Sets, mean_probabilities
from crossdistill.evaluation.results import ProtocolResult, hits_from_scores, result_of
from crossdistill.recipes.config import RunConfig, from_dict
from crossdistill.utils.distributed import decide_on_first
from crossdistill.utils.files import sha256_of


@dataclass(frozen=True)
class FineTuning:
    """How a student is fine-tuned; AdamW with a cosine schedule and one epoch of warm-up."""

    epochs: int = 30
    lr: float = 1e-3
    batch_size: int = 16
    """Clips per batch of one process."""
    workers: int = 2
    mixed_precision: str = "auto"
    decoder: str = "pyav"
    short_clips: str = "repeat"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.lr <= 0 or self.batch_size < 1:
            raise UserError(
                f"--finetune-epochs {self.epochs}, --finetune-lr {self.lr} and --finetune-batch-size {self.batch_size} "
                "must be above 0"
            )

    def config(self, student: Path, *, data: Path, split: str) -> RunConfig:
        """The run's configuration; its folder's name tells different ones apart.

        Args:
            student: Folder with ``student.json``.
            data: A prepared, labelled dataset.
            split: On whose train part it learns.
        """
        facts = read_facts(student)[1]
        values: dict[str, Any] = {
            "pair": {
                "student": facts["encoder"],
                "supervised": True,
                "student_weights": str(student),
                "precision": facts.get("quantize"),
            },
            "data": {"data": [str(data)], "split": split, "decoder": self.decoder, "short_clips": self.short_clips},
            "optimization": {
                "epochs": self.epochs,
                "lr": self.lr,
                "batch_size": self.batch_size,
                "optimizer": "adamw",
                "weight_decay": 0.05,
                "schedule": "cosine",
                "warmup_epochs": 1.0 if self.epochs > 1 else 0.0,
            },
            "machine": {"seed": self.seed, "mixed_precision": self.mixed_precision},
        }
        described = json.dumps([values, sha256_of(student / WEIGHTS_NAME)], sort_keys=True)
        name = f"finetune-{split}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"
        parent = student.parent if student.name == "student" else student
        values["machine"] |= {
            "out": str(parent / name),
            "resume": True,
            "workers": self.workers,
            "evaluate": False,
            "knn_clips": 0,
            "tracker": "none",
        }
        return from_dict(values, source="fine-tuning")

    def run(self, student: Path, *, data: Path, split: str, accelerator: Accelerator) -> Path:
        """Fine-tune, or find that it was done; gives the run's folder."""
        from crossdistill.recipes.run import run  # which imports this package

        config = self.config(student, data=data, split=split)
        out = config.machine.out
        assert out is not None
        if decide_on_first(accelerator, lambda: find_student(out) is not None):
            return out
        return run(config, accelerator)


def classify(sets: Sets, classifier: Classifier, *, protocol: str, details: dict[str, Any]) -> ProtocolResult:
    """Classify the test set by the layer that an encoder learned its labels with; probabilities of views are averaged.

    Raises:
        UserError: The layer has other classes than the dataset.
    """
    num_own = len(classifier.weight)
    if num_own != sets.num_classes:
        raise UserError(f"the student's classifier has {num_own} classes and the dataset {sets.num_classes}")
    logits_nvc = sets.test.views_nvd @ classifier.weight.T + classifier.bias
    logits_nvc[..., sets.absent_classes()] = -torch.inf  # so that they are no hit, as in all protocols
    details = {
        **details,
        "num_train": sets.train.num_clips,
        "classes_without_training_clips": sets.absent_classes(),
    }
    return result_of(protocol, hits_from_scores(mean_probabilities(logits_nvc.unbind(1)), sets.test.labels), details)
