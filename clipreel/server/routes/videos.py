"""Videos of the index: facts, the video itself, thumbnails, film strips. By id, never by path."""

from __future__ import annotations

import os
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from starlette.concurrency import run_in_threadpool

from clipreel.search.index import File, text_of
from clipreel.server.archive import Snapshot, date_of
from clipreel.server.errors import VERSION
from clipreel.server.messages import Count, Id, Offset, Seconds
from clipreel.server.services import Services, services

router = APIRouter(tags=["videos"])
Its = Annotated[Services, Depends(services)]
PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}, "description": "JPEG"}}
FOR_A_DAY = {"cache-control": "private, max-age=86400"}


def facts_of(file: File, now: Snapshot) -> dict[str, Any]:
    return {
        "id": file.id,
        "name": text_of(os.path.basename(file.path)),
        "folder": now.labels.get(file.id, ""),
        "duration_s": file.duration_s,
        "width": file.width,
        "height": file.height,
        "date": date_of(file),
        "bytes": file.size,
        "tags": now.tags_of.get(file.id, []),
    }


@router.get("/videos")
async def videos(
    its: Its, offset: Offset = 0, k: Count = 50, folder: Annotated[str | None, Query(max_length=1000)] = None
) -> dict[str, Any]:
    """The videos of the index, in order of their place on disk."""
    now = await run_in_threadpool(its.archive.now)
    ids = now.in_folder(folder)
    page = [facts_of(now.files[i], now) for i in ids[offset : offset + k]]
    return {"version": VERSION, "total": len(ids), "offset": offset, "videos": page}


@router.get("/videos/{id}")
async def video(id: Id, its: Its) -> dict[str, Any]:
    """Facts of a video, whether it is still there, and how a browser gets to see it."""
    file = its.archive.file(id)
    state = await run_in_threadpool(its.archive.state, file)
    found = facts_of(file, its.archive.last) | {"version": VERSION, "state": state}
    if state != "present":
        return found | {"playable": "no", "why": f"the file is {state}; index again", "ready": False}
    playable = await its.media.playable(file)
    making = its.media.making(file)
    ready = playable.how == "direct" or its.media.made(file)
    done = making.at_s / file.duration_s if making and file.duration_s else None
    return found | {"playable": playable.how, "why": playable.why, "ready": ready, "converted": done}


@router.head("/videos/{id}/media", include_in_schema=False)
@router.get(
    "/videos/{id}/media",
    response_class=Response,
    responses={
        200: {"content": {"video/mp4": {}, "video/webm": {}}, "description": "the whole video, or its stream"},
        206: {"description": "the range that was asked for"},
        304: {"description": "not changed"},
        416: {"description": "no such range"},
    },
)
async def media(
    id: Id,
    its: Its,
    from_s: Annotated[
        Seconds, Query(alias="from", description="where a remade video begins: its second 0 is this one of the source")
    ] = 0.0,
) -> Response:
    """The video, with ranges. What browsers do not play is remade: it streams, without ranges, until it is whole.

    `from` is for a player that does not want to wait for the whole: the answer begins there. A file that is sent as it
    is takes no notice of it.
    """
    return await its.media.response(its.archive.file(id), from_s)


@router.get("/videos/{id}/thumbnail", responses=PICTURE, response_class=Response)
async def thumbnail(
    id: Id, its: Its, at_s: Seconds = 0.0, width: Annotated[int, Query(ge=16, le=960)] = 320
) -> Response:
    """The frame at a moment, as JPEG; never wider than the video."""
    data = await its.pictures.thumbnail(its.archive.file(id), at_s, width)
    return Response(data, media_type="image/jpeg", headers=FOR_A_DAY)


@router.get("/videos/{id}/strip", responses=PICTURE, response_class=Response)
async def strip(
    id: Id,
    its: Its,
    n: Annotated[int, Query(ge=1, le=24)] = 8,
    start_s: Seconds = 0.0,
    end_s: Seconds | None = None,
    width: Annotated[int, Query(ge=16, le=320, description="of each frame")] = 160,
) -> Response:
    """n frames side by side, evenly spread from one second to another, as JPEG."""
    file = its.archive.file(id)
    data = await its.pictures.strip(file, n, start_s, file.duration_s if end_s is None else end_s, width)
    return Response(data, media_type="image/jpeg", headers=FOR_A_DAY)
