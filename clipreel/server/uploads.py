"""Images to search with: decoded beside the server, kept small, few, and for a while."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from clipreel.server.cache import FULL, disk_full
from clipreel.server.errors import ApiError
from clipreel.server.sandbox import Decoders
from clipreel.server.settings import Settings


@dataclass(frozen=True)
class Upload:
    """A decoded image as a PNG of at most about a thousand pixels a side; the size is that of the original."""

    id: str
    path: Path
    width: int
    height: int
    until: float


class Uploads:
    """The images that may be named in searches; the oldest goes when there are too many."""

    def __init__(self, decoders: Decoders, settings: Settings) -> None:
        self.decoders, self.settings = decoders, settings
        self.folder = settings.cache / "uploads"
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.iterdir():  # of a server before this one
            left.unlink(missing_ok=True)
        self._kept: OrderedDict[str, Upload] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    async def add(self, data: bytes) -> Upload:
        """Raises ApiError: 413 for too many bytes or pixels, 422 for what is no image or takes too long."""
        if len(data) > self.settings.upload_bytes:
            raise ApiError(413, "too-large", f"{len(data)} bytes: an image may have {self.settings.upload_bytes}")
        task = {"task": "image", "pixels": self.settings.upload_pixels}
        facts, png = await self.decoders.ask(task, data, self.settings.upload_s)
        self.expire(room=1)
        id = secrets.token_hex(12)
        path = self.folder / f"{id}.png"
        try:
            await run_in_threadpool(path.write_bytes, png)
        except OSError as e:
            path.unlink(missing_ok=True)
            if e.errno in FULL:
                raise disk_full(self.folder) from e
            raise
        until = time.monotonic() + self.settings.upload_lives_s
        self._kept[id] = Upload(id, path, facts["width"], facts["height"], until)
        return self._kept[id]

    def get(self, id: str) -> Upload:
        """Raises ApiError 404 for one that is not there any more."""
        self.expire()
        if id not in self._kept:
            raise ApiError(404, "no-such-upload", f"no upload {id[:40]!r} (they expire); send the image again")
        return self._kept[id]

    def expire(self, room: int = 0) -> None:
        now = time.monotonic()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if oldest.until > now and len(self._kept) + room <= self.settings.uploads:
                return
            del self._kept[oldest.id]
            oldest.path.unlink(missing_ok=True)
