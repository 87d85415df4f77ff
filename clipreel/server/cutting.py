"""Export of moments: what a list has to know of each video, and cut files made in a process of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from clipreel.exports.lists import Place
from clipreel.exports.remake import How
from clipreel.search.index import text_of
from clipreel.server.archive import Archive
from clipreel.server.errors import ApiError, Busy
from clipreel.server.media import Media, RangedFile
from clipreel.server.messages import Place as Wanted
from clipreel.server.sandbox import child
from clipreel.server.settings import Settings

LIMIT_S = 900.0
WAITING = 4


class Cutting:
    """Makes files of moments, one export of cut files at a time."""

    def __init__(self, archive: Archive, media: Media, settings: Settings) -> None:
        self.archive, self.media, self.settings = archive, media, settings
        self.folder = settings.cache / "exports"
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.zip"):  # of a server before this one
            left.unlink(missing_ok=True)
        self.turn, self.asked = asyncio.Lock(), 0

    async def places(self, wanted: Sequence[Wanted], paths: bool = False) -> list[Place]:
        """Moments with what lists say of them; whole paths only for programs on this machine."""
        found = []
        for hit in wanted:
            file = self.archive.file(hit.video)
            end = min(hit.end_s, file.duration_s)
            if not hit.start_s < end:
                name = text_of(os.path.basename(file.path))
                raise ApiError(422, "no-moment", f"{hit.start_s:g} to {hit.end_s:g} s of {name}: it ends at {end:g} s")
            label = self.archive.last.labels.get(file.id, "")
            source = os.path.join(label, os.path.basename(file.path))
            if paths or self.settings.loopback:
                source = file.path
            rate = (await self.media.playable(file)).rate
            place = Place(source, hit.start_s, end, file.duration_s, rate, file.width, file.height)
            found.append(place if paths else replace(place, source=text_of(source)))
        return found

    async def response(self, wanted: Sequence[Wanted], how: How) -> Response:
        """A zip of MP4 files. Raises ApiError: 413 for too much, 409 or 404 for a file that changed, 503 when busy."""
        places = await self.places(wanted, paths=True)
        length = sum(p.end_s - p.start_s for p in places)
        if len(places) > self.settings.cut_hits or length > self.settings.cut_s:
            limits = f"{self.settings.cut_hits} moments and {self.settings.cut_s:g} s"
            raise ApiError(413, "too-large", f"{len(places)} moments of {length:.0f} s: at most {limits} at once")
        for hit in wanted:
            os.close(await run_in_threadpool(self.archive.open, self.archive.file(hit.video)))
        if self.asked >= WAITING:
            raise Busy(f"{self.asked} exports are being made", 10)
        self.asked += 1
        try:
            async with self.turn:
                self.media.cache.check_room()
                return await self._made(places, how)
        finally:
            self.asked -= 1

    async def _made(self, places: Sequence[Place], how: How) -> Response:
        out = self.folder / f"{secrets.token_hex(8)}.zip"
        process = await child("exports.cut", str(out), how, stdin=asyncio.subprocess.PIPE)
        try:
            task = process.communicate(json.dumps([asdict(p) for p in places]).encode())
            said, _ = await asyncio.wait_for(task, LIMIT_S)
            if process.returncode != 0:
                raise ApiError(422, "not-cut", json.loads(said)["error"] if said else "the cutter crashed; try fewer")
            fd = os.open(out, os.O_RDONLY | os.O_CLOEXEC)
        except asyncio.TimeoutError:
            raise ApiError(422, "timeout", f"cutting took more than {LIMIT_S:g} s and was stopped; try fewer") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            out.unlink(missing_ok=True)  # it is still open where it was made
        return RangedFile(fd, "application/zip", "clipreel.zip", "attachment")
