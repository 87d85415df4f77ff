"""Searching: POST with everything, GET with the simple form, and "more like this"."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from clipreel.server.errors import ApiError
from clipreel.server.messages import Count, Filters, Id, Like, Name, Offset, Search, Seconds
from clipreel.server.schema import Answer
from clipreel.server.services import Services, services

router = APIRouter(tags=["search"])
Its = Annotated[Services, Depends(services)]
Adapters = Annotated[
    list[Name], Query(max_length=8, description="who answers, by names of GET /adapters; may be given several times")
]
EXAMPLE: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Answer,
        "description": "Hits, best first; `state` is nothing where nothing here matches",
        "content": {
            "application/json": {
                "example": {
                    "version": 1,
                    "took_ms": 12.4,
                    "state": "ok",
                    "total": 1,
                    "matching": 1,
                    "hits": [
                        {
                            "video": "0f3a5e",
                            "name": "beach.mp4",
                            "folder": "holidays/2019",
                            "start_s": 12.0,
                            "end_s": 18.5,
                            "score": 0.31,
                            "unusual": 0.99,
                            "words": "strong match",
                            "apart": None,
                            "duration_s": 94.2,
                            "width": 1920,
                            "height": 1080,
                            "date": "2019-08-03T10:12:44+00:00",
                            "tags": ["dog"],
                            "moments": [
                                {
                                    "start_s": 40.0,
                                    "end_s": 44.0,
                                    "score": 0.28,
                                    "unusual": 0.96,
                                    "words": "weak match",
                                    "apart": None,
                                }
                            ],
                            "matched": [{"at_s": 13.5, "score": 0.33}],
                            "adapter": "base",
                            "state": "present",
                        }
                    ],
                    "facets": {
                        "folders": [{"name": "holidays/2019", "count": 1}],
                        "tags": [{"name": "dog", "count": 1}],
                    },
                    "notes": [],
                }
            }
        },
    }
}


@router.post("/search", responses=EXAMPLE, response_class=Response)
async def search(request: Search, its: Its) -> Response:
    """Find moments by text, images, or videos that they should be like; minus terms are taken away."""
    if not ((request.text or "").strip() or request.images or request.like):
        raise ApiError(422, "empty", "the query is empty; give text, images or like")
    for id in request.images:
        its.uploads.get(id)
    for like in request.like:
        its.archive.file(like.video)
    found = await (its.desk if request.rerank is None else its.reranking).ask(request)
    its.asked.note(request)
    return Response(found, media_type="application/json")


@router.get("/search", responses=EXAMPLE, response_class=Response)
async def search_simply(
    its: Its,
    q: Annotated[str, Query(max_length=2000, description="what to look for; words with a - are taken away")],
    k: Count = 24,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
    folder: Annotated[str | None, Query(max_length=1000)] = None,
    tag: Annotated[list[Name], Query(max_length=20)] = [],  # noqa: B006 - FastAPI copies defaults
    adapters: Adapters = [],  # noqa: B006
) -> Response:
    """The simple form, for a browser's address line and for curl."""
    filters = Filters(folder=folder, tags=tag)
    return await search(Search(text=q, k=k, offset=offset, filters=filters, adapters=adapters), its)


@router.get("/similar", responses=EXAMPLE, response_class=Response)
async def similar(
    its: Its,
    video: Id,
    at_s: Seconds | None = None,
    k: Count = 24,
    offset: Offset = 0,
    adapters: Adapters = [],  # noqa: B006 - FastAPI copies defaults
) -> Response:
    """More like a video, or like its moment."""
    like = [Like(video=video, at_s=at_s)]
    return await search(Search(like=like, k=k, offset=min(offset, 10_000), adapters=adapters), its)
