"""Stamps keep unequal results apart; tables carry them."""

import json

import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.evaluation.metrics import evaluate, evaluate_similarity
from clipreel.evaluation.protocol import Stamp, split_hash
from clipreel.evaluation.report import protocol, table


def test_unequal_stamps_are_refused_and_the_difference_is_named() -> None:
    a = Stamp(split="1k-A", frames="12 uniform")
    with pytest.raises(ClipreelError, match="frames: '12 uniform' and '8 uniform'"):
        a.require_equal(a.having(frames="8 uniform"))
    a.require_equal(a.having(adapter="another", seeds=(1, 2), base="x"))


def test_post_processing_is_stamped_by_the_evaluator() -> None:
    plain, dual = evaluate(torch.eye(4), torch.eye(4)), evaluate(torch.eye(4), torch.eye(4), dual_softmax="product")
    assert set(plain.stamp.differences(dual.stamp)) == {"post_processing", "transductive"}
    banked = evaluate(torch.eye(4), torch.eye(4), text_bank=torch.eye(4), beta=10.0)
    assert banked.stamp.post_processing == "query bank (4 texts, beta 10)"


def test_split_hash_follows_order() -> None:
    assert split_hash(["a", "b"]) != split_hash(["b", "a"])


def test_table_shows_what_ties_cost() -> None:
    result = evaluate_similarity(torch.full((4, 4), 0.5))
    text = table({"flat": result})
    assert "all ties lost (4, 4)" in text
    assert text.splitlines()[1].split()[1] == "25.0"
    assert "ties: expected" in protocol(result)
    assert json.loads(json.dumps(result.to_dict()))["t2v"]["tied"] == 4
