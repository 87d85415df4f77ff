"""The record of a run: a JSON object per line in log.jsonl, TensorBoard events where it is installed, the clock.

A resumed run first drops the rows behind its checkpoint, so that every step occurs once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
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

    Files are open only while they are written: an open one keeps what a full disk refused, and fails with it again when
    it is closed. Raises ClipreelError where nothing can be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        rows = [row for row in read_log(folder) if row["step"] <= step]
        self.path = folder / FILE
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        with disk_errors(folder):
            self.board = Board.open(folder / "tensorboard", step)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self.board is not None:
            with disk_errors(self.board.path):
                self.board.write(step, {f"{kind}/{n}": v for n, v in values.items() if isinstance(v, (int, float))})


class Board:
    """A file of TensorBoard events; that of torch is written by a thread, which prints a traceback on a full disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, folder: Path, step: int) -> Board | None:
        """A new file, whose reader forgets the steps behind `step`; None without TensorBoard."""
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        except ImportError:  # the numbers are in log.jsonl all the same
            return None
        folder.mkdir(parents=True, exist_ok=True)
        board = cls(folder / f"events.out.tfevents.{time.time_ns()}")
        began = SessionLog(status=SessionLog.START)
        board.append(Event(file_version="brain.Event:2"), Event(step=step + 1, session_log=began))
        return board

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.append(Event(step=step, summary=Summary(value=scalars)))

    def append(self, *events: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self.path.open("ab") as file:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(file).write(event.SerializeToString())


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
