"""Evaluate the networks of a run without labels: agreement of the students with the teachers, and feature spread.

Shapes: N clips, E teacher and D student features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crossdistill.data.manifest import Manifest
from crossdistill.evaluation.defaults import MIN_CLIPS_FOR_CKA
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.intervals import describe_bootstrap, units_of
from crossdistill.evaluation.protocols.agreement import (
    NUM_NEIGHBOURS,
    chance_overlap,
    compare_students,
    nearest_others,
    share_of_common,
)
from crossdistill.evaluation.protocols.fusion import common_features
from crossdistill.evaluation.results import AgreementResult, Evaluation
from crossdistill.evaluation.roles import NumberedRole, Role
from crossdistill.evaluation.settings import ProtocolSettings
from crossdistill.evaluation.spread import feature_spread
from crossdistill.evaluation.teacher_agreement import (
    SpaceAgreement,
    about_training,
    highest_shuffled_overlap,
    is_collapsed,
    mean_gain,
)

MAX_COMPARED_CLIPS = 2000


@dataclass(frozen=True)
class UnlabelledEvaluation:
    """Figures of every network, and sentences about them."""

    by_role: dict[str, Evaluation]
    sentences: list[str]

    @property
    def num_clips(self) -> int:
        """Number of clips that all networks could read."""
        return next(iter(self.by_role.values())).num_test


def evaluate_unlabelled(
    embedded: Mapping[str, Features], encoders: Mapping[str, str], manifest: Manifest, *, is_test: bool
) -> UnlabelledEvaluation:
    """Compare every student with every teacher on the clips that all networks could read.

    Args:
        embedded: Role to the features of one network, all of the same dataset.
        encoders: Role to the name of the encoder.
        manifest: The dataset.
        is_test: Whether the clips are held out. The students learned from them otherwise.
    """
    common = dict(zip(embedded, common_features(list(embedded.values())), strict=True))
    settings = ProtocolSettings()
    by_role = {}
    for role, features in common.items():
        num_clips, teachers = features.num_clips, _teachers(common, of=role)
        (units,) = units_of((features.videos, features.groups))
        num_draws, seed = settings.num_bootstrap_draws, settings.seed
        by_role[role] = Evaluation(
            encoder=encoders[role],
            dataset=manifest.dataset,
            split="",
            num_train=0,
            num_test=num_clips,
            unreadable=features.unreadable,
            results={},
            coverage=features.coverage,
            views=str(features.views),
            bootstrap=describe_bootstrap([units], num_draws=num_draws, seed=seed) if teachers else None,
            agreement=[
                compare_students(
                    (role, teacher), features, common[teacher], classes=manifest.classes, settings=settings
                )
                for teacher in teachers
            ],
            spread=feature_spread(features.features) if num_clips > 1 else None,
            test_videos=list(features.videos),
            test_groups=list(features.groups),
            num_test_seen=0 if is_test else num_clips,
        )
    return UnlabelledEvaluation(by_role, _sentences(by_role, common, is_test=is_test))


def _is(role: str, kind: Role) -> bool:
    parsed = NumberedRole.parse(role)
    return parsed is not None and parsed.role is kind


def _teachers(common: Mapping[str, Features], *, of: str = str(Role.DISTILLED)) -> list[str]:
    """List the teachers of a role, its direct ones first; none if there are too few clips to compare neighbours."""
    enough = all(features.num_clips >= MIN_CLIPS_FOR_CKA for features in common.values())
    first = [role for role in common if _is(role, Role.TEACHER)]
    proxies = [role for role in common if _is(role, Role.PROXY)]
    if not enough or of in first:
        return []
    return first if of in proxies else [*proxies, *first]


def _sentences(by_role: Mapping[str, Evaluation], common: Mapping[str, Features], *, is_test: bool) -> list[str]:
    said = []
    random, trained = str(Role.RANDOM), str(Role.DISTILLED)
    for teacher in _teachers(common) if random in common and trained in common else []:
        said.append(_about_gain(common[teacher], common[random], common[trained], by_role, teacher))
    for role, evaluation in by_role.items():
        if evaluation.spread is not None and is_collapsed(evaluation.spread):
            said.append(f"Nearly all clips have the same embedding for the {role}: it hardly tells them apart.")
    seen = "held out from training" if is_test else "those that the student learned from"
    what = "how well the student follows its teacher" if _teachers(common) else "how widely the embeddings are spread"
    said.append(
        f"Without labels and a test part there is no accuracy: the clips are {seen}, and the figures say {what}, not "
        "whether that is right; crossdistill report shows the neighbours with frames."
    )
    return said


def _about_gain(
    teacher: Features, random: Features, trained: Features, by_role: Mapping[str, Evaluation], name: str
) -> str:
    k = min(NUM_NEIGHBOURS, teacher.num_clips - 1)
    near_teacher = nearest_others(teacher.features, k)
    shares, agreements = [], []
    for role, features in ((Role.RANDOM, random), (Role.DISTILLED, trained)):
        near = nearest_others(features.features, k)
        shares.append(share_of_common(near_teacher, near))
        found = _with(by_role[str(role)], name)
        agreements.append(SpaceAgreement(found.overlap, highest_shuffled_overlap(near_teacher, near), found.cka))
    gain = mean_gain(shares[1], shares[0])
    text = about_training(agreements[1], agreements[0], gain, chance=chance_overlap(teacher.num_clips, k))
    return text if name == str(Role.TEACHER) else f"{name}: {text}"


def _with(evaluation: Evaluation, teacher: str) -> AgreementResult:
    return next(found for found in evaluation.agreement if found.students[1] == teacher)
