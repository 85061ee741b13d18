"""The features of a split's two parts. Shapes: N train videos, B test videos, D features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import check_features, check_labels
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.results import Outcome, ProtocolResult, result_of
from crossdistill.evaluation.views import TestViews
from crossdistill.utils.console import progress_bar


@dataclass(frozen=True)
class EmbeddedTokens:
    """Tokens of the train and the test clips of a split: a view's row [T' * H' * W' * E] is one token after the other.

    They are in memory, as float16 by default: 2 bytes for each feature of each token of each view.
    """

    train: Features
    test: Features
    token_dim: int
    """E, the number of features of a token."""
    device: torch.device
    """Where what uses the tokens computes; the tokens themselves are on the CPU."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """Features and labels of the train and the test clips of a split, from one encoder."""

    train: Features
    test: Features
    num_classes: int
    """Number of classes of the dataset; labels are in [0, num_classes)."""
    description: str | None = None
    """Start of the text of the progress bars; None for no bars."""
    tokens: EmbeddedTokens | None = None
    """Tokens of the same clips, for protocols that use them."""

    @staticmethod
    def from_tensors(
        *, train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, num_classes: int
    ) -> EmbeddedSplit:
        """Build a split from features [N, D] and [B, D] of any scale, and int64 labels [N] and [B] in [0, num_classes).

        Example:
            >>> import torch
            >>> from crossdistill.evaluation.protocols import ProtocolSettings, apply_protocols
            >>> rows, labels = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
            >>> split = EmbeddedSplit.from_tensors(
            ...     train_features=rows, train_labels=labels, test_features=rows, test_labels=labels, num_classes=3
            ... )
            >>> [(r.protocol, r.top1) for r in apply_protocols(split, ["knn"], ProtocolSettings(ks=(1,)))]
            [('1-nn', 1.0)]
        """

        def part(features: Tensor, labels: Tensor) -> Features:
            names = tuple(str(i) for i in range(len(labels)))
            return Features(features.unsqueeze(1), labels, {}, names, (None,) * len(names), TestViews())

        return EmbeddedSplit(part(train_features, train_labels), part(test_features, test_labels), num_classes)

    def check(self) -> None:
        """Raise a ``UserError`` for an empty part, NaN or infinite features, different feature sizes, or bad labels."""
        train_nd, test_nd = self.train.features, self.test.features
        check_features("train", train_nd)
        check_features("test", test_nd)
        if train_nd.shape[1] != test_nd.shape[1]:
            raise UserError(
                f"train features have {train_nd.shape[1]} dimensions and test features {test_nd.shape[1]}: "
                "embed both with the same encoder"
            )
        check_labels("train", self.train.labels, num_clips=len(train_nd), num_classes=self.num_classes)
        check_labels("test", self.test.labels, num_clips=len(test_nd), num_classes=self.num_classes)

    def absent_classes(self) -> list[int]:
        """List the classes of the test set that have no training clip: their test clips cannot be right."""
        return sorted(set(self.test.labels.unique().tolist()) - set(self.train.labels.unique().tolist()))

    def result(self, protocol: str, outcome: Outcome, details: dict[str, Any]) -> ProtocolResult:
        """Build a protocol's result; ``num_train`` and ``classes_without_training_clips`` are added to its details."""
        facts = {"num_train": self.train.num_clips, "classes_without_training_clips": self.absent_classes()}
        return result_of(protocol, outcome, {**details, **facts})

    def progress(self, unit: str = "layers") -> Progress:
        """Make a progress bar, by default of linear layers, silent without a description."""
        return progress_bar(unit=unit, is_shown=self.description is not None)
