"""Heads from an encoder's space to the objective's. They are trained with the student, then dropped."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from crossdistill.errors import unknown_name

ADAPTERS: dict[str, Callable[[int, int], nn.Module]] = {
    "identity": lambda student_dim, teacher_dim: nn.Identity(),
    "linear": nn.Linear,
}


def create_adapter(kind: str, *, student_dim: int, teacher_dim: int) -> tuple[nn.Module, int]:
    """Build an adapter and say how many features it gives; sizes are derived, never typed.

    Args:
        kind: One of ``ADAPTERS``.
        student_dim: Features of the student.
        teacher_dim: Features of the teacher, which every adapter but the identity maps to.
    """
    if kind not in ADAPTERS:
        raise unknown_name("adapter", kind, ADAPTERS)
    adapter = ADAPTERS[kind](student_dim, teacher_dim)
    return adapter, student_dim if isinstance(adapter, nn.Identity) else teacher_dim
