"""How the server and its index stand: status, health, metrics, tags."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse

from clipreel import __version__
from clipreel.server.errors import VERSION
from clipreel.server.services import Services, services
from clipreel.server.sizes import comes_from, index_bytes, licences, made_at, model_bytes

router = APIRouter(tags=["status"])
Its = Annotated[Services, Depends(services)]


@router.get("/status")
async def status(its: Its) -> dict[str, Any]:
    """Facts of the index, the model and the server; sizes in bytes, ages in seconds."""
    now = await run_in_threadpool(its.archive.now)
    place = its.archive.index.place
    facts = now.facts
    size = await run_in_threadpool(index_bytes, place) if its.archive.index.local else None
    made = made_at(place) if its.archive.index.local else None
    return {
        "version": VERSION,
        "clipreel": __version__,
        "videos": len(now.files),
        "vectors": now.vectors,
        "duration_s": round(now.duration_s, 3),
        "skipped": len(now.skipped),
        "folders": [{"name": n, "count": c} for n, c in now.folders],
        "index": {
            "bytes": size,
            "age_s": None if made is None else round(time.time() - made, 1),
            "schema": facts.get("schema"),
            "segments": facts.get("segments"),
            "approximate": "ann" in facts,
        },
        "model": {
            "name": facts["model"].rsplit("/", 1)[-1] if facts["model"].startswith("/") else facts["model"],
            "space": facts["space"],
            "engine": facts.get("engine", "torch"),
            "bytes": model_bytes(its.model),
            "device": str(its.model.device),
        },
        "licences": licences(facts),
        "lineage": comes_from(facts),
        "rerankers": its.rerankers.listed(),
        "read_only": its.settings.read_only,
        "up_s": round(time.time() - its.started, 1),
    }


@router.get("/tags")
async def tags(its: Its) -> dict[str, Any]:
    """The tags of the videos, with in how many each is seen."""
    now = await run_in_threadpool(its.archive.now)
    return {"version": VERSION, "tags": [{"name": n, "count": c} for n, c in now.tags]}


@router.get("/health")
async def health(its: Its) -> dict[str, Any]:
    """Whether the server answers: ok, switching (a model is being loaded), or no-model (a search says why)."""
    return {
        "version": VERSION,
        "status": await run_in_threadpool(its.models.state),
        "videos": len(its.archive.last.files),
    }


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(its: Its) -> PlainTextResponse:
    """Counters, gauges and histograms for Prometheus."""
    return PlainTextResponse(its.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
