"""What the last table of a run means, in words."""

from crossdistill.evaluation.in_words import in_words


def table(**top1):
    """Results of networks; a name has two underscores in place of a comma and a space."""
    roles = {role.replace("__", ", ").replace("_", " "): value for role, value in top1.items()}
    return {
        role: {"results": {"1-nn": {"top1": nearest}, "linear": {"top1": linear}}}
        for role, (nearest, linear) in roles.items()
    }


def test_in_words__says_both_measures_and_both_directions():
    by_role = table(teacher=(0.9, 0.8), student__random=(0.3, 0.4), student__distilled=(0.85, 0.875))
    assert in_words(by_role) == (
        "What the student learned: its linear accuracy is 47.5 points above random weights and 7.5 above its teacher, "
        "its 1-NN accuracy is 55.0 points above random weights and 5.0 below its teacher."
    )


def test_in_words__takes_the_best_teacher_and_the_last_round():
    by_role = table(
        teacher_1=(0.5, 0.5),
        teacher_2=(0.7, 0.7),
        teacher_3=(0.6, 0.6),
        student__random=(0.2, 0.2),
        student__distilled__round_1=(0.3, 0.3),
        student__distilled__round_2=(0.1, 0.1),
    )
    assert "10.0 points below random weights and 60.0 below its teacher" in in_words(by_role)


def test_in_words__compares_with_the_proxy_that_taught_the_student():
    by_role = table(teacher_1=(0.9, 0.9), proxy=(0.5, 0.5), student__random=(0.2, 0.2), student__distilled=(0.45, 0.4))
    assert "20.0 points above random weights and 10.0 below its proxy teacher" in in_words(by_role)


def test_in_words__is_silent_without_a_student_from_a_teacher():
    assert in_words(table(student__random=(0.2, 0.2), student__supervised=(0.9, 0.9))) is None
    assert in_words(table(teacher=(0.2, 0.2), student__distilled=(0.9, 0.9))) is None
