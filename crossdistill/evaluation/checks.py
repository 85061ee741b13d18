"""What every protocol demands of its features, said in one sentence where it is not met.

Shapes: N clips, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossdistill.errors import UserError


def check_features(name: str, features_nd: Tensor) -> None:
    """Demand a non-empty matrix of finite values.

    Args:
        name: How a message calls it, for example ``train``.
        features_nd: [N, D].

    Raises:
        UserError: Wrong rank, no rows, no columns, or NaN or infinite values.
    """
    if features_nd.ndim != 2 or features_nd.shape[1] == 0:
        raise UserError(f"{name} features must have shape [clips, dim], not {list(features_nd.shape)}")
    if len(features_nd) == 0:
        raise UserError(f"the {name} set is empty: give it at least one clip")
    if torch.isfinite(features_nd.sum()):  # one cheap pass: a bad value makes the sum bad
        return
    num_bad = int((~torch.isfinite(features_nd)).any(1).sum())
    if num_bad:
        raise UserError(
            f"{num_bad} of {len(features_nd)} rows of {name} features hold NaN or infinite values: "
            "check the weights and the precision that made them"
        )


def check_labels(name: str, labels_n: Tensor, *, num_clips: int, num_classes: int) -> None:
    """Demand one label in [0, num_classes) for every clip.

    Raises:
        UserError: Not integers, another number of labels than clips, unlabelled clips (-1), or labels past the last
            class.
    """
    if labels_n.shape != (num_clips,) or labels_n.is_floating_point():
        raise UserError(
            f"{name} labels must be {num_clips} integers, one for each clip, "
            f"not {labels_n.dtype} of shape {list(labels_n.shape)}"
        )
    num_unlabelled = int((labels_n < 0).sum())
    if num_unlabelled:
        raise UserError(
            f"{num_unlabelled} of {num_clips} {name} clips have no label: leave them out or use a labelled split"
        )
    highest = int(labels_n.max())
    if highest >= num_classes:
        raise UserError(f"{name} labels go up to {highest}, but {num_classes} classes allow 0 to {num_classes - 1}")


def check_split(
    *, train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, num_classes: int
) -> None:
    """Demand a train and a test set that one protocol can use together.

    Raises:
        UserError: What ``check_features`` and ``check_labels`` reject, or sets of different feature size.
    """
    check_features("train", train_features)
    check_features("test", test_features)
    if train_features.shape[1] != test_features.shape[1]:
        raise UserError(
            f"train features have {train_features.shape[1]} dimensions and test features {test_features.shape[1]}: "
            "embed both with the same encoder"
        )
    check_labels("train", train_labels, num_clips=len(train_features), num_classes=num_classes)
    check_labels("test", test_labels, num_clips=len(test_features), num_classes=num_classes)


def classes_without_training_clips(*, train_labels: Tensor, test_labels: Tensor) -> list[int]:
    """List the classes of the test set that no training clip shows: their clips cannot be right."""
    return sorted(set(test_labels.unique().tolist()) - set(train_labels.unique().tolist()))
