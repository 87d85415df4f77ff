"""Server-sent events: what happens to jobs, for a limited number of clients, none of which can hold up the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from clipreel.server.errors import Busy

KEPT = 64  # events that a slow client may be behind; then it misses the oldest
ALIVE_S = 15.0


class Events:
    """Hands each event to every client that listens."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.clients: set[asyncio.Queue[str]] = set()
        self.closing = asyncio.Event()

    def send(self, name: str, data: dict[str, Any]) -> None:
        """Call in the event loop."""
        text = f"event: {name}\ndata: {json.dumps(data)}\n\n"
        for queue in self.clients:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(text)

    def listen(self, first: Callable[[], list[tuple[str, dict[str, Any]]]]) -> AsyncIterator[str]:
        """The events from now on, after those that tell how things stand. Raises Busy for one client too many."""
        if len(self.clients) >= self.most:
            raise Busy(f"{self.most} clients listen already", 30)
        return self._stream(first)

    async def _stream(self, first: Callable[[], list[tuple[str, dict[str, Any]]]]) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue(KEPT)
        self.clients.add(queue)  # here, so that who goes away before the first event is not counted for ever
        try:
            yield "retry: 3000\n\n"
            for name, data in first():
                yield f"event: {name}\ndata: {json.dumps(data)}\n\n"
            while not self.closing.is_set():
                try:
                    yield await asyncio.wait_for(queue.get(), ALIVE_S)
                except asyncio.TimeoutError:
                    yield ": alive\n\n"
        finally:
            self.clients.discard(queue)

    def close(self) -> None:
        self.closing.set()
        for queue in self.clients:
            if not queue.full():
                queue.put_nowait(": end\n\n")
