"""Which frames of a video are looked at: by time for the product, by index exactly as each paper's code does.

Specification core.md 3.3-3.4, checked on fixtures of CLIP4Clip, MV-Adapter, ModelScope (VoP) and ALPRO. Every index
function takes the number of frames n and how many are wanted, and gives indices in 0..n-1 (int64, ascending).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from clipreel.errors import ClipreelError

Indices = NDArray[np.int64]
Rng = np.random.Generator


def middles(n: int, frames: int) -> Indices:
    """The middle frame of each of min(frames, n) equal intervals (X-Pool, Frozen, VoP: uniform)."""
    cuts = np.floor(np.linspace(0, n, min(frames, n) + 1)).astype(np.int64)
    return (cuts[:-1] + cuts[1:] - 1) // 2


def xpool_random(n: int, frames: int, rng: Rng) -> Indices:
    """One frame of each interval but never its last, as released; ValueError where an interval has a single frame."""
    cuts = np.floor(np.linspace(0, n, min(frames, n) + 1)).astype(np.int64)
    if (cuts[1:] - cuts[:-1] < 2).any():
        raise ValueError(f"xpool_random needs two frames in each interval; {n} frames give too few for {frames}")
    return rng.integers(cuts[:-1], cuts[1:] - 1)


def tsn_random(n: int, frames: int, rng: Rng) -> Indices:
    """One frame of each of `frames` equal intervals, every frame can be drawn (TSN); n < frames repeats frames."""
    edges = np.linspace(0, n, frames + 1)
    return np.minimum((edges[:-1] + rng.random(frames) * np.diff(edges)).astype(np.int64), n - 1)


def mv_adapter(n: int, frames: int) -> Indices:
    """floor(i n / frames); all frames when there are no more than wanted."""
    return np.arange(n) if n <= frames else np.arange(frames, dtype=np.int64) * n // frames


def clip4clip_seconds(frame_count: int, fps: float, rate: int = 1, start: int = 0, end: int | None = None) -> Indices:
    """The frames that CLIP4Clip extracts: `rate` frames of each second with the frame rate cut to an integer.

    `start` and `end` are whole seconds, both taken. ValueError for a rate below one frame a second, on which the
    official code divides by zero.
    """
    whole = int(fps)
    if whole < 1:
        raise ValueError(f"CLIP4Clip's extraction needs at least 1 frame a second, the file says {fps}")
    seconds = math.ceil(frame_count / whole)
    last = seconds if end is None else min(end, seconds)
    step = whole // rate if rate > 1 else whole
    offsets = np.arange(0, whole, max(step, 1))[:rate] if rate > 1 else np.zeros(1, np.int64)
    indices = (np.arange(start, last + 1)[:, None] * whole + offsets[None]).reshape(-1)
    beyond = np.flatnonzero(indices >= frame_count)  # reading stops at the first failure
    return indices[: beyond[0]].astype(np.int64) if len(beyond) else indices.astype(np.int64)


def clip4clip(n: int, frames: int, position: int = 2) -> Indices:
    """CLIP4Clip's `slice_framepos`: 0 the first, 1 the last, 2 spread from first to last; short videos whole."""
    if position not in (0, 1, 2):
        raise ValueError(f"position {position}: allowed are 0 (head), 1 (tail), 2 (uniform)")
    if n <= frames:
        return np.arange(n)
    if position == 2:
        return np.linspace(0, n - 1, frames).astype(np.int64)
    return np.arange(frames) if position == 0 else np.arange(n - frames, n)


def clip_vip(n: int, frames: int, rng: Rng | None = None) -> Indices:
    """floor(linspace(0, n-1)); with `rng` both ends are moved inwards by up to one gap (training)."""
    first, last = 0, n - 1
    if rng is not None:
        gap = n // max(frames - 1, 1)
        first = int(rng.integers(0, gap + 1))
        last = int(rng.integers(max(n - 1 - gap, 0), n))
    return np.clip(np.linspace(first, last, frames).astype(np.int64), 0, n - 1)


