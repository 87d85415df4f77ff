"""Whether a score stands out where no bank says so: a picture, a moment, or a text together with one.

The score is compared with what a sample of the archive's other videos reach with the same query: middle and spread are
the median and the median distance from it, which a few videos that do fit hardly move. This is no calibration: how
often a picture of something that is not here stands out is not measured on the archive, so nothing is ever called a
match by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipreel.search.ann import Approximate
from clipreel.search.index import Index, Moments, among, arranged

LEAST = 20  # other videos; fewer have no spread to speak of
VIDEOS, ROWS = 500, 8192  # of the sample
CHANCE = 0.05  # that one of the videos stands out where their scores follow a bell curve
DEVIATION = 1.4826  # of a bell curve, in its median distances
WORDS = ("one of many", "stands out")

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Spread:
    """The scores of other videos with one query: `middle`, `deviation`, and how many of these stand out (`least`)."""

    middle: float
    deviation: float
    least: float

    @classmethod
    def of(cls, scores: Array, videos: int) -> Spread | None:
        """From the best scores of other videos, in an archive of so many; None where they are too few or all alike."""
        if len(scores) < LEAST:
            return None
        middle = float(np.median(scores))
        deviation = DEVIATION * float(np.median(np.abs(scores - middle)))
        if deviation < 1e-4:
            return None
        return cls(middle, deviation, NormalDist().inv_cdf(1 - CHANCE / max(videos, LEAST)))

    def apart(self, score: float) -> float:
        """How many deviations a score lies above the middle."""
        return (score - self.middle) / self.deviation

    def words(self, score: float) -> str:
        return WORDS[self.apart(score) >= self.least]

    def meanings(self, file: int, scores: Sequence[float]) -> list[dict[str, Any]]:
        """`apart` and `words`; `unusual` would be a share of a bank's queries, which there is none of."""
        return [{"unusual": None, "words": self.words(score), "apart": self.apart(score)} for score in scores]

    def matching(self, best: Array) -> int:
        """How many of the best scores (V,), -inf where a file is left out, stand out."""
        return int(((best - self.middle) / self.deviation >= self.least).sum())


class Sample:
    """Some videos of an index with all their vectors, always the same ones for one state of it."""

    def __init__(self, index: Index, source: Moments | Approximate) -> None:
        self.videos = len(source.files)
        order = np.random.default_rng(0).permutation(self.videos)[:VIDEOS]
        if isinstance(source, Approximate):
            found = arranged(index.rows(among(source.files[i].id for i in order)), source.files, source.number)
        else:
            found = source
        counts = np.bincount(found.file, minlength=self.videos)[order]
        taken = order[np.cumsum(counts) <= max(ROWS, counts[: 2 * LEAST].sum())]
        rows = np.flatnonzero(np.isin(found.file, taken))
        self.vectors, owner = found.vectors[rows], found.file[rows]
        self.firsts = np.flatnonzero(np.diff(owner, prepend=-1))
        self.files = owner[self.firsts]

    def spread(self, vector: Array, without: Sequence[int] = ()) -> Spread | None:
        """What the videos reach with a query (E,), `without` those that it was taken from."""
        if not len(self.firsts):
            return None
        best = np.maximum.reduceat(self.vectors @ vector, self.firsts)
        return Spread.of(best[~np.isin(self.files, without)], self.videos)
