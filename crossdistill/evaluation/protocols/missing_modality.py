"""Fusion of several students without one of their modalities, as if its sensor failed at test time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.protocols.fusion import fuse
from crossdistill.evaluation.results import ProtocolResult
from crossdistill.evaluation.settings import ProtocolSettings

PROTOCOL = "missing-modality"


def require_modalities(modalities: Sequence[str]) -> None:
    """Raise a ``UserError`` unless there are two or more different modalities."""
    if len(set(modalities)) < 2:
        raise UserError(
            f"--protocols {PROTOCOL} leaves out one modality after the other, and all students see {modalities[0]}: "
            "name students of two or more modalities"
        )


def fuse_without_each(
    members: Sequence[EmbeddedSplit], modalities: Sequence[str], settings: ProtocolSettings
) -> list[ProtocolResult]:
    """Fuse all students, and those that are left without each modality.

    Fusion averages probabilities and sums similarities, so that what is left needs no training: each student keeps its
    own layer.

    Args:
        members: The same videos as each student embeds them, see ``common_videos``.
        modalities: Modality of each student.
        settings: Those of the fused protocols.

    Returns:
        The results of the whole fusion, and with each modality left out. ``details`` of the latter holds ``left_out``
        and ``drop_from_fusion``, the top-1 of the whole fusion minus its own.
    """
    require_modalities(modalities)
    results = fuse(members, settings)
    whole = {result.protocol: result.top1 for result in results}
    for left_out in dict.fromkeys(modalities):
        rest = [member for member, modality in zip(members, modalities, strict=True) if modality != left_out]
        for result in fuse(rest, settings):
            details = {**result.details, "left_out": left_out, "drop_from_fusion": whole[result.protocol] - result.top1}
            results.append(replace(result, protocol=f"{result.protocol}-without-{left_out}", details=details))
    return results
