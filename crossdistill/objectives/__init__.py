"""Loss functions by name. A new objective is one file with a pure function and one entry in ``OBJECTIVES``."""

from __future__ import annotations

import dataclasses

from crossdistill.errors import unknown_name
from crossdistill.objectives.attention_transfer import attention_transfer_loss
from crossdistill.objectives.bingo import bingo_loss
from crossdistill.objectives.compress import compress_1q_loss, compress_loss
from crossdistill.objectives.cosine import cosine_loss
from crossdistill.objectives.cospress import cospress_loss
from crossdistill.objectives.cross_entropy import cross_entropy_loss
from crossdistill.objectives.dist import dist_loss
from crossdistill.objectives.dkd import dkd_loss
from crossdistill.objectives.infonce import infonce_loss
from crossdistill.objectives.kd import kd_loss
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.mse import mse_loss
from crossdistill.objectives.objective import Objective
from crossdistill.objectives.rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss
from crossdistill.objectives.seed import seed_loss
from crossdistill.objectives.simreg import simreg_loss
from crossdistill.objectives.smooth_l1 import smooth_l1_loss
from crossdistill.objectives.token_matching import token_matching_loss
from crossdistill.objectives.token_relations import time_relations_loss, token_relations_loss
from crossdistill.objectives.unic import unic_loss

__all__ = [
    "OBJECTIVES",
    "MemoryBank",
    "Objective",
    "attention_transfer_loss",
    "bingo_loss",
    "compress_1q_loss",
    "compress_loss",
    "cosine_loss",
    "cospress_loss",
    "create_objective",
    "cross_entropy_loss",
    "dist_loss",
    "dkd_loss",
    "infonce_loss",
    "kd_loss",
    "mse_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "seed_loss",
    "simreg_loss",
    "smooth_l1_loss",
    "time_relations_loss",
    "token_matching_loss",
    "token_relations_loss",
    "unic_loss",
]

_COMPRESS = {"temperature": 0.04, "teacher_temperature": None}
_SEED = {"temperature": 0.2, "teacher_temperature": 0.01}
_INFONCE = {"temperature": 0.07}
_RELATIONS = {"temperature": 0.07}
_BINGO = {"temperature": 0.2, "num_members": 5}
_DKD = {"temperature": 4.0, "target_weight": 1.0, "rest_weight": 8.0}
_BINGO_PARTS = {"bingo_own": 1.0, "bingo_bag": 1.0}
_COSPRESS_PARTS = {"cospress_head": 1.0, "cospress_student": 1.0}
_RKD_PARTS = {"rkd_distance": 25.0, "rkd_angle": 50.0}
_DIST_PARTS = {"dist_between_classes": 2.0, "dist_within_class": 2.0}

_COMPRESS_2Q = Objective(
    "compress-2q",
    compress_loss,
    adapter="identity",
    needs_teacher_dim=False,
    student_anchors="momentum",
    settings=_COMPRESS,
)
_TOKEN_RELATIONS = Objective(
    "token-relations",
    token_relations_loss,
    adapter="grid",
    compares="tokens",
    needs_teacher_dim=False,
    relates="tokens",
    settings=_RELATIONS,
)
_RECORDS = (
    # Similarities to a memory bank.
    _COMPRESS_2Q,
    dataclasses.replace(_COMPRESS_2Q, name="compress-2q-live", student_anchors="live"),
    Objective("compress-1q", compress_1q_loss, adapter="linear", student_anchors="teacher", settings=_COMPRESS),
    Objective("seed", seed_loss, adapter="mlp2", student_anchors="teacher", settings=_SEED),
    Objective(
        "infonce", infonce_loss, adapter="linear", student_anchors="teacher", needs_own_anchors=True, settings=_INFONCE
    ),
    Objective(
        "bingo",
        bingo_loss,
        adapter="mlp2",
        student_anchors="teacher",
        needs_own_anchors=True,
        settings=_BINGO,
        parts=_BINGO_PARTS,
    ),
    # Embeddings of the same sample.
    Objective("simreg", simreg_loss, adapter="mlp4"),
    Objective("cosine", cosine_loss, adapter="linear"),
    Objective("smooth-l1", smooth_l1_loss, adapter="linear", standardizes=True),
    Objective("mse", mse_loss, adapter="linear"),
    Objective("unic", unic_loss, adapter="mlp2", standardizes=True),
    Objective(
        "cospress",
        cospress_loss,
        adapter="identity",
        needs_teacher_dim=False,
        reduces_teacher=True,
        parts=_COSPRESS_PARTS,
    ),
    # Relations between the samples of a batch.
    Objective("rkd", rkd_loss, adapter="identity", needs_teacher_dim=False, parts=_RKD_PARTS),
    # Class probabilities.
    Objective("kd", kd_loss, adapter="classifier", compares="logits", settings={"temperature": 4.0}),
    Objective("dkd", dkd_loss, adapter="classifier", compares="logits", settings=_DKD),
    Objective(
        "dist", dist_loss, adapter="classifier", compares="logits", settings={"temperature": 1.0}, parts=_DIST_PARTS
    ),
    # Features before pooling.
    Objective("token-matching", token_matching_loss, adapter="tokens", compares="tokens"),
    Objective(
        "attention-transfer", attention_transfer_loss, adapter="grid", compares="tokens", needs_teacher_dim=False
    ),
    _TOKEN_RELATIONS,
    dataclasses.replace(_TOKEN_RELATIONS, name="time-relations", loss=time_relations_loss, relates="times"),
    # Labels.
    Objective("cross-entropy", cross_entropy_loss, adapter="labels", compares="labels", needs_teacher_dim=False),
)
OBJECTIVES = {objective.name: objective for objective in _RECORDS}


def create_objective(
    name: str, *, temperature: float | None = None, teacher_temperature: float | None = None
) -> Objective:
    """Look up an objective of ``OBJECTIVES`` and set its temperatures; an unknown name is a ``UserError``.

    Args:
        name: A key of ``OBJECTIVES``.
        temperature: Temperature of the student's softmax, or of both; None for the value of the paper. Objectives
            without a temperature ignore it.
        teacher_temperature: Temperature of the teacher's softmax; likewise.

    Example:
        >>> dict(create_objective("seed", temperature=0.1).settings)
        {'temperature': 0.1, 'teacher_temperature': 0.01}
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    objective = OBJECTIVES[name]
    given = {"temperature": temperature, "teacher_temperature": teacher_temperature}
    known = {key: value for key, value in given.items() if value is not None and key in objective.settings}
    return dataclasses.replace(objective, settings={**objective.settings, **known})
