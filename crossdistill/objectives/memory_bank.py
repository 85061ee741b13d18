"""The memory bank: a queue of embeddings of earlier samples (anchors) that similarity losses compare with.

The bank stores teacher and student embeddings of the same sample at the same position, under one cursor. The distiller
decides when it is filled (``Distiller.after_step``).

Shapes: B batch, K anchors, D student features, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.types import Anchors


class MemoryBank:
    """A ring buffer of the L2-normalised embeddings of the last K samples.

    Only positions that were filled are handed out, so a loss never sees uninitialised anchors.

    Args:
        size: K, capacity of the bank; a ``UserError`` below 1.
        teacher_dim: E.
        student_dim: D; None if no objective compares with the student's own anchors (1q).
        dtype: Storage type of the anchors; bf16 halves the memory of float32.
        device: Device of the anchors.

    Example:
        >>> bank = MemoryBank(size=3, teacher_dim=4, student_dim=2)
        >>> for ids in ([0, 1], [2, 3]):
        ...     step = Anchors(teacher=torch.ones(2, 4), student=torch.ones(2, 2), sample_ids=torch.tensor(ids))
        ...     bank.enqueue(step)
        >>> bank.teacher_anchors.shape, bank.student_anchors.shape
        (torch.Size([3, 4]), torch.Size([3, 2]))
        >>> bank.sample_ids  # sample 3 has replaced sample 0
        tensor([3, 1, 2])
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
            raise UserError(f"--bank-size {size} is too small: give 1 or more")
        self.size = size
        self.cursor = 0
        self.num_valid = 0
        self._teacher = torch.zeros(size, teacher_dim, dtype=dtype, device=device)
        self._student = None if student_dim is None else torch.zeros(size, student_dim, dtype=dtype, device=device)
        self._sample_ids = torch.full((size,), -1, dtype=torch.int64, device=device)

    @property
    def teacher_anchors(self) -> Tensor:
        """[K, E], with K the number of filled positions; a view, not a copy."""
        return self._teacher[: self.num_valid]

    @property
    def student_anchors(self) -> Tensor:
        """[K, D], of the same samples as ``teacher_anchors``; equal to ``teacher_anchors`` without ``student_dim``."""
        return self.teacher_anchors if self._student is None else self._student[: self.num_valid]

    @property
    def sample_ids(self) -> Tensor:
        """[K] int64, dataset position of the sample of each anchor."""
        return self._sample_ids[: self.num_valid]

    def is_own(self, sample_ids: Tensor) -> Tensor:
        """Return [B, K] bool, whether an anchor is an embedding of the sample itself, from an earlier epoch."""
        return self.sample_ids == sample_ids.to(self.sample_ids.device)[:, None]

    @property
    def fill(self) -> float:
        """Filled share of the capacity, 0 to 1."""
        return self.num_valid / self.size

    @torch.no_grad()
    def enqueue(self, anchors: Anchors) -> None:
        """Normalise a batch and overwrite the oldest anchors with it, or with its end if it is larger than the bank.

        In distributed training every process must pass the anchors of all processes in the same order, so that all
        banks stay equal.
        """
        count = len(anchors.sample_ids)
        keep = slice(max(0, count - self.size), None)
        num_kept = min(count, self.size)
        positions = (torch.arange(num_kept, device=self._teacher.device) + self.cursor) % self.size
        self._teacher[positions] = _unit(anchors.teacher[keep]).to(self._teacher.dtype)
        if self._student is not None:
            assert anchors.student is not None, "this bank stores student anchors too"
            self._student[positions] = _unit(anchors.student[keep]).to(self._student.dtype)
        self._sample_ids[positions] = anchors.sample_ids[keep]
        # The bank is filled from position 0 on, so the filled positions are always the first `num_valid`.
        self.cursor = (self.cursor + num_kept) % self.size
        self.num_valid = min(self.size, self.num_valid + num_kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return tensors for a checkpoint: filled anchors, sample ids, and ``position`` = [cursor, num_valid, size]."""
        state = {
            "teacher": self.teacher_anchors,
            "sample_ids": self.sample_ids,
            "position": torch.tensor([self.cursor, self.num_valid, self.size]),
        }
        return state if self._student is None else {**state, "student": self.student_anchors}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned; a ``UserError`` if the bank had another size or other sides.

        Another size is accepted if no anchor is lost and the order is kept: a longer run can fill a larger bank.
        """
        own = self.state_dict()
        cursor, num_valid, *rest = (int(value) for value in state["position"])
        size = rest[0] if rest else len(state["teacher"])  # version 0.1 stored all rows, and no size
        names = own.keys() | state.keys()
        wrong = [name for name in names if name not in own or name not in state]
        wrong = wrong or [name for name in own.keys() - {"position"} if own[name].shape[1:] != state[name].shape[1:]]
        is_full = num_valid == size
        if num_valid > self.size or (is_full and self.size < size):
            wrong.append("size")
        if wrong:
            raise UserError(
                f"the checkpoint's memory bank differs from this run's in {wrong[0]!r}: "
                "resume with the --objective, --bank-size and encoders that the run started with"
            )
        has_grown = is_full and self.size > size  # the oldest anchor comes first, and new ones follow the newest
        self.cursor, self.num_valid = (num_valid if has_grown else cursor) % self.size, num_valid
        for name, value in self.state_dict().items():
            if name != "position":
                value.copy_(state[name][:num_valid].roll(-cursor if has_grown else 0, dims=0))


def _unit(embeddings: Tensor) -> Tensor:
    """L2-normalised rows, computed in float32 or better."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
