"""Matching, masked words and entities, by hand and by property."""

from __future__ import annotations

import math

import pytest
import torch

from clipreel.alpro import model as alpro
from clipreel.errors import ClipreelError
from tests.alpro.tiny import tokenizer


def test_hard_negatives_by_hand() -> None:
    scores = torch.tensor([[9.0, 1.0, 1.0 + math.log(3)], [0.0, 9.0, 0.0], [2.0, -100.0, 9.0]])
    p = alpro.negative_probabilities(scores)
    torch.testing.assert_close(p, torch.tensor([[0, 0.25, 0.75], [0.5, 0, 0.5], [1.0, 0, 0]]))
    grouped = alpro.negative_probabilities(scores, torch.tensor([7, 7, 1]))
    torch.testing.assert_close(grouped, torch.tensor([[0, 0, 1.0], [0, 0, 1.0], [1.0, 0, 0]]))
    blocks = alpro.negative_probabilities(scores, block=2)  # the third row is alone in its block
    torch.testing.assert_close(blocks, torch.tensor([[0, 1.0, 0], [1.0, 0, 0], [0, 0, 0]]))


def test_a_row_without_negatives_is_left_out() -> None:
    p = torch.tensor([[0, 1.0, 0], [1.0, 0, 0], [0, 0, 0]])
    videos, texts = alpro.draw_negatives(p, torch.tensor([[0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]]))
    assert videos.tolist() == [1, 0, -1]
    assert texts.tolist() == [-1, 2, 1]
    rows, columns = alpro.matching_rows(videos, texts)
    assert rows.tolist() == [0, 1, 2, 1]
    assert columns.tolist() == [1, 0, 1, 2]


def test_matching_weighs_every_pair_alike() -> None:
    positive, negative = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    right, wrong, easy = (math.log(1 + math.exp(x)) for x in (-1.0, 1.0, -2.0))
    assert alpro.matching(positive, negative).item() == pytest.approx((right + wrong + easy) / 3)


def test_words_are_masked_at_the_published_rates() -> None:
    torch.manual_seed(0)
    words = tokenizer()
    ids = words(["a red dog moves left ."] * 4000, 12)
    seen, labels = alpro.mask_words(ids, words.mask, words.vocab_size, words.special)
    hidden = labels != -100
    assert not hidden[torch.isin(ids, torch.tensor(words.special))].any()
    assert torch.equal(seen[~hidden], ids[~hidden])
    free = ~torch.isin(ids, torch.tensor(words.special))
    assert abs(hidden[free].float().mean().item() - 0.15) < 0.01
    masked = (seen == words.mask)[hidden].float().mean().item()
    same = (seen == ids)[hidden].float().mean().item()
    assert abs(masked - 0.8 - 0.1 / words.vocab_size) < 0.02
    assert abs(same - 0.1 - 0.1 / words.vocab_size) < 0.02


def test_word_losses_belong_to_their_rows() -> None:
    labels = torch.tensor([[-100, 1, 0], [-100, -100, -100], [2, -100, -100]])
    logits = torch.zeros(3, 4)
    found = alpro.word_losses(logits, labels)
    torch.testing.assert_close(found, torch.tensor([2 * math.log(4), 0.0, math.log(4)]))
    assert alpro.word_losses(logits[:0], torch.full((2, 3), -100)).tolist() == [0, 0]


def test_entity_losses_by_hand() -> None:
    fused = torch.tensor([[[9.0], [1.0], [2.0], [4.0], [8.0]]])  # the class token does not count
    outside = torch.tensor([[[1, 0], [0, 1]]])
    assert alpro.pooled_crop(fused, outside).tolist() == [[3.0]]
    soft = torch.tensor([[0.25, 0.75]])
    loss = alpro.entity_losses(torch.tensor([[0.0, math.log(3)]]), soft)
    assert loss.item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


def test_both_keep_rules() -> None:
    soft = torch.tensor([[0.9, 0.05, 0.05], [0.15, 0.7, 0.15], [0.1, 0.19, 0.71]])
    flat = torch.full((1, 8), 0.125) + torch.eye(8)[3:4] * 0.01
    assert alpro.kept(soft).tolist() == [True, True, True]
    assert alpro.kept(flat).tolist() == [False]
    # the released rule looks at the number of the winner, and drops number 0 however sure it is
    assert alpro.kept(soft, "released").tolist() == [False, True, True]
    assert alpro.kept(flat, "released").tolist() == [True]
    with pytest.raises(ClipreelError, match="keep rule 'x': allowed are confidence, released"):
        alpro.kept(soft, "x")
    assert alpro.mean_of_kept(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])).item() == 3
    assert alpro.mean_of_kept(torch.tensor([1.0, 3.0]), torch.zeros(2)).item() == 0
