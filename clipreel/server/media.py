"""What a player gets: the file itself where browsers play it, else a remade one that streams while it is written.

A conversion runs in a process of its own (clipreel.server.converting), is shared by everybody who asks for the same
file, and ends when nobody has asked for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from clipreel.exports.remake import How
from clipreel.search.index import File
from clipreel.server.archive import Archive
from clipreel.server.cache import Cache, disk_full, key_of
from clipreel.server.errors import ApiError, Busy
from clipreel.server.metrics import Metrics
from clipreel.server.sandbox import Decoders, child
from clipreel.server.settings import Settings

PIECE = 256 * 1024
POLL_S = 0.1
PROBED = 20_000  # files whose codecs are remembered
EIGHT_BIT = ("yuv420p", "yuvj420p")
MP4, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
# container -> what all current browsers play in it
DIRECT: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    MP4: (("h264", "vp9", "libvpx-vp9", "av1", "libdav1d"), ("", "aac", "mp3", "opus", "flac"), "video/mp4"),
    MATROSKA: (("vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d"), ("", "opus", "vorbis"), "video/webm"),
}
COPIED = ("h264", "vp9", "libvpx-vp9", "av1", "libdav1d")


@dataclass(frozen=True)
class Playable:
    """direct, remux, transcode or no; why not direct; and the frames a second that the file states."""

    how: str
    why: str = ""
    type: str = "video/mp4"
    rate: float = 25.0


def judged(facts: dict) -> Playable:
    """How a browser gets to see a file with these codecs."""
    container, codec, sound = facts["container"], facts["codec"], facts["audio"]
    sound = "opus" if sound == "libopus" else "vorbis" if sound == "libvorbis" else sound
    eight_bit = facts["pix_fmt"] in EIGHT_BIT
    direct = DIRECT.get(container)
    if direct and eight_bit and codec in direct[0] and sound in direct[1] and facts["timed"]:
        return Playable("direct", type=direct[2])
    if codec in COPIED and eight_bit and facts["timed"] and not facts["rotation"]:
        return Playable("remux", f"{codec} in {container.split(',')[0]} with {sound or 'no'} sound")
    detail = codec if eight_bit else f"{codec}, {facts['pix_fmt']}"
    return Playable("transcode", f"browsers do not play {detail}" + ("" if facts["timed"] else " without time stamps"))


class RangedFile(Response):
    """An open file, whole or the range that was asked for; closed at the end. Each piece waits for its client."""

    def __init__(self, fd: int, media_type: str, name: str, disposition: str = "inline") -> None:
        stat = os.fstat(fd)
        self.fd, self.size = fd, stat.st_size
        self.etag = f'"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"'
        self.status_code, self.background, self.body = 200, None, b""
        self.media_type = media_type
        self.init_headers(
            {
                "accept-ranges": "bytes",
                "etag": self.etag,
                "last-modified": formatdate(stat.st_mtime, usegmt=True),
                "cache-control": "private, no-cache",
                "content-disposition": f'{disposition}; filename="{name}"',
            }
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._send(dict(scope["headers"]), scope["method"] == "HEAD", send)
        finally:
            os.close(self.fd)

    async def _send(self, asked: dict[bytes, bytes], head: bool, send: Send) -> None:
        first, last, status = 0, self.size - 1, 200
        if asked.get(b"if-none-match", b"").decode("latin-1") == self.etag:
            status, last = 304, -1
        elif b"range" in asked and asked.get(b"if-range", self.etag.encode()).decode("latin-1") == self.etag:
            found = range_of(asked[b"range"].decode("latin-1"), self.size)
            if found is not None:
                first, last = found
                status = 206 if first <= last else 416
        if status == 206:
            self.headers["content-range"] = f"bytes {first}-{last}/{self.size}"
        if status == 416:
            self.headers["content-range"] = f"bytes */{self.size}"
            last = first - 1
        self.headers["content-length"] = str(last - first + 1)
        await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})
        at = last + 1 if head else first
        while at <= last:
            piece = await run_in_threadpool(os.pread, self.fd, min(PIECE, last - at + 1), at)
            if not piece:
                raise ConnectionResetError("the file became shorter while it was sent")
            at += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def range_of(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header; (1, 0) where it cannot be satisfied, None where it is to be ignored."""
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", text)
    if found is None or found.groups() == ("", ""):  # several ranges, other units: the whole file is a right answer
        return None
    start, end = found.groups()
    if not start:
        return (max(0, size - int(end)), size - 1) if int(end) and size else (1, 0)
    if end and int(end) < int(start):
        return None
    return (int(start), min(int(end) if end else size - 1, size - 1)) if int(start) < size else (1, 0)


