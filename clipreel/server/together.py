"""Many searches at once: their texts in one batch of the model, their scores in one pass over the vectors.

An `Asker` answers each request; what it would compute for each alone (text vectors, cosines, filters, counts) is made
for all of a batch before, or kept from the requests before, and found again by the views here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from copy import copy
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipreel.retriever import Retriever
from clipreel.search.ann import Approximate
from clipreel.search.answer import Answer, Facets, Filters, Request
from clipreel.search.ask import Asker
from clipreel.search.catalog import Catalog
from clipreel.search.index import Index, Moments
from clipreel.search.query import Query, Searcher
from clipreel.search.view import Scored, Vector, View

Value = TypeVar("Value")
MOST_CHARS = 4000  # of a text that is read ahead
TEXTS = 4096  # vectors that are remembered
FILTERS = 64
FRESH_S = 0.5  # how long the index counts as unchanged
BLOCK = 16_384  # vectors whose scores are made at once
PROBE = "a red circle moves to the left"


class Lru(OrderedDict[Hashable, Value]):
    """The last values by key, at most `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def keep(self, key: Hashable, value: Value) -> Value:
        self[key] = value
        self.move_to_end(key)
        while len(self) > self.most:
            self.popitem(last=False)
        return value

    def of(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key in self:
            self.move_to_end(key)
            return self[key]
        return self.keep(key, make())


class Texts:
    """`encode_text` of a model that remembers, and leaves out the empty places behind a text where that is the same."""

    def __init__(self, model: Retriever) -> None:
        self.model, self.known = model, Lru[Tensor](TEXTS)
        self.crops = model.tokenizer is not None and crops(model)

    def __call__(self, texts: Sequence[str] | Tensor, normalize: bool = True, *, strip_special: bool = False) -> Tensor:
        if isinstance(texts, Tensor) or not normalize or not strip_special or not texts or not self.model.tokenizer:
            return self.model.encode_text(texts, normalize, strip_special=strip_special)
        new = [t for t in dict.fromkeys(texts) if t not in self.known]
        made: dict[str, Tensor] = {}
        if new:
            ids = self.model.tokenizer(new, self.model.context, strip_special=True)
            made = dict(zip(new, self.model.encode_text(cropped(ids) if self.crops else ids), strict=True))
        found = torch.stack([made[t] if t in made else self.known[t] for t in texts])
        for text, vector in made.items():
            self.known.keep(text, vector)
        return found


def remembering(model: Retriever) -> Retriever:
    """The same model, whose texts are read once."""
    other = copy(model)
    other.__dict__["encode_text"] = Texts(model)
    return other


def crops(model: Retriever) -> bool:
    """Whether a text has the same vector without the empty places behind it, which saves most of the time: so with
    CLIP, but not with every method that puts something behind the words."""
    assert model.tokenizer is not None
    ids = model.tokenizer([PROBE], model.context, strip_special=True)
    try:
        short = model.encode_text(cropped(ids))
    except (RuntimeError, ValueError, IndexError):
        return False
    return bool(torch.allclose(model.encode_text(ids), short, atol=1e-5))


def cropped(ids: Tensor) -> Tensor:
    """Token ids (N, L) without the columns behind the end of the longest text, which is its highest id."""
    return ids[:, : int(ids.argmax(1).max()) + 1]


class KeptCatalog(Catalog):
    """A catalog that looks at each filter once."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog.files, catalog.roots, catalog._tags)
        self._allowed = Lru[NDArray[np.bool_]](FILTERS)
        self._facets = Lru[Facets](FILTERS)

    def allowed(self, filters: Filters) -> NDArray[np.bool_]:
        return self._allowed.of(filters, lambda: super(KeptCatalog, self).allowed(filters)).copy()

    def facets(self, allowed: NDArray[np.bool_]) -> Facets:
        return self._facets.of(allowed.tobytes(), lambda: super(KeptCatalog, self).facets(allowed))


class Holding(Searcher):
    """A searcher that stays with one state of the index until it is told to look again."""

    held: Moments | Approximate | None = None
    lender: Holding | None = None  # of another thread; its vectors are taken, so that they are in memory once

    def source(self) -> Moments | Approximate:
        if self.held is None:
            self.look()
        assert self.held is not None
        return self.held

    def look(self) -> None:
        """Take in the index as it is now, from the lender where it has seen this state already."""
        if self.lender is not None and self.lender._version == (version := self.index.version()):
            self._source, self._version = self.lender._source, version
        self.held = super().source()


class KeptView(View):
    """A view that looks at the disk now and then, and finds scores that were made for many requests."""

    def __init__(self, name: str, index: Index, model: Retriever, exact: bool = False) -> None:
        super().__init__(name, index, remembering(model), exact)
        self.searcher = self.holding = Holding(index, self.model, exact)
        self.ready: dict[bytes, Vector] = {}
        self.busy = False
        self._looked = self.written = 0.0

    @property
    def read(self) -> object:
        """What was read of the index: the same as long as the index is."""
        return self._seen

    def refresh(self) -> None:
        """Not in the middle of a batch, whose requests all see one state of the index."""
        began = time.monotonic()
        if self.busy or (began - self._looked < FRESH_S and self._looked > self.written):
            return
        self.holding.look()
        super().refresh()
        if not isinstance(self.catalog, KeptCatalog):
            self.catalog = KeptCatalog(self.catalog)
        self._looked = began

    def prepare(self, vectors: Sequence[Vector]) -> None:
        """Make the scores of unit vectors, each (E,), together."""
        self.ready = {}
        source = self.holding.source()
        if isinstance(source, Moments) and len(vectors) > 1:
            unique = list({v.tobytes(): v for v in vectors}.values())
            rows = products(np.stack(unique), source.vectors)
            self.ready = {v.tobytes(): row for v, row in zip(unique, rows, strict=True)}

    def scored(self, vector: Vector, wanted: int, allowed: NDArray[np.bool_], request: Request) -> Scored:
        scores = self.ready.get(vector.tobytes())
        f, source = request.filters, self.holding.source()
        timed = f.ends_after_s > 0 or f.starts_before_s < float("inf")
        if scores is None or not isinstance(source, Moments) or timed:
            return super().scored(vector, wanted, allowed, request)
        if not allowed.all():
            scores = np.where(allowed[source.file], scores, np.float32(-np.inf))
        return Scored(source, scores, source.best(scores))


def products(queries: Vector, vectors: Vector) -> Vector:
    """Scores (B, N) of queries (B, E) with stored vectors (N, E)."""
    out = torch.empty(len(queries), len(vectors))
    asked, stored = torch.from_numpy(queries), torch.from_numpy(vectors)
    for start in range(0, len(vectors), BLOCK):
        out[:, start : start + BLOCK] = asked @ stored[start : start + BLOCK].T
    return out.numpy()


class Together(Asker):
    """An asker for many requests at once. For one thread."""

    view_class = KeptView
    _ready: list[Vector] | None = None

    @cached_property
    def kept(self) -> dict[str, KeptView]:
        return {name: view for name, view in self.views.items() if isinstance(view, KeptView)}

    def borrow(self, other: Together) -> None:
        """Search the vectors that another asker has in memory, which may be at work in its own thread."""
        for name, view in self.kept.items():
            view.holding.lender = other.kept[name].holding

    def written(self) -> None:
        """The indices were written to: the next request sees it, however soon it comes. Any thread may call this."""
        for view in self.kept.values():
            view.written = time.monotonic()

    def answer_all(self, requests: Sequence[Request]) -> list[Answer | Exception]:
        """An answer for each request, or the error that it deserves."""
        for view in self.kept.values():
            view.refresh()
            view.busy = True
        try:
            return self._answered(requests)
        finally:
            for view in self.kept.values():
                view.busy, view.ready = False, {}

    def _answered(self, requests: Sequence[Request]) -> list[Answer | Exception]:
        found: list[Answer | Exception] = []
        vectors: list[list[Vector] | Exception] = []
        self._read(requests)
        needed: dict[str, list[Vector]] = {name: [] for name in self.views}
        for request in requests:
            try:
                views = self._asked(request)
                ready = self._vectors(views, request)
            except Exception as e:  # told to who asked this, and to nobody else
                vectors.append(e)
                continue
            vectors.append(ready)
            for view, vector in zip(views, ready, strict=True):
                needed[view.name].append(vector)
        for name, some in needed.items():
            if some:
                self.kept[name].prepare(some)
        for request, ready_or_error in zip(requests, vectors, strict=True):
            if isinstance(ready_or_error, Exception):
                found.append(ready_or_error)
                continue
            self._ready = ready_or_error
            try:
                found.append(self.answer(request))
            except Exception as e:
                found.append(e)
            finally:
                self._ready = None
        return found

    def _read(self, requests: Sequence[Request]) -> None:
        """All texts of the requests to the base through its text tower, so that each finds them read."""
        plain = [r for r in requests if not [n for n in r.adapters if n]]
        texts = [t for r in plain for t in (*Query.parse(r.text).texts, *Query.parse(r.text).minus, *r.minus)]
        said = self.first.searcher.said([t[:MOST_CHARS] for t in texts])
        if said and self.first.model.tokenizer is not None:
            self.first.model.encode_text(said, strip_special=True)

    def _vectors(self, views: Sequence[View], request: Request) -> list[Vector]:
        return super()._vectors(views, request) if self._ready is None else self._ready
