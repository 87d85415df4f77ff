"""Recall, median and mean rank of both directions, under the expected rule for ties (specification core.md 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clipreel.evaluation.protocol import Stamp
from clipreel.evaluation.ranks import Ranks, rank_texts, rank_videos
from clipreel.evaluation.similarity import Cosine, Dense, DualSoftmax, Matrix, QueryBank, Transposed

KS = (1, 5, 10, 50)


def measures(ranks: Ranks) -> dict[str, Any]:
    """R@k in per cent, MdR, MnR, SumR (R@1 + R@5 + R@10 of this direction), GeoMean, and what ties cost."""
    found: dict[str, Any] = {f"R@{k}": 100 * ranks.hit_rate(k).mean().item() for k in KS}
    found.update(_summary(found, ranks.expected()))
    tied = int((ranks.tied > 0).sum())
    found.update(queries=len(ranks.above), gallery=ranks.gallery, tied=tied)
    if tied:
        lost = ranks.pessimistic()
        worst = {f"R@{k}": 100 * (lost <= k).double().mean().item() for k in KS}
        found["pessimistic"] = {**worst, **_summary(worst, lost)}
    return found


def _summary(recalls: Mapping[str, float], ranks: Tensor) -> dict[str, float]:
    first = [recalls[f"R@{k}"] for k in (1, 5, 10)]
    return {
        "MdR": torch.quantile(ranks.double(), 0.5).item(),
        "MnR": ranks.double().mean().item(),
        "SumR": sum(first),
        "GeoMean": math.prod(first) ** (1 / 3),
    }


@dataclass
class Result:
    """Both directions, the ranks they come from, and the protocol under which they may be compared."""

    t2v: dict[str, Any]
    v2t: dict[str, Any]
    stamp: Stamp
    non_finite: int = 0
    ranks: tuple[Ranks, Ranks] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {"t2v": self.t2v, "v2t": self.v2t, "non_finite": self.non_finite, "stamp": self.stamp.to_dict()}


def evaluate(
    texts: Tensor,
    videos: Tensor,
    text_to_video: Tensor | None = None,
    *,
    stamp: Stamp | None = None,
    v2t: str = "caption",
    dual_softmax: str | None = None,
    text_bank: Tensor | None = None,
    video_bank: Tensor | None = None,
    beta: float = 20.0,
) -> Result:
    """Ranks of unit vectors `texts` (T, E) and `videos` (V, E); `text_to_video` (T,) defaults to one caption each.

    A video that could not be read is a row of NaN: its queries count as missed, and `non_finite` says how many rows.
    `dual_softmax` "product" or "softmax" is transductive; `text_bank` / `video_bank` (B, E) are other texts and videos
    for query-bank normalisation. Memory does not grow with T x V.

    >>> evaluate(torch.eye(3), torch.eye(3)).t2v["R@1"]
    100.0
    """
    bad = int((~texts.isfinite()).any(1).sum() + (~videos.isfinite()).any(1).sum())
    plain = Cosine(texts, videos)
    banks: tuple[Matrix | None, Matrix | None] = (
        None if text_bank is None else Cosine(text_bank, videos),
        None if video_bank is None else Cosine(video_bank, texts),
    )
    return _evaluate(plain, text_to_video, stamp, v2t, dual_softmax, banks, beta, bad)


def evaluate_similarity(
    scores: Tensor,
    text_to_video: Tensor | None = None,
    *,
    stamp: Stamp | None = None,
    v2t: str = "caption",
    dual_softmax: str | None = None,
) -> Result:
    """The same from a matrix of scores (T texts, V videos)."""
    bad = int((~scores.isfinite()).any(1).sum())
    return _evaluate(Dense(scores), text_to_video, stamp, v2t, dual_softmax, (None, None), 20.0, bad)


def _evaluate(
    plain: Matrix,
    truth: Tensor | None,
    stamp: Stamp | None,
    v2t: str,
    dual_softmax: str | None,
    banks: tuple[Matrix | None, Matrix | None],
    beta: float,
    bad: int,
) -> Result:
    if truth is None:
        if plain.shape[0] != plain.shape[1]:
            raise ValueError(f"{plain.shape[0]} texts and {plain.shape[1]} videos: give text_to_video")
        truth = torch.arange(plain.shape[0])
    if dual_softmax and any(b is not None for b in banks):
        raise ValueError("dual softmax and a query bank are two normalisations; choose one")
    for_texts, for_videos = plain, plain
    processing = "none"
    if dual_softmax:
        for_texts = DualSoftmax(plain, dual_softmax)
        for_videos = Transposed(DualSoftmax(Transposed(plain), dual_softmax))
        processing = f"dual softmax ({dual_softmax})"
    if banks[0] is not None:
        for_texts = QueryBank(plain, banks[0], beta)
        processing = f"query bank ({banks[0].shape[0]} texts, beta {beta:g})"
    if banks[1] is not None:
        for_videos = Transposed(QueryBank(Transposed(plain), banks[1], beta))
        processing += f", video bank ({banks[1].shape[0]})"
    stamp = (stamp or Stamp()).having(
        post_processing=processing,
        transductive=bool(dual_softmax),
        caption_mode="single" if len(truth) == plain.shape[1] else f"multiple, v2t by {v2t}",
    )
    ranks = rank_texts(for_texts, truth), rank_videos(for_videos, truth, v2t)
    return Result(measures(ranks[0]), measures(ranks[1]), stamp, bad, ranks)
