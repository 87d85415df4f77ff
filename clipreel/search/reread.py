"""The best hits of a search, read again by a model that looks at the query and the video together.

ALPRO's matching head as in LAVIS (specification alpro.md 5): logit of a match plus cosine, for the top hits only. The
index may have been made with any model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from clipreel.alpro.retriever import AlproRetriever
from clipreel.errors import ClipreelError
from clipreel.search.query import Hit, clean
from clipreel.video.decode import DecodeError, read_frames

AT_ONCE = 8  # videos that go through the video encoder together
Read = Callable[[Hit, AlproRetriever, float], torch.Tensor]


def here(hit: Hit, model: AlproRetriever, timeout_s: float) -> torch.Tensor:
    """The pixels of a moment (T, 3, H, W), decoded in this process. Raises DecodeError."""
    found = read_frames(
        hit.path,
        model.sampling,
        start_s=hit.start_s,
        end_s=hit.end_s,
        timeout_s=timeout_s,
        transform=model.preprocess.pixels,
    )
    return found.pixels


def reread(
    hits: Sequence[Hit], text: str, model: AlproRetriever, timeout_s: float = 60.0, read: Read = here
) -> tuple[list[Hit], list[tuple[str, str]]]:
    """The hits in the new order with the new scores, each judged by its moment; and those whose file cannot be read,
    which are left out, with the reason. Equal scores keep their order."""
    if not clean(text):
        raise ClipreelError("reranking compares a text with videos, and the query has none; leave --rerank out")
    ids = model.ids([clean(text)], strip_special=True)
    found: list[Hit] = []
    failed: list[tuple[str, str]] = []
    waiting: list[tuple[Hit, torch.Tensor]] = []

    def judge() -> None:
        if waiting:
            pixels = torch.stack([model.preprocess.normalise(p) for _, p in waiting])
            scores = model.rerank(ids, model.video_tokens(pixels)).tolist()
            found.extend(replace(hit, score=score) for (hit, _), score in zip(waiting, scores, strict=True))
            waiting.clear()

    for hit in hits:
        try:
            pixels = read(hit, model, timeout_s)
        except DecodeError as e:
            failed.append((hit.path, e.reason))
            continue
        waiting.append((hit, pixels))
        if len(waiting) == AT_ONCE:
            judge()
    judge()
    return sorted(found, key=lambda hit: -hit.score), failed
