"""Retrieval judged by ALPRO's matching head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.protocol import Stamp
from clipreel.evaluation.reranking import evaluate_reranked, reranked
from tests.alpro.tiny import pixels, retriever

TEXTS = ("a red dog", "a blue cat moves left", "the circle", "one square")


def test_the_top_are_judged_and_the_rest_keep_their_order() -> None:
    model = retriever()
    ids, tokens = model.ids(TEXTS), model.video_tokens(pixels(5))
    cosines = model.encode_text(ids) @ model.encode_video(pixels(5)).T
    for_text, for_video = reranked(model, ids, tokens, 2)
    for row in range(4):
        top = cosines[row].topk(2).indices
        torch.testing.assert_close(for_text[row, top], model.rerank(ids[row : row + 1], tokens[top]), atol=1e-5, rtol=0)
        rest = [c for c in range(5) if c not in top.tolist()]
        torch.testing.assert_close(for_text[row, rest], cosines[row, rest] - 100)
    for column in range(5):
        top = cosines[:, column].topk(2).indices.tolist()
        assert [r for r in range(4) if for_video[r, column] > -50] == sorted(top)


def test_with_all_candidates_every_pair_is_judged() -> None:
    model = retriever()
    ids, tokens = model.ids(TEXTS), model.video_tokens(pixels(5))
    for_text, for_video = reranked(model, ids, tokens, 99)
    assert torch.equal(for_text, for_video)
    released, _ = reranked(model, ids, tokens, 1, "released")
    assert torch.equal(released, (released * 1e4).round() / 1e4)
    torch.testing.assert_close(released[2], model.rerank(ids[2:3], tokens, "released"), atol=6e-5, rtol=0)


def test_the_result_says_how_it_was_judged() -> None:
    model = retriever()
    samples = [Sample(f"v{i}", Path(f"v{i}.mp4"), (t,)) for i, t in enumerate(TEXTS)]
    tokens = model.video_tokens(pixels(4))
    found = evaluate_reranked(model, samples, tokens, Stamp(split="test"), k=3)
    assert found.stamp.post_processing == "matching of the top 3 by cosine"
    assert found.stamp.split == "test"
    scores, _ = reranked(model, model.ids(TEXTS), tokens, 3)
    right = (scores.argmax(1) == torch.arange(4)).float().mean().item() * 100
    assert found.t2v["R@1"] == pytest.approx(right)
    with pytest.raises(ClipreelError, match="0 candidates"):
        reranked(model, model.ids(TEXTS), tokens, 0)
