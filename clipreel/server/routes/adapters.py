"""Adapters of this index's model."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from clipreel.server.errors import VERSION
from clipreel.server.services import Services, services

router = APIRouter(tags=["adapters"])
Its = Annotated[Services, Depends(services)]


@router.get("/adapters")
async def adapters(its: Its) -> dict[str, Any]:
    """What can be put on the model, and whether it helped."""
    return {"version": VERSION, "adapters": []}
