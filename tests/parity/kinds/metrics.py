"""Ranks, recalls, dual softmax and query bank on matrices with ties, NaN and several captions per video.

Reference values are brute force; official codes are compared where no ties and no NaN make them lawful.
"""

import json
import math
from pathlib import Path

import torch

from clipreel.evaluation.metrics import KS, measures
from clipreel.evaluation.ranks import Ranks, rank_texts, rank_videos
from clipreel.evaluation.similarity import Dense, DualSoftmax, QueryBank, Transposed
from tests.parity.fixture import Fixture, load


def check(path: Path) -> None:
    fixture = load(path)
    sims = fixture.inputs["sims"]
    truth = fixture.inputs.get("text_to_video", torch.arange(len(sims)))
    matrix = Dense(sims)
    all_ranks = {
        "t2v": rank_texts(matrix, truth),
        "v2t": rank_videos(matrix, truth, "caption"),
        "v2t_video_level": rank_videos(matrix, truth, "video"),
    }
    compared = check_ranks(fixture, all_ranks)
    compared |= check_normalised(fixture, matrix)
    assert compared == set(fixture.outputs), f"not compared: {set(fixture.outputs) - compared}"
    expected = json.loads(fixture.meta["expected"])
    references = [name for name in expected if name.startswith("reference_")]
    assert references
    for name in references:
        check_reference(f"{path.name}: {name}", expected[name], all_ranks[name.removeprefix("reference_")])


def check_ranks(fixture: Fixture, all_ranks: dict[str, Ranks]) -> set[str]:
    done = set()
    for name, ranks in all_ranks.items():
        for rule in ("optimistic", "pessimistic", "mean"):
            key = f"{name}_rank_{rule}"
            if key in fixture.outputs:
                ours = ranks.expected() if rule == "mean" else getattr(ranks, rule)()
                fixture.check(key, ours, atol=0)
                done.add(key)
    return done


def check_normalised(fixture: Fixture, matrix: Dense) -> set[str]:
    done = set()
    everything = slice(0, matrix.shape[0]), slice(0, matrix.shape[1])
    if "dsl_t2v" in fixture.outputs:
        fixture.check("dsl_t2v", DualSoftmax(matrix, "product").block(*everything), atol=1e-6)
        twin = Transposed(DualSoftmax(Transposed(matrix), "product"))
        fixture.check("dsl_v2t", twin.block(*everything), atol=1e-6)
        done |= {"dsl_t2v", "dsl_v2t"}
    if "bank_sims" in fixture.inputs and "qbnorm_beta20_k1" in fixture.outputs:
        bank = QueryBank(matrix, Dense(fixture.inputs["bank_sims"]), beta=20.0)
        fixture.check("qbnorm_activation_set_k1", bank.active.nonzero()[:, 0])
        # among equal best videos the official code takes what an unstable sort happens to put first; we take the
        # lowest index, so rows whose equal best disagree about the bank may go either way, and only those
        sims = matrix.block(*everything)
        best = sims == sims.max(1, keepdim=True).values
        either_way = (best & bank.active).any(1) & (best & ~bank.active).any(1)
        official = fixture.outputs["qbnorm_rows_normalised_k1"].bool()
        assert torch.equal(official[~either_way], bank.normalised[~either_way])
        bank.normalised = official
        scores = bank.block(*everything)
        shown = torch.where(bank.normalised[:, None], scores.exp(), scores)
        fixture.check("qbnorm_beta20_k1", shown, atol=1e-5)
        done |= {"qbnorm_activation_set_k1", "qbnorm_rows_normalised_k1", "qbnorm_beta20_k1"}
    return done


def check_reference(where: str, reference: dict, ranks: Ranks) -> None:
    ours = measures(ranks)
    for k in KS:
        same(where, f"expected R@{k}", ours[f"R@{k}"], reference["expected_recall"][f"R@{k}"])
    assert ours["tied"] == reference.get("tied_queries", ours["tied"]), where
    worst = ours.get("pessimistic", ours)
    for name, value in reference["pessimistic"].items():
        same(where, f"pessimistic {name}", worst[name], value)
    if "mean_rank_rule" in reference:
        for name in ("MdR", "MnR"):
            same(where, name, ours[name], reference["mean_rank_rule"][name])


def same(where: str, what: str, ours: float, wanted: float) -> None:
    assert math.isclose(ours, wanted, abs_tol=1e-4), f"{where}: {what} is {ours}, not {wanted}"
