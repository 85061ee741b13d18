"""The protocols of ``crossdistill evaluate``, one file each; this registry names them.

Every protocol raises a ``UserError`` for features or labels that ``EmbeddedSplit.check`` rejects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.protocols.attentive import evaluate_attentive
from crossdistill.evaluation.protocols.calibration import evaluate_calibration
from crossdistill.evaluation.protocols.cluster import evaluate_cluster
from crossdistill.evaluation.protocols.knn import evaluate_knn
from crossdistill.evaluation.protocols.linear import evaluate_linear
from crossdistill.evaluation.protocols.linear_sweep import evaluate_linear_sweep
from crossdistill.evaluation.protocols.lowshot import evaluate_low_shot
from crossdistill.evaluation.protocols.missing_modality import PROTOCOL as MISSING_MODALITY
from crossdistill.evaluation.protocols.multi_label import evaluate_multi_label
from crossdistill.evaluation.protocols.retrieval import evaluate_retrieval
from crossdistill.evaluation.results import ProtocolResult
from crossdistill.evaluation.settings import ProtocolSettings

__all__ = [
    "FINETUNE",
    "JOINT_PROTOCOLS",
    "MISSING_MODALITY",
    "MULTI_LABEL",
    "ORDER",
    "PROTOCOLS",
    "ROBUSTNESS",
    "TOKEN_PROTOCOLS",
    "ProtocolSettings",
    "apply_protocols",
]

MULTI_LABEL = "multi-label"
"""The protocol whose classes come from a file, so that the dataset needs none."""
PROTOCOLS: dict[str, Callable[[EmbeddedSplit, ProtocolSettings], list[ProtocolResult]]] = {
    "knn": evaluate_knn,
    "linear": evaluate_linear,
    "linear-sweep": evaluate_linear_sweep,
    "attentive": evaluate_attentive,
    "cluster": evaluate_cluster,
    "retrieval": evaluate_retrieval,
    "lowshot": evaluate_low_shot,
    "calibration": evaluate_calibration,
    MULTI_LABEL: evaluate_multi_label,
}
"""Protocols on the features of one student."""
TOKEN_PROTOCOLS = ("attentive",)
"""Those of ``PROTOCOLS`` that need tokens besides features."""
JOINT_PROTOCOLS = ("fusion", MISSING_MODALITY, "agreement")
"""Protocols of two or more students."""
ROBUSTNESS, ORDER = "robustness", "order"
"""Protocols that embed changed test clips, so they need more than features."""
FINETUNE = "finetune"
"""The protocol that trains the student itself, so it needs more than features."""


def apply_protocols(split: EmbeddedSplit, protocols: Sequence[str], settings: ProtocolSettings) -> list[ProtocolResult]:
    """Apply protocols of ``PROTOCOLS``; intervals are not yet added.

    Raise a ``UserError`` if no clip of one part could be read.
    """
    for name, part in (("train", split.train), ("test", split.test)):
        if not part.num_clips and part.unreadable:
            video, reason = next(iter(part.unreadable.items()))
            raise UserError(
                f"none of the {len(part.unreadable)} {name} clips could be read (first: {video}: {reason}): see "
                "python -m data_prep verify"
            )
    return [result for name in protocols for result in PROTOCOLS[name](split, settings)]
