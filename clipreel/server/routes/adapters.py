"""Adapters: which can answer, whether they helped, and which one answers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from clipreel.server.errors import VERSION, ApiError
from clipreel.server.messages import Name
from clipreel.server.services import Services, services

router = APIRouter(tags=["adapters"])
Its = Annotated[Services, Depends(services)]
# a report is a page of its own with its own style; it runs nothing and reaches nothing
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"


@router.get("/adapters")
async def adapters(its: Its) -> dict[str, Any]:
    """What answers here: the base and adapters, each with its recalls before and after tuning, in per cent."""
    return {"version": VERSION, "adapters": await run_in_threadpool(its.variants.listed)}


@router.post("/adapters/{name}/activate")
async def activate(name: Name, its: Its) -> dict[str, Any]:
    """Let this one answer searches that name none."""
    await run_in_threadpool(its.variants.activate, name)
    return {"version": VERSION, "adapters": await run_in_threadpool(its.variants.listed)}


@router.get(
    "/adapters/{name}/report",
    response_class=FileResponse,
    responses={200: {"content": {"text/html": {}}, "description": "the page that `clipreel tune` wrote"}},
)
async def report(name: Name, its: Its) -> FileResponse:
    """The before-and-after page of an adapter."""
    variant = its.variants.all[its.variants.key(name)]
    found = variant.report
    if found is None:
        raise ApiError(404, "no-report", f"{variant.name} has no report; clipreel tune writes one beside an adapter")
    headers = {"content-security-policy": REPORT_POLICY}
    return FileResponse(found, media_type="text/html; charset=utf-8", headers=headers)
