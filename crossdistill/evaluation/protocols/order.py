"""Order of frames: classes that are each other's time reversal, and the drop under shuffled and reversed frames.

A network that is blind to order confuses such classes, which accuracy over all classes hides. The classifier saw clean
training clips alone. Shuffled and reversed clips are ``jumble-5`` and ``reversal-1`` of the perturbations.

Shapes: B test clips, P clips of paired classes, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.errors import UserError, unknown_name
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.protocols.frozen_classifier import FrozenClassifier
from crossdistill.evaluation.protocols.robustness import in_common
from crossdistill.evaluation.results import TOP1, TOP5, Outcome, ProtocolResult, hits_from_scores

SHUFFLED, REVERSED = "shuffled", "reversed"
PERTURBATIONS = {SHUFFLED: ("jumble", 5), REVERSED: ("reversal", 1)}
"""Name to family and severity."""
OPPOSITES = (
    *(("left", "right"), ("up", "down"), ("upward", "downward"), ("upwards", "downwards"), ("in", "out")),
    *(("clockwise", "anticlockwise"), ("clockwise", "counterclockwise"), ("forward", "backward")),
    *(("forwards", "backwards"), ("approach", "recede"), ("approaching", "receding"), ("open", "close")),
    *(("opening", "closing"), ("push", "pull"), ("pushing", "pulling"), ("enter", "exit"), ("entering", "exiting")),
    *(("sit", "stand"), ("sitting", "standing"), ("fold", "unfold"), ("folding", "unfolding"), ("on", "off")),
    *(("lift", "lower"), ("lifting", "lowering"), ("raise", "lower"), ("put", "take"), ("putting", "taking")),
)
"""Words of class names that time reversal swaps."""
PAIR_MARK = ":"


def find_pairs(classes: Sequence[str]) -> list[tuple[int, int]]:
    """Find classes whose names differ only by words of ``OPPOSITES``, one or several.

    The names are read word by word (``SlideLeft``, ``slide_left``, ``slide left``). Each class is in one pair at most,
    the first that is found.

    Example:
        >>> find_pairs(["SlideLeft", "Bounce", "SlideRight", "door open", "door close"])
        [(0, 2), (3, 4)]
    """
    words = [tuple(word.lower() for word in _WORD.findall(name)) for name in classes]
    opposite = {frozenset(pair) for pair in OPPOSITES}

    def is_pair(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
        return len(a) == len(b) and a != b and all(x == y or {x, y} in opposite for x, y in zip(a, b, strict=True))

    pairs: list[tuple[int, int]] = []
    paired: set[int] = set()
    for i, own in enumerate(words):
        partner = next((j for j in range(i + 1, len(words)) if j not in paired and is_pair(own, words[j])), None)
        if i not in paired and partner is not None:
            pairs.append((i, partner))
            paired |= {i, partner}
    return pairs


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def read_pairs(given: Sequence[str], classes: Sequence[str]) -> list[tuple[int, int]]:
    """Read pairs such as ``Open:Close``, or one file with a pair on each line; none if nothing is given.

    Raises:
        UserError: A pair is none, names an unknown class, or a class of another pair.
    """
    lines = list(given)
    if len(given) == 1 and PAIR_MARK not in given[0]:
        path = Path(given[0])
        if not path.is_file():
            raise UserError(f"--class-pairs {path} is neither a pair such as Open:Close nor a file of pairs")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    position = {name: i for i, name in enumerate(classes)}
    pairs: list[tuple[int, int]] = []
    seen: set[str] = set()
    for line in lines:
        names = [name.strip() for name in line.split(PAIR_MARK)]
        if len(names) != 2 or names[0] == names[1]:
            raise UserError(f"--class-pairs: {line!r} is no pair of two classes: write for example Open:Close")
        for name in names:
            if name not in position:
                raise unknown_name("class in --class-pairs", name, classes, listed_by="python -m data_prep inspect")
            if name in seen:
                raise UserError(f"--class-pairs names {name} twice: a class is in one pair")
        seen.update(names)
        pairs.append((position[names[0]], position[names[1]]))
    return pairs


def measure_order(
    split: EmbeddedSplit,
    changed: Mapping[str, Features],
    classifier: FrozenClassifier,
    *,
    pairs: Sequence[tuple[int, int]],
    classes: Sequence[str],
) -> list[ProtocolResult]:
    """Classify clean clips of paired classes between the two, and all clips with shuffled and reversed frames.

    Args:
        split: The clean clips of both parts.
        changed: ``SHUFFLED`` and ``REVERSED`` to the features of the test clips; fewer if the view has no order.
        classifier: Applied to all of them.
        pairs: Classes that are each other's time reversal, as positions in ``classes``.
        classes: Names of the classes.

    Returns:
        ``order-pairs`` if there are pairs with test clips: ``top1`` is the share of clips whose own class scores higher
        than its partner (chance is a half). ``details`` holds ``pairs``, for each its two ``classes``, ``top1`` and
        ``num_test``, and, if there are reversed clips, ``partner_when_reversed``: how often a clip shown backwards is
        taken for the partner, for each pair and over all. A network that is blind to order has 1 - top1 there.
        ``order-shuffled`` and ``order-reversed``: accuracy over all classes; ``details`` holds ``clean_top1`` and
        ``drop``.
    """
    results = []
    test, positions_b = in_common(split.test, list(changed.values()))
    place = {name: {video: i for i, video in enumerate(part.videos)} for name, part in changed.items()}
    scores = {"clean": classifier.scores(test.views_nvd)}
    for name, part in changed.items():
        scores[name] = classifier.scores(part.select([place[name][video] for video in test.videos]).views_nvd)
    scores = {name: of_bc.cpu() for name, of_bc in scores.items()}
    of_pairs = _pairs_result(split, scores, test.labels, positions_b, pairs, classes, classifier.name)
    if of_pairs is not None:
        results.append(of_pairs)
    clean = hits_from_scores(scores["clean"], test.labels).hits[TOP1].mean().item()
    for name in changed:
        outcome = hits_from_scores(scores[name], test.labels)
        details = {
            "classifier": classifier.name,
            "clean_top1": clean,
            "drop": clean - outcome.hits[TOP1].mean().item(),
        }
        outcome = Outcome(outcome.hits, outcome.labels_b, outcome.predicted_b, positions_b=positions_b)
        results.append(split.result(f"order-{name}", outcome, details))
    return results


def _pairs_result(
    split: EmbeddedSplit,
    scores: Mapping[str, Tensor],
    labels_b: Tensor,
    positions_b: Tensor | None,
    pairs: Sequence[tuple[int, int]],
    classes: Sequence[str],
    classifier: str,
) -> ProtocolResult | None:
    partner_c = torch.full((split.num_classes,), -1)
    for a, b in pairs:
        partner_c[a], partner_c[b] = b, a
    clips_p = (partner_c[labels_b] >= 0).nonzero()[:, 0]
    if not len(clips_p):
        return None
    own_p = labels_b[clips_p]
    is_right_p = prefers(scores["clean"][clips_p], own_p, partner_c[own_p])
    turned_p = prefers(scores[REVERSED][clips_p], partner_c[own_p], own_p) if REVERSED in scores else None
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        is_in_p = (own_p == pair[0]) | (own_p == pair[1])
        if not is_in_p.any():
            continue
        row = {"classes": [classes[label] for label in pair], "num_test": int(is_in_p.sum())}
        row["top1"] = is_right_p[is_in_p].mean().item()
        if turned_p is not None:
            row["partner_when_reversed"] = turned_p[is_in_p].mean().item()
        rows.append(row)
    details: dict[str, Any] = {"classifier": classifier, "pairs": rows}
    if turned_p is not None:
        details["partner_when_reversed"] = turned_p.mean().item()
    outcome = Outcome(
        {TOP1: is_right_p, TOP5: torch.ones_like(is_right_p)},
        own_p,
        torch.where(is_right_p.bool(), own_p, partner_c[own_p]),
        positions_b=clips_p if positions_b is None else positions_b[clips_p],
    )
    return split.result("order-pairs", outcome, details)


def prefers(scores_pc: Tensor, first_p: Tensor, second_p: Tensor) -> Tensor:
    """Return [P] float64: 1 where the first class scores higher, or equally high and is the lower one."""
    first, second = (scores_pc.gather(1, of_p[:, None])[:, 0] for of_p in (first_p, second_p))
    is_first = (first > second) | ((first == second) & (first_p < second_p))
    return (is_first & (first > -torch.inf)).double()
