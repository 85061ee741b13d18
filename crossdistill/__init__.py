"""Compress any trained visual encoder into any other, across modalities, without labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Name to module. Loaded at first use: `import crossdistill` alone costs next to nothing.
_EXPORTS = {
    "Distiller": "crossdistill.distillation.distiller",
    "Encoder": "crossdistill.encoders",
    "Execution": "crossdistill.encoders.execution",
    "Manifest": "crossdistill.data.manifest",
    "MemoryBank": "crossdistill.objectives.memory_bank",
    "PairedBatch": "crossdistill.types",
    "PairedClips": "crossdistill.data.dataset",
    "SampleKey": "crossdistill.data.sampling",
    "TokenLayer": "crossdistill.encoders.base",
    "UserError": "crossdistill.errors",
    "View": "crossdistill.types",
    "ViewSpec": "crossdistill.types",
    "compress_loss": "crossdistill.objectives",
    "create_encoder": "crossdistill.encoders",
    "create_objective": "crossdistill.objectives",
    "create_terms": "crossdistill.distillation.terms",
    "encoder_names": "crossdistill.encoders",
    "entries_of": "crossdistill.data.dataset",
    "load_student": "crossdistill.distillation.student",
    "read_clip": "crossdistill.data.decode",
    "save_student": "crossdistill.distillation.student",
    "wrap_encoder": "crossdistill.encoders",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from crossdistill.data.dataset import PairedClips, entries_of
    from crossdistill.data.decode import read_clip
    from crossdistill.data.manifest import Manifest
    from crossdistill.data.sampling import SampleKey
    from crossdistill.distillation.distiller import Distiller
    from crossdistill.distillation.student import load_student, save_student
    from crossdistill.distillation.terms import create_terms
    from crossdistill.encoders import Encoder, create_encoder, encoder_names, wrap_encoder
    from crossdistill.encoders.execution import Execution
    from crossdistill.encoders.tokens import TokenLayer
    from crossdistill.errors import UserError
    from crossdistill.objectives import compress_loss, create_objective
    from crossdistill.objectives.memory_bank import MemoryBank
    from crossdistill.types import PairedBatch, View, ViewSpec


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'crossdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
