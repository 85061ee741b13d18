"""What the last table of a run means, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossdistill.evaluation.roles import NumberedRole, Role

MEASURES = {"linear": "linear accuracy", "1-nn": "1-NN accuracy"}


def in_words(by_role: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Compare the distilled student with the random one and with its best teacher; None if one of them is missing.

    The teacher of a student that learned through a proxy is the proxy.

    Args:
        by_role: Role to the results of a network, as ``results.json`` holds them for a dataset. Of several rounds the
            last counts.

    Example:
        >>> results = {role: {"results": {"linear": {"top1": top1}}} for role, top1 in
        ...            {"teacher": 0.85, "student, random": 0.3, "student, distilled": 0.9}.items()}
        >>> in_words(results)
        'What the student learned: its linear accuracy is 60.0 points above random weights and 5.0 above its teacher.'
    """
    roles = {role: parsed.role for role in by_role if (parsed := NumberedRole.parse(role)) is not None}
    teacher = Role.PROXY if Role.PROXY in roles.values() else Role.TEACHER
    named = "its proxy teacher" if teacher is Role.PROXY else "its teacher"
    parts = []
    for measure, name in MEASURES.items():
        top1: dict[Role, float] = {}
        for text, role in roles.items():
            if measure in by_role[text]["results"]:
                accuracy = by_role[text]["results"][measure]["top1"]
                top1[role] = max(accuracy, top1.get(role, 0.0)) if role is teacher else accuracy
        if {teacher, Role.RANDOM, Role.DISTILLED} <= top1.keys():
            apart = [100 * (top1[Role.DISTILLED] - top1[role]) for role in (Role.RANDOM, teacher)]
            (random, beside_random), (taught, beside_teacher) = ((f"{abs(d):.1f}", _side(d)) for d in apart)
            parts.append(
                f"{name} is {random} points {beside_random} random weights and {taught} {beside_teacher} {named}"
            )
    return f"What the student learned: its {', its '.join(parts)}." if parts else None


def _side(difference: float) -> str:
    return "above" if difference >= 0 else "below"
