"""Weights kept on the way of a run, evenly: what the curves of CLIP-ViP's data-scale study are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Generator

from clipreel.errors import ClipreelError
from clipreel.training.batches import Batch, Batches


class Snapshots(Batches):
    """The same batches; `keep(step)` is called between two steps, `count` times in a run, after the last step too.

    A run that was killed calls it again where it goes on, so it must give the same twice.
    """

    def __init__(self, inner: Batches, count: int, keep: Callable[[int], None]) -> None:
        if count < 0:
            raise ClipreelError(f"snapshots: {count} is below 0")
        self.inner, self.count, self.keep = inner, count, keep
        self.steps_per_epoch, self.ahead = inner.steps_per_epoch, inner.ahead

    def told(self) -> list[str]:
        return self.inner.told()

    def batch_rows(self, step: int) -> int:
        return self.inner.batch_rows(step)

    def batch(self, step: int) -> Batch:
        return self.inner.batch(step)

    def stream(self, start: int, stop: int) -> Generator[tuple[int, Batch, float], None, None]:
        """When a step is asked for, all updates before it are done; `stop` is the end of the run."""
        due = {-(-stop * i // self.count) for i in range(1, self.count + 1)}
        if start in due:
            self.keep(start)
        for step, batch, waited in super().stream(start, stop):
            yield step, batch, waited
            if step + 1 in due:
                self.keep(step + 1)
