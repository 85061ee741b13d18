"""The optimizer of a run."""

from __future__ import annotations

from typing import Any

import torch

from crossdistill.distillation.student_with_heads import StudentWithHeads
from crossdistill.quantization.ranges import is_range

# Number of features up to which AdamW trains a head at the encoder's rate.
HEAD_BASE_WIDTH = 128


def create_optimizer(
    model: StudentWithHeads, *, optimizer: str, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Create SGD or AdamW over everything that trains, fused: one pass over the weights instead of many.

    AdamW moves every weight by about the learning rate, so the output of a head moves with its number of inputs, and on
    2048 features a rate that suits the encoder makes the output jump. The heads' rate is therefore divided by their
    width (Yang et al., Tensor Programs V, arXiv 2203.03466, table 3: Adam's rate of output weights is ~ 1 / fan-in).

    Args:
        model: The trained module.
        optimizer: ``sgd`` or ``adamw``.
        lr: Peak learning rate.
        momentum: Momentum of SGD; not used by AdamW.
        weight_decay: Weight decay of all weights except the learned ranges of a quantised student, which would decay to
            zero.
    """
    named = list(model.encoder.named_parameters())
    ranges = [value for name, value in named if is_range(name)]
    encoder = [value for name, value in named if not is_range(name)]
    heads = list(model.heads.parameters())
    undecayed: list[dict[str, Any]] = [{"params": ranges, "weight_decay": 0.0}] if ranges else []
    if optimizer == "sgd":
        groups: list[dict[str, Any]] = [{"params": [*encoder, *heads]}, *undecayed]
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    groups = [{"params": encoder, "lr_scale": 1.0}, *undecayed]
    if heads:
        groups.append({"params": heads, "lr_scale": min(1.0, HEAD_BASE_WIDTH / model.encoder.embed_dim)})
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)
