"""Whether a score stands out among other videos, by hand and in an index."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipreel.adapter import load
from clipreel.data.shapes import ShapesWorld
from clipreel.search import spread
from clipreel.search.ann import Approximate
from clipreel.search.ask import Asker, Filters, Like, Request
from clipreel.search.index import File, Index
from clipreel.search.spread import LEAST, Sample, Spread
from clipreel.search.view import View
from tests.search.tiny import new_index, tiny_model

WIDTH = 16

FILMS = 2 * LEAST


def indexed(place: Path, count: int) -> Index:
    """Videos of a few segments with vectors by chance."""
    index, rng = new_index(place), np.random.default_rng(0)
    files = [File(f"v{n}", f"/films/{n:02}.mp4", 1, 1, f"h{n}", 9.0, 32, 24) for n in range(count)]
    rows = [
        {"id": f"{f.id}-{k}", "file": f.id, "level": int(k > 0), "start_s": start, "end_s": start + 3.0, "vector": v}
        for f in files
        for k, (start, v) in enumerate(zip((0.0, 0.0, 3.0, 6.0), rng.normal(size=(4, WIDTH)), strict=True))
    ]
    for row in rows:
        row["vector"] = (row["vector"] / np.linalg.norm(row["vector"])).astype(np.float32)
    index.put(files, rows)
    return index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return indexed(tmp_path_factory.mktemp("spread") / "i", FILMS)


def test_middle_and_deviation_are_hardly_moved_by_what_fits() -> None:
    rng = np.random.default_rng(0)
    usual = rng.normal(0.5, 0.05, 400).astype(np.float32)
    plain, with_fits = Spread.of(usual, 400), Spread.of(np.append(usual, np.full(20, 0.95, np.float32)), 420)
    assert plain is not None
    assert with_fits is not None
    assert with_fits.middle == pytest.approx(0.5, abs=0.01)
    assert with_fits.deviation == pytest.approx(0.05, abs=0.01)
    assert plain.matching(usual) <= 1
    assert with_fits.matching(np.append(usual, [0.95, -np.inf]).astype(np.float32)) == 1 + plain.matching(usual)
    assert (with_fits.words(0.95), with_fits.words(0.6)) == ("stands out", "one of many")
    assert with_fits.apart(0.95) == pytest.approx(9, abs=1)


def test_among_more_videos_more_is_needed() -> None:
    scores = np.linspace(0, 1, 50, dtype=np.float32)
    few, many = Spread.of(scores, 50), Spread.of(scores, 50_000)
    assert few is not None
    assert many is not None
    assert few.least == pytest.approx(3.09, abs=0.01)  # a bell curve reaches it once in a thousand
    assert many.least == pytest.approx(4.75, abs=0.01)


@pytest.mark.parametrize("scores", [np.linspace(0, 1, LEAST - 1), np.full(100, 0.5)], ids=["few", "alike"])
def test_too_few_or_equal_scores_say_nothing(scores: np.ndarray) -> None:
    assert Spread.of(scores.astype(np.float32), 100) is None


def test_a_sample_is_of_videos_with_all_their_vectors_and_leaves_out_what_was_asked_with(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = index.moments()
    query = every.vectors[every.file == 3][0]
    whole = Sample(index, every)
    best = every.best(every.vectors @ query)
    assert whole.spread(query) == Spread.of(best, FILMS)
    assert Sample(index, Approximate(index, {})).spread(query) == whole.spread(query)  # read from the disk
    assert whole.spread(query, [3]) == Spread.of(np.delete(best, 3), FILMS)
    assert whole.spread(query, range(LEAST + 1)) is None  # too few are left
    monkeypatch.setattr(spread, "VIDEOS", LEAST)
    few = Sample(index, every)
    assert (len(few.files), len(few.vectors)) == (LEAST, 4 * LEAST)
    monkeypatch.setattr(spread, "ROWS", 8)
    assert len(Sample(index, every).files) == LEAST  # of as many videos as are needed, however long they are


def test_a_picture_has_words_of_its_own_and_never_the_banks(index: Index) -> None:
    asker = Asker(index, tiny_model())
    red = np.zeros((16, 16, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    answer = asker.answer(Request(images=[red], k=100))
    assert {h.words for h in answer.hits} <= {"stands out", "one of many"}
    assert all(h.unusual is None and h.apart is not None for h in answer.hits)
    assert answer.matching == sum(h.words == "stands out" for h in answer.hits)
    assert answer.state == "ok"
    scores = [h.apart for h in answer.hits]
    assert scores == sorted(scores, reverse=True)


def test_what_is_not_in_a_filter_still_counts_as_other_videos(index: Index) -> None:
    asker = Asker(index, tiny_model())
    like = [Like("v0")]
    whole = {h.name: h.apart for h in asker.answer(Request(like=like, k=100)).hits}
    assert len(whole) == FILMS - 1
    narrow = asker.answer(Request(like=like, filters=Filters(name="07"))).hits
    assert [(h.name, h.apart) for h in narrow] == [("07.mp4", whole["07.mp4"])]


def test_nothing_stands_out_is_said(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker(index, tiny_model())
    like = Request(like=[Like("v0", 4.0)], k=100)
    monkeypatch.setattr(View, "spread", lambda *args: Spread(0.0, 1.0, 5.0))
    nothing = asker.answer(like)
    assert nothing.notes[-1] == "nothing stands out: many videos are about as near as the first"
    assert (nothing.state, nothing.matching, {h.words for h in nothing.hits}) == ("ok", 0, {"one of many"})
    monkeypatch.setattr(View, "spread", lambda *args: Spread(0.0, 0.01, 5.0))
    assert "nothing" not in asker.answer(like).notes[-1]


def test_on_the_shapes_world_stills_of_the_archive_stand_out_and_noise_hardly() -> None:
    model = load("shapes-tiny", device="cpu")

    def encoded(frames: np.ndarray) -> np.ndarray:
        pixels = model.preprocess.pixels(torch.from_numpy(frames))
        return model.encode_video(model.preprocess.normalise(pixels)[None])[0].numpy()

    films = [item.scene.render(64, 8) for item in ShapesWorld().videos("test")[:120]]
    archive = np.stack([encoded(film) for film in films])
    noise = [np.random.default_rng(n).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8) for n in range(20)]

    def standing_out(pictures: list[np.ndarray]) -> float:
        best = [archive @ encoded(picture) for picture in pictures]
        spreads = [Spread.of(scores, len(archive)) for scores in best]
        return float(np.mean([s is not None and s.matching(b) > 0 for s, b in zip(spreads, best, strict=True)]))

    assert standing_out([film[4:5] for film in films]) > 0.4
    assert standing_out(noise) <= 0.1


def test_too_few_videos_say_why_there_are_no_words(tmp_path: Path) -> None:
    answer = Asker(indexed(tmp_path / "i", LEAST), tiny_model()).answer(Request(like=[Like("v0")]))
    assert {(h.words, h.unusual, h.apart) for h in answer.hits} == {("unrated", None, None)}
    assert "needs 20" in answer.notes[-1]
    assert answer.matching is None
