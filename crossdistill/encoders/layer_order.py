"""The layers of a network in order, for rates that differ from layer to layer."""

from __future__ import annotations

from torch import nn

from crossdistill.encoders.recomputation import WEIGHTED, innermost_blocks

HEADS = "heads of the student"
"""Name that no pattern of timm matches, as it matches no classifier."""


def layer_numbers(body: nn.Module) -> tuple[dict[str, int], int]:
    """Number the layers of a network from its input on.

    Returns:
        The layer of each parameter by its name, and the layer of the heads on top of the network.

    Of a network of timm the layers are timm's own. In any other, the stem is layer 0, and each of its repeated blocks
    begins a layer, in the order in which they are registered; what lies between two blocks, or behind the last one,
    belongs to the block before it. A network without repeated blocks has one layer for each convolution or linear map.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> numbers, heads = layer_numbers(create_encoder("rgb_r3d10").body)
        >>> numbers["stem.0.weight"], numbers["stages.0.conv1.0.weight"], max(numbers.values()), heads
        (0, 1, 4, 5)
    """
    matcher = getattr(body, "group_matcher", None)
    if callable(matcher):
        from timm.models import group_parameters

        # timm puts a classifier into one layer with what else matches no layer, such as a norm before it.
        with_heads = nn.Module()
        for name, child in body.named_children():
            with_heads.add_module(name, child)
        for name, value in [*body.named_parameters(recurse=False), (HEADS, nn.Parameter())]:
            with_heads.register_parameter(name, value)
        numbers: dict[str, int] = group_parameters(with_heads, matcher(coarse=False), reverse=True)
        return numbers, numbers.pop(HEADS)
    blocks = innermost_blocks(body)
    if len(blocks) < 2:
        blocks = [module for module in body.modules() if isinstance(module, WEIGHTED)]
    number_of: dict[nn.Parameter, int] = {}
    for number, block in enumerate(blocks, start=1):
        for value in block.parameters():
            number_of.setdefault(value, number)
    found, current = {}, 0
    for name, value in body.named_parameters():
        current = max(current, number_of.get(value, 0))
        found[name] = number_of.get(value, current)
    first = min(found.values(), default=0)  # without a stem the first block is layer 0
    numbers = {name: number - first for name, number in found.items()}
    return numbers, 1 + max(numbers.values(), default=-1)


def layer_scales(body: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter: decay to the power of the layers above it.

    The heads on top of the network have the factor 1, and the layer below them has ``decay``: Bao, Dong, Piao, Wei:
    BEiT, ICLR 2022, arXiv 2106.08254, and timm's ``param_groups_layer_decay``.

    Args:
        body: The network without its classifier.
        decay: Factor from one layer to the one below it, in (0, 1].
    """
    numbers, heads = layer_numbers(body)
    return {name: decay ** (heads - number) for name, number in numbers.items()}
