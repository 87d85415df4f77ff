"""Rerankers that searches may name: loaded when the server starts, each with the spaces in which it can judge.

A head reads stored frames, so it belongs to one index. An ALPRO reads the files again, in processes of their own, and
judges what any adapter found; it looks at fewer candidates, because that takes seconds.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clipreel.adapter import load
from clipreel.alpro.retriever import AlproRetriever
from clipreel.errors import ClipreelError
from clipreel.search.ask import Reorder
from clipreel.search.index import Index
from clipreel.search.query import Hit
from clipreel.search.rerankers import by_head, by_matching, matching
from clipreel.server.errors import ApiError
from clipreel.server.settings import Settings
from clipreel.server.variants import Variants, free
from clipreel.video.decode import stream_frames
from clipreel.video.many import stream_many
from clipreel.video.packets import DecodeError


class Rerankers:
    """Those that `clipreel serve --rerank` named. `failed` are files that the last one could not read again."""

    def __init__(self, sources: Sequence[str], variants: Variants, settings: Settings, device: str) -> None:
        self.sources, self.settings, self.device = sources, settings, device
        self.failed: list[tuple[str, str]] = []
        self._judges: dict[str, AlproRetriever | None] = {}
        self.fit(variants)

    def fit(self, variants: Variants) -> None:
        """Make them for these models. Raises ClipreelError where one does not fit the first of them."""
        self.variants = variants
        self.names: dict[str, str] = {}
        self.orders: dict[str, Reorder] = {}
        self.refused: dict[str, str] = {}
        first = variants.all[""].model
        for source in self.sources:
            name = free(os.path.basename(os.path.abspath(source)) or source, set(self.names))
            if source not in self._judges or source == "alpro":
                self._judges[source] = matching(source, first, partial(load, device=self.device))
            judge, self.names[name] = self._judges[source], source
            if judge is not None:
                self.orders[name] = by_matching(judge, self.failed, apart, self.settings.reread_s)
                continue
            for key, variant in variants.all.items():
                try:
                    # its own connection: the thread that reranks is not the one that searches
                    self.orders[inside(name, key)] = by_head(source, variant.model, Index(variant.index.place))
                except ClipreelError as e:
                    if not key:
                        raise
                    self.refused[inside(name, key)] = str(e)

    def key(self, name: str, adapters: Sequence[str]) -> tuple[str, int]:
        """What an asker knows a reranker by, for a search of these variants, and how many hits it may look at.

        Raises ApiError 422 for one that is not loaded or cannot judge them.
        """
        if name not in self.names:
            known = ", ".join(self.names) or "none (clipreel serve --rerank loads them)"
            message = f"no reranker {name[:80]!r} is loaded here; those that are: {known}"
            raise ApiError(422, "no-such-reranker", message)
        if name in self.orders:
            return name, self.settings.reread_candidates
        if len(adapters) > 1:
            message = f"the head {name} reads the frames of one index; name one adapter, or leave rerank out"
            raise ApiError(422, "rerank", message)
        own = inside(name, adapters[0])
        if own not in self.orders:
            raise ApiError(422, "rerank", f"{name} cannot judge what this adapter finds: {self.refused[own]}")
        return own, self.settings.rerank_candidates

    def listed(self) -> list[dict[str, Any]]:
        """For GET /status: `adapters` are the names that a search may combine each with."""
        s = self.settings
        return [
            {
                "name": name,
                "kind": "matching" if name in self.orders else "head",
                "candidates": s.reread_candidates if name in self.orders else s.rerank_candidates,
                "adapters": [
                    variant.name
                    for key, variant in self.variants.all.items()
                    if name in self.orders or inside(name, key) in self.orders
                ],
            }
            for name in self.names
        ]

    def note(self) -> list[str]:
        """What a reader should know of the last reranking."""
        count = len(self.failed)
        said = f"{count} of the best videos could not be read again and {'is' if count == 1 else 'are'} left out"
        return [said] if count else []


def inside(name: str, key: str) -> str:
    """What an asker knows a head over one index by."""
    return f"{name}\n{key}"


def apart(hit: Hit, model: AlproRetriever, timeout_s: float) -> torch.Tensor:
    """The pixels of a moment (T, 3, H, W), decoded in another process, which may crash. Raises DecodeError."""
    read = partial(
        stream_frames,
        sampling=model.sampling,
        start_s=hit.start_s,
        end_s=hit.end_s,
        timeout_s=timeout_s,
        transform=model.preprocess.pixels,
    )
    found: list[torch.Tensor] = []
    files = stream_many([Path(hit.path)], read, 1, timeout_s)
    for _, stream in files:
        if isinstance(stream, DecodeError):
            deque(files, maxlen=0)
            raise stream
        found = [pixels for _, pixels in stream.frames]
    return torch.cat(found)
