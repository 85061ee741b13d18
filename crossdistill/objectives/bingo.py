"""BINGO: the student pulls in the sample's own teacher embedding and its bag, the teacher's nearest neighbours.

Xu, Zhang, Zhang, Xie, Tian: Bag of Instances Aggregation Boosts Self-supervised Distillation, ICLR 2022,
arXiv 2107.01691. There bags are found once over the whole dataset and a member is sampled for each
batch; here the bag is found among the anchors of the bank and all of it is pulled in.

Shapes: B batch, K anchors, M members of a bag, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.directions import hold_short
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput

TEMPERATURE = 0.2
NUM_MEMBERS = 5


def bingo_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    temperature: float,
    num_members: int,
    is_own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Contrast of the sample's own embedding, and of its bag, each against all anchors.

    With ``p(x) = e^{s·x/τ} / (e^{s·t_b/τ} + Σ_k e^{s·a_k/τ})`` the first is ``mean_b -log p(t_b)`` and the second
    ``mean_b mean_{m in bag(b)} -log p(a_m)``, where the bag are the M anchors nearest to ``t_b``.

    Args:
        student: [B, E], any length; gradients flow into it alone.
        teacher: [B, E], any length.
        anchors: [K, E], L2-normalised.
        temperature: τ.
        num_members: M; all anchors where the bank has fewer.
        is_own: [B, K] bool, which anchors are of the sample itself in an earlier epoch: neither members nor negatives.

    Returns:
        Both, the second zero while there is no anchor.
    """
    query, own = F.normalize(hold_short(student), dim=1), F.normalize(teacher.detach(), dim=1)
    anchors = anchors.to(query.dtype)
    positive = (query * own).sum(dim=1, keepdim=True)
    to_student, to_teacher = query @ anchors.T, own @ anchors.T
    if is_own is not None:
        to_student, to_teacher = (values.masked_fill(is_own, -torch.inf) for values in (to_student, to_teacher))
    log_p = F.log_softmax(torch.cat([positive, to_student], dim=1) / temperature, dim=1)
    intra = -log_p[:, 0].mean()
    nearness, bag = to_teacher.topk(min(num_members, len(anchors)), dim=1)
    is_member = nearness > -torch.inf
    # Before the mean, so that what is no member has no gradient either.
    members = log_p[:, 1:].gather(1, bag).masked_fill(~is_member, 0.0)
    counts = is_member.sum(dim=1).clamp(min=1)
    return intra, -(members.sum(dim=1) / counts).mean()


class BINGO(nn.Module):
    """BINGO as an objective; the paper's head is an MLP of two layers.

    Args:
        temperature: τ.
        num_members: M.
    """

    adapter = "mlp2"
    compares: Compares = "features"
    needs_teacher_dim = True
    student_anchors: AnchorSource | None = "teacher"
    needs_own_anchors = True

    def __init__(self, *, temperature: float = TEMPERATURE, num_members: int = NUM_MEMBERS) -> None:
        super().__init__()
        self.temperature = temperature
        self.num_members = num_members

    def forward(
        self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None, is_own: Tensor | None = None
    ) -> StepOutput:
        """Compare embeddings [B, E] with each other and with the bank's valid anchors of other samples."""
        assert bank is not None
        with torch.autocast(student.device.type, enabled=False):
            intra, inter = bingo_loss(
                student=student.float(),
                teacher=teacher.float(),
                anchors=bank.teacher_anchors,
                temperature=self.temperature,
                num_members=self.num_members,
                is_own=is_own,
            )
        terms = {"bingo_own": intra.detach(), "bingo_bag": inter.detach()}
        return StepOutput(loss=intra + inter, terms=terms)
