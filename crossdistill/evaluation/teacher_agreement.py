"""The agreement of a teacher and a student on a sample of clips: figures, tables, and sentences that the figures allow.

The sentences are rules of thumb; their thresholds are constants. Shapes: N clips, D student and E teacher features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossdistill.data.dataset import Entry
from crossdistill.errors import require_package
from crossdistill.evaluation.information import (
    NUM_STANDARD_ERRORS_95,
    Information,
    SharedInformation,
    shared_information,
)
from crossdistill.evaluation.protocols.agreement import (
    NeighbourClasses,
    chance_overlap,
    linear_cka,
    nearest_others,
    neighbour_classes,
    share_of_common,
    shuffled_overlaps,
)
from crossdistill.evaluation.roles import Role
from crossdistill.evaluation.spread import SPREAD_TITLES, FeatureSpread, feature_spread, spread_texts
from crossdistill.utils.console import print_table

if TYPE_CHECKING:
    import pandas

# A figure is called above chance if it exceeds those of so many random pairings of the clips (1 % by luck).
NUM_SHUFFLES = 99
# Linear CKA of a random student: below the first the inputs have hardly anything in common, above the second much.
FAINT_CKA = 0.1
STRONG_CKA = 0.5
# Standard errors by which trained and random student must differ to be called different.
NUM_STANDARD_ERRORS = 3
# A teacher that has gone less than this share of the way from chance to perfect has little to teach.
WEAK_TEACHER_SHARE = 0.1
# A lower effective rank is called a collapse: the clips lie nearly on one line.
MIN_EFFECTIVE_RANK = 2.0
# Videos that are printed with their nearest in the teacher's space.
NUM_SHOWN_PAIRS = 3


def is_near_chance(accuracy: float, chance: float) -> bool:
    """Whether an accuracy is so low that a teacher's neighbourhoods teach nothing."""
    return accuracy - chance < WEAK_TEACHER_SHARE * (1 - chance)


@dataclass(frozen=True)
class SpaceAgreement:
    """How similar the feature spaces of one student and the teacher are."""

    overlap: float
    """Mean share of the teacher's k nearest neighbours that are also the student's."""
    highest_shuffled_overlap: float
    """The highest overlap of ``NUM_SHUFFLES`` random pairings of the clips."""
    cka: float
    """Linear, unbiased CKA: 1 for equal spaces, about 0 for unrelated ones."""

    @property
    def is_above_chance(self) -> bool:
        """Whether no random pairing has as many common neighbours."""
        return self.overlap > self.highest_shuffled_overlap


@dataclass(frozen=True)
class ClassOverlap:
    """The overlaps of the clips of one class."""

    name: str
    num_clips: int
    overlaps: dict[str, float]  # role of the student to its mean overlap


