"""How sure a recall is, and whether one model is better than another on the same queries: resampled videos.

Queries of one video stand or fall together, so videos are drawn with replacement, not captions (a cluster bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipreel.errors import ClipreelError
from clipreel.evaluation.ranks import Ranks

DRAWS, SHARE = 2000, 0.95
CUTS = (1, 5, 10)


@dataclass(frozen=True)
class Interval:
    """A value in per cent (or points of it) and the middle 95 % of its resampled values."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def hits(ranks: Ranks) -> NDArray[np.float64]:
    """How often each query finds its video among the first 1, 5, 10: (Q, 3), expected over ties, in per cent."""
    return np.stack([100 * ranks.hit_rate(k).double().numpy() for k in CUTS], 1)


def drawn(values_QK: NDArray[np.float64], videos: Sequence[int], seed: int = 0) -> NDArray[np.float64]:
    """Means (DRAWS, K) over resampled videos; query q belongs to video `videos[q]`."""
    if len(values_QK) != len(videos) or not len(videos):
        raise ClipreelError(f"{len(values_QK)} queries have {len(videos)} videos; one for each is needed")
    _, cluster = np.unique(np.asarray(videos), return_inverse=True)
    count = int(cluster.max()) + 1
    sums = np.zeros((count, values_QK.shape[1]))
    np.add.at(sums, cluster, values_QK)
    sizes = np.bincount(cluster, minlength=count).astype(np.float64)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), DRAWS).astype(np.float64)
    return (weights @ sums) / (weights @ sizes)[:, None]


def interval(value: float, draws: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(draws, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Interval(float(value), float(low), float(high))


def recalls(ranks: Ranks, videos: Sequence[int]) -> dict[str, Interval]:
    """R@1, R@5, R@10 with their intervals."""
    found = hits(ranks)
    draws = drawn(found, videos)
    return {f"R@{k}": interval(found[:, i].mean(), draws[:, i]) for i, k in enumerate(CUTS)}


def gain(before: Ranks, after: Ranks, videos: Sequence[int]) -> dict[str, Interval]:
    """How many points R@1, R@5, R@10 rose on the same queries; paired, so sharper than the difference of intervals."""
    change = hits(after) - hits(before)
    draws = drawn(change, videos)
    return {f"R@{k}": interval(change[:, i].mean(), draws[:, i]) for i, k in enumerate(CUTS)}


def overall(before: tuple[Ranks, Ranks], after: tuple[Ranks, Ranks], videos: Sequence[int]) -> Interval:
    """How many points the mean of all six recalls rose (both directions); text t belongs to video `videos[t]`."""
    changes = [(hits(b) - hits(a)).mean(1, keepdims=True) for a, b in zip(before, after, strict=True)]
    # the same videos are drawn for both directions, because the seed is the same
    draws = [drawn(c, owners) for c, owners in zip(changes, (videos, range(len(changes[1]))), strict=True)]
    return interval(np.mean([c.mean() for c in changes]), (draws[0][:, 0] + draws[1][:, 0]) / 2)


def verdict(gained: Interval) -> bool | None:
    """True: better beyond chance; False: not better, or worse beyond chance; None: too few pairs to tell."""
    if gained.low > 0:
        return True
    return False if gained.value <= 0 or gained.high <= 0 else None
