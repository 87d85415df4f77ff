"""What the answer of a search holds, for OpenAPI. Answers are written without it, so that a search costs no check; the
tests hold them against it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Words = Literal["strong match", "good match", "weak match", "unlikely", "stands out", "one of many", "unrated"]


class Told(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Meaning(Told):
    """A cosine and what it means for its video."""

    score: Annotated[float, Field(description="the cosine; of a hit, what a reranker says where one was asked")]
    unusual: Annotated[
        float | None, Field(description="share of the bank's queries that score lower; null without a calibration")
    ]
    words: Annotated[
        Words,
        Field(
            description="against the bank for a text (matches begin at a cut-off whose false alarms were measured), "
            "against other videos for a query with a picture or a moment (no measured cut-off)"
        ),
    ]
    apart: Annotated[
        float | None, Field(description="robust deviations above what other videos reach; null for a text alone")
    ]


class Moment(Meaning):
    """Another moment of the video of a hit."""

    start_s: float
    end_s: float


class Matched(Told):
    """One of the frames that matched most; there are some where the index keeps frames."""

    at_s: float
    score: float


class Hit(Meaning):
    """A video, at the moment that fits best."""

    video: str
    name: str
    folder: str
    start_s: float
    end_s: float
    duration_s: float
    width: int
    height: int
    date: str
    tags: list[str]
    moments: list[Moment]
    matched: list[Matched]
    adapter: str
    state: Literal["present", "missing", "changed"]


class Facet(Told):
    name: str
    count: int


class Facets(Told):
    folders: list[Facet]
    tags: list[Facet]


class Answer(Told):
    """Hits, best first; `state` is nothing where nothing here matches."""

    version: Literal[1]
    took_ms: float
    state: Literal["ok", "nothing"]
    total: Annotated[int, Field(description="videos that passed the filters: all of them are ranked")]
    matching: Annotated[
        int | None,
        Field(description="those that are a good or strong match, or stand out; null where that is not known"),
    ]
    hits: list[Hit]
    facets: Facets
    notes: list[str]
