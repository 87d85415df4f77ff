"""From scores of segments to moments of a video: neighbours that fit become one, and frames sharpen its ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipreel.search.answer import Matched

KEEP = 0.7  # of the way from a video's usual score to the best one, for a neighbour to belong to the moment
TOUCH_S = 1e-3  # by so much may what touches be apart
LEVEL = 0.5  # of that way, for a frame
MOST = 8  # moments of a video


@dataclass(frozen=True)
class Span:
    """A moment in seconds and the score of its best segment, `best` the row of that."""

    start_s: float
    end_s: float
    score: float
    best: int


def spans(
    start_s: NDArray[np.float32], end_s: NDArray[np.float32], scores: NDArray[np.float32], most: int = MOST
) -> list[Span]:
    """Moments of one video from its segments in order of time, best first; none overlaps another.

    A moment grows from its best segment over touching ones while these score at least KEEP of the way from the median
    to the best. What overlaps a moment and does not belong to it is left out.
    """
    order = np.argsort(-scores, kind="stable")[: np.count_nonzero(np.isfinite(scores))].tolist()
    # a search makes this for each hit: on a few numbers Python's own are ten times as fast as arrays
    score, start, end = scores.tolist(), start_s.tolist(), end_s.tolist()
    usual = (score[order[(len(order) - 1) // 2]] + score[order[len(order) // 2]]) / 2 if order else 0.0
    found: list[Span] = []
    taken: set[int] = set()

    def free(n: int) -> bool:
        if n in taken or not math.isfinite(score[n]):
            return False
        return all(end[n] <= s.start_s + TOUCH_S or start[n] >= s.end_s - TOUCH_S for s in found)

    def goes_on(n: int, before: int, after: int, least: float) -> bool:
        return score[n] >= least and start[after] <= end[before] + TOUCH_S and free(n)

    for best in order:
        if len(found) == most:
            break
        if not free(best):
            continue
        first = last = best
        if score[best] > usual:
            least = usual + KEEP * (score[best] - usual)
            while first > 0 and goes_on(first - 1, first - 1, first, least):
                first -= 1
            while last + 1 < len(score) and goes_on(last + 1, last, last + 1, least):
                last += 1
        taken.update(range(first, last + 1))
        found.append(Span(start[first], max(end[first : last + 1]), score[best], best))
    return found


def sharpened(
    span: Span, times_s: NDArray[np.float64], scores: NDArray[np.float32], usual: float | None = None
) -> tuple[float, float, tuple[Matched, ...]]:
    """Start and end of a moment from frames in and around it (ascending times), and its best three frames.

    The piece whose frames lie above the middle between the usual score and the best has the greatest sum, so that one
    weak frame does not end it; ends lie half-way to the next frame outside. `usual` defaults to the lowest score.
    """
    low = float(scores.min()) if usual is None else min(usual, float(scores.max()))
    gain = scores - (low + LEVEL * (float(scores.max()) - low))
    if not (gain > 0).any() or not (gain < 0).any():
        return span.start_s, span.end_s, best_frames(times_s, scores)
    first, last = greatest_sum(gain)
    edges = (times_s[1:] + times_s[:-1]) / 2
    start = min(span.start_s, float(times_s[0])) if first == 0 else float(edges[first - 1])
    end = max(span.end_s, float(times_s[-1])) if last == len(times_s) - 1 else float(edges[last])
    inside = slice(first, last + 1)
    return start, end, best_frames(times_s[inside], scores[inside])


def greatest_sum(gain: NDArray[np.float32]) -> tuple[int, int]:
    """First and last index of the run of greatest sum."""
    total = np.concatenate([[0.0], np.cumsum(gain, dtype=np.float64)])
    lowest = np.minimum.accumulate(total[:-1])
    last = int(np.argmax(total[1:] - lowest))
    return int(np.argmin(total[: last + 1])), last


def best_frames(times_s: NDArray[np.float64], scores: NDArray[np.float32], most: int = 3) -> tuple[Matched, ...]:
    order = np.argsort(-scores, kind="stable")[:most]
    return tuple(Matched(float(times_s[i]), float(scores[i])) for i in order)
