"""Learning rates against closed forms."""

import itertools
import math

import pytest

from crossdistill.training.schedule import learning_rate


def test_steps__the_papers_drops_after_90_and_120_of_130_epochs():
    def rate(step):
        return learning_rate(
            step, peak=0.01, num_steps=1300, schedule="steps", milestones=(90 / 130, 120 / 130), drop=0.2
        )

    assert [rate(s) for s in (0, 899)] == [0.01] * 2
    assert [rate(s) for s in (900, 1199)] == pytest.approx([0.002] * 2)
    assert [rate(s) for s in (1200, 1299)] == pytest.approx([0.0004] * 2)


def test_cosine__starts_at_the_peak_and_falls_to_zero():
    rates = [learning_rate(s, peak=2.0, num_steps=100) for s in range(101)]
    assert rates[0] == 2.0 and rates[50] == pytest.approx(1.0) and rates[100] == pytest.approx(0)
    assert rates[25] == pytest.approx(1 + math.cos(math.pi / 4))
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_warm_up__climbs_linearly_then_hands_over():
    rates = [learning_rate(s, peak=1.0, num_steps=20, num_warmup_steps=4) for s in range(6)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[5] < 1.0
