"""Searches as the API takes them -> answers as the API gives them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import to_json

from clipreel.errors import ClipreelError
from clipreel.search.answer import Answer, Filters, Hit, Like, Request
from clipreel.server.errors import VERSION, ApiError
from clipreel.server.messages import Search
from clipreel.server.rerankers import Rerankers
from clipreel.server.together import Together
from clipreel.server.variants import Variants


class Answers:
    """Called by one thread alone. `picture` gives the file of an upload; `ready` raises where none can be answered."""

    def __init__(
        self,
        asker: Together,
        picture: Callable[[str], str],
        variants: Variants,
        rerankers: Rerankers,
        ready: Callable[[], None],
    ) -> None:
        self.asker, self.picture, self.variants, self.rerankers = asker, picture, variants, rerankers
        self.ready = ready
        self.turn = threading.Lock()  # held while another asker takes the place of this one

    def __call__(self, searches: Sequence[Search]) -> list[bytes | Exception]:
        """An answer as JSON, or the error that it deserves, for each search."""
        with self.turn:
            self.ready()
            try:
                return self._answered(searches)
            finally:
                self.ready()  # else it may be of two indexes

    def _answered(self, searches: Sequence[Search]) -> list[bytes | Exception]:
        started = time.perf_counter()
        if self.asker.rerankers:
            self.rerankers.failed.clear()
        found: list[bytes | Exception] = []
        requests: list[Request] = []
        for search in searches:
            try:
                requests.append(self._request(search))
            except (ClipreelError, ApiError) as e:
                found.append(e)
            else:
                found.append(b"")
        answers = iter(self.asker.answer_all(requests))
        for n, error in enumerate(found):
            if not isinstance(error, Exception):
                found[n] = self._shown(next(answers), started)
        return found

    def _request(self, search: Search) -> Request:
        f = search.filters
        adapters = tuple(map(self.variants.key, search.adapters)) or (self.variants.active,)
        rerank, candidates = None, Request.candidates
        if search.rerank is not None:
            rerank, candidates = self.rerankers.key(search.rerank, tuple(dict.fromkeys(adapters)))
        return Request(
            text=search.text or "",
            minus=tuple(search.minus),
            images=tuple(self.picture(i) for i in search.images),
            like=tuple(Like(like.video, like.at_s) for like in search.like),
            weights=search.weights.model_dump(),
            filters=Filters(
                folder=f.folder,
                tags=tuple(f.tags),
                min_duration_s=f.min_duration_s or 0.0,
                max_duration_s=float("inf") if f.max_duration_s is None else f.max_duration_s,
                after=f.after,
                before=f.before,
                orientation=f.orientation,
            ),
            adapters=adapters,
            rank=search.rank,
            rerank=rerank,
            candidates=candidates,
            k=search.k,
            offset=search.offset,
        )

    def _shown(self, answer: Answer | Exception, started: float) -> bytes | Exception:
        """An answer as JSON. Without `asdict`, which copies deeply and took a third of the time of a search, and by
        pydantic's writer, which takes a third of the time of Python's."""
        if isinstance(answer, Exception):
            return answer
        facets = answer.facets
        told = {
            "version": VERSION,
            "took_ms": round((time.perf_counter() - started) * 1000, 1),
            "state": answer.state,
            "total": answer.total,
            "matching": answer.matching,
            "hits": [self._hit(hit) for hit in answer.hits],
            "facets": {kind: [vars(f) for f in getattr(facets, kind)] for kind in ("folders", "tags")},
            "notes": [*answer.notes, *(self.rerankers.note() if self.asker.rerankers else ())],
        }
        return to_json(told)

    def _hit(self, hit: Hit) -> dict[str, Any]:
        """Everything but the path; `adapter` is the name under which a search can ask who found it."""
        found = {k: v for k, v in vars(hit).items() if k != "path"}
        found["adapter"] = self.variants.all[hit.adapter].name
        return found | {"moments": [vars(m) for m in hit.moments], "matched": [vars(m) for m in hit.matched]}
