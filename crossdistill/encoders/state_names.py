"""Find a network's tensors in a file that names them otherwise or holds more than them.

Wrappers put a prefix before every name: DataParallel (``module.``), torch.compile (``_orig_mod.``), Lightning
(``model.``), and each self-supervised method its own (MoCo v2 ``module.encoder_q.``, MoCo v3 ``module.base_encoder.``,
DINO ``backbone.``). Beside the encoder such files hold a projector, a predictor, a queue and a momentum encoder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from crossdistill.errors import UserError

# Wrappers of a part of a network, whose names can stand anywhere in a tensor's name.
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Of two copies of an encoder, the authors evaluate the other one (MoCo's query, BYOL's online network, DINO's teacher).
SECOND_COPY = re.compile(r"momentum|encoder_k\b|key_encoder|target|student")
# What a file may hold after the encoder, by the first part of the name.
HEADS = re.compile(
    r"(fc|heads?(_\w+|\d+)?|classifiers?|classif|proj|\w*project(or|ion)\w*|\w*predict(or|ion)\w*|prototypes?|"
    r"\w*queue\w*|logit_scale|linear|l2norm|memory)(\.|$)"
)
# A head in such a file is no classifier, although it may be one linear layer (MoCo v1).
SELF_SUPERVISED = re.compile(r"queue|project|predict|prototype|momentum|encoder_k\b|memory")


@dataclass(frozen=True)
class FoundState:
    """The part of a file that belongs to one network."""

    tensors: dict[str, Tensor]
    """Without the prefix; a missing or an unexpected tensor is possible, and its caller refuses it."""
    prefix: str
    """What stands before the network's names in the file."""
    left_out: list[str]
    """Names, as in the file, of tensors that do not belong to the network."""

    @property
    def is_self_supervised(self) -> bool:
        """Whether the rest of the file says that the network was trained without classes."""
        return any(SELF_SUPERVISED.search(name) for name in self.left_out)

    def summary(self) -> str:
        """List what was left out, one entry for each module."""
        own = self.prefix.split(".")
        groups = Counter(_module_beside(name, own) for name in self.left_out)
        return ", ".join(name if num == 1 else f"{name} ({num} tensors)" for name, num in groups.items())


def _module_beside(name: str, prefix: list[str]) -> str:
    """Return a tensor's name up to the first part in which it differs from the network's prefix."""
    parts = name.split(".")
    same = 0
    while same < min(len(parts), len(prefix)) and parts[same] == prefix[same]:
        same += 1
    return ".".join(parts[: same + 1])


def find_state(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    head: str = "",
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> FoundState:
    """Find the tensors of a network.

    Args:
        tensors: The content of a file.
        own: The network's own tensors; their names and shapes decide which prefix is meant.
        head: Prefix of the tensors of the network's classifier, which stay.
        aliases: Other names of the network's modules to its own.

    Raises:
        UserError: The file holds several copies of the network, and nothing says which one is meant.
    """
    named = {name if name in own else _own_name(name, aliases): value for name, value in tensors.items()}
    prefix = _find_prefix(named, own)
    inside = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    left_out = [name for name in named if not name.startswith(prefix)]
    for name in list(inside):
        is_of_classifier = head and name.startswith(head)
        if name not in own and not is_of_classifier and HEADS.match(name):
            del inside[name]
            left_out.append(prefix + name)
    for name, value in own.items():  # counts of batches that old files lack and that nothing reads
        if name.endswith("num_batches_tracked"):
            inside.setdefault(name, value)
    return FoundState(inside, prefix, left_out)


def _own_name(name: str, aliases: Mapping[str, str]) -> str:
    """Remove the wrappers of parts from a name, and replace a module's alias behind any prefix."""
    name = WRAPPERS.sub("", name)
    for start in _starts(name) if aliases else ():
        module, _, leaf = name[start:].rpartition(".")
        if module in aliases:
            return f"{name[:start]}{aliases[module]}.{leaf}"
    return name


def _find_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return the prefix under which the most names and shapes are the network's own."""
    names, shapes = Counter[str](), Counter[str]()
    for name, value in tensors.items():
        for start in _starts(name):
            like = own.get(name[start:])
            if like is not None:
                names[name[:start]] += 1
                shapes[name[:start]] += like.shape == value.shape
    if not names:
        return ""
    best = max((shapes[prefix], num) for prefix, num in names.items())
    copies = [prefix for prefix, num in names.items() if (shapes[prefix], num) == best]
    if 2 * best[1] < len(own):  # parts that happen to have the names of parts of the network
        copies = copies[:1]
    first = [prefix for prefix in copies if not SECOND_COPY.search(prefix)] or copies
    if len(first) > 1 and "" not in first:
        raise UserError(
            f"the file holds {len(first)} copies of the network, named {', '.join(repr(name) for name in first)}: save "
            "the one that you mean in a file of its own"
        )
    return "" if "" in first else first[0]


def _starts(name: str) -> Iterable[int]:
    return (0, *(match.end() for match in re.finditer(r"\.", name)))
