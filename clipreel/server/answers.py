"""Searches as the API takes them -> answers as the API gives them, on the Python search of the product."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever
from clipreel.search.index import Index
from clipreel.search.query import Hit, Query, Searcher
from clipreel.server.archive import Archive, Snapshot, date_of
from clipreel.server.errors import VERSION, ApiError
from clipreel.server.messages import Search


class Answers:
    """Called by the search thread alone."""

    def __init__(self, index: Index, model: Retriever, archive: Archive) -> None:
        self.searcher = Searcher(index, model)
        self.archive = archive

    def __call__(self, requests: Sequence[Search]) -> list[Any]:
        return [self._one(r) for r in requests]

    def _one(self, request: Search) -> dict[str, Any] | Exception:
        started = time.perf_counter()
        try:
            query = Query.parse(request.text or "")
            query.minus = [*query.minus, *request.minus]
            hits = self.searcher.search(query, request.k + request.offset)[request.offset :]
        except (ClipreelError, ApiError) as e:
            return e
        now = self.archive.now()
        return {
            "version": VERSION,
            "took_ms": round((time.perf_counter() - started) * 1000, 1),
            "state": "ok" if hits else "nothing",
            "total": len(hits),
            "hits": [shown(hit, now) for hit in hits],
            "facets": {
                "folders": [{"name": n, "count": c} for n, c in now.folders],
                "tags": [{"name": n, "count": c} for n, c in now.tags],
            },
            "notes": [],
        }


def shown(hit: Hit, now: Snapshot) -> dict[str, Any]:
    id = now.ids[hit.path]
    file = now.files[id]
    return {
        "video": id,
        "name": hit.path.rsplit("/", 1)[-1],
        "folder": now.labels[id],
        "start_s": hit.start_s,
        "end_s": hit.end_s,
        "score": hit.score,
        "unusual": None,
        "words": "match",
        "duration_s": file.duration_s,
        "width": file.width,
        "height": file.height,
        "date": date_of(file),
        "tags": now.tags_of.get(id, []),
        "moments": [],
        "matched": [],
        "adapter": None,
    }
