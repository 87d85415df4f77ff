"""The process that decodes for another one, which a codec that hangs or crashes therefore cannot harm.

`clipreel.video.many` starts it as `python -m clipreel.video.worker FD`, sends it (read, path), and gets for each:
begun, head (info, count), frames (times, pixels) as often as needed, and end (info, warnings, seconds of CPU); or
instead of the rest failed (reason, detail), or bug (traceback). It ends when the other side is gone.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipreel.video.decode import Stream
from clipreel.video.packets import DecodeError

PIECE = 16  # frames of a message: 2.4 MB at 224 pixels


def answers(read: Callable[[Path], Stream], path: Path) -> Iterator[tuple[Any, ...]]:
    """The messages about a file."""
    started = time.process_time()
    try:
        stream = read(path)
        yield "head", stream.info, stream.count
        times: list[float] = []
        pixels: list[np.ndarray] = []
        for moment, frame in stream.frames:
            times.append(moment)
            pixels.append(frame.numpy())
            if len(times) == PIECE:
                yield "frames", times, np.concatenate(pixels)
                times, pixels = [], []
        if times:
            yield "frames", times, np.concatenate(pixels)
        yield "end", stream.info, stream.warnings, time.process_time() - started
    except DecodeError as e:
        yield "failed", e.reason, e.detail
    except Exception:
        yield "bug", traceback.format_exc()


def main(fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process decides what an interruption means
    torch.set_num_threads(1)  # several files at once beat several threads on one
    connection = Connection(fd)
    try:
        while True:
            read, path = connection.recv()  # this imports what `read` needs: the time of the file begins after it
            connection.send(("begun",))
            for message in answers(read, path):
                connection.send(message)
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))
