"""What requests may say, with limits and examples; FastAPI makes the OpenAPI description of them."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

Text = Annotated[str, StringConstraints(max_length=2000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Id = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=200)]
Offset = Annotated[int, Field(ge=0, le=1_000_000)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Like(Message):
    """A video that hits should be like, or its moment."""

    video: Id
    at_s: Seconds | None = None


class Weights(Message):
    """How much each part of a query counts."""

    text: Weight = 1.0
    image: Weight = 1.0
    like: Weight = 1.0
    minus: Weight = 0.5


class Filters(Message):
    """What a hit must satisfy; dates are those of the files."""

    folder: Annotated[str, StringConstraints(max_length=1000)] | None = None
    tags: Annotated[list[Name], Field(max_length=20)] = []
    min_duration_s: Seconds | None = None
    max_duration_s: Seconds | None = None
    after: date | None = None
    before: date | None = None
    orientation: Literal["landscape", "portrait", "square"] | None = None


class Search(Message):
    """A query: at least one of text, images and like."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": "a red circle moves to the left", "k": 24},
                {"text": "a dog on a beach", "minus": ["people"], "filters": {"folder": "holidays"}},
            ]
        },
    )
    text: Text | None = None
    minus: Annotated[list[Text], Field(max_length=8)] = []
    images: Annotated[list[Id], Field(max_length=8)] = []
    like: Annotated[list[Like], Field(max_length=8)] = []
    weights: Weights = Weights()
    filters: Filters = Filters()
    adapters: Annotated[list[Name], Field(max_length=8)] = []
    rank: Literal["plain", "bank"] = "plain"
    rerank: Name | None = None
    k: Count = 24
    offset: Annotated[int, Field(ge=0, le=10_000)] = 0

    @field_validator("text", "minus")
    @classmethod
    def whole(cls, value: Any) -> Any:
        """Half characters (lone surrogates) cannot be sent back, nor read by any model."""
        for text in value if isinstance(value, list) else [value or ""]:
            text.encode("utf-8")
        return value


class NewJob(Message):
    """A job: `index` brings the index up to date with its folders."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"kind": "index"}]})
    kind: Literal["index"]


class Place(Message):
    """A moment to export."""

    video: Id
    start_s: Seconds
    end_s: Seconds


class Export(Message):
    """Hits as a file."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"format": "edl", "hits": [{"video": "0f3a…", "start_s": 12.0, "end_s": 18.5}]}]
        },
    )
    format: Literal["csv", "json", "edl", "fcpxml", "mp4"]
    cut: Annotated[Literal["exact", "keyframe"], Field(description="mp4: encoded anew, or copied from a keyframe")] = (
        "exact"
    )
    hits: Annotated[list[Place], Field(min_length=1, max_length=1000)]


class Judgement(Message):
    """Whether a moment of a video is a right answer of a query."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"query": "a dog on a beach", "video": "0f3a…", "start_s": 12.0, "end_s": 18.5, "judgement": "hit"}
            ]
        },
    )
    query: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    video: Id
    start_s: Seconds
    end_s: Seconds
    judgement: Literal["hit", "miss"]
