"""Batches from several sources: one frame of each video with its caption beside it, and one source a step.

Specification clip_vip.md 1.4, 2.4 and 3. The paper trains on one corpus with four views of each video; mixing corpora
step by step is ours, because a step of one source has one shape and negatives of its own kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clipreel.errors import ClipreelError
from clipreel.training.batches import Batch, Batches, Loader

SOURCES = 4  # a stream of random numbers beside those of order.py and batches.py
Frames = NDArray[np.uint8]


class Middle(Mapping[str, Frames]):
    """The middle frame of every video: of n stored ones, number floor(n / 2)."""

    def __init__(self, frames_of: Mapping[str, Frames]) -> None:
        self.frames_of = frames_of

    def __getitem__(self, id: str) -> Frames:
        stored = self.frames_of[id]
        return stored[len(stored) // 2 : len(stored) // 2 + 1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.frames_of)

    def __len__(self) -> int:
        return len(self.frames_of)


class Beside(Batches):
    """The batches of `main`, with those of `aside` beside them. Both must draw the same videos in the same order.

    Raises ClipreelError where they do not, such as two sources of different batch size.
    """

    def __init__(self, main: Loader, aside: Loader) -> None:
        a, b = main.order, aside.order
        for what, x, y in (
            ("batch", a.per_step, b.per_step),
            ("seed", a.seed, b.seed),
            ("order", a.kind, b.kind),
            ("number of steps in an epoch", a.steps_per_epoch, b.steps_per_epoch),
            ("share of processes", (main.rank, main.world), (aside.rank, aside.world)),
        ):
            if x != y:
                raise ClipreelError(f"rows cannot stand beside each other: one source has {what} {x}, the other {y}")
        if a.kind == "pairs":
            raise ClipreelError(
                "the order pairs draws captions, not videos, so two texts of one do not meet; use distinct"
            )
        other = next((x.id for x, y in zip(a.samples, b.samples, strict=True) if x.id != y.id), None)
        if other is not None:
            raise ClipreelError(
                f"rows cannot stand beside each other: {other!r} has another place in the second source"
            )
        self.main, self.aside = main, aside
        self.steps_per_epoch, self.ahead = main.steps_per_epoch, main.ahead

    def told(self) -> list[str]:
        return self.main.told()

    def batch_rows(self, step: int) -> int:
        return self.main.batch_rows(step)

    def batch(self, step: int) -> Batch:
        return replace(self.main.batch(step), beside=self.aside.batch(step))


class Mixture(Batches):
    """One source a step: of every round of sum(shares) steps, `shares[name]` go to a source, in an order drawn anew.

    A source goes through its own epochs at its own pace. An epoch of the mixture is over when every source had one.
    """

    def __init__(self, sources: Mapping[str, Batches], shares: Mapping[str, int], seed: int = 0) -> None:
        if not sources or sources.keys() != shares.keys():
            raise ClipreelError(f"shares for {', '.join(shares) or 'nothing'}, sources {', '.join(sources) or 'none'}")
        for name, share in shares.items():
            if share < 1:
                raise ClipreelError(f"source {name}: a share of {share} is below 1; leave the source out")
        self.names, self.sources, self.shares, self.seed = list(sources), dict(sources), dict(shares), seed
        self.round = np.repeat(np.arange(len(self.names)), [shares[n] for n in self.names])
        rounds = max(-(-sources[n].steps_per_epoch // shares[n]) for n in self.names)
        self.steps_per_epoch = rounds * len(self.round)
        self.ahead = max(s.ahead for s in sources.values())

    def told(self) -> list[str]:
        return [f"source {name}: {text}" for name, source in self.sources.items() for text in source.told()]

    def turn(self, step: int) -> tuple[str, int]:
        """The source of a step, and how many steps it had before."""
        done, place = divmod(step, len(self.round))
        order = np.random.default_rng([self.seed, SOURCES, done]).permutation(self.round)
        name = self.names[order[place]]
        return name, done * self.shares[name] + int((order[:place] == order[place]).sum())

    def batch_rows(self, step: int) -> int:
        name, own = self.turn(step)
        return self.sources[name].batch_rows(own)

    def batch(self, step: int) -> Batch:
        name, own = self.turn(step)
        return self.sources[name].batch(own)
