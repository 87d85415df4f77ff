"""The app: routes, guard and life of the services. `create_app` is all that a test or another server needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from clipreel import __version__
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever
from clipreel.search.index import Index
from clipreel.search.indexer import check_space
from clipreel.server import errors
from clipreel.server.metrics import Metrics
from clipreel.server.rerankers import Rerankers
from clipreel.server.routes import adapters, export, facts, jobs, models, page, pairs, queries, search, uploads, videos
from clipreel.server.security import Guard
from clipreel.server.services import Services
from clipreel.server.settings import Settings
from clipreel.server.variants import Variants

ROOT = "/api/v1"


def create_app(
    place: str, model: Retriever, settings: Settings, device: str = "auto", base: Retriever | None = None
) -> FastAPI:
    """A server over the index at `place` with the model that made it, and the `base` of that for other adapters.

    Raises ClipreelError for an index of another model, for rerankers that do not fit, and where no cache can be made.
    """
    metrics = Metrics()
    first = Index(place)
    check_space(first, model)
    try:
        settings.cache.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ClipreelError(f"no cache can be made at {settings.cache} ({e.strerror}); give another --cache") from e
    variants = Variants(first, model, base or model, settings.others, settings.cache / "active")
    rerankers = Rerankers(settings.rerankers, variants, settings, device)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = Services.start(place, model, settings, metrics, device, variants, rerankers)
        try:
            yield
        finally:
            await app.state.services.close()

    app = FastAPI(
        title="clipreel",
        version=__version__,
        summary="Search an archive of videos by what is seen in them, and open them at the moment.",
        description="Answers carry `version`: 1. Errors are `{version, error: {code, message}}`. Times in seconds.",
        lifespan=life,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    errors.install(app)
    for part in (search, videos, uploads, jobs, facts, adapters, models, pairs, queries, export):
        app.include_router(part.router, prefix=ROOT)
    app.include_router(page.router)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    return app
