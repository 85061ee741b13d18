"""Mean average precision where a video has several classes: one sigmoid for each class on frozen features.

The classes of a video come from a file beside the manifest, which has one class for each video. The layer is trained as
``linear_probe`` describes (L2-normalised, standardised features; the same SGD and schedule), with binary cross-entropy
summed over classes in place of the softmax. Average precision is scikit-learn's: the sum over thresholds of precision
times the step in recall, without interpolation. The mean is over the classes that a test clip has.

Shapes: N train clips (one for each view), B test clips, V views of a video, D features, C classes, R draws of the
bootstrap at once.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import check_features
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.intervals import basic_interval, mean_of_known, ratio
from crossdistill.evaluation.linear_probe import (
    LEARNING_RATE,
    MILESTONES,
    MOMENTUM,
    NUM_EPOCHS,
    VARIANCE_OFFSET,
    WEIGHT_DECAY,
    LinearProbe,
    batch_size_for,
)
from crossdistill.evaluation.results import (
    MEAN_AVERAGE_PRECISION,
    TOP1,
    TOP5,
    Floats,
    Outcome,
    ProtocolResult,
    result_of,
)
from crossdistill.evaluation.settings import ProtocolSettings

NUM_RANKED = 5


def read_label_sets(path: Path) -> dict[str, frozenset[str]]:
    """Read the classes of videos: JSON ``{"video": ["class", ...]}``, or CSV with a line ``video,class`` for each.

    Raises:
        UserError: The file is missing, or is neither of the two.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--label-sets {path} cannot be read ({error}): give a JSON or CSV file") from error
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UserError(f"--label-sets {path} is no JSON ({error}): correct it") from error
        is_right = isinstance(found, dict) and all(
            isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found.values()
        )
        if not is_right:
            raise UserError(f'--label-sets {path}: write {{"video": ["class", "class"]}}')
        return {video: frozenset(names) for video, names in found.items()}
    sets: dict[str, set[str]] = {}
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        if len(row) != 2:
            raise UserError(f"--label-sets {path} line {number} has {len(row)} fields: write video,class")
        sets.setdefault(row[0], set()).add(row[1].strip())
    return {video: frozenset(names) for video, names in sets.items()}


def evaluate_multi_label(split: EmbeddedSplit, settings: ProtocolSettings) -> list[ProtocolResult]:
    """Train one sigmoid for each class, and measure the mean average precision on test clips.

    Clips that the file does not name, or names without a class, are left out. ``top1`` (``top5``) is the share of test
    clips of which the best class (one of the best five) is one of their own. ``details`` holds
    ``mean_average_precision``, ``average_precision`` by class, ``num_classes``, ``num_train``, ``seed`` and
    ``num_without_classes``, the test clips that were left out. ``mean_average_precision`` has an interval.
    """
    assert settings.label_sets is not None, "check_request asks for it"
    sets = read_label_sets(settings.label_sets)
    for name, part in (("train", split.train), ("test", split.test)):
        check_features(name, part.features)
        if not any(sets.get(video) for video in part.videos):
            raise UserError(
                f"--label-sets {settings.label_sets} names none of the {name} videos, such as {part.videos[0]}: "
                "write the names of the manifest (python -m data_prep inspect)"
            )
    classes = sorted(set().union(*(sets.get(video, ()) for video in split.train.videos)))
    train_targets_nc, test_targets_bc = (target_matrix(part, sets, classes) for part in (split.train, split.test))
    train_rows = [i for i, video in enumerate(split.train.videos) if sets.get(video)]
    test_rows = [i for i, video in enumerate(split.test.videos) if sets.get(video)]
    train, test = split.train.select(train_rows), split.test.select(test_rows)
    probe = train_multi_label_probe(train, train_targets_nc[train_rows], seed=settings.seed)
    scores_bc, targets_bc = multi_label_scores(probe, test.views_nvd), test_targets_bc[test_rows]
    by_class = average_precisions(scores_bc, targets_bc)
    if not by_class:
        raise UserError(f"--label-sets {settings.label_sets}: no test clip has a class of the training clips")
    best_b5 = scores_bc.topk(min(NUM_RANKED, len(classes)), dim=1).indices
    is_own_b5 = targets_bc.gather(1, best_b5).double()
    is_all = len(test_rows) == split.test.num_clips
    outcome = Outcome(
        {TOP1: is_own_b5[:, 0], TOP5: is_own_b5.amax(1)},
        torch.zeros(len(test_rows), dtype=torch.int64),  # no single class: the mean over classes is that over clips
        positions_b=None if is_all else torch.tensor(test_rows),
        set_measures={MEAN_AVERAGE_PRECISION: MeanAveragePrecision(scores_bc.numpy(), targets_bc.bool().numpy())},
    )
    details = {
        MEAN_AVERAGE_PRECISION: sum(by_class.values()) / len(by_class),
        "average_precision": {classes[i]: value for i, value in by_class.items()},
        "num_classes": len(classes),
        "num_train": len(train_rows),
        "num_without_classes": split.test.num_clips - len(test_rows),
        "seed": settings.seed,
    }
    return [result_of("multi-label", outcome, details)]


