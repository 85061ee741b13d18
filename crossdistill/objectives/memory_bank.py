"""The memory bank: the anchors that embeddings are compared with.

A queue of the last K samples. Teacher and student anchors at one position are of the same sample,
under one cursor. Positions that were never filled are not handed out, so noise is never an anchor.

Shapes: K anchors, D student features, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.types import Anchors


class MemoryBank:
    """A ring of L2-normalised anchors.

    Args:
        size: K, how many anchors are kept.
        teacher_dim: E.
        student_dim: D; None if the student is compared with the teacher's anchors (1q).
        dtype: How anchors are stored; bf16 halves the memory.
        device: Where they are.
    """

    def __init__(
        self,
        *,
        size: int,
        teacher_dim: int,
        student_dim: int | None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if size < 1:
            raise UserError(f"a bank needs at least one anchor, not {size}: raise --bank-size")
        self.size = size
        self.cursor = 0
        self.num_valid = 0
        self._teacher = torch.zeros(size, teacher_dim, dtype=dtype, device=device)
        self._student = None if student_dim is None else torch.zeros(size, student_dim, dtype=dtype, device=device)
        self._sample_ids = torch.full((size,), -1, dtype=torch.int64, device=device)

    @property
    def teacher_anchors(self) -> Tensor:
        """[valid, E]; a view, not a copy."""
        return self._teacher[: self.num_valid]

    @property
    def student_anchors(self) -> Tensor:
        """[valid, D], of the same samples as ``teacher_anchors``; those themselves for 1q."""
        return self.teacher_anchors if self._student is None else self._student[: self.num_valid]

    @property
    def sample_ids(self) -> Tensor:
        """[valid] int64: which sample each anchor is of."""
        return self._sample_ids[: self.num_valid]

    def is_own(self, sample_ids: Tensor) -> Tensor:
        """[B, valid] bool: which anchors are of the very samples [B], from an earlier epoch."""
        return self.sample_ids == sample_ids.to(self.sample_ids.device)[:, None]

    @property
    def fill(self) -> float:
        """Share of the bank that is filled."""
        return self.num_valid / self.size

    @torch.no_grad()
    def enqueue(self, anchors: Anchors) -> None:
        """Write a batch over the oldest anchors; of a batch larger than the bank, the end stays.

        Every process has to pass the anchors of all processes, in the same order.
        """
        count = len(anchors.sample_ids)
        keep = slice(max(0, count - self.size), None)
        num_kept = min(count, self.size)
        positions = (torch.arange(num_kept, device=self._teacher.device) + self.cursor) % self.size
        self._teacher[positions] = _unit(anchors.teacher[keep]).to(self._teacher.dtype)
        if self._student is not None:
            assert anchors.student is not None, "this bank keeps anchors of the student as well"
            self._student[positions] = _unit(anchors.student[keep]).to(self._student.dtype)
        self._sample_ids[positions] = anchors.sample_ids[keep]
        # While the bank fills up it is filled from the start, so the valid anchors are its first ones.
        self.cursor = (self.cursor + num_kept) % self.size
        self.num_valid = min(self.size, self.num_valid + num_kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, for the checkpoint."""
        state = {
            "teacher": self._teacher,
            "sample_ids": self._sample_ids,
            "position": torch.tensor([self.cursor, self.num_valid]),
        }
        return state if self._student is None else {**state, "student": self._student}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave."""
        own = self.state_dict()
        for name in own.keys() | state.keys():
            if name not in own or name not in state or own[name].shape != state[name].shape:
                raise UserError(
                    f"the checkpoint's memory bank differs from this run's in {name!r}: "
                    "resume with the --objective, --bank-size and encoders that the run started with"
                )
        for name, value in own.items():
            if name != "position":
                value.copy_(state[name])
        self.cursor, self.num_valid = (int(value) for value in state["position"])


def _unit(embeddings: Tensor) -> Tensor:
    """L2-normalised rows, computed in float32 or better."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
