"""Gains: the paired bootstrap against a slow implementation; pairing by clip, seeds and splits; point estimates."""

from dataclasses import replace

import numpy as np
import pytest

import crossdistill as cd
from crossdistill.errors import UserError
from crossdistill.evaluation.results import Evaluation, ProtocolResult, read_evaluation

NUM_PEOPLE, CLIPS_EACH = 4, 30
VIDEOS = [f"v{i}" for i in range(NUM_PEOPLE * CLIPS_EACH)]
PEOPLE = [f"s{i // CLIPS_EACH}" for i in range(len(VIDEOS))]


def evaluation(hits, *, videos=VIDEOS, people=PEOPLE, split="1", **more):
    digits = "".join(str(int(hit)) for hit in hits)
    top1 = float(np.mean(hits))
    results = {"1-nn": ProtocolResult("1-nn", top1, 1.0, top1, len(digits), hits=digits)}
    return Evaluation("net", "toy", split, 9, len(digits), {}, results, test_videos=videos, test_groups=people, **more)


def two_networks(*, seed=0, gain=0.04):
    """People differ by far more than the two networks do."""
    generator = np.random.default_rng(seed)
    ease = np.repeat([0.95, 0.75, 0.55, 0.35], CLIPS_EACH)
    luck = generator.random(len(VIDEOS))
    return luck < ease + gain, luck < ease


def naive_interval(ours, theirs, units, *, num_draws, seed):
    """Draw units with replacement; each draw has the clips of its units, and gives one difference of accuracies."""
    names = sorted(set(units))
    members = [[i for i, unit in enumerate(units) if unit == name] for name in names]
    generator = np.random.default_rng(seed)
    gains = []
    for _ in range(num_draws):
        clips = [i for unit in generator.integers(len(names), size=len(names)) for i in members[unit]]
        gains.append(np.mean([ours[i] for i in clips]) - np.mean([theirs[i] for i in clips]))
    return np.percentile(gains, [2.5, 97.5])


@pytest.mark.parametrize("has_people", [True, False])
def test_paired_gains__equal_a_slow_implementation(has_people):
    ours, theirs = two_networks()
    people = PEOPLE if has_people else [None] * len(VIDEOS)
    a, b = (evaluation(hits, people=people) for hits in (ours, theirs))
    gain = cd.paired_gains(a, b, num_draws=200, seed=3)["1-nn"]
    assert gain.gain == pytest.approx(ours.mean() - theirs.mean(), abs=1e-12)
    assert (gain.num_test, gain.bootstrap.unit) == (120, "group" if has_people else "video")
    wanted = naive_interval(ours, theirs, PEOPLE if has_people else VIDEOS, num_draws=200, seed=3)
    assert gain.interval == pytest.approx(wanted, abs=1e-9)


def test_paired_gains__are_narrower_than_intervals_of_each_alone_and_change_sign():
    a, b = (evaluation(hits) for hits in two_networks())
    gain, back = (cd.paired_gains(*pair)["1-nn"] for pair in ((a, b), (b, a)))
    alone = naive_interval(two_networks()[0], np.zeros(len(VIDEOS)), PEOPLE, num_draws=500, seed=0)
    assert gain.interval[1] - gain.interval[0] < 0.3 * (alone[1] - alone[0])  # the four people differ by 60 points
    assert back.gain == -gain.gain
    assert back.interval == pytest.approx([-gain.interval[1], -gain.interval[0]], abs=0.01)
    nothing = cd.paired_gains(a, a)["1-nn"]
    assert (nothing.gain, nothing.interval) == (0.0, (0.0, 0.0))


def test_paired_gains__pair_clips_by_name_and_leave_out_those_that_one_lacks():
    ours, theirs = two_networks()
    order = np.random.default_rng(1).permutation(len(VIDEOS))[:100]
    shuffled = evaluation(theirs[order], videos=[VIDEOS[i] for i in order], people=[PEOPLE[i] for i in order])
    kept = sorted(order)
    same = evaluation(theirs[kept], videos=[VIDEOS[i] for i in kept], people=[PEOPLE[i] for i in kept])
    found, wanted = (cd.paired_gains(evaluation(ours), other)["1-nn"] for other in (shuffled, same))
    assert found == wanted and found.num_test == 100
    assert found.gain == pytest.approx(ours[kept].mean() - theirs[kept].mean(), abs=1e-12)


def test_paired_gains__average_the_hits_of_seeds_clip_by_clip():
    pairs = [two_networks(seed=seed) for seed in range(3)]
    a, b = ([evaluation(pair[side]) for pair in pairs] for side in range(2))
    gain = cd.paired_gains(a, b, num_draws=200)["1-nn"]
    ours, theirs = (np.mean([pair[side] for pair in pairs], axis=0) for side in range(2))
    assert gain.gain == pytest.approx((ours - theirs).mean(), abs=1e-12)
    assert gain.interval == pytest.approx(naive_interval(ours, theirs, PEOPLE, num_draws=200, seed=0), abs=1e-9)


def test_paired_gains__of_people_held_out_in_turn_draw_people():
    """Each split tests one person: the interval of the mean over splits draws people, not the clips of each."""
    ours, theirs = two_networks()

    def in_turn(hits):
        splits = {}
        for person in sorted(set(PEOPLE)):
            at = [i for i, own in enumerate(PEOPLE) if own == person]
            name = f"1@{person}"
            splits[name] = evaluation(hits[at], videos=[VIDEOS[i] for i in at], people=[person] * len(at), split=name)
        whole = evaluation(hits, split=" + ".join(splits), splits=splits)
        results = {name: replace(result, hits="") for name, result in whole.results.items()}
        return replace(whole, test_videos=[], test_groups=[], results=results)

    found = cd.paired_gains(in_turn(ours), in_turn(theirs))["1-nn"]
    whole = cd.paired_gains(evaluation(ours), evaluation(theirs))["1-nn"]
    assert found.bootstrap == whole.bootstrap and found.bootstrap.num_units == NUM_PEOPLE
    assert found.gain == pytest.approx(whole.gain, abs=1e-12)  # people of as many clips
    assert found.interval == pytest.approx(whole.interval, abs=1e-9)  # a person who was drawn twice counts twice


def test_paired_gains__without_hits_or_draws_are_point_estimates():
    a, b = (evaluation(hits) for hits in two_networks())
    values = a.to_json()
    for key in ("test_videos", "test_groups", "gains"):  # a former version wrote none of them
        del values[key]
    del values["results"]["1-nn"]["hits"]
    former = cd.paired_gains(read_evaluation(values), b)["1-nn"]
    assert (former.interval, former.bootstrap, former.num_test) == (None, None, 120)
    assert former.gain == pytest.approx(a.top1 - b.top1, abs=1e-12)
    undrawn = cd.paired_gains(a, b, num_draws=0)["1-nn"]
    assert (undrawn.interval, undrawn.bootstrap) == (None, None) and undrawn.gain == pytest.approx(former.gain)


def test_paired_gains__of_two_test_sets_are_refused():
    a, b = (evaluation(hits) for hits in two_networks())
    with pytest.raises(UserError, match="one test set, not on split 1 of toy and split 2 of toy: evaluate them on the"):
        cd.paired_gains(a, replace(b, split="2"))


def test_paired_gains__only_of_protocols_that_both_have():
    a, b = (evaluation(hits) for hits in two_networks())
    more = replace(a, results={**a.results, "linear": replace(a.first, protocol="linear")})
    assert list(cd.paired_gains(more, b)) == ["1-nn"]
