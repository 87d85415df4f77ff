"""Many files one after the other, decoded ahead: in threads, or in processes that may hang and crash.

Processes cost nothing per file: a few of them live on from file to file, and from one call to the next. They hand the
frames over in pieces through a pipe, and wait when a few pieces were not asked for, so what is held is bounded.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar

import torch
from torch import Tensor

from clipreel.video.decode import Frames, Stream
from clipreel.video.packets import DecodeError

Item = TypeVar("Item")
START_S = 120.0  # for a process to start and import what it needs, on a busy machine
LAST = ("end", "failed", "bug")  # messages about a file
AHEAD = 8  # messages of a process that are taken in before they are asked for
DEPTH = 2  # files that a process has got: the one it is at, and the next
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
    """A process that decodes one file after the other (`clipreel.video.worker`).

    It sends what it has before it goes on, and a thread here takes that in, up to AHEAD messages. So when it hangs or
    crashes, it does so at the first file whose end did not come.
    """

    def __init__(self) -> None:
        self.connection, other = Pipe()
        command = [sys.executable, "-m", "clipreel.video.worker", str(other.fileno())]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        self.process = subprocess.Popen(
            command, env=env, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        other.close()  # so that the end of the process is the end of what comes
        self.tasks = 0
        self.limit_s, self.left_s, self.heard = math.inf, START_S, math.inf
        self.inbox: Queue[tuple[Any, ...]] = Queue(AHEAD)
        self.taker = threading.Thread(target=self._take, daemon=True)
        self.taker.start()

    def _take(self) -> None:
        """Runs in the thread: messages to the inbox. `heard` is when it began to wait for the next one."""
        try:
            while True:
                message = self.connection.recv()
                self.heard = math.inf
                self.left_s = START_S if message[0] in LAST else self.limit_s
                self.inbox.put(message)
                self.heard = time.monotonic()
        except (EOFError, OSError):
            self.heard = math.inf
            self.inbox.put(("gone",))

    def begin(self, path: Path, read: Callable[[Path], Stream], limit_s: float) -> None:
        """Give it a file, which may wait for another one. Raises OSError when the process has ended."""
        self.limit_s = limit_s + GRACE_S
        if not self.tasks:
            self.left_s, self.heard = START_S, time.monotonic()
        self.connection.send((read, path))
        self.tasks += 1

    def receive(self, path: Path) -> tuple[Any, ...]:
        """The next message about the file. Raises DecodeError, after which `alive` says whether it can go on."""
        message = self._next()
        while message and message[0] == "begun":
            message = self._next()
        if not message:
            self.kill()
            raise DecodeError(path, "timeout", "the decoder hangs")
        kind, *rest = message
        if kind == "gone":
            code = self.process.wait()
            raise DecodeError(path, "crash", signal.Signals(-code).name if code < 0 else f"exit code {code}")
        if kind == "bug":
            raise RuntimeError(f"decoding {str(path)!r} failed:\n{rest[0]}")
        self.tasks -= kind in LAST
        if kind == "failed":
            raise DecodeError(path, *rest)
        return message

    def _next(self) -> tuple[Any, ...] | None:
        """The next message; None when none comes in time."""
        while True:
            left = self.heard + self.left_s - time.monotonic()
            try:
                return self.inbox.get(timeout=min(max(left, 0.0), 1.0))
            except Empty:  # look again: `heard` may have moved meanwhile
                if time.monotonic() > self.heard + self.left_s:
                    return None

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        while self.taker.is_alive():  # it may wait for room
            with suppress(Empty):
                self.inbox.get(timeout=0.01)
        self.connection.close()


IDLE: list[Worker] = []  # they wait for the next call: a process takes seconds to start


@atexit.register
def dismiss() -> None:
    """End the processes that wait for work."""
    while IDLE:
        IDLE.pop().kill()


class Crew:
    """The workers of one call of `stream_many` and the files that they are at, in order; each has DEPTH of them."""

    def __init__(self, paths: Iterable[Path], read: Callable[[Path], Stream], workers: int, limit_s: float) -> None:
        self.todo, self.read, self.limit_s = iter(paths), read, limit_s
        self.queue: deque[tuple[Path, Worker]] = deque()
        self.busy: set[Worker] = set()
        for _ in range(workers):
            self.next()
        for worker in [w for _, w in self.queue] * (DEPTH - 1):
            self.next(worker)

    def next(self, worker: Worker | None = None) -> None:
        """Give the next file to a worker, or to another one; without a file and at none it goes home."""
        path = next(self.todo, None)
        if path is not None:
            self.queue.append((path, self.given([path], worker)))
        elif worker is not None and not worker.tasks:
            self.busy.discard(worker)
            IDLE.append(worker)

    def given(self, paths: Sequence[Path], worker: Worker | None = None) -> Worker:
        """The worker that has got the files: this one, else one that is idle or new."""
        while True:
            worker = worker or (IDLE.pop() if IDLE else Worker())
            try:
                for path in paths:
                    worker.begin(path, self.read, self.limit_s)
            except OSError:
                if worker.tasks:
                    return worker  # it ended at an earlier file, which will be told when that is read
                worker = None  # it ended while it was idle
                continue
            self.busy.add(worker)
            return worker

    def receive(self, path: Path, worker: Worker) -> tuple[Any, ...]:
        """The next message about a file; after the last one the worker is at another file already."""
        try:
            message = worker.receive(path)
        except DecodeError:
            if worker.alive:
                self.next(worker)
            else:
                self.replace(worker)
            raise
        if message[0] == "end":
            self.next(worker)
        return message

    def replace(self, dead: Worker) -> None:
        """Another worker takes the files that this one had got."""
        self.busy.discard(dead)
        waiting = [path for path, worker in self.queue if worker is dead]
        other = self.given(waiting) if waiting else None
        self.queue = deque((p, other if w is dead and other else w) for p, w in self.queue)
        self.next(other)

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
    crew = Crew(paths, read, max(workers, 1), limit_s)
    try:
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
