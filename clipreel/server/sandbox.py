"""Decoding in processes beside the server: with a time limit, started again after a crash, behind a bounded line.

The processes run clipreel.server.decoding. A task that takes too long costs its process, not the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import Any

from clipreel.server.errors import ApiError, Busy
from clipreel.server.metrics import Metrics

LINE = 1 << 16
START_S = 30.0  # for a process to start on a busy machine


class Decoder:
    """One process; `ask` raises ConnectionError when it dies and TimeoutError when it is too slow."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None

    async def ask(self, task: dict[str, Any], body: bytes, limit_s: float) -> tuple[dict[str, Any], bytes]:
        fresh = self.process is None or self.process.returncode is not None
        if fresh:
            self.process = await child("server.decoding", stdin=asyncio.subprocess.PIPE)
        try:
            return await asyncio.wait_for(self._exchange(task, body), limit_s + (START_S if fresh else 0.0))
        except asyncio.TimeoutError:  # an OSError too, since Python 3.11
            raise
        except (asyncio.IncompleteReadError, OSError, ValueError) as e:
            raise ConnectionError from e
        finally:
            if sys.exc_info()[0] is not None:  # also cancelled: what it would still say belongs to nobody
                await self.end()

    async def _exchange(self, task: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({**task, "body": len(body)}).encode() + b"\n" + body)
        await self.process.stdin.drain()
        line = await self.process.stdout.readuntil(b"\n")
        facts = json.loads(line)
        return facts, await self.process.stdout.readexactly(facts.get("body", 0))

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await asyncio.shield(self.process.wait())
        self.process = None


class Decoders:
    """A few processes and a bounded line in front of them."""

    def __init__(self, count: int, waiting: int, limit_s: float, metrics: Metrics) -> None:
        self.count, self.waiting, self.limit_s, self.metrics = count, waiting, limit_s, metrics
        self.idle: asyncio.Queue[Decoder] = asyncio.Queue()
        self.asked = 0
        for _ in range(count):
            self.idle.put_nowait(Decoder())
        metrics.describe("decodes_total", "tasks of the decoding processes by outcome")

    async def ask(self, task: dict[str, Any], body: bytes = b"", limit_s: float | None = None) -> Any:
        """The facts and bytes that a task gives. Raises ApiError 422 with the reason, 503 when the line is full."""
        if self.asked >= self.waiting:
            raise Busy("too many pictures are being made")
        self.asked += 1
        try:
            decoder = await self.idle.get()
            try:
                return await self._ask(decoder, task, body, limit_s or self.limit_s)
            finally:
                self.idle.put_nowait(decoder)
        finally:
            self.asked -= 1

    async def _ask(self, decoder: Decoder, task: dict[str, Any], body: bytes, limit_s: float) -> Any:
        try:
            facts, made = await decoder.ask(task, body, limit_s)
        except asyncio.TimeoutError:
            self.metrics.count("decodes_total", outcome="timeout")
            raise ApiError(422, "timeout", f"decoding took more than {limit_s:g} s and was stopped") from None
        except ConnectionError:
            self.metrics.count("decodes_total", outcome="crash")
            raise ApiError(422, "crash", "the decoder crashed on this file; convert it with ffmpeg") from None
        self.metrics.count("decodes_total", outcome="ok" if facts["ok"] else facts["code"])
        if not facts["ok"]:
            status = 413 if facts["code"] == "too-large" else 422
            raise ApiError(status, facts["code"], facts["message"])
        return facts, made

    async def close(self) -> None:
        for _ in range(self.count):
            await (await self.idle.get()).end()


async def child(module: str, *words: str, stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    """`python -m clipreel.MODULE WORDS`, which says in its output what it does."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"clipreel.{module}", *words),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=LINE,
        env=environment(),
    )


def environment() -> dict[str, str]:
    """Of a child: it finds the same clipreel, and takes one thread."""
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
