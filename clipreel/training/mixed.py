"""Several data sets in one run: each step takes its batch from one of them, drawn with equal chance.

Specification alpro.md 4: pre-training on videos and images, whatever their sizes. A pure function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from clipreel.errors import ClipreelError
from clipreel.training.batches import Batch, Batches

BLOCK = 1024  # steps whose choices are drawn at once
MIX = 7  # a stream of random numbers beside those of order.py and batches.py


class Mixed(Batches):
    """Batches of several sources; each goes through its own epochs in its own order, a step whenever it is drawn."""

    def __init__(self, loaders: Sequence[Batches], seed: int = 0) -> None:
        if not loaders:
            raise ClipreelError("there is no data to mix; give at least one loader")
        self.loaders, self.seed = tuple(loaders), seed
        self.steps_per_epoch = sum(loader.steps_per_epoch for loader in loaders)
        self.choices = lru_cache(maxsize=8)(self._choices)
        self.before = lru_cache(maxsize=None)(self._before)

    def _choices(self, block: int) -> np.ndarray:
        return np.random.default_rng([self.seed, MIX, block]).integers(len(self.loaders), size=BLOCK)

    def _before(self, block: int) -> tuple[int, ...]:
        """How often each loader was drawn in all blocks before this one."""
        if block == 0:
            return (0,) * len(self.loaders)
        done, last = self.before(block - 1), self.choices(block - 1)
        return tuple(n + int((last == i).sum()) for i, n in enumerate(done))

    def place(self, step: int) -> tuple[Batches, int]:
        """The loader of a step, and which of its own steps that is."""
        block, within = divmod(step, BLOCK)
        drawn = self.choices(block)
        chosen = int(drawn[within])
        return self.loaders[chosen], self.before(block)[chosen] + int((drawn[:within] == chosen).sum())

    def told(self) -> list[str]:
        return [f"data {n}: {text}" for n, loader in enumerate(self.loaders, 1) for text in loader.told()]

    def batch_rows(self, step: int) -> int:
        loader, own = self.place(step)
        return loader.batch_rows(own)

    def batch(self, step: int) -> Batch:
        loader, own = self.place(step)
        return loader.batch(own)
