"""Answers: texts, images and videos to one query vector, ranking, the best moment of each video."""

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
from clipreel.search.ann import Approximate
from clipreel.search.index import File, Index, Moments, text_of
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

    def files(self, files: Sequence[File]) -> NDArray[np.bool_]:
        """Which files pass."""
        if self == Filter(after_s=self.after_s, before_s=self.before_s):
            return np.ones(len(files), bool)  # without looking at each: there may be many
        below = None if self.under is None else str(Path(self.under).absolute())

        def fits(path: str, duration_s: float) -> bool:
            if below is not None and path != below and not path.startswith(below.rstrip("/") + "/"):
                return False
            if self.name is not None and self.name.lower() not in path.lower():
                return False
            return self.min_duration_s <= duration_s <= self.max_duration_s

        return np.array([fits(f.path, f.duration_s) for f in files], bool)

    def where(self) -> str:
        """The condition on the time of moments in the store's language (which knows no infinity)."""
        parts = [f"end_s > {self.after_s!r}"] if 0 < self.after_s < float("inf") else []
        parts += [f"start_s < {self.before_s!r}"] if abs(self.before_s) < float("inf") else []
        return " AND ".join(parts)


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
    """Search over an index, which is read again when another process has written.

    Exact over vectors in memory, or approximate over those on disk where the index has an approximate index;
    `exact` asks for the first in any case.
    """

    def __init__(self, index: Index, model: Retriever, exact: bool = False) -> None:
        from clipreel.search.indexer import check_space

        check_space(index, model)
        self.index, self.model, self.exact = index, model, exact
        self._version: tuple[int, ...] | None = None
        self._source: Moments | Approximate | None = None

    def source(self) -> Moments | Approximate:
        """What is searched: all vectors, or the approximate index."""
        from clipreel.search.indexer import check_space

        version = self.index.version()
        check_space(self.index, self.model)  # another index may have taken its place (migrate.py)
        if self._source is None or version != self._version:
            approximate = self.index.facts.get("ann") and not self.exact
            self._source = Approximate(self.index) if approximate else self.index.moments()
            self._version = version
        return self._source

    def vector(self, query: Query) -> NDArray[np.float32]:
        """The unit vector (E,) of a query. Raises ClipreelError for an empty one."""
        for text in (*query.texts, *query.minus):
            if len(text.split()) > MOST_WORDS:
                raise ClipreelError(
                    f"a query of {len(text.split())} words: at most {MOST_WORDS}, and the model reads about the first "
                    f"{self.model.context - 2} tokens; say it shorter"
                )
        texts, minus = self.said(query.texts), self.said(query.minus)
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

    def said(self, texts: Sequence[str]) -> list[str]:
        """The texts of which the model reads anything: blanks, control characters and special tokens are nothing."""
        words = self.model.tokenizer
        cleaned = [clean(t) for t in texts]
        return [t for t in cleaned if t and (words is None or words.encode(t, strip_special=True))]

    def _frames(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode_video(self.model.preprocess.normalise(pixels)[None])[0]

    def search(self, query: Query, k: int = 10) -> list[Hit]:
        """The best k videos, each with its best moment; equal scores in order of path."""
        if k < 1:
            raise ClipreelError(f"{k} results: ask for at least 1 (-k)")
        source, f = self.source(), query.filter
        vector = self.vector(query)
        allowed = f.files(source.files)
        moments = source.moments(vector, k, allowed, f.where()) if isinstance(source, Approximate) else source
        scores = moments.vectors @ vector
        fits = allowed[moments.file] & (moments.end_s > f.after_s) & (moments.start_s < f.before_s)
        return best_per_file(moments, np.where(fits, scores, -np.inf), k)


def best_per_file(moments: Moments, scores: NDArray[np.float32], k: int) -> list[Hit]:
    """Videos by their best row; the moment shown is the best segment where there are segments."""
    best = moments.best(scores)
    hits = []
    for i in leaders(best, k):
        first, last = np.searchsorted(moments.file, [i, i + 1])
        rows = np.arange(first, last)
        segments = rows[moments.level[rows] == 1]
        row = max(segments if len(segments) else rows, key=lambda r: scores[r])
        file = moments.files[i]
        hits.append(
            Hit(file.path, float(moments.start_s[row]), float(moments.end_s[row]), float(best[i]), file.duration_s)
        )
    return hits


def leaders(best: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k highest in descending order, equal ones in order of place; what is not finite is left out."""
    best = np.where(np.isfinite(best), best, -np.inf)
    least = np.partition(best, len(best) - k)[len(best) - k] if k < len(best) else -np.inf
    above = np.flatnonzero((best >= least) & np.isfinite(best))
    return above[np.argsort(-best[above], kind="stable")[:k]]


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
