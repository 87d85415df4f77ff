"""Many files one after the other, decoded ahead: in threads, or in processes that may hang and crash.

Processes cost nothing per file: a few of them live on from file to file, and from one call to the next. They hand the
frames over in pieces through a pipe and wait while the last piece was not taken, so each holds at most two.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from clipreel.video.decode import Frames, Stream
from clipreel.video.packets import DecodeError

Item = TypeVar("Item")
START_S = 120.0  # for a process to start and import what it needs, on a busy machine
GRACE_S = 1.0  # beyond the time limit, which the process looks at itself between two packets


def read_many(
    items: Iterable[Item],
    read: Callable[[Item], Frames],
    workers: int = 2,
    ahead: int = 4,
) -> Iterator[tuple[Item, Frames | DecodeError]]:
    """Each path, or what else `read` takes, with its frames or its error, in order; at most `ahead` are under way."""
    todo = iter(items)
    queue: list[tuple[Item, Future[Frames]]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(queue) < max(ahead, 1):
                    item = next(todo, None)
                    if item is None:
                        break
                    queue.append((item, pool.submit(read, item)))
                if not queue:
                    return
                item, job = queue.pop(0)
                yield item, outcome(job)
        finally:
            for _, job in queue:
                job.cancel()


def outcome(job: Future[Frames]) -> Frames | DecodeError:
    try:
        return job.result()
    except DecodeError as e:
        return e


class Worker:
    """A process that decodes one file at a time (`clipreel.video.worker`)."""

    def __init__(self) -> None:
        self.connection, other = Pipe()
        command = [sys.executable, "-m", "clipreel.video.worker", str(other.fileno())]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        self.process = subprocess.Popen(
            command, env=env, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        other.close()  # so that the end of the process is the end of what comes

    def begin(self, path: Path, read: Callable[[Path], Stream], limit_s: float) -> None:
        """Give it a file. Raises OSError when the process has ended."""
        self.connection.send((read, path))
        self.left_s, self.limit_s, self.heard = START_S, limit_s + GRACE_S, time.monotonic()

    def receive(self, path: Path) -> tuple[Any, ...]:
        """The next message about the file. Raises DecodeError, after which `alive` says whether it can go on."""
        left = max(0.0, self.heard + self.left_s - time.monotonic())
        try:
            if not self.connection.poll(None if math.isinf(left) else left):
                self.kill()
                raise DecodeError(path, "timeout", "the decoder hangs")
            message = self.connection.recv()
        except (EOFError, ConnectionError) as e:
            code = self.process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise DecodeError(path, "crash", name) from e
        self.heard = time.monotonic()
        self.left_s = self.limit_s
        if message[0] == "begun":
            return self.receive(path)
        if message[0] == "failed":
            raise DecodeError(path, *message[1:])
        if message[0] == "bug":
            raise RuntimeError(f"decoding {str(path)!r} failed:\n{message[1]}")
        return tuple(message)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


IDLE: list[Worker] = []  # they wait for the next call: a process takes seconds to start


@atexit.register
def dismiss() -> None:
    """End the processes that wait for work."""
    while IDLE:
        IDLE.pop().kill()


class Crew:
    """The workers of one call of `stream_many` and the files that they are at, in order."""

    def __init__(self, paths: Iterable[Path], read: Callable[[Path], Stream], limit_s: float) -> None:
        self.todo, self.read, self.limit_s = iter(paths), read, limit_s
        self.queue: deque[tuple[Path, Worker]] = deque()
        self.busy: set[Worker] = set()

    def begin(self, worker: Worker | None = None) -> None:
        """Give the next file to a worker that is free, or to another one; without a file it goes home."""
        path = next(self.todo, None)
        while path is not None:
            worker = worker or (IDLE.pop() if IDLE else Worker())
            try:
                worker.begin(path, self.read, self.limit_s)
            except OSError:  # it ended while it waited
                worker = None
                continue
            self.busy.add(worker)
            self.queue.append((path, worker))
            return
        if worker is not None:
            IDLE.append(worker)

    def receive(self, path: Path, worker: Worker) -> tuple[Any, ...]:
        """The next message about a file; after the last one the worker is at another file already."""
        try:
            message = worker.receive(path)
        except DecodeError:
            self.busy.discard(worker)
            self.begin(worker if worker.alive else None)
            raise
        if message[0] == "end":
            self.busy.discard(worker)
            self.begin(worker)
        return message

    def stream(self, path: Path, worker: Worker) -> Stream:
        _, info, count = self.receive(path, worker)
        stream = Stream(info, count, [], iter(()))
        stream.frames = self.frames(path, worker, stream)
        return stream

    def frames(self, path: Path, worker: Worker, stream: Stream) -> Iterator[tuple[float, Tensor]]:
        while True:
            since = time.perf_counter()
            kind, *rest = self.receive(path, worker)
            stream.waited_s += time.perf_counter() - since
            if kind == "end":
                stream.info, stream.warnings, stream.decode_s = rest
                return
            times, pixels = rest
            yield from zip(times, torch.from_numpy(pixels).split(1), strict=True)


def stream_many(
    paths: Iterable[Path], read: Callable[[Path], Stream], workers: int = 2, limit_s: float = math.inf
) -> Iterator[tuple[Path, Stream | DecodeError]]:
    """Each path with its frames while another process decodes them, or with its error, in order.

    `read` goes to that process, so it must be importable there (a `functools.partial` of `stream_frames`). A process
    that says nothing for `limit_s` and a second is killed and replaced, and its file is a DecodeError "timeout"; one
    that crashes is a "crash". What is left of a stream when the next is asked for is thrown away.
    """
    crew = Crew(paths, read, limit_s)
    try:
        for _ in range(max(workers, 1)):
            crew.begin()
        while crew.queue:
            path, worker = crew.queue.popleft()
            try:
                stream = crew.stream(path, worker)
            except DecodeError as e:
                yield path, e
                continue
            yield path, stream
            with suppress(DecodeError):
                deque(stream.frames, maxlen=0)
    finally:
        for worker in crew.busy:
            worker.kill()
