"""Retrieval judged by a matching head: every pair, or the top k of each query by cosine first.

ALPRO specification 5. `lavis` scores the top k by the logit of a match plus the cosine; pairs outside the top k stay
below them in the order of their cosines (LAVIS ties them). `released` is the probability of a match of every pair,
rounded to four decimals, whose ties count by the tie rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.metrics import Result, evaluate_similarity
from clipreel.evaluation.protocol import Stamp

if TYPE_CHECKING:
    from clipreel.alpro.retriever import AlproRetriever

BELOW = 100.0  # taken off pairs that were not judged


def reranked(
    model: AlproRetriever, ids: Tensor, video_tokens: Tensor, k: int, form: str = "lavis"
) -> tuple[Tensor, Tensor]:
    """Scores (T, V) for ranking videos by texts, and for ranking texts by videos.

    `ids` (T, L) of the texts, `video_tokens` (V, 1 + N, D). Each text judges its k best videos, each video its k best
    texts; `form` "released" judges every pair and takes no notice of k.
    """
    if k < 1:
        raise ClipreelError(f"{k} candidates: judge at least 1")
    with torch.no_grad():
        videos = model.model.video_vectors(video_tokens.to(model.device)).cpu()
    cosines = model.encode_text(ids).cpu() @ videos.T
    pairs = torch.ones_like(cosines, dtype=torch.bool)
    for_text, for_video = pairs, pairs
    if form != "released":
        for_text, for_video = (
            torch.zeros_like(pairs).scatter(d, cosines.topk(min(k, cosines.shape[d]), d).indices, True) for d in (1, 0)
        )
    judged = cosines - BELOW
    for row, wanted in enumerate(for_text | for_video):
        columns = wanted.nonzero()[:, 0]
        if len(columns):
            judged[row, columns] = model.rerank(ids[row : row + 1], video_tokens[columns], form).cpu()
    if form == "released":
        judged = (judged * 1e4).round() / 1e4
    texts, videos_first = (torch.where(wanted, judged, cosines - BELOW) for wanted in (for_text, for_video))
    return texts, videos_first


def evaluate_reranked(
    model: AlproRetriever,
    samples: Sequence[Sample],
    video_tokens: Tensor,
    stamp: Stamp,
    k: int = 128,
    form: str = "lavis",
) -> Result:
    """The result of both directions; `video_tokens` (V, 1 + N, D) one per sample, `stamp` that of the cosine result."""
    captions = [c for s in samples for c in s.captions]
    truth = torch.tensor([i for i, s in enumerate(samples) for _ in s.captions])
    scores = reranked(model, model.ids(captions), video_tokens, k, form)
    found = [evaluate_similarity(s, truth, stamp=stamp) for s in scores]
    assert found[0].ranks is not None
    assert found[1].ranks is not None
    name = "matching of every pair, rounded" if form == "released" else f"matching of the top {k} by cosine"
    return replace(
        found[0],
        v2t=found[1].v2t,
        ranks=(found[0].ranks[0], found[1].ranks[1]),
        stamp=stamp.having(post_processing=name, caption_mode=found[0].stamp.caption_mode),
    )