class Conversion:
    """A file that is being made."""

    def __init__(self, source: File, how: How, part: Path, done: Path, limit_s: float, from_s: float = 0.0) -> None:
        self.source, self.how, self.part, self.done, self.limit_s = source, how, part, done, limit_s
        self.from_s = from_s
        self.process: asyncio.subprocess.Process | None = None
        self.finished, self.left = asyncio.Event(), asyncio.Event()
        self.error: ApiError | None = None
        self.at_s, self.readers, self.used = 0.0, 0, time.monotonic()

    async def run(self, idle_s: float) -> None:
        """To the end, whatever it is; `finished` and `error` say how."""
        watch = None
        try:
            places = self.source.path, str(self.part), str(self.done)
            self.process = await child("server.converting", *places, self.how, repr(self.from_s))
            watch = asyncio.create_task(self._watch(self.process, idle_s))
            last = await asyncio.wait_for(self._follow(self.process), self.limit_s)
            if not last.get("done"):
                self.error = failure(last, self.done.parent)
        except asyncio.TimeoutError:
            self.error = ApiError(422, "timeout", f"converting took more than {self.limit_s:g} s and was stopped")
        except OSError as e:
            self.error = ApiError(507, "disk-full", f"converting could not begin ({e.strerror})")
        finally:
            if watch is not None:
                watch.cancel()
            await self.stop()

    async def _follow(self, process: asyncio.subprocess.Process) -> dict:
        assert process.stdout is not None
        last: dict = {}
        async for line in process.stdout:
            last = json.loads(line)
            self.at_s = last.get("at_s", self.at_s)
        await process.wait()
        return last

    async def _watch(self, process: asyncio.subprocess.Process, idle_s: float) -> None:
        """Ends it when nobody wants it any more."""
        while self.readers or (time.monotonic() - self.used < idle_s and not self.left.is_set()):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.left.wait(), 1.0)
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    async def grown(self, kept: Path) -> AsyncIterator[bytes]:
        """What is written, as it comes; `kept` is where the whole file lies when all is done."""
        self.readers += 1
        try:
            while not self.part.exists() and not self.finished.is_set():
                await asyncio.sleep(POLL_S)
            if self.error is not None:
                raise self.error
            try:
                file = self.part.open("rb")
            except FileNotFoundError:  # it was made in the meantime
                file = kept.open("rb")
            with file:
                while True:
                    ended = self.finished.is_set()
                    piece = await run_in_threadpool(file.read, PIECE)
                    if piece:
                        yield piece
                    elif ended:
                        break
                    else:
                        await asyncio.sleep(POLL_S)
            if self.error is not None:  # the client must not take half a video for the whole
                raise ConnectionResetError(self.error.message)
        finally:
            self.readers -= 1
            self.used = time.monotonic()


def failure(last: dict, cache: Path) -> ApiError:
    if last.get("failed") == "disk-full":
        return disk_full(cache)
    reason = last.get("failed", "crash")
    return ApiError(422, reason, f"it cannot be made playable ({last.get('message', 'the converter crashed')})")


