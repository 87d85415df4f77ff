"""Learning rates of the papers, as pure functions of the number of updates done.

Three families share the words "warm-up" and "cosine" and differ in the numbers: `hf_*` (transformers, used by X-Pool
and so by VoP) starts at 0; `hero_*` (HERO's code, used by CLIP-ViP and ALPRO) counts updates from 1 and never falls
below 1e-8; `bertadam_*` (CLIP4Clip, MV-Adapter) measures both phases from the start of training, so cosine and
constant jump where the warm-up ends. Checked against those codes on parity fixtures.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from clipreel.errors import ClipreelError

ScheduleName = Literal[
    "constant",
    "hf_cosine",
    "hf_linear",
    "hero_cosine",
    "hero_linear",
    "bertadam_cosine",
    "bertadam_linear",
    "bertadam_constant",
]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
HERO_FLOOR = 1e-8


def rate(name: str, peak: float, step: int, total: int, warmup: float = 0.1) -> float:
    """The learning rate of update number `step` (0-based) of `total`; `warmup` is the share of updates that warm up.

    >>> [round(rate("hf_cosine", 0.01, s, 10, 0.2), 5) for s in (0, 1, 2, 3)]
    [0.0, 0.005, 0.01, 0.00962]
    """
    if name not in SCHEDULES:
        raise ClipreelError(f"schedule {name!r}: allowed are {', '.join(SCHEDULES)}")
    if name == "constant":
        return peak
    family, shape = name.split("_")
    if family == "bertadam":
        return peak * _bertadam(shape, step / total, warmup)
    warm = int(warmup * total)
    if family == "hf":
        return peak * _after_warmup(shape, step, warm, total)
    found = peak * _after_warmup(shape, step + 1, warm, total)
    return found if found > 0 else HERO_FLOOR


def _after_warmup(shape: str, k: int, warm: int, total: int) -> float:
    """k / warm, then half a cosine or a line from 1 to 0."""
    if k < warm:
        return k / warm
    done = (k - warm) / max(1, total - warm)
    return max(0.0, 1 - done) if shape == "linear" else max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


def _bertadam(shape: str, x: float, warmup: float) -> float:
    if x < warmup:
        return x / warmup
    if shape == "constant":
        return 1.0
    return max((x - 1) / (warmup - 1), 0.0) if shape == "linear" else 0.5 * (1 + math.cos(math.pi * x))
