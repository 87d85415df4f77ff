"""What scores mean against a bank of queries: by hand on small arrays, and in an index."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.evaluation.similarity import Dense, QueryBank
from clipreel.search.ask import Asker, Request
from clipreel.search.bank import Bank, absent, bank_of, forget, from_file, general, past, remember, remembered
from clipreel.search.calibration import BETA, Calibration, calibrate, described, most_unusual, table_of
from clipreel.search.index import File, Index
from clipreel.search.indexer import update
from tests.search.tiny import library, new_index, tiny_model

TEXTS = tuple(
    f"{size} {colour} {shape}"
    for size in ("a small", "a large")
    for colour in ("red", "blue", "green")
    for shape in ("circle", "square", "star", "ring")
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    place = tmp_path_factory.mktemp("bank")
    index = new_index(place / "i")
    update(index, tiny_model(), [str(library(place / "films"))])
    calibrate(index, tiny_model(), Bank("mine", TEXTS, absent(20)))
    return index


def made(scores: np.ndarray, cutoff: float = 1.0) -> Calibration:
    """A calibration of (V, B) scores of a bank."""
    table = table_of([File(str(i), "", 0, 0, "") for i in range(len(scores))], scores, scores.mean(1), scores.std(1))
    column = {n: np.asarray(table.column(n).to_pylist()) for n in table.column_names}
    fact = {"cutoff": cutoff, "queries": scores.shape[1]}
    ranked = column["scores"].astype(np.float16)
    return Calibration(column["mean"], column["std"], column["log_sum"], column["active"], ranked, fact)


def test_unusual_is_the_share_of_the_bank_that_scores_lower() -> None:
    known = made(np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]], np.float32))
    assert [m["unusual"] for m in known.meanings(0, (0.0, 0.25, 0.45))] == [0.0, 0.5, 1.0]
    assert known.meanings(1, [0.45])[0]["unusual"] == 0.0  # the same cosine, of a video that every query likes


def test_scores_in_words_and_the_cut_off() -> None:
    bank = np.linspace(-1, 1, 101, dtype=np.float32)[None]  # mean 0, deviation 0.583
    known = made(bank, cutoff=2.0)
    deviation = float(bank.std())
    assert [m["words"] for m in known.meanings(0, [z * deviation for z in (3.1, 2.5, 1.69, 0.5)])] == [
        "strong match",
        "good match",
        "weak match",
        "unlikely",
    ]
    assert known.matches(np.array([2.1 * deviation], np.float32))
    assert not known.matches(np.array([1.9 * deviation], np.float32))


def test_a_file_that_came_later_is_unrated_and_still_ranked() -> None:
    known = made(np.array([[0.1, 0.2], [0.3, 0.1]], np.float32))
    known.mean[1] = known.std[1] = known.log_sum[1] = np.nan
    assert known.meanings(1, [0.5]) == [{"unusual": None, "words": "unrated", "apart": None}]
    assert np.isfinite(known.keys(np.array([0.4, 0.3], np.float32))).all()


def test_ranking_by_the_bank_is_that_of_the_evaluation() -> None:
    rng = np.random.default_rng(0)
    bank, live = (rng.uniform(0, 0.4, shape).astype(np.float32) for shape in ((30, 12), (9, 12)))
    wanted = QueryBank(Dense(torch.from_numpy(live)), Dense(torch.from_numpy(bank)), BETA)
    theirs = wanted.block(slice(0, 9), slice(0, 12)).numpy()
    known = made(bank.T.copy())
    for row, scores in zip(theirs, live, strict=True):
        assert np.argsort(-known.keys(scores)).tolist() == np.argsort(-row).tolist()


def test_the_most_unusual_of_the_best() -> None:
    best = np.array([[0.5, 0.4, -np.inf]], np.float32)
    assert most_unusual(best, np.array([0.4, 0.1, 0.0]), np.array([0.1, 0.1, 0.1]))[0] == pytest.approx(3.0)


def test_an_index_keeps_its_calibration(index: Index) -> None:
    fact = Index(index.place).facts["calibration"]
    assert (fact["bank"], fact["queries"], fact["videos"], fact["held_out"]) == ("mine", 24, 3, 10)
    assert 0 <= fact["measured"] <= 1
    assert "bank mine (24 queries)" in described(fact)
    known = Calibration.read(index, index.visible())
    vectors = tiny_model().encode_text(TEXTS).numpy()
    moments = index.moments()
    first = (moments.vectors[moments.file == 0] @ vectors.T).max(0)
    np.testing.assert_allclose(known.mean[0], first.mean(), atol=1e-5)
    np.testing.assert_allclose(known.scores[0], np.sort(first), atol=1e-3)


def test_answers_say_what_their_scores_mean(index: Index) -> None:
    asker = Asker(index, tiny_model())
    answer = asker.answer(Request("a red circle"))
    assert all(0 <= hit.unusual <= 1 and hit.words != "unrated" for hit in answer.hits)
    by_bank = asker.answer(Request("a red circle", rank="bank"))
    assert {h.video for h in by_bank.hits} == {h.video for h in answer.hits}
    assert answer.matching == sum(h.words in ("good match", "strong match") for h in answer.hits)
    moments = [m for hit in answer.hits for m in hit.moments]
    assert moments
    assert all(0 <= m.unusual <= 1 and m.words != "unrated" and m.apart is None for m in moments)
    weaker = [(m.unusual, hit.unusual) for hit in answer.hits for m in hit.moments]
    assert all(other <= best for other, best in weaker)
    asker.first.calibration.fact["cutoff"] = 100.0
    nothing = asker.answer(Request("a red circle"))
    assert (nothing.state, len(nothing.hits), nothing.matching) == ("nothing", 3, 0)


def test_a_bank_is_read_and_kept(index: Index, tmp_path: Path) -> None:
    assert len(general().texts) >= 300
    assert len(set(general().texts)) == len(general().texts)
    assert not set(general().absent) & set(general().texts)
    file = tmp_path / "mine.txt"
    file.write_text("\n".join([*TEXTS, "! a thing that is not there", "", TEXTS[0]]))
    assert from_file(file) == Bank(str(file), TEXTS, ("a thing that is not there",))
    with pytest.raises(ClipreelError, match="remembers no queries"):
        past(index)
    remember(index, [*TEXTS, TEXTS[0], "\n"])
    assert set(bank_of(index, "past").texts) == set(TEXTS)
    remember(index, [f"query {n}" for n in range(990)] + [TEXTS[0], TEXTS[0]])
    assert remembered(index)[-2:] == ["query 989", TEXTS[0]]
    assert len(remembered(index)) == 1000  # and no more
    forget(index)
    assert remembered(index) == []
    with pytest.raises(ClipreelError, match="remembers no queries"):
        past(index)
    with pytest.raises(ClipreelError, match="has 1 queries: it needs 20 to 1000"):
        Bank("short", ("x",))
    with pytest.raises(ClipreelError, match="cannot be read"):
        bank_of(index, str(tmp_path / "none.txt"))


def test_without_a_bank_there_is_no_ranking_by_it(tmp_path: Path) -> None:
    index = new_index(tmp_path / "i")
    update(index, tiny_model(), [str(library(tmp_path / "v", ("a.mp4",)))])
    with pytest.raises(ClipreelError, match="no bank to rank by"):
        Asker(index, tiny_model()).answer(Request("x", rank="bank"))
    with pytest.raises(ClipreelError, match="false-alarm rate of 2"):
        calibrate(index, tiny_model(), false_alarm=2)


def test_encoding_a_bank_tells_how_far_it_is(tmp_path: Path) -> None:
    index, told = new_index(tmp_path / "i"), []
    update(index, tiny_model(), [str(library(tmp_path / "v", ("a.mp4",)))])
    bank = Bank("other", tuple(f"a dog {n}" for n in range(40)), absent(30))
    calibrate(index, tiny_model(), bank, 0.1, lambda *at: told.append(at))
    assert told == [(32, 70), (64, 70), (70, 70)]
    calibrate(index, tiny_model(), bank, 0.2, lambda *at: told.append(at))
    assert len(told) == 3  # the vectors are kept
