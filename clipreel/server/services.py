"""Everything that routes need, made when the server starts and closed when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever
from clipreel.search.index import Index
from clipreel.server.answers import Answers
from clipreel.server.archive import Archive
from clipreel.server.asked import Asked
from clipreel.server.cutting import Cutting
from clipreel.server.desk import Desk
from clipreel.server.events import Events
from clipreel.server.jobs import Jobs
from clipreel.server.media import Media
from clipreel.server.metrics import Metrics
from clipreel.server.models import Models
from clipreel.server.pictures import Pictures
from clipreel.server.rerankers import Rerankers
from clipreel.server.sandbox import Decoders
from clipreel.server.settings import Settings
from clipreel.server.settling import Settling
from clipreel.server.together import Together
from clipreel.server.uploads import Uploads
from clipreel.server.variants import Variants

TICK_S = 2.0
FOLLOW_S = 0.5


@dataclass
class Services:
    """The parts of a running server."""

    settings: Settings
    metrics: Metrics
    model: Retriever
    archive: Archive
    decoders: Decoders
    media: Media
    pictures: Pictures
    uploads: Uploads
    events: Events
    variants: Variants
    jobs: Jobs
    cutting: Cutting
    desk: Desk
    reranking: Desk
    answering: list[Answers]
    rerankers: Rerankers
    asked: Asked
    models: Models = field(init=False)
    started: float = field(default_factory=time.time)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        place: str,
        model: Retriever,
        settings: Settings,
        metrics: Metrics,
        device: str,
        variants: Variants,
        rerankers: Rerankers,
    ) -> Services:
        """Call in the event loop. The routes read the index through one connection, the search thread another."""
        archive = Archive(Index(place))
        decoders = Decoders(settings.decoders, settings.decode_waiting, settings.decode_s, metrics)
        events = Events(settings.event_clients)
        uploads = Uploads(decoders, settings)
        askers = made(variants, rerankers)
        answering = [
            Answers(a, lambda id: str(uploads.get(id).path), variants, rerankers, lambda: found.models.ready())
            for a in askers
        ]
        desk = Desk(answering[0], settings.search_waiting, settings.search_batch, settings.search_s, metrics)
        reranking = desk
        if len(answering) > 1:
            what = "rerank", "reranks"
            reranking = Desk(answering[1], settings.rerank_waiting, 1, settings.rerank_s, metrics, what)
        media = Media(archive, decoders, settings, metrics)
        pictures = Pictures(archive, decoders, settings)
        found: Services = cls(
            settings=settings,
            metrics=metrics,
            model=model,
            archive=archive,
            decoders=decoders,
            media=media,
            pictures=pictures,
            uploads=uploads,
            events=events,
            cutting=Cutting(archive, media, settings),
            variants=variants,
            jobs=Jobs(place, device, events, settings, lambda: found.written()),
            desk=desk,
            reranking=reranking,
            answering=answering,
            rerankers=rerankers,
            asked=Asked(archive.index, settings.remember and not settings.read_only),
        )
        metrics.gauge("videos", "videos in the index", lambda: len(archive.last.files))
        metrics.gauge("vectors", "vectors in the index", lambda: archive.last.vectors)
        metrics.gauge("media_cache_bytes", "converted videos kept", lambda: media.cache.size)
        metrics.gauge("picture_cache_bytes", "thumbnails and strips kept", lambda: pictures.cache.size)
        metrics.gauge("uploads", "images kept to search with", lambda: len(uploads))
        metrics.gauge("event_clients", "clients that listen to events", lambda: len(events.clients))
        metrics.gauge("memory_bytes", "resident memory of the server", resident)
        found.models = Models(found, place, device)
        found.tasks += [asyncio.create_task(act()) for act in (found._tick, found._follow)]
        return found

    async def _tick(self) -> None:
        """What has to happen also when nobody asks."""
        settling = Settling()
        while True:
            await asyncio.sleep(TICK_S)
            self.uploads.expire()
            await self.asked.keep()
            with contextlib.suppress(ClipreelError):  # the disk of the index may come back
                await run_in_threadpool(self.archive.now)
            held = [self.archive.last, *(view.read for a in self.answering for view in a.asker.kept.values())]
            await run_in_threadpool(settling.look, held)

    async def _follow(self) -> None:
        """Beside the ticks, because a model may take a while to load."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            await run_in_threadpool(self.models.follow)

    def written(self) -> None:
        """A job has written to the index: who hears that it is done finds what it did."""
        self.archive.written()
        for answers in self.answering:
            answers.asker.written()

    def renew(self) -> None:
        """Search with the models that `variants` has now; call while no search is answered."""
        for answers, asker in zip(self.answering, made(self.variants, self.rerankers), strict=True):
            answers.asker = asker

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.asked.keep(0.0)
        self.events.close()
        await self.jobs.close()
        await self.media.close()
        await self.decoders.close()
        for desk in {id(d): d for d in (self.desk, self.reranking)}.values():
            await run_in_threadpool(desk.close)


def made(variants: Variants, rerankers: Rerankers) -> list[Together]:
    """The asker of the search thread; and where there are rerankers one with a thread of its own, so that nobody else
    waits for them. It searches the vectors of the first."""
    found = [Together(variants.all[""].index, variants.all[""].model, adapters=variants.beside)]
    if rerankers.orders:
        own = {key: (v.model, Index(v.index.place)) for key, v in variants.all.items()}
        model, index = own.pop("")
        found.append(Together(index, model, adapters=own, rerankers=rerankers.orders))
        found[1].borrow(found[0])
    return found


def services(request: Request) -> Services:
    """For routes: `Depends(services)`."""
    return request.app.state.services


def resident() -> float:
    """Bytes of memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as f:
            import resource

            return float(f.read().split()[1]) * resource.getpagesize()
    except (OSError, ImportError):
        return 0.0
