"""Answers: texts, images and videos to one query vector, exact ranking in memory, the best moment of each video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.search.index import Index, Moments, text_of
from clipreel.video.decode import read_frames

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

MOST_WORDS = 2000


@dataclass(frozen=True)
class Hit:
    """A video, the moment that fits best (seconds), and the cosine with the query."""

    path: str
    start_s: float
    end_s: float
    score: float
    duration_s: float

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "score": round(self.score, 6)})


@dataclass(frozen=True)
class Filter:
    """What a hit must satisfy. `under` is a folder, `name` a part of the path (any case)."""

    under: str | None = None
    name: str | None = None
    min_duration_s: float = 0.0
    max_duration_s: float = float("inf")
    after_s: float = 0.0
    before_s: float = float("inf")

    def files(self, moments: Moments) -> NDArray[np.bool_]:
        below = None if self.under is None else str(Path(self.under).absolute())

        def fits(path: str, duration_s: float) -> bool:
            if below is not None and path != below and not path.startswith(below.rstrip("/") + "/"):
                return False
            if self.name is not None and self.name.lower() not in path.lower():
                return False
            return self.min_duration_s <= duration_s <= self.max_duration_s

        return np.array([fits(f.path, f.duration_s) for f in moments.files], bool)


@dataclass
class Query:
    """What is looked for: everything in `texts`, `images`, `videos` is added, `minus` texts are taken away."""

    texts: Sequence[str] = ()
    minus: Sequence[str] = ()
    images: Sequence[str] = ()
    videos: Sequence[str] = ()
    minus_weight: float = 0.5
    filter: Filter = field(default_factory=Filter)

    @classmethod
    def parse(cls, text: str) -> Query:
        """A typed query: words that begin with `-` are taken away, e.g. "dog on a beach -people"."""

        def negative(word: str) -> bool:
            return len(word) > 1 and word[0] == "-" and word[1].isalpha()

        words = text.split()
        plus = " ".join(w for w in words if not negative(w))
        return cls(texts=[plus] if plus else [], minus=[w[1:] for w in words if negative(w)])


class Searcher:
    """Exact search over an index that stays in memory and is read again when another process has written."""

    def __init__(self, index: Index, model: Retriever) -> None:
        from clipreel.search.indexer import check_space

        check_space(index, model)
        self.index, self.model = index, model
        self._version: tuple[int, int] | None = None
        self._moments: Moments | None = None

    @property
    def moments(self) -> Moments:
        version = self.index.version()
        if self._moments is None or version != self._version:
            self._moments, self._version = self.index.moments(), version
        return self._moments

    def vector(self, query: Query) -> NDArray[np.float32]:
        """The unit vector (E,) of a query. Raises ClipreelError for an empty one."""
        for text in (*query.texts, *query.minus):
            if len(text.split()) > MOST_WORDS:
                raise ClipreelError(
                    f"a query of {len(text.split())} words: at most {MOST_WORDS}, and the model reads about the first "
                    f"{self.model.context - 2} tokens; say it shorter"
                )
        texts = [t for t in (clean(t) for t in query.texts) if t]
        minus = [t for t in (clean(t) for t in query.minus) if t]
        parts = []
        if texts:
            parts.append(self.model.encode_text(texts, strip_special=True).sum(0))
        for path in query.images:
            parts.append(self._frames(self.model.preprocess.pixels(read_image(path))))
        for path in query.videos:
            frames = read_frames(path, self.model.sampling, transform=self.model.preprocess.pixels)
            parts.append(self._frames(frames.pixels))
        if not parts:
            raise ClipreelError('the query is empty; say what to look for, e.g. clipreel search "a red circle"')
        total = torch.stack(parts).sum(0)
        if minus:
            total = total - query.minus_weight * self.model.encode_text(minus, strip_special=True).sum(0)
        return unit(total).cpu().numpy()

    def _frames(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode_video(self.model.preprocess.normalise(pixels)[None])[0]

    def search(self, query: Query, k: int = 10) -> list[Hit]:
        """The best k videos, each with its best moment; equal scores in order of path."""
        if k < 1:
            raise ClipreelError(f"{k} results: ask for at least 1 (-k)")
        moments = self.moments
        if not len(moments.vectors):
            return []
        scores = moments.vectors @ self.vector(query)
        f = query.filter
        allowed = f.files(moments)[moments.file]
        allowed &= (moments.end_s > f.after_s) & (moments.start_s < f.before_s)
        return best_per_file(moments, np.where(allowed, scores, -np.inf), k)


def best_per_file(moments: Moments, scores: NDArray[np.float32], k: int) -> list[Hit]:
    """Videos by their best row; the moment shown is the best segment where there are segments."""
    best = np.full(len(moments.files), -np.inf, np.float32)
    np.maximum.at(best, moments.file, scores)
    # rows are in order of path, so a stable sort puts equal scores in that order
    top = [i for i in np.argsort(-best, kind="stable")[:k] if np.isfinite(best[i])]
    hits = []
    for i in top:
        rows = np.flatnonzero(moments.file == i)
        segments = rows[moments.level[rows] == 1]
        row = max(segments if len(segments) else rows, key=lambda r: scores[r])
        file = moments.files[i]
        hits.append(
            Hit(file.path, float(moments.start_s[row]), float(moments.end_s[row]), float(best[i]), file.duration_s)
        )
    return hits


def clean(text: str) -> str:
    """A typed text without control characters and lone surrogates."""
    kept = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(kept.encode("utf-8", "ignore").decode().split())


def read_image(path: str) -> torch.Tensor:
    """uint8 (1, H, W, 3) of an image file, upright."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            rgb = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as e:
        raise ClipreelError(f"{text_of(path)} is no readable image ({e}); use PNG, JPEG or WebP") from e
    return torch.from_numpy(np.array(rgb))[None]