def target_matrix(part: Features, sets: Mapping[str, frozenset[str]], classes: Sequence[str]) -> Tensor:
    """Return [N, C] float32: 1 where a video has a class."""
    own = [sets.get(video, frozenset()) for video in part.videos]
    return torch.tensor([[float(name in names) for name in classes] for names in own])


def train_multi_label_probe(part: Features, targets_nc: Tensor, *, seed: int) -> LinearProbe:
    """Train one sigmoid for each class on every view of every video; the layer starts at zero."""
    num_views = part.views_nvd.shape[1]
    unit_nd = normalize(part.views_nvd.flatten(0, 1).float())
    targets_nc = targets_nc.repeat_interleave(num_views, dim=0).to(unit_nd)
    variance_d, mean_d = torch.var_mean(unit_nd, dim=0, correction=min(1, len(unit_nd) - 1))
    inverse_std_d = (variance_d + VARIANCE_OFFSET).rsqrt()
    inputs_nd = (unit_nd - mean_d) * inverse_std_d
    weight_dc = inputs_nd.new_zeros(inputs_nd.shape[1], targets_nc.shape[1], requires_grad=True)
    bias_c = inputs_nd.new_zeros(targets_nc.shape[1], requires_grad=True)
    optimizer = torch.optim.SGD([weight_dc, bias_c], lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=list(MILESTONES))
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(NUM_EPOCHS):
            for batch in torch.randperm(len(inputs_nd), generator=generator).split(batch_size_for(len(inputs_nd))):
                logits_bc = torch.addmm(bias_c, inputs_nd[batch], weight_dc)
                loss = binary_cross_entropy_with_logits(logits_bc, targets_nc[batch], reduction="sum") / len(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
    return LinearProbe(mean_d, inverse_std_d, weight_dc.detach(), bias_c.detach())


def multi_label_scores(probe: LinearProbe, views_nvd: Tensor) -> Tensor:
    """Score classes by the mean over views of their probabilities: [N, C]; a single view by its logits."""
    num_views = views_nvd.shape[1]
    logits_nvc = probe.scores(views_nvd.flatten(0, 1)).unflatten(0, (-1, num_views)).cpu().double()
    return logits_nvc[:, 0] if num_views == 1 else logits_nvc.sigmoid().mean(1)


def average_precisions(scores_bc: Tensor, targets_bc: Tensor) -> dict[int, float]:
    """Compute the average precision of every class that a clip has, from scores [B, C] and targets [B, C] of 0 and 1.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
        >>> average_precisions(scores, torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
        {0: 0.8333333333333333}
    """
    present = targets_bc.any(0).nonzero()[:, 0].tolist()
    return {i: float(average_precision_score(targets_bc[:, i].numpy(), scores_bc[:, i].numpy())) for i in present}


@dataclass(frozen=True)
class MeanAveragePrecision:
    """The mean average precision of drawn test sets: a mean over the classes that a drawn clip has.

    The average precision of few clips is too large, and that of drawn sets, where a clip of the class may stand several
    times, still larger. So the interval is the basic one; percentiles of the draws, as in Everingham et al., "Assessing
    the Significance of Performance Differences on the PASCAL VOC Challenges via Bootstrapping", 2013, can all be above
    the measured value. With few clips of each class it still is too high: ``docs/LOG.md`` has the measured coverage.
    """

    scores_bc: Floats
    is_own_bc: NDArray[np.bool_]
    """Whether a clip has a class."""

    def of_draws(self, weights_rb: Floats) -> Floats:
        """Compute [R, 1] for test sets that hold clip b ``weights_rb[r, b]`` times; NaN without a class."""
        weights_br = np.ascontiguousarray(weights_rb.T)
        of_class = [
            _average_precision(scores_b, is_own_b, weights_br)
            for scores_b, is_own_b in zip(self.scores_bc.T, self.is_own_bc.T, strict=True)
            if is_own_b.any()
        ]
        return mean_of_known(np.stack(of_class), axis=0)[:, None]

    def interval(self, drawn_rj: Floats, whole_j: Floats, level: float) -> tuple[float, float]:
        """Give the basic interval."""
        return basic_interval(drawn_rj[:, 0], float(whole_j[0]), level)


def _average_precision(scores_b: Floats, is_own_b: NDArray[np.bool_], weights_br: Floats) -> Floats:
    """Compute the average precision [R] of one class; NaN for a draw without a clip of it.

    Recall grows at the scores of the class's own clips alone. So clips are added up between these thresholds.
    """
    order_b = np.argsort(-scores_b, kind="stable")
    thresholds_p, first_own_p = np.unique(-scores_b[order_b[is_own_b[order_b]]], return_index=True)
    # Clips with an equal score are on the same side of a threshold.
    ends_p = np.searchsorted(-scores_b[order_b], thresholds_p, side="right")
    starts_p = np.append(0, ends_p[:-1])
    drawn_pr = np.add.reduceat(weights_br[order_b[: ends_p[-1]]], starts_p).cumsum(0)
    own_pr = np.add.reduceat(weights_br[order_b[is_own_b[order_b]]], first_own_p)
    precision_pr = np.nan_to_num(ratio(own_pr.cumsum(0), drawn_pr))
    return ratio((own_pr * precision_pr).sum(0), own_pr.sum(0))
