"""The texts that this archive was asked: how many are kept, and how to have them forgotten."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool

from clipreel.search.bank import forget, remembered
from clipreel.server.errors import VERSION
from clipreel.server.services import Services, services

router = APIRouter(tags=["queries"])
Its = Annotated[Services, Depends(services)]


@router.get("/queries")
async def queries(its: Its) -> dict[str, Any]:
    """Whether asked texts are kept, and how many are; the texts themselves stay in their file."""
    kept = await run_in_threadpool(remembered, its.archive.index)
    return {"version": VERSION, "remembers": its.asked.on, "total": len(kept)}


@router.delete("/queries")
async def forget_queries(its: Its) -> dict[str, Any]:
    """Delete every text that was kept."""
    its.asked.forget()
    await run_in_threadpool(forget, its.archive.index)
    return {"version": VERSION, "remembers": its.asked.on, "total": 0}
