"""Texts that were searched for, kept on this machine as a bank of queries that scores can be compared with.

A page searches while somebody types, so a text counts when it has stood for a while: one that begins another of these
seconds, or goes on from it, was on the way to it. Being asked is enough: what an unusual score is for this archive is
told by all queries, and most by those that found nothing to open. Images are never kept, nor who asked.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict

from starlette.concurrency import run_in_threadpool

from clipreel.errors import ClipreelError
from clipreel.search.bank import remember
from clipreel.search.index import Index
from clipreel.search.query import Query, clean
from clipreel.server.messages import Search

STOOD_S = 5.0
WAITING = 256  # texts that may not have stood long enough yet; the oldest goes
MOST_CHARS = 300  # more is no question that anybody typed


class Asked:
    """Takes in searches that were answered. Nothing is kept where `on` is not."""

    def __init__(self, index: Index, on: bool) -> None:
        self.index, self.on = index, on and index.local
        self._waiting: OrderedDict[str, float] = OrderedDict()

    def note(self, search: Search) -> None:
        """Call in the event loop, for the first page of an answer."""
        if not self.on or search.images or search.like or search.offset:
            return
        text = clean(" ".join(Query.parse(search.text or "").texts))
        if not text or len(text) > MOST_CHARS:
            return
        new = text.casefold()
        for other in list(self._waiting):
            old = other.casefold()
            if old.startswith(new) or new.startswith(old):
                del self._waiting[other]
        self._waiting[text] = time.monotonic()
        while len(self._waiting) > WAITING:
            self._waiting.popitem(last=False)

    async def keep(self, stood_s: float = STOOD_S) -> None:
        """Write down what has stood long enough; a disk that takes nothing costs these texts."""
        now = time.monotonic()
        texts = [text for text, at in self._waiting.items() if now - at >= stood_s]
        for text in texts:
            del self._waiting[text]
        if texts:
            with contextlib.suppress(ClipreelError):
                await run_in_threadpool(remember, self.index, texts)

    def forget(self) -> None:
        self._waiting.clear()
