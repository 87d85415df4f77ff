"""Stamps keep unequal results apart; tables carry them."""

import json
from dataclasses import replace

import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.evaluation.metrics import Result, evaluate, evaluate_similarity
from clipreel.evaluation.protocol import LATER, Stamp, parts_hash, split_hash
from clipreel.evaluation.report import compare, protocol, table


def test_unequal_stamps_are_refused_and_the_difference_is_named() -> None:
    a = Stamp(split="1k-A", frames="12 uniform")
    with pytest.raises(ClipreelError, match="frames: '12 uniform' and '8 uniform'"):
        a.require_equal(a.having(frames="8 uniform"))
    a.require_equal(a.having(adapter="another", seeds=(1, 2), base="x"))


def test_post_processing_is_stamped_by_the_evaluator() -> None:
    plain, dual = evaluate(torch.eye(4), torch.eye(4)), evaluate(torch.eye(4), torch.eye(4), dual_softmax="product")
    assert set(plain.stamp.differences(dual.stamp)) == {"post_processing", "transductive"}
    banked = evaluate(torch.eye(4), torch.eye(4), text_bank=torch.eye(4), beta=10.0)
    assert banked.stamp.post_processing.startswith("query bank (t2v by 4 texts ")
    assert banked.stamp.post_processing.endswith(", beta 10, dynamic)")
    other = evaluate(torch.eye(4), torch.eye(4), text_bank=1 - torch.eye(4), beta=10.0)
    assert set(banked.stamp.differences(other.stamp)) == {"post_processing"}
    mirrored = evaluate(torch.eye(4), torch.eye(4), video_bank=torch.eye(4), dynamic=False)
    assert mirrored.stamp.post_processing.startswith("query bank (v2t by 4 videos ")
    assert not mirrored.stamp.transductive


def test_result_survives_json_and_refuses_other_files() -> None:
    videos = torch.eye(4)
    videos[2] = torch.nan
    result = evaluate(torch.eye(4), videos, stamp=Stamp(split="s", seeds=(1, 2)), merge_identical_texts=list("abca"))
    again = Result.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again == replace(result, ranks=None)
    assert again.failed_videos == (2,)
    with pytest.raises(ClipreelError, match="schema None"):
        Result.from_dict({"t2v": {}})
    with pytest.raises(ClipreelError, match="unknown fields: colour"):
        Stamp.from_dict({**Stamp().to_dict(), "colour": 1})


def test_a_stamp_of_before_states_less_and_is_not_mixed_with_one_that_states_it() -> None:
    made = Stamp(split="s", pixels="pil crop", part="whole videos", trained_on="t", base_name="b")
    old = {k: v for k, v in made.to_dict().items() if k not in LATER}
    read = Stamp.from_dict(old)
    assert {getattr(read, name) for name in LATER} == {"unstated"}
    assert set(read.differences(made)) == {"pixels", "part"}
    assert not read.differences(Stamp.from_dict(old))
    with pytest.raises(ClipreelError, match="unknown fields: frames"):
        Stamp.from_dict({k: v for k, v in old.items() if k != "frames"})
    said = protocol(evaluate(torch.eye(4), torch.eye(4), stamp=made))
    assert "0 px (pil crop)" in said
    assert "base b (unstated), adapter none; trained on t" in said
    assert "pil" not in protocol(evaluate(torch.eye(4), torch.eye(4), stamp=read))


def test_parts_are_told_apart_by_their_times() -> None:
    assert parts_hash([(None, None), (0.0, None)]) == "whole videos"
    found = {parts_hash(p) for p in ([(0.0, 1.0)], [(0.0, 2.0)], [(1.0, 2.0)], [(0.0, 1.0000001)], [(None, 31.0)] * 2)}
    assert len(found) == 5
    assert parts_hash([(None, 2.0)]) == parts_hash([(0.0, 2.0)])


def test_only_equal_stamps_share_a_table() -> None:
    a = evaluate(torch.eye(4), torch.eye(4), stamp=Stamp(split="1k-A", base="one"))
    b = evaluate(torch.eye(4), torch.eye(4).flip(0), stamp=Stamp(split="1k-A", base="two"))
    text = compare({"a": a, "b": b})
    assert text.splitlines()[1].split()[:2] == ["a", "100.0"]
    assert text.count("protocol: 4 queries over 4 videos; split 1k-A") == 2
    with pytest.raises(ClipreelError, match="post_processing: 'none' and 'dual softmax"):
        compare({"a": a, "c": evaluate(torch.eye(4), torch.eye(4), stamp=a.stamp, dual_softmax="softmax")})
    with pytest.raises(ClipreelError, match="galleries"):
        compare({"a": a, "c": evaluate(torch.eye(5), torch.eye(5), stamp=a.stamp)})
    with pytest.raises(ClipreelError, match="nothing to compare"):
        compare({})


def test_protocol_names_what_failed() -> None:
    videos = torch.eye(4)
    videos[2] = torch.nan
    assert "1 videos have no vector" in protocol(evaluate(torch.eye(4), videos))
    one_score = torch.eye(4)
    one_score[0, 0] = torch.nan
    assert "1 scores are not finite" in protocol(evaluate_similarity(one_score))


def test_split_hash_follows_order() -> None:
    assert split_hash(["a", "b"]) != split_hash(["b", "a"])


def test_table_shows_what_ties_cost() -> None:
    result = evaluate_similarity(torch.full((4, 4), 0.5))
    text = table({"flat": result})
    assert "all ties lost (4, 4)" in text
    assert text.splitlines()[1].split()[1] == "25.0"
    assert "ties: expected" in protocol(result)
    assert json.loads(json.dumps(result.to_dict()))["t2v"]["tied"] == 4