def alpro(n: int, frames: int) -> Indices:
    """ALPRO's evaluation: steps of floor(n / frames), so the end is never seen, and all zeros when n < frames."""
    return np.arange(frames, dtype=np.int64) * (n // frames)


def alpro_random(n: int, frames: int, rng: Rng) -> Indices:
    """ALPRO's training: distinct random frames in order; ValueError when there are too few."""
    if n < frames:
        raise ValueError(f"alpro_random needs {frames} different frames, the video has {n}")
    return np.sort(rng.choice(n, frames, replace=False))


def alpro_headtail(n: int, frames: int, rng: Rng) -> Indices:
    """ALPRO's pre-training: half of the frames drawn from each half of the video; ValueError when there are too few."""
    head, tail = frames // 2, frames - frames // 2
    if n // 2 < head or n - n // 2 < tail:
        raise ValueError(f"alpro_headtail needs {frames} different frames, half of them in each half; there are {n}")
    first = np.sort(rng.choice(n // 2, head, replace=False)) if head else np.zeros(0, np.int64)
    return np.concatenate([first, n // 2 + np.sort(rng.choice(n - n // 2, tail, replace=False))])


BY_INDEX: dict[str, Callable[[int, int], Indices]] = {
    "middles": middles,
    "mv_adapter": mv_adapter,
    "clip4clip": clip4clip,
    "clip_vip": clip_vip,
    "alpro": alpro,
}
BY_INDEX_RANDOM: dict[str, Callable[[int, int, Rng], Indices]] = {
    "xpool_random": xpool_random,
    "tsn_random_index": tsn_random,
    "clip_vip_jitter": clip_vip,
    "alpro_random": alpro_random,
    "alpro_headtail": alpro_headtail,
}
BY_TIME = ("uniform", "tsn_random", "rate", "cover", "keyframes")
KINDS = (*BY_TIME, *BY_INDEX, *BY_INDEX_RANDOM)


@dataclass(frozen=True)
class Sampling:
    """How frames are chosen, part of a model's space.

    By time: `uniform` the middle of `frames` equal parts; `tsn_random` a random moment of each (training); `rate` is
    `fps` frames a second, at most `frames` of them (0: all); `cover` is `fps` a second, spread evenly, and at least
    `frames`; `keyframes` what the encoder stored whole, at most
    `frames`. The rest are the index rules of the papers, for constant frame rates and parity.
    """

    kind: str = "uniform"
    frames: int = 12
    fps: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ClipreelError(f"sampling {self.kind!r}: allowed are {', '.join(KINDS)}")
        least = 0 if self.kind in ("rate", "keyframes") else 1
        if self.frames < least:
            raise ClipreelError(f"{self.frames} frames: sampling {self.kind} needs at least {least}")
        if not (self.fps > 0 and math.isfinite(self.fps)):
            raise ClipreelError(f"{self.fps} frames a second: give a number above 0")

    @property
    def random(self) -> bool:
        return self.kind == "tsn_random" or self.kind in BY_INDEX_RANDOM

    @property
    def by_index(self) -> bool:
        return self.kind in BY_INDEX or self.kind in BY_INDEX_RANDOM

    def indices(self, n: int, rng: Rng | None = None) -> Indices:
        """The frame numbers for a video of n frames, for kinds that go by index."""
        if self.kind in BY_INDEX:
            return BY_INDEX[self.kind](n, self.frames)
        if rng is None:
            raise ValueError(f"sampling {self.kind} draws at random: give rng")
        return BY_INDEX_RANDOM[self.kind](n, self.frames, rng)

    def times(self, start_s: float, end_s: float, rng: Rng | None = None) -> NDArray[np.float64]:
        """The moments in seconds between start and end, for kinds that go by time (not keyframes)."""
        length = max(end_s - start_s, 0.0)
        if self.kind == "rate":
            count = max(1, math.ceil(length * self.fps - 1e-9))
            times = start_s + np.arange(count) / self.fps
            return times if not self.frames or count <= self.frames else times[clip4clip(count, self.frames)]
        count = max(self.frames, math.ceil(length * self.fps)) if self.kind == "cover" else self.frames
        within = np.full(count, 0.5)
        if self.kind == "tsn_random":
            if rng is None:
                raise ValueError("sampling tsn_random draws at random: give rng")
            within = rng.random(count)
        return start_s + (np.arange(count) + within) * (length / count)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
