"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.distillation.student_with_heads import StudentWithHeads
from crossdistill.encoders.layer_order import layer_scales
from crossdistill.quantization.ranges import is_range

# Number of inputs up to which AdamW trains a layer of a head at the encoder's rate.
HEAD_BASE_WIDTH = 128


def create_optimizer(
    model: StudentWithHeads,
    *,
    optimizer: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """Create SGD or AdamW over everything that trains, fused where the device has such kernels (``has_fused``).

    SGD decays all weights, as in the authors' code of CompRess, except the learned ranges of a quantised student, which
    would decay to zero. AdamW decays the weights of linear layers and convolutions alone (``is_decayed``).

    AdamW moves every weight by about the learning rate, so the output of a layer moves with its number of inputs, and
    on 2048 features a rate that suits the encoder makes the output of a head jump. The rate of each layer of the heads
    is therefore divided by its own number of inputs (Yang et al., Tensor Programs V, arXiv 2203.03466, table 3: Adam's
    rate is ~ 1 / fan-in for hidden and output weights, and constant for biases and other vectors).

    Args:
        model: The trained module.
        optimizer: ``sgd`` or ``adamw``.
        lr: Peak learning rate.
        momentum: Momentum of SGD; not used by AdamW.
        weight_decay: Weight decay of the weights that decay.
        layer_decay: Factor of the rate from one layer of the encoder to the one below it (``layer_scales``).
    """
    depth = {f"encoder.body.{name}": scale for name, scale in layer_scales(model.encoder.body, layer_decay).items()}
    fused = has_fused(next(model.parameters()).device)
    if optimizer == "sgd":
        by_kind: dict[tuple[bool, float], list[Tensor]] = {}
        for name, value in _in_former_order(model):
            by_kind.setdefault((not is_range(name), depth.get(name, 1.0)), []).append(value)
        # First what decays, with one layer_decay for all one group, as in runs from before that option.
        groups: list[dict[str, Any]] = [
            {"params": values} | ({} if decays else {"weight_decay": 0.0}) | ({} if scale == 1 else {"lr_scale": scale})
            for (decays, scale), values in sorted(by_kind.items(), key=lambda item: not item[0][0])
        ]
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
    exempt = _exempt_by_library(model)
    by_kind = {}
    for name, value in _in_former_order(model):
        is_map = is_decayed(model.get_submodule(name.rpartition(".")[0]), name, value)
        num_inputs = value[0].numel() if is_map and name.startswith("heads.") else 1
        kind = is_map and name not in exempt, min(1.0, HEAD_BASE_WIDTH / num_inputs) * depth.get(name, 1.0)
        by_kind.setdefault(kind, []).append(value)
    groups = [
        {"params": values, "lr_scale": scale, "is_decayed": decays, "weight_decay": weight_decay if decays else 0.0}
        for (decays, scale), values in by_kind.items()
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def has_fused(device: torch.device) -> bool:
    """Return whether torch has fused optimizers for a device: one pass over the weights instead of many.

    Example:
        >>> has_fused(torch.device("cpu"))
        True
    """
    weight = nn.Parameter(torch.zeros((), device=device))
    weight.grad = torch.zeros_like(weight)
    try:
        torch.optim.AdamW([weight], fused=True).step()
    except RuntimeError:
        return False
    return True


def is_decayed(layer: nn.Module, name: str, value: Tensor) -> bool:
    """Return whether AdamW decays a parameter: the weight of a linear layer, a convolution or attention.

    Norms, biases, embeddings, tables of positions, class tokens and scales are no maps from inputs to outputs, and
    decay would only pull them to zero.

    Args:
        layer: The module that holds the parameter.
        name: The parameter's name, alone or with the names of the modules around it.
        value: The parameter.

    Example:
        >>> linear, norm = nn.Linear(3, 4), nn.LayerNorm(4)
        >>> [is_decayed(layer, name, value) for layer in (linear, norm) for name, value in layer.named_parameters()]
        [True, False, False, False]
    """
    if not name.endswith("weight") or isinstance(layer, nn.Embedding) or is_range(name):
        return False
    is_map = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    # Elsewhere a weight of one row is a vector: ConvNeXt V2 has scales of shape [1, 1, 1, C].
    return is_map or sum(size > 1 for size in value.shape) > 1


def _exempt_by_library(model: nn.Module) -> set[str]:
    """Return the parameters that a network itself excludes from decay, by timm's method ``no_weight_decay``."""
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if callable(method := getattr(module, "no_weight_decay", None))
        for name in method()
    }


def _in_former_order(model: StudentWithHeads) -> Iterator[tuple[str, nn.Parameter]]:
    """List all parameters in the order in which version 0.1 gave them to the optimizer: encoder, its ranges, heads."""
    named = list(model.named_parameters())
    yield from ((name, value) for name, value in named if not name.startswith("heads.") and not is_range(name))
    yield from ((name, value) for name, value in named if not name.startswith("heads.") and is_range(name))
    yield from ((name, value) for name, value in named if name.startswith("heads."))


def take_groups_of(state: dict[str, Any], optimizer: torch.optim.Optimizer, model: StudentWithHeads) -> None:
    """Give an optimizer the groups of a state that version 0.1 wrote, so that its run goes on as it began.

    That version decayed all weights with AdamW, and had one group for the encoder and one for the heads.
    """
    stored, current = state["param_groups"], optimizer.param_groups
    if any("is_decayed" in group for group in stored) or all("is_decayed" not in group for group in current):
        return
    parameters = [value for _, value in _in_former_order(model)]
    groups = []
    for group in stored:
        count = len(group["params"])
        groups.append({**current[0], "params": parameters[:count]})
        del groups[-1]["is_decayed"], parameters[:count]
    optimizer.param_groups = groups
