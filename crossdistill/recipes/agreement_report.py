"""What ``crossdistill transfer`` has found: figures, tables, and the sentences that the figures allow.

The sentences are rules of thumb; their thresholds are the constants below.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from crossdistill.evaluation.protocols.agreement import NeighbourClasses
from crossdistill.recipes.run import WEAK_TEACHER_SHARE
from crossdistill.utils.console import print_table

# Random pairings of the clips that an overlap must beat, all of them, to be called above chance (about 1 % by luck).
NUM_SHUFFLES = 99
# Linear CKA of a fresh student below which the inputs are called hardly alike, and above which much alike.
FAINT_CKA = 0.1
STRONG_CKA = 0.5
# Standard errors by which trained and random student must differ to be called different.
NUM_STANDARD_ERRORS = 3
FRESH = "student, random"
TRAINED = "student, trained"


@dataclass(frozen=True)
class Agreement:
    """How far one student's space is the teacher's."""

    overlap: float
    """Mean share of the teacher's k nearest neighbours that are the student's too."""
    highest_shuffled_overlap: float
    """Of ``NUM_SHUFFLES`` random pairings of the clips."""
    cka: float
    """Linear, unbiased: 1 for equal spaces, about 0 for unrelated ones."""

    @property
    def is_above_chance(self) -> bool:
        """Whether no random pairing has as many common neighbours."""
        return self.overlap > self.highest_shuffled_overlap


@dataclass(frozen=True)
class ClassOverlap:
    """The overlaps of one class's clips, by student."""

    name: str
    num_clips: int
    overlaps: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Everything that the command says."""

    teacher: str
    student: str
    dataset: str
    sample: str
    """Which clips, in words."""
    num_clips: int
    unreadable: dict[str, str]
    k: int
    chance: float
    """Overlap that is expected of unrelated spaces: k / (clips - 1)."""
    agreements: dict[str, Agreement]
    classes: tuple[ClassOverlap, ...]
    """Of a trained student on labelled clips: by its overlap, the worst last."""
    teacher_1nn: NeighbourClasses | None
    """None without labels, or if no class has two clips to compare."""
    leaves_film_out: bool
    """Whether ``teacher_1nn`` passes over clips of the same film, which are near-duplicates, or over the clip alone."""
    gain: tuple[float, float] | None
    """Overlap of the trained less that of the random student, mean over clips, and its standard error."""
    origin: str | None
    """What to say of a trained student that did not learn from this teacher; None if it did."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {**asdict(self), "conclusions": conclude(self)}


def conclude(report: Report) -> list[str]:
    """What the figures allow to say, in sentences, and nothing beyond."""
    said = [_about_teacher(report)]
    if TRAINED in report.agreements:
        said += [_about_training(report), *([report.origin] if report.origin else [])]
    else:
        said += [_about_overlap(report), _about_cka(report)]
    said.append(
        f"This rests on {report.num_clips} clips and on rules of thumb (constants in "
        "crossdistill/recipes/agreement_report.py): it can warn, it cannot promise; whether a student is better is "
        "what its evaluation says."
    )
    return said


def _about_teacher(report: Report) -> str:
    classes = report.teacher_1nn
    if classes is None:
        return (
            "The sample has no two labelled clips of one class, so nothing here says whether the teacher's "
            "neighbourhoods are worth keeping."
        )
    figures = f"In {classes.accuracy:.1%} of the clips the teacher's nearest clip shows the same class"
    if classes.accuracy - classes.chance < WEAK_TEACHER_SHARE * (1 - classes.chance):
        return (
            f"{figures}, which is not far from chance ({classes.chance:.1%}): as far as these classes go there is "
            "little to learn from it, whatever the student; choose another teacher or other --teacher-weights."
        )
    return (
        f"{figures}, by chance {classes.chance:.1%}: its neighbourhoods hold something about these classes; whether "
        "this student can learn it, that does not say."
    )


def _about_overlap(report: Report) -> str:
    fresh = report.agreements[FRESH]
    if not fresh.is_above_chance:
        return (
            f"The fresh student shares no more neighbours with the teacher ({fresh.overlap:.1%}) than chance gives "
            f"({report.chance:.1%}): that says nothing yet, neither for the pair nor against it."
        )
    return (
        f"Even untrained, the student has {fresh.overlap:.1%} of the teacher's neighbours, by chance "
        f"{report.chance:.1%}: the two inputs have something in common, perhaps no more than brightness or size of "
        "motion; a trained student has to beat this figure, not chance."
    )


def _about_cka(report: Report) -> str:
    cka = report.agreements[FRESH].cka
    if cka < FAINT_CKA:
        meaning = "shows hardly anything of the teacher's arrangement of clips"
    elif cka < STRONG_CKA:
        meaning = "shows a part of the teacher's arrangement of clips"
    else:
        meaning = "shows much of the teacher's coarse arrangement of clips (a few clips that lie far out can suffice)"
    return (
        f"Seen through untrained weights, the student's input {meaning} (CKA {cka:.2f}); whether it holds more that "
        "training can bring out, this figure does not say."
    )


def _about_training(report: Report) -> str:
    assert report.gain is not None
    trained, fresh = report.agreements[TRAINED], report.agreements[FRESH]
    gain, error = report.gain
    figures = (
        f"The trained student kept {trained.overlap:.1%} of the teacher's neighbours, the random one "
        f"{fresh.overlap:.1%}, chance {report.chance:.1%}"
    )
    if abs(gain) <= NUM_STANDARD_ERRORS * error:
        return f"{figures}: on so many clips that is no difference, so training shows no gain here."
    if gain < 0:
        return f"{figures}: training took the student away from this teacher."
    limit = "" if trained.is_above_chance else ", though not clearly above what random pairings give"
    return f"{figures}: training brought the student nearer to the teacher{limit}."


def print_report(report: Report) -> None:
    """Print the tables, the coverage and the conclusions."""
    title = f"{report.student} and {report.teacher} on {report.dataset}, {report.sample}, {report.num_clips} clips"
    rows = [
        (role, f"{agreement.overlap:.1%}", f"{agreement.highest_shuffled_overlap:.1%}", f"{agreement.cka:.3f}")
        for role, agreement in report.agreements.items()
    ]
    unrelated = ("unrelated spaces, expected", f"{report.chance:.1%}", "", "0.000")
    header = ("", f"{report.k}-NN in common", f"highest of {NUM_SHUFFLES} shuffles", "linear CKA, unbiased")
    print_table(title, header, [*rows, unrelated])
    if report.classes:
        by_class = [
            (one.name, str(one.num_clips), f"{one.overlaps[TRAINED]:.1%}", f"{one.overlaps[FRESH]:.1%}")
            for one in report.classes
        ]
        header = ("class", "clips", TRAINED, FRESH)
        print_table(f"share of the teacher's {report.k} neighbours that the student kept", header, by_class)
    if report.teacher_1nn is not None:
        left_out = "clips of its own film" if report.leaves_film_out else "the clip itself"
        print(
            f"teacher's 1-NN accuracy in the sample, each clip against all but {left_out}: "
            f"{report.teacher_1nn.accuracy:.1%} of {report.teacher_1nn.num_clips} clips, by chance "
            f"{report.teacher_1nn.chance:.1%}"
        )
    print(f"{report.num_clips} clips embedded, {len(report.unreadable)} could not be read")
    for video, reason in sorted(report.unreadable.items()):
        print(f"  {video}: {reason}")
    for sentence in conclude(report):
        print(sentence)
