"""The objectives by name. A new one is a file of its own and one entry in ``OBJECTIVES``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from crossdistill.errors import unknown_name
from crossdistill.objectives.attention_transfer import AttentionTransfer
from crossdistill.objectives.bingo import BINGO
from crossdistill.objectives.compress import CompRess, compress_loss
from crossdistill.objectives.cosine import cosine_loss
from crossdistill.objectives.cross_entropy import CrossEntropy
from crossdistill.objectives.dist import DIST
from crossdistill.objectives.dkd import DKD
from crossdistill.objectives.infonce import InfoNCE
from crossdistill.objectives.kd import KD
from crossdistill.objectives.mse import mse_loss
from crossdistill.objectives.objective import AnchorSource, Objective
from crossdistill.objectives.regression import Regression
from crossdistill.objectives.rkd import RKD
from crossdistill.objectives.seed import SEED
from crossdistill.objectives.simreg import SimReg
from crossdistill.objectives.smooth_l1 import smooth_l1_loss
from crossdistill.objectives.token_matching import TokenMatching

__all__ = [
    "OBJECTIVES",
    "CompRess",
    "Objective",
    "Settings",
    "compress_loss",
    "create_objective",
]


@dataclass(frozen=True)
class Settings:
    """What objectives can be told; each takes what it knows, and None is its paper's own value."""

    temperature: float | None = None
    """Of the softmax over similarities; the student's where both sides have their own."""
    teacher_temperature: float | None = None
    """Of the teacher, where it has its own (SEED, CompRess)."""
    taken: set[str] = field(default_factory=set)
    """Which of them an objective has asked for."""

    def of(self, **names: str) -> dict[str, float]:
        """The settings that were given, under the names of an objective's arguments."""
        self.taken.update(names.values())
        values = {argument: getattr(self, name) for argument, name in names.items()}
        return {argument: value for argument, value in values.items() if value is not None}


def _compress(student_anchors: AnchorSource) -> Callable[[Settings], Objective]:
    names = {"temperature": "temperature", "teacher_temperature": "teacher_temperature"}
    return lambda settings: CompRess(student_anchors=student_anchors, **settings.of(**names))


def _seed(settings: Settings) -> Objective:
    return SEED(**settings.of(student_temperature="temperature", teacher_temperature="teacher_temperature"))


def _bingo(settings: Settings) -> Objective:
    given = settings.of(temperature="temperature")
    return BINGO(temperature=given["temperature"]) if given else BINGO()


OBJECTIVES: dict[str, Callable[[Settings], Objective]] = {
    "compress-2q": _compress("momentum"),
    "compress-2q-live": _compress("live"),
    "compress-1q": _compress("teacher"),
    "simreg": lambda settings: SimReg(),
    "seed": _seed,
    "infonce": lambda settings: InfoNCE(**settings.of(temperature="temperature")),
    "bingo": _bingo,
    "cosine": lambda settings: Regression("cosine", cosine_loss),
    "smooth-l1": lambda settings: Regression("smooth_l1", smooth_l1_loss),
    "mse": lambda settings: Regression("mse", mse_loss),
    "rkd": lambda settings: RKD(),
    "kd": lambda settings: KD(**settings.of(temperature="temperature")),
    "dkd": lambda settings: DKD(**settings.of(temperature="temperature")),
    "dist": lambda settings: DIST(**settings.of(temperature="temperature")),
    "token-matching": lambda settings: TokenMatching(),
    "attention-transfer": lambda settings: AttentionTransfer(),
    "cross-entropy": lambda settings: CrossEntropy(),
}


def create_objective(
    name: str, *, temperature: float | None = None, teacher_temperature: float | None = None
) -> Objective:
    """Build an objective by name; temperatures are its paper's own if None."""
    return build_objective(name, Settings(temperature=temperature, teacher_temperature=teacher_temperature))


def build_objective(name: str, settings: Settings) -> Objective:
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    return OBJECTIVES[name](settings)
