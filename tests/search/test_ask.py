"""Requests and answers over small indexes."""

import os
from dataclasses import replace
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from clipreel import mixing
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever
from clipreel.search.ask import Asker, Filters, Like, Request
from clipreel.search.catalog import orientation, state_of
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.search.query import Hit as Candidate
from clipreel.search.query import Query, Searcher
from clipreel.search.tags import tag
from clipreel.tuners import build
from clipreel.video.shots import Segments
from tests.search.tiny import library, new_index, tiny_model
from tests.video.make import turned, write


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Three videos: two in a folder, one below it."""
    place = tmp_path_factory.mktemp("ask")
    index = new_index(place / "i")
    update(index, tiny_model(), [str(library(place / "films"))])
    return index


@pytest.fixture
def asker(index: Index) -> Asker:
    return Asker(index, tiny_model())


def names(asker: Asker, **asked: object) -> list[str]:
    return [hit.name for hit in asker.answer(Request(**asked)).hits]


def test_a_text_ranks_as_the_searcher_does(index: Index, asker: Asker) -> None:
    answer = asker.answer(Request("a red circle"))
    plain = Searcher(index, tiny_model()).search(Query(["a red circle"]))
    assert [(str(h.path), h.score) for h in answer.hits] == [(h.path, h.score) for h in plain]
    assert (answer.state, answer.total) == ("ok", 3)
    assert all(0 <= h.start_s < h.end_s <= h.duration_s + 0.1 for h in answer.hits)


def test_what_the_model_does_not_read_of_a_text_is_told(asker: Asker) -> None:
    most = asker.first.model.context - 2
    assert asker.answer(Request(" ".join(["red"] * most))).notes == ()
    (note,) = asker.answer(Request("a circle", minus=(" ".join(["red"] * (most + 3)),))).notes
    assert note.startswith(f"the model reads the first {most} of the {most + 3} tokens of 'red red")


def test_pages_follow_each_other(asker: Asker) -> None:
    every = names(asker, text="a red circle")
    assert names(asker, text="a red circle", k=2) + names(asker, text="a red circle", k=2, offset=2) == every


def test_folders_are_labels_and_are_counted(asker: Asker) -> None:
    answer = asker.answer(Request("a red circle"))
    assert {h.name: h.folder for h in answer.hits} == {"a.mp4": "films", "b.mp4": "films", "c.mkv": "films/sub"}
    assert [(f.name, f.count) for f in answer.facets.folders] == [("films", 2), ("films/sub", 1)]
    assert names(asker, text="x", filters=Filters(folder="films/sub")) == ["c.mkv"]
    assert len(names(asker, text="x", filters=Filters(folder="films"))) == 3
    assert names(asker, text="x", filters=Filters(folder="film")) == []


def test_filters_of_length_shape_and_date(asker: Asker) -> None:
    lengths = {h.name: h.duration_s for h in asker.answer(Request("x")).hits}
    assert names(asker, text="x", filters=Filters(min_duration_s=lengths["c.mkv"] - 0.01)) == ["c.mkv"]
    assert names(asker, text="x", filters=Filters(max_duration_s=lengths["a.mp4"] + 0.01)) == ["a.mp4"]
    shape = {h.width > h.height for h in asker.answer(Request("x")).hits}
    assert shape == {True}
    assert len(names(asker, text="x", filters=Filters(orientation="landscape"))) == 3
    assert names(asker, text="x", filters=Filters(orientation="portrait")) == []
    today = date.today()
    assert len(names(asker, text="x", filters=Filters(after=today - timedelta(1), before=today))) == 3
    assert names(asker, text="x", filters=Filters(after=today + timedelta(1))) == []


@pytest.mark.parametrize(
    ("aspect", "turn", "size", "looks"),
    [
        (None, False, (64, 48), "landscape"),
        (None, True, (48, 64), "portrait"),
        (Fraction(3, 4), False, (48, 48), "square"),
        (Fraction(4, 3), True, (48, 85), "portrait"),
    ],
)
def test_the_size_is_the_one_that_is_shown(
    tmp_path: Path, aspect: Fraction | None, turn: bool, size: tuple[int, int], looks: str
) -> None:
    """Phones store upright films lying, and old ones have pixels that are not square."""
    (tmp_path / "v").mkdir()
    film = write(tmp_path / "v" / "a.mp4", frames=6, aspect=aspect)
    if turn:
        turned(film)
    index = new_index(tmp_path / "i")
    assert update(index, tiny_model(), [str(tmp_path / "v")]).indexed == 1
    (file,) = index.moments().files
    assert (file.width, file.height) == size
    assert orientation(file) == looks


def test_more_like_this_leaves_the_thing_itself_out(index: Index, asker: Asker) -> None:
    asker.first.refresh()
    file = next(f for f in asker.first.catalog.files if f.path.endswith("a.mp4"))
    assert sorted(names(asker, like=[Like(file.id)])) == ["b.mp4", "c.mkv"]
    moments = index.moments()
    row = np.flatnonzero((moments.file == 0) & (moments.level == 1))[-1]
    at_s = float(moments.start_s[row] + moments.end_s[row]) / 2
    np.testing.assert_array_equal(asker.first.liked(Like(file.id, at_s)), moments.vectors[row])


def test_weights_lean_a_combination_to_one_side(asker: Asker) -> None:
    asker.first.refresh()
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    text, picture = Request("a red circle"), Request(images=[image])
    pure = asker._vectors([asker.first], text)[0], asker._vectors([asker.first], picture)[0]
    for weights, nearer in (({"image": 0.01}, 0), ({"text": 0.01}, 1)):
        both = asker._vectors([asker.first], Request("a red circle", images=[image], weights=weights))[0]
        assert both @ pure[nearer] > 0.99


def test_minus_lowers_what_is_taken_away(asker: Asker) -> None:
    asker.first.refresh()
    plain, without = (asker._vectors([asker.first], Request(t))[0] for t in ("a red circle", "a red circle -square"))
    said = asker._vectors([asker.first], Request("square"))[0]
    assert without @ said < plain @ said
    by_list = asker._vectors([asker.first], Request("a red circle", minus=["square"]))[0]
    np.testing.assert_allclose(without, by_list, atol=1e-6)


def test_tags_filter_and_are_counted(tmp_path: Path) -> None:
    index = new_index(tmp_path / "i")
    update(index, tiny_model(), [str(library(tmp_path / "v"))])
    asker = Asker(index, tiny_model())
    with pytest.raises(ClipreelError, match="no video has the tag 'circle'; there are none"):
        asker.answer(Request("x", filters=Filters(tags=["circle"])))
    tag(index, tiny_model(), ["circle", "square"], most=1, least=0.0)
    answer = asker.answer(Request("x"))
    assert sum(f.count for f in answer.facets.tags) >= 3
    some = answer.facets.tags[0]
    assert len(names(asker, text="x", filters=Filters(tags=[some.name]))) == some.count


def test_what_became_of_the_files_is_said(tmp_path: Path) -> None:
    index = new_index(tmp_path / "i")
    folder = library(tmp_path / "v")
    update(index, tiny_model(), [str(folder)])
    (folder / "a.mp4").unlink()
    os.utime(folder / "b.mp4", ns=(1, 1))
    answer = Asker(index, tiny_model()).answer(Request("x"))
    assert {h.name: h.state for h in answer.hits} == {"a.mp4": "missing", "b.mp4": "changed", "c.mkv": "present"}
    assert len(answer.notes) == 2
    assert "1 of these videos is not there any more" in answer.notes[0]
    assert state_of(index.visible()[2]) == "present"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "the query is empty"),
        ({"text": "x", "rank": "best"}, "rank 'best': allowed are plain, bank"),
        ({"text": "x", "weights": {"sound": 1}}, "a weight of 'sound'"),
        ({"text": "x", "weights": {"text": float("nan")}}, "from 0 to 10"),
        ({"text": "x", "k": 0}, "ask for at least 1"),
        ({"text": "x", "adapters": ["mine"]}, "no adapter 'mine' answers here"),
        ({"text": "x", "rerank": "alpro"}, "no reranker 'alpro' is loaded"),
        ({"like": [Like("nothing")]}, "no video of the index has the id 'nothing'"),
        ({"text": "x", "minus": ["y"] * 17}, "17 terms in one query"),
        ({"images": [np.zeros((2, 2), np.uint8)]}, "pixels of an image are"),
    ],
)
def test_what_cannot_be_asked(asker: Asker, asked: dict, told: str) -> None:
    with pytest.raises(ClipreelError, match=told):
        asker.answer(Request(**asked))


def test_answers_are_plain_json_without_paths(asker: Asker) -> None:
    told = asker.answer(Request("x")).to_dict()
    assert set(told) == {"hits", "state", "total", "facets", "took_ms", "notes", "matching"}
    assert "path" not in told["hits"][0]
    assert told["hits"][0]["unusual"] is None


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Asker, Retriever]:
    """A base and an adapter on it, each with an index of the same videos."""
    place = tmp_path_factory.mktemp("two")
    folder, base = library(place / "films"), tiny_model()
    torch.manual_seed(1)
    tuner = build("lora", base.clip).eval().requires_grad_(False)
    for p in tuner.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    adapted = base.adapted(tuner, adapter="mine")
    indexes = []
    for model, name in ((base, "base"), (adapted, "mine")):
        indexes.append(Index.create(place / name, facts_of(model, Segments("windows", 0.5, 0.0, 4.0))))
        update(indexes[-1], model, [str(folder)])
    return Asker(indexes[0], base, adapters={"mine": (adapted, indexes[1])}), adapted


def test_an_adapter_answers_from_its_own_index(two: tuple[Asker, Retriever]) -> None:
    asker, adapted = two
    hits = asker.answer(Request("a red circle", adapters=["mine"])).hits
    plain = Searcher(asker.views["mine"].index, adapted).search(Query(["a red circle"]))
    assert [str(h.path) for h in hits] == [h.path for h in plain]
    np.testing.assert_allclose([h.score for h in hits], [h.score for h in plain], atol=1e-6)
    assert {h.adapter for h in hits} == {"mine"}


def test_several_adapters_answer_in_one_pass(two: tuple[Asker, Retriever], monkeypatch: pytest.MonkeyPatch) -> None:
    asker, passes = two[0], []
    run = mixing.one_pass
    monkeypatch.setattr(mixing, "one_pass", lambda r, s: passes.append(len(r)) or run(r, s))
    answer = asker.answer(Request("a red circle -square", adapters=["", "mine"]))
    assert passes == [4]  # two texts with each of two
    assert sorted(h.name for h in answer.hits) == ["a.mp4", "b.mp4", "c.mkv"]
    for view in asker.views.values():
        own = [h for h in answer.hits if h.adapter == view.name]
        alone = {h.video: h.score for h in asker.answer(Request("a red circle -square", adapters=[view.name])).hits}
        assert all(h.score == pytest.approx(alone[h.video], abs=1e-5) for h in own)


def test_a_reranker_orders_the_candidates_and_those_it_drops_are_gone(index: Index) -> None:
    seen: list[int] = []

    def backwards(query: Query, hits: list[Candidate]) -> list[Candidate]:
        seen.append(len(hits))
        return [replace(h, score=float(n)) for n, h in enumerate(hits[:0:-1])]

    asker = Asker(index, tiny_model(), rerankers={"turn": backwards})
    plain = names(asker, text="x")
    answer = asker.answer(Request("x", rerank="turn", candidates=2))
    assert [h.name for h in answer.hits] == [plain[1], plain[2]]
    assert answer.hits[0].score == 0.0
    assert seen == [2]
