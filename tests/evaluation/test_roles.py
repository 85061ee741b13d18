"""Roles of ``results.json``: every text that a run writes is parsed back."""

import pytest

from crossdistill.evaluation.roles import NumberedRole, Role

TEXTS = {
    "teacher": (Role.TEACHER, None),
    "teacher 12": (Role.TEACHER, 12),
    "student, random": (Role.RANDOM, None),
    "student, distilled": (Role.DISTILLED, None),
    "student, supervised, round 1": (Role.SUPERVISED, 1),
    "student, distilled, round 10": (Role.DISTILLED, 10),
}


@pytest.mark.parametrize(("text", "parts"), TEXTS.items())
def test_parse__reads_what_str_writes(text, parts):
    assert NumberedRole.parse(text) == NumberedRole(*parts) and str(NumberedRole(*parts)) == text


@pytest.mark.parametrize("text", ["", "teacher, round 2", "student, distilled 2", "teacher 02", "pupil"])
def test_parse__of_another_text_is_none(text):
    assert NumberedRole.parse(text) is None


def test_role__is_the_text_in_f_strings_and_json_keys():
    assert f"{Role.DISTILLED}" == "student, distilled" and {Role.TEACHER: 1} == {"teacher": 1}
