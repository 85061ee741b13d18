"""Gains of one network over another on the same test clips, with paired bootstrap intervals.

Clips and people that are hard for one network are often hard for the other, so two intervals of single accuracies say
little about the difference. A paired bootstrap draws clips (or groups of clips) once for both networks, and takes the
difference on every draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import torch

from crossdistill.errors import UserError
from crossdistill.evaluation.intervals import bootstrap_intervals, describe_bootstrap, units_of
from crossdistill.evaluation.results import TOP1, Evaluation, Gain, Outcome, Units
from crossdistill.evaluation.settings import NUM_BOOTSTRAP_DRAWS


def paired_gains(
    network: Evaluation | Sequence[Evaluation],
    other: Evaluation | Sequence[Evaluation],
    *,
    names: tuple[str, str] | None = None,
    num_draws: int = NUM_BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> dict[str, Gain]:
    """Compute the gain in top-1 of a network over another one, for every protocol of both.

    The interval is that of a paired bootstrap over groups of test videos (people, source films), or over videos if they
    have no groups. It answers what other test people would change. It holds nothing of what other training seeds would
    change: several evaluations of one side are seeds, whose hits are averaged clip by clip before clips are drawn.

    Args:
        network: Its evaluation, or one for each seed, as ``evaluate`` returns and ``read_evaluation`` reads them.
        other: The network that it is compared with, in the same way.
        names: Names of the two; their encoders by default.
        num_draws: Number of test sets that are drawn; 0 for point estimates.
        seed: Seed of the draws.

    Returns:
        Protocol to gain. Clips that not every evaluation holds are left out. If an evaluation lacks the hits of single
        clips, as those of former versions do, the gain is a point estimate: its interval is None.

    Raises:
        UserError: The evaluations are of different datasets or splits.

    Example:
        >>> from crossdistill.evaluation.results import ProtocolResult
        >>> def evaluation(hits):
        ...     share = hits.count("1") / len(hits)
        ...     knn = ProtocolResult("1-nn", share, share, share, len(hits), hits=hits)
        ...     videos, groups = ["a", "b", "c", "d"], ["anna", "anna", "ben", "ben"]
        ...     return Evaluation("net", "toy", "1", 8, 4, {}, {"1-nn": knn}, test_videos=videos, test_groups=groups)
        >>> gain = paired_gains(evaluation("1011"), evaluation("1000"))["1-nn"]
        >>> gain.gain, gain.interval, gain.bootstrap.unit
        (0.5, (0.0, 1.0), 'group')
    """
    sides = [[side] if isinstance(side, Evaluation) else list(side) for side in (network, other)]
    every = [evaluation for side in sides for evaluation in side]
    tested = {(evaluation.dataset, evaluation.split) for evaluation in every}
    if len(tested) > 1:
        sets = " and ".join(f"split {split} of {dataset}" for dataset, split in sorted(tested))
        raise UserError(f"a gain compares networks on one test set, not on {sets}: evaluate them on the same split")
    names = names or (sides[0][0].encoder, sides[1][0].encoder)
    gains = {}
    for protocol in every[0].results:
        if not all(protocol in evaluation.results for evaluation in every):
            continue
        paired = _paired(sides, protocol)
        if paired:
            num_test = sum(len(outcome.labels_b) for outcome in paired)
            gain = mean(outcome.hits[TOP1].mean().item() for outcome in paired)
            units = [outcome.units for outcome in paired if outcome.units is not None]
            interval = bootstrap_intervals(paired, num_draws=num_draws, seed=seed).get(TOP1)
            bootstrap = describe_bootstrap(units, num_draws=num_draws, seed=seed)
            gains[protocol] = Gain(names, protocol, gain, interval, num_test, bootstrap)
        else:
            ours, theirs = (mean(each.results[protocol].top1 for each in side) for side in sides)
            num_test = min(each.results[protocol].num_test for each in every)
            gains[protocol] = Gain(names, protocol, ours - theirs, None, num_test)
    return gains


def _paired(sides: Sequence[Sequence[Evaluation]], protocol: str) -> list[Outcome]:
    """Give one outcome for each test set (split), whose hits are differences; none if hits are not known."""
    every = [evaluation for side in sides for evaluation in side]
    sets = []
    for split, first in _test_sets(every[0]).items():
        hits = [[_hits(_test_sets(each).get(split), protocol) for each in side] for side in sides]
        common = [video for video in first.test_videos if all(video in known for side in hits for known in side)]
        if not common:
            return []
        ours, theirs = ([mean(known[video] for known in side) for video in common] for side in hits)
        group_of = dict(zip(first.test_videos, first.test_groups, strict=True))
        difference_b = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
        sets.append((difference_b, common, [group_of[video] for video in common]))
    units: list[Units] = units_of(*((videos, groups) for _, videos, groups in sets))
    # Gains are not drawn by class, so all clips have one label.
    return [
        Outcome({TOP1: difference_b}, torch.zeros(len(difference_b), dtype=torch.int64), units=own)
        for (difference_b, _, _), own in zip(sets, units, strict=True)
    ]


def _test_sets(evaluation: Evaluation) -> dict[str, Evaluation]:
    """Give the evaluation of each split."""
    return evaluation.splits or {evaluation.split: evaluation}


def _hits(evaluation: Evaluation | None, protocol: str) -> dict[str, int]:
    """Map each test video to 0 or 1; empty if they are not known."""
    if evaluation is None or protocol not in evaluation.results:
        return {}
    hits = evaluation.results[protocol].hits
    return dict(zip(evaluation.test_videos, map(int, hits), strict=True)) if hits else {}
