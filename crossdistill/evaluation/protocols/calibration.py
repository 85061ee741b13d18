"""Calibration: whether the confidence of a linear probe is the share of clips that it gets right.

The expected calibration error (ECE) has 15 bins of equal width: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern
Neural Networks", ICML 2017, equation 3. Their temperature scaling (section 4.2) divides the logits by one number, which
is fitted by the log-likelihood on a part of the training clips that the probe was not trained on.

Shapes: N clips, V views of a video, C classes, K bins, R draws of the bootstrap at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from crossdistill.data.held_out import held_out_part
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.intervals import basic_interval, percentile_interval, ratio
from crossdistill.evaluation.linear_probe import LinearProbe, mean_probabilities, train_on
from crossdistill.evaluation.results import TOP1, Floats, ProtocolResult, hits_from_scores
from crossdistill.evaluation.settings import ProtocolSettings

NUM_BINS = 15
HELD_OUT_SHARE = 0.2
TEMPERATURE_RANGE = (0.05, 20.0)
SMALLEST_PROBABILITY = 1e-12
"""Of the right class in the log-likelihood, so that a class that cannot be predicted leaves it finite."""


def evaluate_calibration(split: EmbeddedSplit, settings: ProtocolSettings) -> list[ProtocolResult]:
    """Train a probe on a part of the training clips, fit a temperature on the rest, and measure the ECE on test clips.

    ``top1`` is that of the probe, which a temperature does not change for a single view. ``details`` holds ``ece``,
    ``nll`` (mean negative log-likelihood in nats) and ``bins`` without the temperature, ``ece_scaled``, ``nll_scaled``
    and ``bins_scaled`` with it, ``temperature``, ``at_edge`` (the temperature is at an end of its range),
    ``held_out_by`` and ``num_held_out``. ``ece`` and ``ece_scaled`` have intervals.
    """
    split.check()
    is_held_n, held_out_by = held_out_part(
        split.train.labels,
        split.train.groups,
        share=HELD_OUT_SHARE,
        seed=settings.seed,
        advice="remove calibration from --protocols",
    )
    held, kept = (split.train.select(mask.nonzero()[:, 0].tolist()) for mask in (is_held_n, ~is_held_n))
    probe = train_on(kept, split.num_classes, seed=settings.seed)
    temperature = fit_temperature(view_logits(probe, held), held.labels)
    logits_nvc, labels_n = view_logits(probe, split.test), split.test.labels
    plain_nc, scaled_nc = (probabilities(logits_nvc, each) for each in (1.0, temperature))
    low, high = TEMPERATURE_RANGE
    details: dict[str, Any] = {
        **_figures(plain_nc, labels_n, suffix=""),
        **_figures(scaled_nc, labels_n, suffix="_scaled"),
        "temperature": temperature,
        "at_edge": min(temperature / low, high / temperature) < 1.01,
        "held_out_by": held_out_by,
        "num_held_out": held.num_clips,
        "seed": settings.seed,
    }
    measures = {
        f"ece{suffix}": CalibrationError.of(probabilities_nc, labels_n)
        for suffix, probabilities_nc in (("", plain_nc), ("_scaled", scaled_nc))
    }
    outcome = replace(hits_from_scores(plain_nc, labels_n), set_measures=measures)
    return [split.result("calibration", outcome, details)]


def view_logits(probe: LinearProbe, features: Features) -> Tensor:
    """Compute the logits [N, V, C] of every view in float64, on the CPU."""
    num_views = features.views_nvd.shape[1]
    return probe.scores(features.views_nvd.flatten(0, 1)).cpu().double().unflatten(0, (-1, num_views))


def probabilities(logits_nvc: Tensor, temperature: float) -> Tensor:
    """Divide the logits [N, V, C] by a temperature, and average the class probabilities over views: [N, C]."""
    num_views = logits_nvc.shape[1]
    return (mean_probabilities((logits_nvc / temperature).unbind(1)) - math.log(num_views)).exp()


def negative_log_likelihood(probabilities_nc: Tensor, labels_n: Tensor) -> float:
    """Mean over clips of -log of the probability of the right class, in nats."""
    right_n = probabilities_nc.gather(1, labels_n[:, None].to(probabilities_nc.device))
    return -right_n.clamp(min=SMALLEST_PROBABILITY).log().mean().item()


def fit_temperature(logits_nvc: Tensor, labels_n: Tensor) -> float:
    """Find the temperature within ``TEMPERATURE_RANGE`` whose negative log-likelihood is lowest.

    The search runs over the logarithm of the temperature, to 1e-8 of it.
    """
    low, high = (math.log(end) for end in TEMPERATURE_RANGE)
    found = minimize_scalar(
        lambda log: negative_log_likelihood(probabilities(logits_nvc, math.exp(log)), labels_n),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(found.x)


def reliability_bins(probabilities_nc: Tensor, labels_n: Tensor) -> list[dict[str, float]]:
    """Sort clips by confidence into ``NUM_BINS`` bins of equal width that are closed below.

    Returns:
        For each bin ``num`` (its clips), ``confidence`` and ``accuracy`` (their means; 0 for an empty bin).
    """
    confidence_n, hit_n, bin_n = _binned(probabilities_nc, labels_n)
    num = torch.bincount(bin_n, minlength=NUM_BINS)
    sums = (
        torch.zeros(NUM_BINS, dtype=confidence_n.dtype).index_add_(0, bin_n, of_n) for of_n in (confidence_n, hit_n)
    )
    confidence, accuracy = ((each / num.clamp(min=1)).tolist() for each in sums)
    return [
        {"num": count, "confidence": mean, "accuracy": share}
        for count, mean, share in zip(num.tolist(), confidence, accuracy, strict=True)
    ]


def _binned(probabilities_nc: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the confidence of each clip, 1 or 0 for whether it is right, and the number of its bin."""
    confidence_n = probabilities_nc.max(1).values.clamp(max=1.0)
    hit_n = hits_from_scores(probabilities_nc, labels_n).hits[TOP1].to(confidence_n)
    bounds = torch.linspace(0, 1, NUM_BINS + 1, dtype=confidence_n.dtype)
    # A confidence of exactly 1 belongs to the last bin.
    bin_n = (torch.bucketize(confidence_n, bounds, right=True) - 1).clamp(max=NUM_BINS - 1)
    return confidence_n, hit_n, bin_n


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean over clips of the distance between the accuracy and the confidence of their bin.

    Example:
        >>> expected_calibration_error([{"num": 3, "confidence": 0.5, "accuracy": 0.75}, {"num": 1, "confidence": 0.5,
        ...                                                                               "accuracy": 0.5}])
        0.1875
    """
    num_clips = sum(each["num"] for each in bins)
    return sum(each["num"] * abs(each["accuracy"] - each["confidence"]) for each in bins) / num_clips


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error of drawn test sets, and its interval.

    The error of few clips is too large: in every bin, accuracy and confidence differ by chance, and the error adds up
    these distances (Roelofs et al., "Mitigating Bias in Calibration Error Estimation", AISTATS 2022). A drawn test set
    adds this chance once more, so that percentiles of the draws are too high and can all be above the measured error.
    So the interval is the basic one, as in the library of Kumar, Liang, Ma, "Verified Uncertainty Calibration",
    NeurIPS 2019.

    Where the classifier is calibrated this fails, because an error cannot be negative: two of five lower ends are above
    0. As Sun, Chaudhari, Barnett, Dobriban ("A Confidence Interval for the l2 Expected Calibration Error", 2024) do for
    another error, the calibrated case is treated apart. The lower end is 0 unless the measured error is larger than
    chance, which is the upper percentile of the sum over bins of how far a drawn set's gap is from the measured gap.
    ``docs/LOG.md`` has the measured coverage.
    """

    gaps_nk: Floats
    """Confidence minus hit of a clip in the column of its bin, else 0."""

    @staticmethod
    def of(probabilities_nc: Tensor, labels_n: Tensor) -> CalibrationError:
        """Compute the error from class probabilities [N, C] and labels [N]."""
        confidence_n, hit_n, bin_n = _binned(probabilities_nc, labels_n)
        gaps_nk = torch.zeros(len(bin_n), NUM_BINS, dtype=torch.float64)
        gaps_nk[torch.arange(len(bin_n)), bin_n] = (confidence_n - hit_n).double()
        return CalibrationError(gaps_nk.numpy())

    def of_draws(self, weights_rn: Floats) -> Floats:
        """Compute [R, 2]: the error of a draw, and the sum over bins of how far its gap is from the measured one."""
        gaps_rk = ratio(weights_rn @ self.gaps_nk, weights_rn.sum(1, keepdims=True))
        return np.stack([np.abs(gaps_rk).sum(1), np.abs(gaps_rk - self.gaps_nk.mean(0)).sum(1)], axis=1)

    def interval(self, drawn_rj: Floats, whole_j: Floats, level: float) -> tuple[float, float]:
        """Give the basic interval within [0, 1], from 0 unless the gaps are larger than chance."""
        measured = float(whole_j[0])
        low, high = basic_interval(drawn_rj[:, 0], measured, level)
        _, chance = percentile_interval(drawn_rj[:, 1], level)
        return (low if measured > chance else 0.0), high


def _figures(probabilities_nc: Tensor, labels_n: Tensor, *, suffix: str) -> dict[str, Any]:
    bins = reliability_bins(probabilities_nc, labels_n)
    return {
        f"ece{suffix}": expected_calibration_error(bins),
        f"nll{suffix}": negative_log_likelihood(probabilities_nc, labels_n),
        f"bins{suffix}": bins,
    }
