"""Roles of the networks in ``results.json``: one enum, and the only code that writes and reads their numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Role(str, Enum):
    """What a network is in a run; the values are the texts of ``results.json``."""

    TEACHER = "teacher"
    PROXY = "proxy"
    """The large student of several teachers that taught the student alone."""
    RANDOM = "student, random"
    """The student before training."""
    DISTILLED = "student, distilled"
    """The student that learned from teachers."""
    SUPERVISED = "student, supervised"
    """The student that learned from labels."""
    TRAINED = "student, trained"
    """A student with weights of any origin, in a comparison of two networks."""

    def __str__(self) -> str:
        return self.value

    @property
    def is_trained(self) -> bool:
        """Whether a run trains this network."""
        return self in (Role.DISTILLED, Role.SUPERVISED)


@dataclass(frozen=True)
class NumberedRole:
    """A role, with the number of the teacher or of the round where a run has several.

    Example:
        >>> str(NumberedRole(Role.TEACHER, 2)), str(NumberedRole(Role.DISTILLED, 3)), str(NumberedRole(Role.RANDOM))
        ('teacher 2', 'student, distilled, round 3', 'student, random')
    """

    role: Role
    number: int | None = None
    """Number of the teacher or of the round, from 1 on; None where there is only one."""

    def __str__(self) -> str:
        if self.number is None:
            return str(self.role)
        return f"{self.role} {self.number}" if self.role is Role.TEACHER else f"{self.role}, round {self.number}"

    @staticmethod
    def parse(text: str) -> NumberedRole | None:
        """Read a key of ``results.json``; None for a text that is no role, as another version may have written it."""
        match = re.fullmatch(r"(?P<role>.*?)(?:(?:, round)? (?P<number>\d+))?", text)
        assert match is not None, "every text matches"
        try:
            found = NumberedRole(Role(match["role"]), None if match["number"] is None else int(match["number"]))
        except ValueError:
            return None
        return found if str(found) == text else None


def teacher_roles(num_teachers: int) -> list[str]:
    """Texts of the roles of a run's teachers; a single teacher has no number.

    Example:
        >>> teacher_roles(1), teacher_roles(2)
        (['teacher'], ['teacher 1', 'teacher 2'])
    """
    numbers = [None] if num_teachers == 1 else range(1, num_teachers + 1)
    return [str(NumberedRole(Role.TEACHER, number)) for number in numbers]
