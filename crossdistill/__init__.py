"""Compress any trained visual encoder into any other, across modalities, without labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Public name to its module. A module is imported at the first use of a name: `import crossdistill` alone is fast.
_EXPORTS = {
    # Runs, from one call to a trained student.
    "Run": "crossdistill.api",
    "RunConfig": "crossdistill.recipes.config",
    "distill": "crossdistill.api",
    # Encoders and trained students.
    "Encoder": "crossdistill.encoders",
    "Execution": "crossdistill.encoders.execution",
    "TokenLayer": "crossdistill.encoders.base",
    "create_encoder": "crossdistill.encoders",
    "list_encoders": "crossdistill.encoders",
    "load_student": "crossdistill.distillation.student",
    "save_student": "crossdistill.distillation.student",
    "wrap_encoder": "crossdistill.encoders",
    # Prepared datasets.
    "Augmentation": "crossdistill.data.transforms",
    "Manifest": "crossdistill.data.manifest",
    "PairedBatch": "crossdistill.types",
    "PairedClips": "crossdistill.data.dataset",
    "SampleKey": "crossdistill.data.sampling",
    "View": "crossdistill.types",
    "ViewSpec": "crossdistill.types",
    "entries_of": "crossdistill.data.dataset",
    "read_clip": "crossdistill.data.decode",
    # Evaluations.
    "Evaluation": "crossdistill.evaluation.results",
    "paired_gains": "crossdistill.evaluation.gains",
    "read_evaluation": "crossdistill.evaluation.results",
    # Training loops of your own.
    "Distiller": "crossdistill.distillation.distiller",
    "MemoryBank": "crossdistill.objectives",
    "compress_loss": "crossdistill.objectives",
    "create_objective": "crossdistill.objectives",
    "create_terms": "crossdistill.distillation.terms",
    "UserError": "crossdistill.errors",
}
_MODULES = ("objectives",)

__all__ = ["__version__", *_EXPORTS, *_MODULES]

if TYPE_CHECKING:
    from crossdistill import objectives
    from crossdistill.api import Run, distill
    from crossdistill.data.dataset import PairedClips, entries_of
    from crossdistill.data.decode import read_clip
    from crossdistill.data.manifest import Manifest
    from crossdistill.data.sampling import SampleKey
    from crossdistill.data.transforms import Augmentation
    from crossdistill.distillation.distiller import Distiller
    from crossdistill.distillation.student import load_student, save_student
    from crossdistill.distillation.terms import create_terms
    from crossdistill.encoders import Encoder, create_encoder, list_encoders, wrap_encoder
    from crossdistill.encoders.base import TokenLayer
    from crossdistill.encoders.execution import Execution
    from crossdistill.errors import UserError
    from crossdistill.evaluation.gains import paired_gains
    from crossdistill.evaluation.results import Evaluation, read_evaluation
    from crossdistill.objectives import MemoryBank, compress_loss, create_objective
    from crossdistill.recipes.config import RunConfig
    from crossdistill.types import PairedBatch, View, ViewSpec


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"crossdistill.{name}")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'crossdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
