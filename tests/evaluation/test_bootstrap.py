"""Intervals cover what they should, pairs are sharper than two intervals, and captions of one video move together."""

import numpy as np
import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.evaluation.bootstrap import Interval, drawn, gain, overall, recalls, verdict
from clipreel.evaluation.ranks import Ranks


def ranks(positions: list[int], gallery: int = 50) -> Ranks:
    zero = torch.zeros(len(positions), dtype=torch.long)
    return Ranks(torch.tensor(positions) - 1, zero, zero, gallery)


def test_an_interval_covers_the_true_recall() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        found = recalls(ranks([1 if hit else 20 for hit in rng.random(120) < 0.4]), range(120))["R@1"]
        inside += found.low <= 40 <= found.high
    assert 180 <= inside <= 198


def test_captions_of_one_video_move_together() -> None:
    values = np.repeat(np.random.default_rng(1).integers(0, 2, (30, 1)) * 100.0, 20, 0)
    apart = drawn(values, range(600)).std()
    together = drawn(values, [i // 20 for i in range(600)]).std()
    assert together > 3 * apart


def test_a_paired_gain_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(2)
    before = rng.integers(1, 4, 300).tolist()
    after = [max(1, b - (rng.random() < 0.2)) for b in before]
    found = gain(ranks(before), ranks(after), range(300))
    assert found["R@1"].low > 0
    assert (
        found["R@1"].high - found["R@1"].low
        < recalls(ranks(before), range(300))["R@1"].high - recalls(ranks(before), range(300))["R@1"].low
    )


def test_overall_is_the_mean_of_six_recalls_over_the_same_videos() -> None:
    a, b = ranks([1, 3, 9, 30]), ranks([1, 1, 4, 30])
    found = overall((a, a), (b, b), range(4))
    one = gain(a, b, range(4))
    assert found.value == pytest.approx(np.mean([one[k].value for k in ("R@1", "R@5", "R@10")]))
    assert found.low <= found.value <= found.high
    assert overall((a, a), (a, a), [0, 0, 1, 3]) == Interval(0, 0, 0)


def test_verdicts() -> None:
    assert verdict(Interval(3, 1, 5)) is True
    assert verdict(Interval(-4, -6, -2)) is False
    assert verdict(Interval(1, -2, 4)) is None
    assert verdict(Interval(0, 0, 0)) is False


def test_queries_without_videos() -> None:
    with pytest.raises(ClipreelError, match="3 queries have 2 videos"):
        drawn(np.zeros((3, 1)), [0, 1])
