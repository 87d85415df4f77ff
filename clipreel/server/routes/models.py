"""Models: which one answers, which one the archive moves to, and the switch between them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool

from clipreel.server.errors import VERSION
from clipreel.server.messages import Name
from clipreel.server.services import Services, services

router = APIRouter(tags=["models"])
Its = Annotated[Services, Depends(services)]


@router.get("/models")
async def models(its: Its) -> dict[str, Any]:
    """The model that answers and those of a migration, with sizes and ages; `canary` is how saved queries moved."""
    return {"version": VERSION, **await run_in_threadpool(its.models.listed)}


@router.post("/models/{name:path}/activate")
async def activate(name: Name, its: Its) -> dict[str, Any]:
    """Let this model answer, as `clipreel migrate --switch` does (--undo, for the one before)."""
    await run_in_threadpool(its.models.activate, name)
    return {"version": VERSION, **await run_in_threadpool(its.models.listed)}
