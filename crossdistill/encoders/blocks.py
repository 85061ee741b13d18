"""Blocks: the parts of a network one after the other, whose outputs a ladder of heads uses.

A convolutional network is divided where its maps get smaller, as in ResNet's ``layer1`` to ``layer4``. A network whose
maps keep their size, such as a ViT, is divided into its repeated blocks. Both are found by one run on a blank clip.

Shapes: B batch, C channels, T frames, H height, W width, N tokens.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.encoders.tokens import TokenLayer

SAME_SIZE = 0.75
"""Share of the places of the map before, from which on a map counts as one of the same size: class tokens change the
number of places a little, and a stride of 2 at least halves it."""


@dataclass(frozen=True)
class Block:
    """A module of a network, and the number of channels of its output."""

    name: str
    """Name of the module in the body."""
    channels: int


@dataclass(frozen=True)
class _Call:
    """One call of a module that returned maps."""

    name: str
    kind: type
    is_layer: bool
    """Whether the module has no modules of its own."""
    channels: int
    num_places: int
    """Places and times of the map, in the whole batch."""

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]


def find_blocks(
    body: nn.Module, run: Callable[[], object], token_layer: TokenLayer | None, *, named: Sequence[str] = ()
) -> list[Block]:
    """Find the blocks of a network before its last one, whose place the features take in a ladder.

    Args:
        body: The network.
        run: Runs it once.
        token_layer: The layer before pooling, if it is known. What runs after it is no block.
        named: Names of the blocks, if they are not to be searched for.

    Returns:
        The blocks in the order of their calls; empty if there are fewer than two, the last one included. Of ``named``
        those that return maps, each as often as it is called.
    """
    calls = _record(body, run, token_layer)
    if named:
        return [Block(call.name, call.channels) for call in calls if call.name in named]
    counts = Counter(call.name for call in calls)
    calls = [call for call in calls if counts[call.name] == 1]  # what runs several times is shared by blocks
    before_pooling = [i for i, call in enumerate(calls) if token_layer is not None and call.name == token_layer.module]
    if before_pooling:
        calls = calls[: before_pooling[0] + 1]
    by_parent: dict[str, list[_Call]] = {}
    for call in calls:
        by_parent.setdefault(call.parent, []).append(call)
    found = _longest(map(_stages, by_parent.values()))
    if len(found) < 2:
        found = _longest(map(_repeated, by_parent.values()))[:-1]
    elif not before_pooling or found[-1].num_places * SAME_SIZE <= calls[-1].num_places:
        found = found[:-1]
    return [Block(call.name, call.channels) for call in found]


def _record(body: nn.Module, run: Callable[[], object], token_layer: TokenLayer | None) -> list[_Call]:
    """Return the calls of all modules that return maps, in the order in which they end."""
    calls: list[_Call] = []

    def note(name: str, module: nn.Module, output: Any) -> None:
        maps = _maps_in(output, token_layer)
        if maps:
            channels = [each.shape[_channel_axis(each, token_layer)] for each in maps]
            is_layer = not any(True for _ in module.children())
            calls.append(_Call(name, type(module), is_layer, sum(channels), maps[0].numel() // channels[0]))

    names = [name for name, _ in body.named_modules() if name]
    with _hooks(body, names, note), torch.no_grad():
        run()
    return calls


def _stages(calls: Sequence[_Call]) -> list[_Call]:
    """Return the last of each run of calls with maps of about one size; none if maps get larger again."""
    stages: list[_Call] = []
    for call in calls:
        if stages and call.num_places * SAME_SIZE > stages[-1].num_places:
            return []
        if stages and call.num_places > SAME_SIZE * stages[-1].num_places:
            stages.pop()
        stages.append(call)
    return stages


def _repeated(calls: Sequence[_Call]) -> list[_Call]:
    """Return the calls of modules of the most frequent class, single layers left out."""
    kinds = Counter(call.kind for call in calls if not call.is_layer)
    return [call for call in calls if call.kind in dict(kinds.most_common(1))]


def _longest(groups: Iterable[list[_Call]]) -> list[_Call]:
    """Return the longest group, of equal ones that nearest to the body."""
    return max(filter(None, groups), key=lambda calls: (len(calls), -calls[0].name.count(".")), default=[])


@contextlib.contextmanager
def pooled_outputs(body: nn.Module, names: Sequence[str], token_layer: TokenLayer | None) -> Iterator[list[Tensor]]:
    """Collect, while the body runs inside the block, the mean over all places of each named module's output.

    Args:
        body: The network.
        names: Names of modules, in the order of their calls.
        token_layer: The layer before pooling; it says whether maps have their channels last.

    Yields:
        A list that the run fills with a tensor [B, C] for each name, or [B * T, C] if the module sees single frames.
    """
    pooled: list[Tensor] = []

    def note(name: str, module: nn.Module, output: Any) -> None:
        # Pooled at once: a later layer may change the map in place.
        pooled.append(torch.cat([_mean(each, token_layer) for each in _maps_in(output, token_layer)], dim=1))

    with _hooks(body, names, note):
        yield pooled


@contextlib.contextmanager
def _hooks(body: nn.Module, names: Sequence[str], note: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """Call ``note`` with the name, the module and the output of each named module, while the body runs."""
    hooks = [
        body.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: note(name, module, output)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _maps_in(output: Any, token_layer: TokenLayer | None) -> list[Tensor]:
    """Return the maps or sequences in an output: one tensor, or several in the list of a network of two pathways."""
    parts = output if isinstance(output, list | tuple) else [output]
    # Among sequences, tensors of more axes belong to the inside of attention.
    sizes = (3,) if token_layer is not None and token_layer.layout == "sequence" else (3, 4, 5)
    return [part for part in parts if isinstance(part, Tensor) and part.dim() in sizes]


def _channel_axis(maps: Tensor, token_layer: TokenLayer | None) -> int:
    """Return the axis of the channels: the last one in a sequence [B, N, C], and where the token layer has it there."""
    is_last = maps.dim() == 3 or (token_layer is not None and token_layer.layout == "channels-last")
    return maps.dim() - 1 if is_last else 1


def _mean(maps: Tensor, token_layer: TokenLayer | None) -> Tensor:
    axis = _channel_axis(maps, token_layer)
    return maps.mean(dim=[i for i in range(1, maps.dim()) if i != axis])
