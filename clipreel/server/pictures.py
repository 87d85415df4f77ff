"""Thumbnails and film strips, made once beside the server and kept in a bounded cache."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from clipreel.search.index import File
from clipreel.server.archive import Archive
from clipreel.server.cache import Cache, key_of
from clipreel.server.sandbox import Decoders
from clipreel.server.settings import Settings

WIDTHS = (
    80,
    120,
    160,
    240,
    320,
    480,
    640,
    960,
)  # those asked for are rounded up: few sizes fill the cache with few files
TICK_S = 0.04  # moments closer than this show the same picture


class Pictures:
    """Pictures of videos of an archive."""

    def __init__(self, archive: Archive, decoders: Decoders, settings: Settings) -> None:
        self.archive, self.decoders = archive, decoders
        self.cache = Cache(settings.cache / "pictures", ".jpg", settings.picture_bytes)
        self.making: dict[str, asyncio.Future[bytes]] = {}

    async def thumbnail(self, file: File, at_s: float, width: int) -> bytes:
        """JPEG of the frame at a moment."""
        at_s = min(max(round(at_s / TICK_S) * TICK_S, 0.0), file.duration_s)
        return await self._made(file, {"task": "thumbnail", "at_s": at_s, "width": rounded(width)})

    async def strip(self, file: File, n: int, start_s: float, end_s: float, width: int) -> bytes:
        """JPEG of n frames side by side, each `width` wide."""
        start_s = min(max(start_s, 0.0), file.duration_s)
        end_s = min(max(end_s, start_s), file.duration_s)
        part = {"start_s": round(start_s, 2), "end_s": round(end_s, 2)}
        return await self._made(file, {"task": "strip", "n": n, **part, "width": rounded(width)})

    async def _made(self, file: File, task: dict[str, Any]) -> bytes:
        os.close(await run_in_threadpool(self.archive.open, file))  # present, and the one that was indexed
        key = key_of(file.id, file.hash, sorted(task.items()))
        if (path := self.cache.get(key)) is not None:
            try:
                return await run_in_threadpool(Path.read_bytes, path)
            except OSError:
                pass
        if key not in self.making:
            self.making[key] = asyncio.ensure_future(self._make(key, {**task, "path": file.path}))
            self.making[key].add_done_callback(lambda done: self._ended(key, done))
        # who goes away does not take the picture from the others
        return await asyncio.shield(self.making[key])

    async def _make(self, key: str, task: dict[str, Any]) -> bytes:
        _, data = await self.decoders.ask(task)
        await run_in_threadpool(self.cache.put, key, data)
        return data

    def _ended(self, key: str, done: asyncio.Future[bytes]) -> None:
        self.making.pop(key, None)
        if not done.cancelled():
            done.exception()  # looked at, also where nobody waits any more


def rounded(width: int) -> int:
    return next((w for w in WIDTHS if w >= width), WIDTHS[-1])
