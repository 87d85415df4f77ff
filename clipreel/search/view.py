"""One index with its model: query vectors in its space, scores of its videos, and what is known of their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.search.ann import Approximate
from clipreel.search.answer import Like, Request
from clipreel.search.calibration import Calibration
from clipreel.search.catalog import Catalog
from clipreel.search.frames import Frameside
from clipreel.search.index import File, Index, Moments, arranged
from clipreel.search.query import Searcher, leaders, read_image
from clipreel.search.spread import Sample, Spread
from clipreel.search.tags import TABLE, read_tags
from clipreel.video.decode import read_frames

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Scored:
    """Rows of an index with their cosines (N,), and of each file the best one (V,), -inf where nothing passes."""

    moments: Moments
    scores: Vector
    best: Vector
    every: bool = True  # whether all files that pass have a score, not only the best

    def rows(self, file: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of a file: those of its segments (of the whole video where it has none), and all."""
        first, last = np.searchsorted(self.moments.file, [file, file + 1])
        rows = np.arange(first, last)
        segments = rows[self.moments.level[rows] == 1]
        return (segments if len(segments) else rows), rows


class View:
    """An index and the model that made it; it follows what other processes write."""

    def __init__(self, name: str, index: Index, model: Retriever, exact: bool = False) -> None:
        self.name, self.index, self.model = name, index, model
        self.searcher, self.frames = Searcher(index, model, exact), Frameside(index, model)
        self._seen: Any = None
        self._sample: Sample | None = None
        self._tags: dict[str, list[str]] = {}
        self._tags_version = -1

    def refresh(self) -> None:
        """Read again what was written meanwhile: files, tags, calibration."""
        source = self.searcher.source()
        tagged = self._read_tags()
        if self._seen is not source or tagged:
            self.catalog = Catalog(source.files, self.index.facts.get("roots", []), self._tags)
            self.calibration = Calibration.read(self.index, source.files)
            self.frames, self._seen = Frameside(self.index, self.model), source
            self._sample = None

    def _read_tags(self) -> bool:
        """Whether the tags are others than before."""
        if TABLE not in self.index._names():
            changed, self._tags, self._tags_version = bool(self._tags), {}, -1
            return changed
        version = self.index.guard(lambda: self.index.db.open_table(TABLE).version)
        if version == self._tags_version:
            return False
        found: dict[str, dict[str, None]] = {}
        for tag in read_tags(self.index):
            found.setdefault(tag.path, {})[tag.tag] = None
        self._tags, self._tags_version = {path: list(names) for path, names in found.items()}, version
        return True

    # ------------------------------------------------------------- the query

    def shown(self, request: Request) -> list[torch.Tensor]:
        """What images, films and liked moments of a request add, each (E,) with its weight."""
        parts = [request.weight("image") * self._frames(pixels_of(image)) for image in request.images]
        for path in request.videos:
            frames = read_frames(path, self.model.sampling, transform=self.model.preprocess.pixels)
            encoded = self.model.encode_video(self.model.preprocess.normalise(frames.pixels)[None])[0]
            parts.append(request.weight("like") * encoded)
        liked = [torch.from_numpy(self.liked(like)).to(self.model.device) for like in request.like]
        return parts + [request.weight("like") * vector for vector in liked]

    def _frames(self, image: torch.Tensor) -> torch.Tensor:
        pixels = self.model.preprocess.pixels(image)
        return self.model.encode_video(self.model.preprocess.normalise(pixels)[None])[0]

    def liked(self, like: Like) -> Vector:
        """The stored vector of a video, or of its segment around a second. Raises ClipreelError for an unknown id."""
        file = self.file(like.video)
        rows = arranged(self.index.rows(f"file = '{file.id}'"), [file])
        if like.at_s is None:
            return rows.vectors[0]  # the whole video comes first
        segments = np.flatnonzero(rows.level == 1)
        if not len(segments):
            return rows.vectors[0]
        middles = (rows.start_s[segments] + rows.end_s[segments]) / 2
        return rows.vectors[segments[np.argmin(np.abs(middles - like.at_s))]]

    def file(self, video: str) -> File:
        """The file of an id. Raises ClipreelError where none has it."""
        place = self.catalog.number.get(video)
        if place is None:
            raise ClipreelError(f"no video of the index has the id {video[:64]!r}; take one from a hit")
        return self.catalog.files[place]

    # ------------------------------------------------------------ the scores

    def scored(self, vector: Vector, wanted: int, allowed: NDArray[np.bool_], request: Request) -> Scored:
        """Cosines of what passes; with an approximate index of about the `wanted` best files only."""
        source, f = self.searcher.source(), request.filters
        if isinstance(source, Approximate):
            moments = source.moments(vector, wanted, allowed, time_condition(f.ends_after_s, f.starts_before_s))
        else:
            moments = source
        fits = allowed[moments.file] & (moments.end_s > f.ends_after_s) & (moments.start_s < f.starts_before_s)
        scores = np.where(fits, moments.vectors @ vector, -np.inf).astype(np.float32)
        return Scored(moments, scores, moments.best(scores), moments is source)

    def spread(self, vector: Vector, request: Request) -> Spread | None:
        """What other videos of the index reach with a query, whatever its filters leave out."""
        self._sample = self._sample or Sample(self.index, self.searcher.source())
        return self._sample.spread(vector, [self.catalog.number[like.video] for like in request.like])


def time_condition(ends_after_s: float, starts_before_s: float) -> str:
    """The condition on moments in the store's language, which knows no infinity."""
    parts = [f"end_s > {ends_after_s!r}"] if 0 < ends_after_s < float("inf") else []
    parts += [f"start_s < {starts_before_s!r}"] if abs(starts_before_s) < float("inf") else []
    return " AND ".join(parts)


def pixels_of(image: Any) -> torch.Tensor:
    """uint8 (1, H, W, 3) of an image file or of pixels (H, W, 3)."""
    if isinstance(image, torch.Tensor | np.ndarray):
        pixels = torch.as_tensor(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != torch.uint8:
            raise ClipreelError(f"pixels of an image are (H, W, 3) uint8, not {tuple(pixels.shape)} {pixels.dtype}")
        return pixels[None]
    return read_image(str(image))


def combined(plus: Sequence[torch.Tensor], minus: Sequence[torch.Tensor]) -> Vector:
    """The unit vector of terms added and taken away."""
    if not plus:
        raise ClipreelError('the query is empty; say what to look for, e.g. clipreel search "a red circle"')
    total = torch.stack(list(plus)).sum(0)
    return unit(total - torch.stack(list(minus)).sum(0) if minus else total).float().cpu().numpy()


def order_of(best: Vector, keys: Vector, count: int) -> NDArray[np.int64]:
    """Places of the files that pass, by descending key; equal keys by score, then as listed."""
    keys = np.where(np.isfinite(best), keys, -np.inf)
    top = leaders(keys, count)
    return top[np.lexsort((top, -best[top], -keys[top]))]