class Media:
    """Plays videos of an archive."""

    def __init__(self, archive: Archive, decoders: Decoders, settings: Settings, metrics: Metrics) -> None:
        self.archive, self.decoders, self.settings, self.metrics = archive, decoders, settings, metrics
        self.cache = Cache(settings.cache / "media", ".mp4", settings.media_bytes, settings.free_bytes)
        self.turns = asyncio.Semaphore(settings.conversions)
        self.seeks = asyncio.Semaphore(settings.seeks)
        self.running: dict[str, Conversion] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self._probed: OrderedDict[str, Playable] = OrderedDict()
        metrics.describe("conversions_total", "videos that were made playable, by how and outcome")

    async def playable(self, file: File) -> Playable:
        """How this file gets to a browser; looked up once."""
        key = file.id
        if key not in self._probed:
            try:
                facts, _ = await self.decoders.ask({"task": "probe", "path": file.path})
                self._probed[key] = replace(judged(facts), rate=facts["rate"])
            except ApiError as e:
                if e.status == 503:
                    raise
                return Playable("no", e.message)
            while len(self._probed) > PROBED:
                self._probed.popitem(last=False)
        return self._probed[key]

    async def response(self, file: File, from_s: float = 0.0) -> Response:
        """The video for a player, from a second on where it has to be remade.

        Raises ApiError: 404 missing, 409 changed, 415 not playable, 422 behind its end, 503 too many at once.
        """
        fd = await run_in_threadpool(self.archive.open, file)
        try:
            playable = await self.playable(file)
            if playable.how == "direct":
                answer = RangedFile(fd, playable.type, "video.webm" if "webm" in playable.type else "video.mp4")
                fd = -1
                return answer
        finally:
            if fd >= 0:
                os.close(fd)
        if playable.how == "no":
            raise ApiError(415, "unplayable", f"this video cannot be played: {playable.why}")
        from_s = round(from_s, 1)
        if not from_s:
            return await self._remade(file, "copy" if playable.how == "remux" else "encode")
        if from_s >= file.duration_s:
            raise ApiError(422, "no-moment", f"second {from_s:g}: the video ends at {file.duration_s:g} s")
        # encoded, because copied packets begin at a keyframe, and a player could not know at which second that is
        remade = await self._remade(file, "encode", from_s)
        remade.headers["x-clipreel-from"] = f"{from_s:g}"
        return remade

    async def _remade(self, file: File, how: How, from_s: float = 0.0) -> Response:
        key = key_of(file.id, file.hash, "mp4", *([from_s] if from_s else []))
        if (ready := self.cache.get(key)) is not None:
            return RangedFile(os.open(ready, os.O_RDONLY | os.O_CLOEXEC), "video/mp4", "video.mp4")
        found = self.running.get(key) or self._begin(key, file, how, from_s)
        found.used = time.monotonic()
        found.left.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(found.finished.wait()), self.settings.media_wait_s)
        if found.finished.is_set():
            if found.error is not None:
                raise found.error
            if (ready := self.cache.get(key)) is not None:
                return RangedFile(os.open(ready, os.O_RDONLY | os.O_CLOEXEC), "video/mp4", "video.mp4")
        # from its beginning and without ranges: nobody knows yet how long it gets
        return StreamingResponse(
            found.grown(self.cache.path(key)), media_type="video/mp4", headers={"accept-ranges": "none"}
        )

    def _begin(self, key: str, file: File, how: How, from_s: float) -> Conversion:
        if from_s:
            self._leave(file)
        if len(self.running) >= self.settings.conversions + self.settings.conversions_waiting:
            raise Busy(f"{len(self.running)} videos are being converted", 10)
        self.cache.check_room(min(file.size, self.cache.most))
        made = self.cache.folder / f"{key}.done.part"
        found = Conversion(file, how, self.cache.part(key), made, self.settings.conversion_s, from_s)
        self.running[key] = found
        task = asyncio.create_task(self._convert(key, found))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return found

    def _leave(self, file: File) -> None:
        """End conversions from other moments of a file that nobody watches any more: who jumps about makes many."""
        for other in self.running.values():
            if other.from_s and other.source.id == file.id and not other.readers:
                other.left.set()

    async def _convert(self, key: str, conversion: Conversion) -> None:
        try:
            idle_s = self.settings.seek_idle_s if conversion.from_s else self.settings.conversion_idle_s
            async with self.seeks if conversion.from_s else self.turns:
                await conversion.run(idle_s)
            if conversion.error is None:
                await run_in_threadpool(self.cache.keep, key, conversion.done)
        except OSError as e:
            conversion.error = ApiError(507, "disk-full", f"the converted video could not be kept ({e.strerror})")
        finally:
            await conversion.stop()
            outcome = "ok" if conversion.error is None else conversion.error.code
            self.metrics.count("conversions_total", how=conversion.how, outcome=outcome)
            self.running.pop(key, None)
            conversion.finished.set()
            for left in (conversion.part, conversion.done):  # who reads it still has it open
                left.unlink(missing_ok=True)

    def making(self, file: File) -> Conversion | None:
        return self.running.get(key_of(file.id, file.hash, "mp4"))

    def made(self, file: File) -> bool:
        return self.cache.path(key_of(file.id, file.hash, "mp4")).exists()

    async def close(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
