"""Which captions meet in which batch: a pure function of (seed, step) over three orders.

`distinct`: each video once an epoch, with one of its captions drawn, so no two captions of a video meet in a batch,
where they would count as wrong for each other (specification core.md 4.2). Parts of a file that share time are one
video there, parts that do not are several. `pairs`: each (video, caption) once an
epoch, as X-Pool, VoP and CLIP4Clip train. `opposites`: distinct, with the opposite of a video beside it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError

ORDERS = ("distinct", "pairs", "opposites")
SHUFFLE, CAPTION = 0, 1  # streams of random numbers that must not touch each other; batches.py has the next
Ints = NDArray[np.int64]


def numbered(keys: Sequence[Hashable]) -> Ints:
    """Equal keys get one number, from 0 on in order of first appearance."""
    number: dict[Hashable, int] = {}
    return np.asarray([number.setdefault(key, len(number)) for key in keys])


def overlapping(samples: Sequence[Sample]) -> list[Hashable]:
    """A key for each sample, equal for parts of one file that share time, also through others between them."""
    of_file: dict[Path, list[int]] = {}
    for i, s in enumerate(samples):
        of_file.setdefault(s.video, []).append(i)
    keys: list[Hashable] = [None] * len(samples)
    for video, rows in of_file.items():
        run, until = 0, -math.inf
        for i in sorted(rows, key=lambda i: samples[i].start_s or 0.0):
            start, end = samples[i].start_s or 0.0, samples[i].end_s
            run += start >= until
            until = max(until, math.inf if end is None else end)
            keys[i] = video, run
    return keys


class Order:
    """The items of each batch. An item is one caption of one sample, numbered through the samples in their order.

    `sample_of` (items,) is the sample of an item and `group_of` (items,) its video: samples of the same part of the
    same file are one group, in `distinct` also those of parts that overlap. Raises ClipreelError for an order, a batch
    or opposites that cannot be.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        kind: str = "distinct",
        *,
        batch: int,
        seed: int = 0,
        opposite_of: Mapping[str, str] | None = None,
        drop_last: bool = False,
    ) -> None:
        if kind not in ORDERS:
            raise ClipreelError(f"order {kind!r}: allowed are {', '.join(ORDERS)}")
        if not samples:
            raise ClipreelError("there are no samples to train on")
        if batch < 1:
            raise ClipreelError(f"a batch of {batch}: give at least 1")
        mute = [s.id for s in samples if not s.captions]
        if mute:
            raise ClipreelError(f"{mute[0]!r} has no caption, so nothing can be matched with it; leave it out")
        if seed < 0:
            raise ClipreelError(f"seed {seed}: give a whole number from 0 on")
        self.samples, self.kind, self.per_step, self.seed = samples, kind, batch, seed
        self.sample_of: Ints = np.repeat(np.arange(len(samples)), [len(s.captions) for s in samples])
        groups = numbered(
            overlapping(samples) if kind == "distinct" else [(s.video, s.start_s, s.end_s) for s in samples]
        )
        self.group_of: Ints = groups[self.sample_of]
        self.by_group: Ints = np.argsort(self.group_of, kind="stable")
        self.captions: Ints = np.bincount(self.group_of)  # of each group
        self.couples, self.alone = self._couples(samples, groups, opposite_of)
        self.rows = len(self.group_of) if kind == "pairs" else len(self.captions)
        self.steps_per_epoch = self.rows // batch if drop_last else -(-self.rows // batch)
        if not self.steps_per_epoch:
            raise ClipreelError(f"an epoch has {self.rows} rows, less than a batch of {batch}: give a smaller batch")
        self.epoch = lru_cache(maxsize=4)(self._epoch)

    def _couples(
        self, samples: Sequence[Sample], groups: Ints, opposite_of: Mapping[str, str] | None
    ) -> tuple[Ints, Ints]:
        """Groups that are each other's opposite (C, 2), and the groups without one."""
        count = len(self.captions)
        if self.kind != "opposites":
            return np.zeros((0, 2), np.int64), np.arange(count)
        if opposite_of is None:
            raise ClipreelError("the order 'opposites' needs opposite_of: which sample id is the opposite of which")
        if self.per_step % 2:
            raise ClipreelError(f"a batch of {self.per_step} would cut a video from its opposite: give an even number")
        group = {s.id: int(g) for s, g in zip(samples, groups, strict=True)}
        other: dict[int, int] = {}
        for a, b in opposite_of.items():
            if a not in group or b not in group:
                continue
            for x, y in ((group[a], group[b]), (group[b], group[a])):
                if x == y or other.setdefault(x, y) != y:
                    raise ClipreelError(f"opposite_of gives {a!r} or {b!r} itself or more than one opposite")
        couples = sorted((a, b) for a, b in other.items() if a < b)
        alone = [g for g in range(count) if g not in other]
        return np.asarray(couples, np.int64).reshape(-1, 2), np.asarray(alone, np.int64)

    def _epoch(self, epoch: int) -> Ints:
        """The items of an epoch in their order; call `epoch`, which remembers the last ones."""
        rng = np.random.default_rng([self.seed, SHUFFLE, epoch])
        if self.kind == "pairs":
            return rng.permutation(self.rows)
        if self.kind == "distinct":
            groups = rng.permutation(self.rows)
        else:  # singles go two by two, so that an even batch never cuts a couple; an odd one comes last
            single = rng.permutation(self.alone)
            even = len(single) // 2 * 2
            twos = rng.permutation(np.concatenate([self.couples, single[:even].reshape(-1, 2)]))
            groups = np.concatenate([twos.reshape(-1), single[even:]])
        drawn = np.random.default_rng([self.seed, CAPTION, epoch]).random(len(self.captions))
        first = np.cumsum(self.captions) - self.captions
        return self.by_group[(first + (drawn * self.captions).astype(np.int64))[groups]]

    def items(self, step: int) -> Ints:
        """The items of the global batch of a step; the last one of an epoch may be shorter."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch)[within * self.per_step : (within + 1) * self.per_step]
