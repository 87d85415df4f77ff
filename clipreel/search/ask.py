"""Answers a request: one query vector per adapter, ranking, moments with their frames, facets, and what it all means.

An adapter has an index of its own, because videos encoded with and without it do not compare; the texts of a request
go through the base once, each row with its adapter (`clipreel.mixing`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clipreel.errors import ClipreelError
from clipreel.search.answer import Answer, Facet, Facets, Filters, Hit, Like, Matched, Moment, Request
from clipreel.search.calibration import Calibration
from clipreel.search.catalog import day_of, state_of
from clipreel.search.frames import Sharp
from clipreel.search.index import Index, text_of
from clipreel.search.query import MOST_WORDS, Query
from clipreel.search.query import Hit as Candidate
from clipreel.search.spans import Span, spans
from clipreel.search.spread import LEAST, Spread
from clipreel.search.view import Scored, Vector, View, combined, order_of

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

__all__ = ["Answer", "Asker", "Facet", "Facets", "Filters", "Hit", "Like", "Matched", "Moment", "Reorder", "Request"]

Reorder = Callable[[Query, list[Candidate]], list[Candidate]]  # a reranker: the candidates in a new order
DEEP = 200  # videos whose place a ranking by the bank may change where the index is approximate


@dataclass(frozen=True)
class Found:
    """A video in the ranking of a view."""

    view: View
    vector: Vector
    scored: Scored
    judge: Calibration | Spread | None  # of what its scores mean
    file: int
    score: float
    key: float


class Asker:
    """Answers requests over an index and over those of the adapters beside it. Not for two threads at once.

    `adapters` are (retriever, index) by name, where the retriever is on the same base in memory; `rerankers` order
    candidates anew, by the name that a request says.
    """

    view_class: type[View] = View

    def __init__(
        self,
        index: Index,
        retriever: Retriever,
        *,
        adapters: Mapping[str, tuple[Retriever, Index]] | None = None,
        rerankers: Mapping[str, Reorder] | None = None,
        exact: bool = False,
    ) -> None:
        self.first = self.view_class("", index, retriever, exact)
        self.views = {"": self.first}
        for name, (model, other) in (adapters or {}).items():
            self.views[name] = self.view_class(name, other, model, exact)
        self.rerankers = dict(rerankers or {})

    def answer(self, request: Request) -> Answer:
        """The best videos, each with its moments. Raises ClipreelError for what cannot be asked."""
        started = time.perf_counter()
        views = self._asked(request)
        for view in views:
            view.refresh()
        vectors = self._vectors(views, request)
        wanted = max(request.offset + request.k, request.candidates if request.rerank else 0)
        ranked: list[list[Found]] = []
        total, facets = 0, Facets()
        for view, vector in zip(views, vectors, strict=True):
            allowed = view.catalog.allowed(request.filters)
            allowed[[view.catalog.number[like.video] for like in request.like]] = False
            if view is views[0]:
                facets = view.catalog.facets(allowed)
            total = max(total, int(allowed.sum()))
            ranked.append(self._ranked(view, vector, allowed, wanted, request))
        found = ranked[0] if len(ranked) == 1 else merged(ranked)
        if request.rerank is not None:
            found = self._reranked(found, request)
        page = found[request.offset : request.offset + request.k]
        hits = tuple(self._hits(page, request))
        state = "ok" if any(map(matches, ranked)) else "nothing"
        notes = (*notes_of_texts(views, request), *notes_of(hits), *([] if rated(request) else notes_of_spread(ranked)))
        took_ms = (time.perf_counter() - started) * 1000
        return Answer(hits, state, total, facets, took_ms, notes, matching(ranked) if state == "ok" else 0)

    def _asked(self, request: Request) -> list[View]:
        names = request.adapters or ("",)
        for name in names:
            if name not in self.views:
                known = ", ".join(n for n in self.views if n) or "none"
                raise ClipreelError(f"no adapter {name!r} answers here; those that do: {known}")
        return [self.views[n] for n in dict.fromkeys(names)]

    def _vectors(self, views: Sequence[View], request: Request) -> list[Vector]:
        """The query in the space of each view; all texts in one pass."""
        query = Query.parse(request.text)
        for text in (*query.texts, *request.minus):
            if len(text.split()) > MOST_WORDS:
                raise ClipreelError(f"a query of {len(text.split())} words: at most {MOST_WORDS}; say it shorter")
        plus, minus = (self.first.searcher.said(texts) for texts in (query.texts, (*query.minus, *request.minus)))
        texts = [*plus, *minus]
        rows = encoded([view.model for view in views], texts)
        found = []
        for view, encoded_NE in zip(views, rows, strict=True):
            added = [request.weight("text") * row for row in encoded_NE[: len(plus)]] + view.shown(request)
            found.append(combined(added, [request.weight("minus") * row for row in encoded_NE[len(plus) :]]))
        return found

    def _ranked(self, view: View, vector: Vector, allowed: np.ndarray, wanted: int, request: Request) -> list[Found]:
        scored = view.scored(vector, max(wanted, DEEP if request.rank == "bank" else 0), allowed, request)
        if request.rank == "bank":
            if view.calibration is None:
                raise ClipreelError(f"the index at {view.index.place} has no bank to rank by; clipreel index makes one")
            keys = view.calibration.keys(scored.best)
        else:
            keys = scored.best
        top = order_of(scored.best, keys, wanted)
        judge = view.calibration if rated(request) else view.spread(vector, request)
        return [Found(view, vector, scored, judge, int(i), float(scored.best[i]), float(keys[i])) for i in top]

    def _reranked(self, found: list[Found], request: Request) -> list[Found]:
        reorder = self.rerankers.get(request.rerank or "")
        if reorder is None:
            known = ", ".join(self.rerankers) or "none"
            raise ClipreelError(f"no reranker {request.rerank!r} is loaded here; those that are: {known}")
        shown = [*request.videos, *(like.video for like in request.like)]
        query = replace(Query.parse(request.text), images=[str(i) for i in request.images], videos=shown)
        query = replace(query, minus=[*query.minus, *request.minus])
        first = found[: request.candidates]
        by_path = {one.view.catalog.files[one.file].path: one for one in first}
        new = reorder(query, [candidate(one) for one in first])
        return [*(replace(by_path[c.path], score=c.score) for c in new), *found[request.candidates :]]

    def _hits(self, page: Sequence[Found], request: Request) -> list[Hit]:
        """The hits of a page; what the index keeps of their frames is read in one go."""
        moments = [spans_of(one) for one in page]
        sharp: list[Sharp | None] = [None] * len(page)
        for view in dict.fromkeys(one.view for one in page) if request.refine != "none" else ():
            mine = [n for n, one in enumerate(page) if one.view is view]
            wanted = [(view.catalog.files[page[n].file], moments[n][0], page[n].vector) for n in mine]
            for n, ends in zip(mine, view.frames.sharpen(wanted, request.refine == "decode"), strict=True):
                sharp[n] = ends
        return [self._hit(*row, request) for row in zip(page, moments, sharp, strict=True)]

    def _hit(self, one: Found, moments: list[Span], sharp: Sharp | None, request: Request) -> Hit:
        view, file = one.view, one.view.catalog.files[one.file]
        first, *others = moments
        start_s, end_s, matched = sharp or (first.start_s, first.end_s, ())
        whole, *told = meanings(one, [float(one.scored.best[one.file]), *(s.score for s in others)])
        return Hit(
            video=file.id,
            path=Path(file.path),
            name=text_of(os.path.basename(file.path)),
            folder=view.catalog.labels[one.file],
            start_s=start_s,
            end_s=end_s,
            score=one.score,
            duration_s=file.duration_s,
            width=file.width,
            height=file.height,
            date=day_of(file),
            tags=view.catalog.tags(file),
            moments=tuple(Moment(s.start_s, s.end_s, s.score, **said) for s, said in zip(others, told, strict=True)),
            matched=matched,
            adapter=view.name,
            state=state_of(file),
            **whole,
        )


def rated(request: Request) -> bool:
    """Whether the bank, which is of texts, says anything about the scores of a request."""
    return not (request.images or request.like or request.videos)


def meanings(one: Found, cosines: Sequence[float]) -> list[dict[str, Any]]:
    """What cosines with the video of a hit mean: the fields `unusual`, `words` and `apart`."""
    if one.judge is None:
        return [{"unusual": None, "words": "unrated", "apart": None}] * len(cosines)
    return one.judge.meanings(one.file, cosines)


def matches(found: Sequence[Found]) -> bool:
    """Whether anything matches, as far as it is known; no hit at all is no match."""
    if not found:
        return False
    judge = found[0].judge
    return not isinstance(judge, Calibration) or judge.matches(found[0].scored.best)


def matching(ranked: Sequence[Sequence[Found]]) -> int | None:
    """How many videos match, where one index answered and all of it has a score."""
    found = ranked[0]
    if len(ranked) > 1 or not found or found[0].judge is None or not found[0].scored.every:
        return None
    return found[0].judge.matching(found[0].scored.best)


def notes_of_spread(ranked: Sequence[Sequence[Found]]) -> list[str]:
    """What is to be known of the words of a query that is no text."""
    judges = [(found[0].judge, found[0].scored.best) for found in ranked if found]
    if judges and not any(judge for judge, _ in judges):
        return [f"no words: a query that is no text is compared with other videos, and needs {LEAST} that differ"]
    if judges and not any(judge and judge.matching(best) for judge, best in judges):
        return ["nothing stands out: many videos are about as near as the first"]
    return []


def spans_of(one: Found) -> list[Span]:
    """The moments of a video, best first."""
    moments, rows = one.scored.moments, one.scored.rows(one.file)[0]
    return spans(moments.start_s[rows], moments.end_s[rows], one.scored.scores[rows])


def encoded(models: Sequence[Retriever], texts: Sequence[str]) -> list[torch.Tensor]:
    """Unit vectors (N, E) of the same texts with each model, in one pass for all on one base."""
    if len(models) == 1 or not texts:
        return [model.encode_text(texts, strip_special=True) for model in models]
    from clipreel.mixing import encode_mixed

    rows = encode_mixed([(model, text) for model in models for text in texts], strip_special=True)
    return list(rows.split(len(texts)))


def candidate(one: Found) -> Candidate:
    """A hit as rerankers take it: with the bounds of the stored segment that fits best."""
    rows, _ = one.scored.rows(one.file)
    row = rows[np.argmax(one.scored.scores[rows])]
    moments, file = one.scored.moments, one.view.catalog.files[one.file]
    return Candidate(file.path, float(moments.start_s[row]), float(moments.end_s[row]), one.score, file.duration_s)


def merged(ranked: Sequence[Sequence[Found]]) -> list[Found]:
    """One ranking of several, in which cosines do not compare: by the best place of each video, then by its others."""
    places: dict[str, list[tuple[int, int, Found]]] = {}
    for n, found in enumerate(ranked):
        for place, one in enumerate(found):
            places.setdefault(one.view.catalog.files[one.file].id, []).append((place, n, one))

    def key(rows: list[tuple[int, int, Found]]) -> tuple[float, tuple[int, int]]:
        return -sum(1 / (60 + place) for place, _, _ in rows), min((place, n) for place, n, _ in rows)

    return [min(rows, key=lambda r: r[:2])[2] for rows in sorted(places.values(), key=key)]


def notes_of_texts(views: Sequence[View], request: Request) -> list[str]:
    """What of the texts no model reads, because they are too long."""
    query, model = Query.parse(request.text), views[0].model
    most, words = min(view.model.context for view in views) - 2, model.tokenizer
    notes = []
    for text in (*query.texts, *query.minus, *request.minus):
        # a token is at least a byte, so that short texts need no count
        if words is not None and len(text.encode("utf-8", "replace")) > most:
            count = len(words.encode(text, strip_special=True))
            if count > most:
                notes.append(f"the model reads the first {most} of the {count} tokens of {text_of(text[:40])!r}...")
    return notes


def notes_of(hits: Sequence[Hit]) -> tuple[str, ...]:
    """What a reader of the hits should know."""
    notes = []
    for state, told in (("missing", "not there any more"), ("changed", "not the file that was indexed")):
        count = sum(hit.state == state for hit in hits)
        if count:
            notes.append(f"{count} of these videos {'is' if count == 1 else 'are'} {told}; run clipreel index")
    return tuple(notes)