@dataclass(frozen=True)
class AgreementReport:
    """All figures of ``crossdistill agreement``."""

    teacher: str
    student: str
    dataset: str
    sample: str
    """Description of the sample: split and part."""
    num_clips: int
    unreadable: dict[str, str]  # dataset/video to the reason
    k: int
    chance: float  # expected overlap of unrelated spaces: k / (clips - 1)
    agreements: dict[str, SpaceAgreement]  # by role of the student
    classes: tuple[ClassOverlap, ...]
    """Classes of the sample by the trained student's overlap, the worst last; empty without a trained student."""
    teacher_1nn: NeighbourClasses | None
    """None without labels, or if no class has two clips to compare."""
    leaves_group_out: bool
    """Whether ``teacher_1nn`` ignores clips of the same group, which are near-duplicates, or only the clip itself."""
    gain: tuple[float, float] | None
    """Overlap of the trained minus that of the random student: mean over clips, and its standard error."""
    spreads: dict[str, FeatureSpread]  # by role, the teacher first
    nearest: tuple[tuple[str, str], ...]
    """Some videos of the sample, each with its nearest in the teacher's space."""
    origin: str | None
    """A sentence about a trained student that did not learn from this teacher; None if it did."""
    information: dict[str, SharedInformation] = field(default_factory=dict)
    """What each student shares with the teacher and with the classes, by role; without those of too few clips."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {**asdict(self), "conclusions": conclude(self)}

    def to_frame(self) -> pandas.DataFrame:
        """Convert the figures to a pandas DataFrame with one row per student, whose columns are the JSON's keys.

        Nested keys are joined by dots, as ``with_teacher.nats``; figures that were not computed are missing values.

        Raises:
            UserError: pandas is not installed.
        """
        found = require_package("pandas", target="to_frame()", extra="pandas")
        pair = {"teacher": self.teacher, "student": self.student, "dataset": self.dataset, "num_clips": self.num_clips}
        rows = []
        for role, agreement in self.agreements.items():
            information = self.information.get(role)
            rows.append(
                {
                    **pair,
                    "role": str(role),
                    "chance": self.chance,
                    **asdict(agreement),
                    **({} if information is None else asdict(information)),
                }
            )
        frame: pandas.DataFrame = found.json_normalize(rows)
        return frame


def compare_spaces(
    teacher_ne: Tensor,
    students: Mapping[str, Tensor],
    entries: Sequence[Entry],
    classes: Sequence[str],
    *,
    k: int,
    **facts: Any,
) -> AgreementReport:
    """Compute every figure from features [N, E] of the teacher and [N, D] of the students.

    ``students`` maps a role to features: the random student, and the trained one if there is one. ``facts`` are the
    remaining fields of ``AgreementReport``.
    """
    near_teacher = nearest_others(teacher_ne, k)
    shares, agreements, information = {}, {}, {}
    labels_n, groups_n = torch.tensor([entry.label for entry in entries]), _groups(entries)
    for role, features in students.items():
        near = nearest_others(features, k)
        shares[role] = share_of_common(near_teacher, near)
        highest = highest_shuffled_overlap(near_teacher, near)
        agreements[role] = SpaceAgreement(shares[role].mean().item(), highest, linear_cka(teacher_ne, features))
        found = shared_information(teacher_ne, features, labels_n, groups_n, num_shuffles=NUM_SHUFFLES)
        if found is not None:
            information[role] = found
    is_trained = Role.TRAINED in shares
    gain = mean_gain(shares[Role.TRAINED], shares[Role.RANDOM]) if is_trained else None
    teacher_1nn, leaves_group_out = _teacher_classes(teacher_ne, entries)
    asked = [i * len(entries) // NUM_SHOWN_PAIRS for i in range(NUM_SHOWN_PAIRS)]
    nearest = [(entries[i].video.name, entries[int(near_teacher[i, 0])].video.name) for i in asked]
    return AgreementReport(
        num_clips=len(entries),
        k=k,
        chance=chance_overlap(len(entries), k),
        agreements=agreements,
        classes=_by_class(shares, entries, classes) if is_trained else (),
        teacher_1nn=teacher_1nn,
        leaves_group_out=leaves_group_out,
        gain=gain,
        spreads={
            str(role): feature_spread(features) for role, features in {Role.TEACHER: teacher_ne, **students}.items()
        },
        nearest=tuple(nearest),
        information=information,
        **facts,
    )


def highest_shuffled_overlap(near_teacher_nk: Tensor, near_nk: Tensor) -> float:
    """Return the highest overlap of ``NUM_SHUFFLES`` random pairings of the clips."""
    return shuffled_overlaps(near_teacher_nk, near_nk, num_shuffles=NUM_SHUFFLES).max().item()


def mean_gain(trained_n: Tensor, random_n: Tensor) -> tuple[float, float]:
    """Return the mean over clips of a paired difference of overlaps [N], and its standard error."""
    difference_n = trained_n - random_n
    return difference_n.mean().item(), difference_n.std().item() / len(difference_n) ** 0.5


def _teacher_classes(features_nd: Tensor, entries: Sequence[Entry]) -> tuple[NeighbourClasses | None, bool]:
    """Compute the 1-NN accuracy of the labelled clips, across groups if the sample has several groups of a class."""
    labelled = [i for i, entry in enumerate(entries) if entry.label >= 0]
    features_nd = features_nd[labelled]
    labels_n = torch.tensor([entries[i].label for i in labelled], dtype=torch.int64)
    groups_n = _groups([entries[i] for i in labelled])
    across_groups = neighbour_classes(features_nd, labels_n, groups_n)
    if across_groups is not None and len(groups_n.unique()) < len(groups_n):
        return across_groups, True
    return neighbour_classes(features_nd, labels_n, torch.arange(len(labelled))), False


def _groups(entries: Sequence[Entry]) -> Tensor:
    """Number the groups [N] int64, those of each class by themselves; a video without a group is one of its own."""
    keys = [(entry.label, entry.video.group or entry.key) for entry in entries]
    number = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([number[key] for key in keys], dtype=torch.int64)


def _by_class(
    shares: Mapping[str, Tensor], entries: Sequence[Entry], classes: Sequence[str]
) -> tuple[ClassOverlap, ...]:
    labels = torch.tensor([entry.label for entry in entries])
    overlaps = [
        ClassOverlap(
            name,
            num_clips=int((labels == label).sum()),
            overlaps={str(role): share[labels == label].mean().item() for role, share in shares.items()},
        )
        for label, name in enumerate(classes)
        if (labels == label).any()
    ]
    return tuple(sorted(overlaps, key=lambda one: -one.overlaps[Role.TRAINED]))


def conclude(report: AgreementReport) -> list[str]:
    """Return sentences that interpret the figures."""
    said = [_about_teacher(report)]
    if Role.TRAINED in report.agreements:
        assert report.gain is not None
        trained, random = report.agreements[Role.TRAINED], report.agreements[Role.RANDOM]
        said += [about_training(trained, random, report.gain, chance=report.chance)]
        if report.origin:
            said += [report.origin]
            said += [
                about_information(report.information[role], student="trained student")
                for role in _role_in_words(report)
            ]
    else:
        said += [_about_overlap(report), _about_cka(report)]
        said += [
            about_information(report.information[role], student="untrained student") for role in _role_in_words(report)
        ]
    said.append(
        f"These sentences rest on {report.num_clips} clips and on rules of thumb: they can warn, but they cannot "
        "promise; only an evaluation shows whether a student is better."
    )
    return said


def _role_in_words(report: AgreementReport) -> list[str]:
    """Return the role whose information is put into a sentence: the trained student, or else the untrained one."""
    role = Role.TRAINED if Role.TRAINED in report.agreements else Role.RANDOM
    return [role] if role in report.information else []


def _about_teacher(report: AgreementReport) -> str:
    classes = report.teacher_1nn
    if classes is None:
        return _about_teacher_without_labels(report)
    figures = (
        f"For {classes.accuracy:.1%} of the clips the teacher's nearest clip shows the same class; chance is "
        f"{classes.chance:.1%}"
    )
    if is_near_chance(classes.accuracy, classes.chance):
        return (
            f"{figures}. That is near chance: this teacher has little to teach about these classes, so choose another "
            "teacher or other --teacher-weights."
        )
    return f"{figures}. The teacher's neighbourhoods say something about these classes."


def _about_teacher_without_labels(report: AgreementReport) -> str:
    spread = report.spreads[Role.TEACHER]
    figures = f"effective rank {spread.effective_rank:.1f} of at most {spread.highest_rank}"
    if is_collapsed(spread):
        return (
            f"The teacher hardly tells these clips apart ({figures}), so its neighbourhoods teach nothing about them: "
            "choose another teacher or other --teacher-weights."
        )
    pairs = ", ".join(f"{own} to {other}" for own, other in report.nearest)
    return (
        f"The teacher tells these clips apart ({figures}). Without labels only your eye can say whether it groups them "
        f"as you would. It finds nearest: {pairs}. Open these videos, and if they have nothing in common that matters "
        "to you, choose another teacher."
    )


def is_collapsed(spread: FeatureSpread) -> bool:
    """Whether nearly all clips lie on one line or at one point, while more dimensions were possible."""
    return spread.effective_rank < MIN_EFFECTIVE_RANK < spread.highest_rank


def _about_overlap(report: AgreementReport) -> str:
    random = report.agreements[Role.RANDOM]
    if not random.is_above_chance:
        return (
            f"The untrained student shares no more neighbours with the teacher ({random.overlap:.1%}) than chance "
            f"({report.chance:.1%}). This speaks neither for the pair nor against it."
        )
    return (
        f"The untrained student already shares {random.overlap:.1%} of the teacher's neighbours; chance is "
        f"{report.chance:.1%}. The two inputs have something in common, perhaps only brightness or the amount of "
        "motion: a trained student has to beat this figure, not chance."
    )


def _about_cka(report: AgreementReport) -> str:
    cka = report.agreements[Role.RANDOM].cka
    if cka < FAINT_CKA:
        meaning = "hardly anything of the teacher's arrangement of clips"
    elif cka < STRONG_CKA:
        meaning = "a part of the teacher's arrangement of clips"
    else:
        meaning = "much of the teacher's coarse arrangement of clips (a few outlying clips can suffice)"
    return (
        f"With untrained weights the student's input shows {meaning} (CKA {cka:.2f}). What training can bring out, "
        "this figure does not show."
    )


def about_information(found: SharedInformation, *, student: str) -> str:
    """Say whether teacher and student share more than the student says about the classes.

    Xie, Xu, Sanguinetti: Information-Theoretic Criteria for Knowledge Distillation in Multimodal Learning, 2025, arXiv
    2510.13182, propose this as the condition under which a teacher of another modality helps.

    Args:
        found: The estimates.
        student: Which student, for example ``untrained student``.
    """
    taught, said = found.with_teacher, found.with_labels
    if not taught.is_above_chance:
        return (
            f"Teacher and {student} share {_nats(taught)}, no more than random pairings. A student that was trained "
            "with labels (--student RUN) shows more of what its input has in common with the teacher."
        )
    shared = f"Teacher and {student} share {_nats(taught)}"
    if said is None or found.difference is None:
        return f"{shared}. Whether that is more than the student says about classes needs labelled clips."
    mean, error = found.difference
    figures = f"{shared}, and the {student} says {_nats(said)} about the classes"
    if abs(mean) <= NUM_STANDARD_ERRORS_95 * error:
        return f"{figures}. On this sample that is no difference, which speaks neither for the pair nor against it."
    if mean > 0:
        return f"{figures}. By the complementarity hypothesis, more with the teacher speaks for the pair."
    return f"{figures}. By the complementarity hypothesis, less with the teacher speaks against the pair."


def _nats(found: Information) -> str:
    return f"{max(found.nats, 0.0):.2f} ± {found.half_interval:.2f} nats"


def about_training(trained: SpaceAgreement, random: SpaceAgreement, gain: tuple[float, float], *, chance: float) -> str:
    """Say whether training moved the student towards the teacher; for ``gain`` see ``AgreementReport``."""
    difference, error = gain
    figures = (
        f"The trained student shares {trained.overlap:.1%} of the teacher's neighbours, the random one "
        f"{random.overlap:.1%}; chance is {chance:.1%}"
    )
    if abs(difference) <= NUM_STANDARD_ERRORS * error:
        return f"{figures}. On this sample that is no difference, so training shows no gain here."
    if difference < 0:
        return f"{figures}. Training moved the student away from this teacher."
    limit = "" if trained.is_above_chance else ", although not clearly above random pairings"
    return f"{figures}. Training moved the student towards the teacher{limit}."


def print_agreement_report(report: AgreementReport) -> None:
    """Print the tables, the coverage and the conclusions."""
    title = f"{report.student} and {report.teacher} on {report.dataset}, {report.sample}, {report.num_clips} clips"
    rows = [
        (
            role,
            f"{agreement.overlap:.1%}",
            f"{agreement.highest_shuffled_overlap:.1%}",
            f"{agreement.cka:.3f}",
            *spread_texts(report.spreads[role]),
        )
        for role, agreement in report.agreements.items()
    ]
    teacher = (str(Role.TEACHER), "", "", "", *spread_texts(report.spreads[Role.TEACHER]))
    unrelated = ("unrelated spaces, expected", f"{report.chance:.1%}", "", "0.000", "", "")
    header = ("", f"{report.k}-NN in common", f"highest of {NUM_SHUFFLES} shuffles", "linear CKA, unbiased")
    print_table(title, (*header, *SPREAD_TITLES), [*rows, teacher, unrelated])
    _print_information(report)
    if report.classes:
        by_class = [
            (one.name, str(one.num_clips), *(f"{one.overlaps[role]:.1%}" for role in (Role.TRAINED, Role.RANDOM)))
            for one in report.classes
        ]
        header = ("class", "clips", str(Role.TRAINED), str(Role.RANDOM))
        print_table(f"share of the teacher's {report.k} neighbours that the student shares", header, by_class)
    if report.teacher_1nn is not None:
        left_out = "clips of its own group" if report.leaves_group_out else "the clip itself"
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


def _print_information(report: AgreementReport) -> None:
    """Print how many nats each student shares with the teacher and with the classes."""
    rows = [
        (role, name, _nats(one), f"{one.highest_shuffled:.2f}")
        for role, found in report.information.items()
        for name, one in (("teacher", found.with_teacher), ("classes", found.with_labels))
        if one is not None
    ]
    if rows:
        num_components = next(iter(report.information.values())).num_components
        title = f"mutual information by linear models on held-out clips; components of each embedding: {num_components}"
        print_table(title, ("", "with", "± half of the 95% interval", f"highest of {NUM_SHUFFLES} shuffles"), rows)
