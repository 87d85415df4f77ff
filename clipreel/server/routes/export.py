"""Hits as files: lists for tables and editing programs, and the moments themselves."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from clipreel.exports.lists import FORMATS, listed
from clipreel.server.messages import Export
from clipreel.server.services import Services, services

router = APIRouter(tags=["export"])
KINDS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "a file",
        "content": {kind.partition(";")[0]: {} for kind in (*FORMATS.values(), "application/zip")},
    }
}


@router.post("/export", responses=KINDS, response_class=Response)
async def export(request: Export, its: Annotated[Services, Depends(services)]) -> Response:
    """Hits as csv, json, edl, fcpxml, or mp4: a zip of cut files and a table that says how each was cut."""
    if request.format == "mp4":
        return await its.cutting.response(request.hits, "copy" if request.cut == "keyframe" else "encode")
    places = await its.cutting.places(request.hits)
    name = f"clipreel.{request.format}"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(listed(request.format, places), media_type=FORMATS[request.format], headers=headers)
