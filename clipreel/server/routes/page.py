"""The page: files of clipreel/server/static, and nothing else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response
from starlette.responses import FileResponse

from clipreel.server.errors import ApiError

router = APIRouter(include_in_schema=False)
STATIC = Path(__file__).parent.parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}


def listed() -> dict[str, Path]:
    """Every file of the page by its address; what is not in here is not served."""
    return {p.relative_to(STATIC).as_posix(): p for p in STATIC.rglob("*") if p.is_file() and p.suffix in TYPES}


FILES = listed()


def file(name: str) -> Response:
    path = FILES.get(name)
    if path is None:
        raise ApiError(404, "not-found", "there is no such page; open /")
    return FileResponse(path, media_type=TYPES[path.suffix], headers={"cache-control": "no-cache"})


@router.api_route("/", methods=["GET", "HEAD"])
async def index() -> Response:
    return file("index.html")


@router.api_route("/static/{name:path}", methods=["GET", "HEAD"])
async def static(name: str) -> Response:
    return file(name)


@router.get("/favicon.ico")
async def icon() -> Response:
    return file("favicon.ico" if "favicon.ico" in FILES else "favicon.svg")
