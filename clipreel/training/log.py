"""The record of a run: a JSON object per line in log.jsonl, TensorBoard events where it is installed, the clock.

A resumed run first drops the rows behind its checkpoint, so that every step occurs once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from clipreel.training.checkpoint import disk_errors, write_text

Say = Callable[[str], None]
FILE = "log.jsonl"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run so far; a last line that was cut off by a kill is left out."""
    path = folder / FILE
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class RunLog:
    """Writes rows with a `kind` (train, measure) and a `step`; everything of steps behind `step` is dropped first.

    Left by an error, it closes without one of its own. Raises ClipreelError where nothing can be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        rows = [row for row in read_log(folder) if row["step"] <= step]
        self.path = folder / FILE
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        with disk_errors(folder):
            self.board = _board(folder, step)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        # a file that stays open would keep what a full disk refused, and fail with it again when it is closed
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self.board is not None:
            with disk_errors(self.path.parent):
                for name, value in values.items():
                    if isinstance(value, (int, float)):
                        self.board.add_scalar(f"{kind}/{name}", value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.board is None:
            return
        with suppress(OSError) if kind else disk_errors(self.path.parent):
            self.board.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the numbers are in log.jsonl all the same
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


class Clock:
    """Rate, time left and the share of time spent waiting for data, over the steps since the last reading."""

    def __init__(self, step: int, total: int) -> None:
        self.total, self.last, self.since, self.waited = total, step, time.perf_counter(), 0.0

    def read(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        took, done = max(now - self.since, 1e-9), step - self.last
        rate = done / took
        found = {
            "steps_per_s": rate,
            "left_s": (self.total - step) / max(rate, 1e-9),
            "data_wait": self.waited / took,
            "memory_gb": peak_memory() / 2**30,
        }
        self.last, self.since, self.waited = step, now, 0.0
        return found


def peak_memory() -> int:
    """Bytes at the peak so far: on the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows does not tell
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
