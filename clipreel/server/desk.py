"""The search desk: one thread that answers what waits, many at once, so that fifty clients cost little more than one.

Texts go through the model in one batch and vectors are read once for all of them. The line is bounded: who comes when
it is full is told when to come back, and who went away is not answered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from clipreel.server.errors import ApiError, Busy
from clipreel.server.metrics import Metrics

Answers = Callable[[Sequence[Any]], Sequence[Any]]


class Desk:
    """Hands requests to `answer`, which gives for each an answer or the exception that it deserves."""

    def __init__(
        self,
        answer: Answers,
        waiting: int,
        batch: int,
        limit_s: float,
        metrics: Metrics,
        what: tuple[str, str] = ("search", "searches"),
    ) -> None:
        self.what, self.many = what
        self.answer, self.waiting, self.batch, self.limit_s, self.metrics = answer, waiting, batch, limit_s, metrics
        self._line: deque[tuple[Any, asyncio.Future[Any], asyncio.AbstractEventLoop]] = deque()
        self._some = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name=self.what, daemon=True)
        self._thread.start()
        metrics.describe(f"{self.what}_seconds", f"time of the {self.what} thread for one batch")
        metrics.describe(f"{self.many}_total", f"{self.many} answered together, and batches")
        metrics.gauge(f"{self.many}_waiting", f"{self.many} in line", lambda: len(self._line))

    async def ask(self, request: Any) -> Any:
        """The answer. Raises what `answer` gave as an exception, Busy where the line is full."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._some:
            if len(self._line) >= self.waiting:
                raise Busy(f"too many {self.many} wait")
            self._line.append((request, future, loop))
            self._some.notify()
        try:
            return await asyncio.wait_for(future, self.limit_s)
        except asyncio.TimeoutError:
            raise Busy(f"no answer within {self.limit_s:g} s", 5) from None

    def _work(self) -> None:
        while True:
            with self._some:
                while self._open and not self._line:
                    self._some.wait()
                if not self._open:
                    return
                taken = [self._line.popleft() for _ in range(min(self.batch, len(self._line)))]
            taken = [t for t in taken if not t[1].done()]
            if taken:
                self._answer(taken)

    def _answer(self, taken: list[tuple[Any, asyncio.Future[Any], asyncio.AbstractEventLoop]]) -> None:
        started = time.perf_counter()
        try:
            found = list(self.answer([request for request, _, _ in taken]))
        except Exception as e:
            found = [e] * len(taken)
        self.metrics.time(f"{self.what}_seconds", time.perf_counter() - started)
        self.metrics.count(f"{self.many}_total", len(taken), what="requests")
        self.metrics.count(f"{self.many}_total", 1, what="batches")
        for (_, future, loop), answer in zip(taken, found, strict=True):
            try:
                loop.call_soon_threadsafe(settle, future, answer)
            except RuntimeError:  # the loop is closed: the server ends
                return

    def close(self) -> None:
        with self._some:
            self._open = False
            left = list(self._line)
            self._line.clear()
            self._some.notify_all()
        for _, future, _ in left:
            settle(future, ApiError(503, "ending", "the server ends", headers={"retry-after": "5"}))
        self._thread.join(timeout=10)


def settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():  # the client went away
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
