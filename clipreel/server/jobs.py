"""Jobs: bringing the index up to date in a process of its own, one at a time, told to everybody who listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from clipreel.server.errors import ApiError
from clipreel.server.events import Events
from clipreel.server.sandbox import child
from clipreel.server.settings import Settings

STOP_S = 10.0  # a job has to store what it has


@dataclass
class Job:
    """`state` is running, done, failed or stopped; `done` of `total` files, `current` being the name of the one under
    way; then `queries` of `queries_total` that scores are compared with; `message` says what went wrong."""

    id: str
    kind: str
    state: str = "running"
    done: int = 0
    total: int = 0
    eta_s: float | None = None
    current: str | None = None
    skipped: int = 0
    queries: int = 0
    queries_total: int = 0
    message: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    ended: float | None = None


class Jobs:
    """The last jobs and the one that runs."""

    def __init__(
        self, place: str, device: str, events: Events, settings: Settings, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.place, self.device, self.events, self.settings, self.changed = place, device, events, settings, changed
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.process: asyncio.subprocess.Process | None = None
        self.task: asyncio.Task[None] | None = None

    def listed(self) -> list[dict[str, Any]]:
        """The newest first."""
        return [asdict(job) for job in reversed(self.jobs.values())]

    def start(self, kind: str) -> dict[str, Any]:
        """Start a job; one that runs already is given instead. Raises ApiError 409 where this server only reads."""
        if self.settings.read_only:
            raise ApiError(409, "read-only", self.settings.read_only)
        running = next((j for j in self.jobs.values() if j.state == "running"), None)
        if running is None:
            running = Job(secrets.token_hex(8), kind)
            self.jobs[running.id] = running
            while len(self.jobs) > self.settings.jobs_kept:
                self.jobs.popitem(last=False)
            self.task = asyncio.create_task(self._run(running))
        return asdict(running)

    async def stop(self, id: str) -> dict[str, Any]:
        """End a running job; what it stored stays. Raises ApiError 404."""
        job = self.jobs.get(id)
        if job is None:
            raise ApiError(404, "no-such-job", f"no job {id[:40]!r}; GET /api/v1/jobs lists them")
        if job.state == "running" and self.task is not None:
            job.state = "stopped"
            await self._end()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self.task)
        return asdict(job)

    async def _run(self, job: Job) -> None:
        self._tell(job)
        last: dict[str, Any] = {}
        try:
            self.process = await child("server.index_job", self.device, self.place, *self.settings.others)
            assert self.process.stdout is not None
            async for line in self.process.stdout:
                last = json.loads(line)
                for name in ("done", "total", "eta_s", "skipped", "current", "queries", "queries_total"):
                    setattr(job, name, last.get(name, getattr(job, name)))
                self._tell(job)
            code = await self.process.wait()
            self.changed()  # before anybody can see that it is done
            if job.state == "running":
                job.state = "done" if last.get("finished") else "failed"
                job.message = said(last, code)
                job.counts = {n: last[n] for n in ("indexed", "moved", "forgotten", "unchanged") if n in last}
        except (OSError, ValueError) as e:
            job.state, job.message = "failed", f"the job could not run ({e}); try again"
        finally:
            if job.state == "running":
                job.state = "stopped"
            job.ended, job.eta_s, job.current = time.time(), None, None
            await self._end()
            self.changed()
            self._tell(job)

    def _tell(self, job: Job) -> None:
        self.events.send("job", asdict(job))

    async def _end(self) -> None:
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def close(self) -> None:
        if self.task is not None and not self.task.done():
            await self._end()
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


def said(last: dict[str, Any], code: int) -> str:
    if last.get("finished"):
        gone = last.get("missing_folders", [])
        return f"{len(gone)} folders are not there (is the disk mounted?): {', '.join(gone[:3])}" if gone else ""
    return last.get("failed") or f"the job ended with code {code}; run `clipreel index` to see why"
