"""Checks of features and labels. Shapes: N clips, D features."""

from __future__ import annotations

import torch
from torch import Tensor

from crossdistill.errors import UserError


def check_features(name: str, features_nd: Tensor) -> None:
    """Raise a ``UserError`` unless features are a non-empty matrix [N, D] of finite values; ``name`` names the set."""
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
    """Raise a ``UserError`` unless each clip has an integer label in [0, num_classes); -1 stands for no label."""
    if labels_n.shape != (num_clips,) or labels_n.is_floating_point():
        raise UserError(
            f"{name} labels must be {num_clips} integers, one for each clip, "
            f"not {labels_n.dtype} of shape {list(labels_n.shape)}"
        )
    num_unlabelled = int((labels_n < 0).sum())
    if num_unlabelled:
        raise UserError(
            f"{num_unlabelled} of {num_clips} {name} clips have no label: remove them or use a labelled split"
        )
    highest = int(labels_n.max())
    if highest >= num_classes:
        raise UserError(f"{name} labels go up to {highest}, but {num_classes} classes allow 0 to {num_classes - 1}")
