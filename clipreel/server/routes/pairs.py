"""Judgements: which answers of a query are right and which are not. Kept beside the index, for `clipreel tune`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.concurrency import run_in_threadpool

from clipreel.search.index import text_of
from clipreel.search.judged import Judged, forget, judge, stored
from clipreel.search.query import clean
from clipreel.server.errors import VERSION, ApiError
from clipreel.server.messages import Id, Judgement, Offset
from clipreel.server.services import Services, services

router = APIRouter(tags=["pairs"])
Its = Annotated[Services, Depends(services)]


def shown(row: Judged) -> dict[str, Any]:
    """Everything but the path."""
    return {
        "id": row.id,
        "query": row.query,
        "video": row.video,
        "name": text_of(os.path.basename(row.path)),
        "start_s": row.start_s,
        "end_s": row.end_s,
        "judgement": "hit" if row.right else "miss",
        "at": row.at,
    }


def counted(rows: Sequence[Judged]) -> dict[str, int]:
    hits = sum(row.right for row in rows)
    return {"version": VERSION, "total": len(rows), "hits": hits, "misses": len(rows) - hits}


@router.get("/pairs")
async def pairs(
    its: Its,
    offset: Offset = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    query: Annotated[str | None, Query(max_length=2000, description="only those of this query")] = None,
    video: Annotated[str | None, Query(max_length=64, description="only those of this video")] = None,
) -> dict[str, Any]:
    """The judgements, the newest first, and how many there are of each kind."""
    rows = await run_in_threadpool(stored, its.archive.index)
    asked = None if query is None else clean(query)
    rows = [r for r in rows if asked in (None, r.query) and video in (None, r.video)]
    page = rows[::-1][offset : offset + limit]
    return {**counted(rows), "offset": offset, "pairs": [shown(row) for row in page]}


@router.post("/pairs", status_code=201)
async def add(request: Judgement, its: Its) -> dict[str, Any]:
    """Say that a moment is a right answer of a query, or a wrong one; the last word about a moment counts."""
    writable(its)
    file = its.archive.file(request.video)
    end_s = min(request.end_s, file.duration_s)
    if not request.start_s < end_s:
        ends = f"the video ends at {file.duration_s:g} s"
        raise ApiError(422, "no-moment", f"{request.start_s:g} to {request.end_s:g} s is no moment: {ends}")
    query = clean(request.query)
    if not query:
        raise ApiError(422, "empty", "the query is empty; say what the moment is, or is not, an answer to")
    row = Judged(query, file.path, request.start_s, end_s, request.judgement == "hit", file.id)
    index = its.archive.index
    await run_in_threadpool(judge, index, [row], {file.path: file})
    rows = await run_in_threadpool(stored, index)
    return {**counted(rows), "pair": shown(next((r for r in rows if r.id == row.id), row))}


@router.delete("/pairs/{id}")
async def remove(id: Id, its: Its) -> dict[str, Any]:
    """Take a judgement back."""
    writable(its)
    index = its.archive.index
    if not await run_in_threadpool(forget, index, [id]):
        raise ApiError(404, "no-such-pair", f"no judgement has the id {id[:40]!r}; GET /api/v1/pairs lists them")
    return counted(await run_in_threadpool(stored, index))


def writable(its: Services) -> None:
    if its.settings.read_only:
        raise ApiError(409, "read-only", its.settings.read_only)
