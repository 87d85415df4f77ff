"""What is asked of an index and what it answers, as plain data: the same for Python, the command line and HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from clipreel.errors import ClipreelError

ORIENTATIONS = ("landscape", "portrait", "square")
RANKS = ("plain", "bank")
REFINE = ("none", "stored", "decode")
WEIGHTS: Mapping[str, float] = {"text": 1.0, "image": 1.0, "like": 1.0, "minus": 0.5}
TERMS = 16  # texts, images and moments of one request


@dataclass(frozen=True)
class Like:
    """A video of the index by its id, or the moment of it around a second."""

    video: str
    at_s: float | None = None


@dataclass(frozen=True)
class Filters:
    """What a hit must satisfy. `folder` is a label as hits show it, with all below; dates are those of the files, both
    included; `starts_before_s` and `ends_after_s` concern the moment."""

    folder: str | None = None
    tags: Sequence[str] = ()
    min_duration_s: float = 0.0
    max_duration_s: float = float("inf")
    after: date | None = None
    before: date | None = None
    orientation: str | None = None
    under: str | None = None
    name: str | None = None
    ends_after_s: float = 0.0
    starts_before_s: float = float("inf")

    def __post_init__(self) -> None:
        if self.orientation not in (None, *ORIENTATIONS):
            raise ClipreelError(f"orientation {self.orientation!r}: allowed are {', '.join(ORIENTATIONS)}")


@dataclass(frozen=True)
class Request:
    """What is looked for. All of `text`, `images`, `like` is added with its weight, `minus` is taken away.

    Words of `text` that begin with - are taken away as well. `images` are paths, or pixels (H, W, 3) uint8. `adapters`
    are names known to the asker; `refine` says where frames that sharpen a moment may come from.
    """

    text: str = ""
    minus: Sequence[str] = ()
    images: Sequence[str | Path | NDArray[Any] | Tensor] = ()
    like: Sequence[Like] = ()
    videos: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    filters: Filters = field(default_factory=Filters)
    adapters: Sequence[str] = ()
    rank: str = "plain"
    rerank: str | None = None
    candidates: int = 50
    refine: str = "stored"
    k: int = 10
    offset: int = 0

    def __post_init__(self) -> None:
        for what, value, allowed in (("rank", self.rank, RANKS), ("refine", self.refine, REFINE)):
            if value not in allowed:
                raise ClipreelError(f"{what} {value!r}: allowed are {', '.join(allowed)}")
        unknown = sorted(set(self.weights) - set(WEIGHTS))
        if unknown:
            raise ClipreelError(f"a weight of {unknown[0]!r}: allowed are {', '.join(WEIGHTS)}")
        for name, weight in self.weights.items():
            if not 0 <= weight <= 10:
                raise ClipreelError(f"weight {weight} of {name}: give a number from 0 to 10")
        if self.k < 1 or self.offset < 0 or self.candidates < 1:
            raise ClipreelError(
                f"{self.k} results from {self.offset} of {self.candidates} candidates: ask for at least 1, from 0"
            )
        terms = len(self.minus) + len(self.images) + len(self.like) + len(self.videos)
        if terms > TERMS:
            raise ClipreelError(f"{terms} terms in one query: at most {TERMS}; say it with fewer")

    def weight(self, kind: str) -> float:
        return self.weights.get(kind, WEIGHTS[kind])


@dataclass(frozen=True)
class Matched:
    """A frame and its cosine with the query."""

    at_s: float
    score: float


@dataclass(frozen=True)
class Moment:
    """A piece of a video, and the cosine of its best segment; what that means as in `Hit`."""

    start_s: float
    end_s: float
    score: float
    unusual: float | None = None
    words: str = "unrated"
    apart: float | None = None


@dataclass(frozen=True)
class Hit:
    """A video and the moment that fits best (seconds).

    `score` is the cosine (or what a reranker says), `unusual` the share of the bank's queries that score lower for
    this video, None without a calibration and for a query that is no text alone. Such a query has `apart` instead: by
    how many robust deviations the cosine lies above what other videos reach (spread.py), a comparison without a
    measured cut-off. `words` says either. `moments` are the others of the video and `matched` frames of this one, best
    first. `state` is present, missing or changed: what became of the file since it was indexed.
    """

    video: str
    path: Path
    name: str
    folder: str
    start_s: float
    end_s: float
    score: float
    unusual: float | None
    words: str
    duration_s: float
    width: int
    height: int
    date: str
    tags: tuple[str, ...]
    moments: tuple[Moment, ...]
    matched: tuple[Matched, ...]
    adapter: str
    state: str = "present"
    apart: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the path, for JSON."""
        return {k: v for k, v in asdict(self).items() if k != "path"}


@dataclass(frozen=True)
class Facet:
    name: str
    count: int


@dataclass(frozen=True)
class Facets:
    """How many of the videos that pass the filters lie in each folder and show each tag, most first."""

    folders: tuple[Facet, ...] = ()
    tags: tuple[Facet, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Hits, best first. `state` is "nothing" where the calibration says that nothing here matches: the hits are then
    merely the nearest. `total` videos passed the filters, `matching` of them are a good or strong match, or stand out
    (None where it is not known: no calibration, an approximate index, several adapters)."""

    hits: tuple[Hit, ...]
    state: str
    total: int
    facets: Facets
    took_ms: float
    notes: tuple[str, ...] = ()
    matching: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as the HTTP API gives it (without the version)."""
        return {**asdict(self), "hits": [hit.to_dict() for hit in self.hits]}

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from clipreel.search.notebook import view

        return view(self)
