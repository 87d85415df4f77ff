"""Vectors, reranking, answers and evidence of a tiny ALPRO."""

from __future__ import annotations

import pytest
import torch

from clipreel.errors import ClipreelError
from tests.alpro.tiny import pixels, retriever


def test_vectors_are_unit_and_row_by_row() -> None:
    model = retriever()
    both = model.encode_video(pixels(2))
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(both[1:], model.encode_video(pixels(2)[1:]), atol=1e-5, rtol=0)
    texts = model.encode_text(["a red dog", "a blue cat"])
    torch.testing.assert_close(texts, torch.cat([model.encode_text([t]) for t in ("a red dog", "a blue cat")]))
    assert model.encode_text([]).shape == (0, 16)
    assert model.encode_frames(pixels(2)).shape == (2, 4, 16)
    raw = model.encode_video(pixels(2), normalize=False)
    torch.testing.assert_close(raw / raw.norm(dim=1, keepdim=True), both)


def test_reranking_is_the_logit_of_a_match_plus_the_cosine() -> None:
    model = retriever()
    ids, tokens = model.ids(["a red dog"]), model.video_tokens(pixels(3))
    text = model.model.text.read(ids)
    logits = torch.cat([model.model.match(text, ids != 0, v[None]) for v in tokens])
    cosines = (model.encode_video(pixels(3)) @ model.encode_text(["a red dog"]).T)[:, 0]
    torch.testing.assert_close(model.rerank(ids, tokens), logits[:, 1] + cosines, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.rerank(ids, tokens, "released"), logits.softmax(1)[:, 1], atol=1e-5, rtol=0)
    with pytest.raises(ClipreelError, match="allowed are lavis, released"):
        model.rerank(ids, tokens, "x")


def test_many_candidates_in_pieces_are_the_same_as_one_by_one() -> None:
    model = retriever()
    ids, tokens = model.ids(["a red dog"]), model.video_tokens(pixels(3)).repeat(15, 1, 1)
    torch.testing.assert_close(model.rerank(ids, tokens)[42:], model.rerank(ids, tokens[:3]), atol=1e-5, rtol=0)


def test_answers_are_probabilities_over_the_vocabulary() -> None:
    model = retriever(answers=("red", "blue", "left"))
    found = model.ask(pixels(1), "what colour is it ?", k=9)
    assert sorted(a for a, _ in found) == ["blue", "left", "red"]
    assert sum(p for _, p in found) == pytest.approx(1, abs=1e-5)
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert model.ask(pixels(1), "what colour is it ?", k=1) == found[:1]


def test_questions_that_cannot_be_answered_are_told() -> None:
    model = retriever(answers=("red", "blue"))
    with pytest.raises(ClipreelError, match=r"500 words \(500 tokens\): the model reads 10 tokens"):
        model.ask(pixels(1), "what " * 500)
    with pytest.raises(ClipreelError, match="the question is empty"):
        model.ask(pixels(1), " [SEP] ")
    with pytest.raises(ClipreelError, match="tiny-alpro answers no questions"):
        retriever().ask(pixels(1), "what colour is it ?")
    with pytest.raises(ClipreelError, match="no entity head"):
        retriever().evidence(pixels(1), "a dog")


def test_evidence_is_a_map_of_probabilities() -> None:
    found = retriever(entities=("dog", "cat", "circle")).evidence(pixels(1), "what is it ?")
    assert found.shape == (4, 4, 3)
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 4))
