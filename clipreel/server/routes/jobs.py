"""Index jobs, what they left out, and the events that tell how far they are."""

from __future__ import annotations

import os
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from clipreel.search.catalog import label
from clipreel.search.index import text_of
from clipreel.server.archive import next_step
from clipreel.server.errors import VERSION
from clipreel.server.messages import Id, NewJob, Offset
from clipreel.server.services import Services, services

router = APIRouter(tags=["jobs"])
Its = Annotated[Services, Depends(services)]


@router.get("/jobs")
async def jobs(its: Its) -> dict[str, Any]:
    """The jobs of this server, the newest first; `read_only` says why it may start none."""
    return {"version": VERSION, "jobs": its.jobs.listed(), "read_only": its.settings.read_only}


@router.post("/jobs", status_code=202)
async def start(request: NewJob, its: Its) -> dict[str, Any]:
    """Start a job; where one runs already, that one is given."""
    return {"version": VERSION, **its.jobs.start(request.kind)}


@router.delete("/jobs/{id}")
async def stop(id: Id, its: Its) -> dict[str, Any]:
    """Stop a job; what it stored stays, and the next one goes on from there."""
    return {"version": VERSION, **await its.jobs.stop(id)}


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "server-sent events `job`"}},
)
async def events(its: Its) -> StreamingResponse:
    """Server-sent events: `job` with how things stand, at once and whenever that changes."""
    stream = its.events.listen(lambda: [("job", job) for job in reversed(its.jobs.listed())])
    return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


@router.get("/skipped")
async def skipped(its: Its, offset: Offset = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 1000) -> dict[str, Any]:
    """Files that could not be indexed, why, and what to do about it; `total` of them, `limit` from `offset` on."""
    now = await run_in_threadpool(its.archive.now)
    roots = now.facts.get("roots", [])
    rows = [
        {
            "name": text_of(os.path.basename(f.path)),
            "folder": label(f.path, roots),
            "reason": f.reason,
            "next": next_step(f.reason),
        }
        for f in now.skipped[offset : offset + limit]
    ]
    return {"version": VERSION, "total": len(now.skipped), "offset": offset, "files": rows}
