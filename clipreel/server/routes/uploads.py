"""Images to search with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, UploadFile

from clipreel.server.errors import VERSION
from clipreel.server.services import Services, services

router = APIRouter(tags=["search"])


@router.post("/uploads")
async def upload(file: UploadFile, its: Annotated[Services, Depends(services)]) -> dict[str, Any]:
    """Send an image (multipart, field `file`); its id goes into `images` of a search until it expires."""
    found = await its.uploads.add(await file.read())
    expires = its.settings.upload_lives_s
    return {"version": VERSION, "id": found.id, "width": found.width, "height": found.height, "expires_s": expires}
