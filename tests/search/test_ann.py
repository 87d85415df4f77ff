"""The approximate index: as good as it says, never stale, and filtered like the exact search."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipreel.cli import main
from clipreel.search import ann
from clipreel.search.ann import Approximate, described, refresh
from clipreel.search.index import File, Index
from clipreel.search.indexer import update
from clipreel.search.query import Filter, Hit, Query, Searcher
from tests.search.tiny import library, new_index, tiny_model

WIDTH, FILES, SEGMENTS = 16, 160, 6


def vectors(n: int, seed: int = 0) -> np.ndarray:
    """Clusters with a common direction, as frames of videos have."""
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((40, WIDTH))
    x = 3 + topics[rng.integers(0, 40, n)] * 2 + rng.standard_normal((n, WIDTH)) * 0.5
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def add(index: Index, start: int, count: int, reason: str = "") -> list[File]:
    """Made files of one whole-video vector and some segments each."""
    files, rows = [], []
    made = vectors(count * (SEGMENTS + 1), seed=start)
    for n in range(start, start + count):
        file = File(f"{n:024d}", f"/films/{'even' if n % 2 == 0 else 'odd'}/{n:05d}.mp4", 1, 1, str(n), 10.0 + n)
        files.append(file)
        for s in range(SEGMENTS + 1):
            level, begin = (1, 2.0 * (s - 1)) if s else (0, 0.0)
            vector = made[(n - start) * (SEGMENTS + 1) + s]
            row = {"id": f"{file.id}/{s}", "file": file.id, "level": level, "start_s": begin, "end_s": begin + 2.0}
            rows.append({**row, "vector": vector} if s else {**row, "end_s": 12.0, "vector": vector})
    index.put(files if not reason else [], rows)
    return files


@pytest.fixture(scope="module", autouse=True)
def at_every_size() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "QUESTIONS", 16)
        patch.setattr(ann, "THRESHOLD", 0)
        patch.setattr(ann, "RECALL", 0.99)  # a margin for queries that were not measured
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    index = new_index(tmp_path_factory.mktemp("ann") / "i")
    add(index, 0, FILES)
    assert refresh(index, tiny_model()) is not None
    return index.place


class Given(Searcher):
    """A searcher whose query vector is set by the test."""

    given: np.ndarray | None = None

    def vector(self, query: Query) -> np.ndarray:
        return super().vector(query) if self.given is None else self.given


def both_ways(place: str, f: Filter, k: int = 10) -> tuple[list[list[Hit]], list[list[Hit]]]:
    """Answers to queries near the stored vectors, exact and approximate."""
    model = tiny_model()
    rng = np.random.default_rng(9)
    near = rng.permutation(vectors(FILES * (SEGMENTS + 1)))[:30]  # as `place` holds them
    queries = ann.unit_rows(near + 0.4 * ann.unit_rows(rng.standard_normal(near.shape)))
    answers = []
    for exact in (True, False):
        searcher = Given(Index(place), model, exact)
        found = []
        for q in queries:
            searcher.given = q
            found.append(searcher.search(Query(["x"], filter=f), k))
        assert isinstance(searcher.source(), Approximate) is not exact
        answers.append(found)
    return answers[0], answers[1]


def agreement(exact: list[list[Hit]], near: list[list[Hit]]) -> float:
    """The share of exact hits that were found, each with a moment that fits as well or nearly so."""
    assert [len(h) for h in exact] == [len(h) for h in near]
    shares = []
    for right, answer in zip(exact, near, strict=True):
        score = {h.path: h.score for h in answer}
        shares.append(np.mean([score.get(h.path, -1.0) > h.score - 0.02 for h in right]))
    return float(np.mean(shares))


FILTERS = {
    "none": Filter(),
    "one folder, half of the files": Filter(under="/films/even"),
    "a few": Filter(name="0007"),
    "all but a few": Filter(min_duration_s=15),
    "duration": Filter(min_duration_s=50, max_duration_s=90),
    "time": Filter(after_s=5.0, before_s=7.0),
    "time and folder": Filter(under="/films/odd", before_s=3.0),
    "nothing": Filter(under="/none"),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(("few", "listed"), [(ann.FEW, ann.LISTED), (0, 5)])
def test_agrees_with_exact_search(
    place: str, name: str, few: int, listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "FEW", few)  # files are read whole, or searched,
    monkeypatch.setattr(ann, "LISTED", listed)  # named in the condition, or looked over
    exact, near = both_ways(place, FILTERS[name])
    if name == "nothing":
        assert near == exact == [[]] * 30
    else:
        assert agreement(exact, near) >= 0.95
    if name.startswith("one folder"):
        assert all(h.path.startswith("/films/even/") for hits in near for h in hits)


def test_more_answers_than_a_first_look_gives(place: str) -> None:
    exact, near = both_ways(place, Filter(), k=100)
    assert agreement(exact, near) >= 0.95
    exact, near = both_ways(place, Filter(), k=10 * FILES)
    assert agreement(exact, near) == 1


def test_measured_recall_is_what_a_recount_finds(place: str) -> None:
    index = Index(place)
    fact = index.facts["ann"]
    assert min(fact["recall"].values()) >= ann.RECALL
    assert fact["queries"] == {"texts": 16, "frames": 16}
    searcher, exact = (Given(index, tiny_model(), e) for e in (False, True))
    for name, queries in ann.questions(index, tiny_model()).items():
        found = []
        for q in queries:
            searcher.given = exact.given = q
            near, right = ({h.path for h in s.search(Query(["x"]), 10)} for s in (searcher, exact))
            found.append(len(near & right) / 10)
        assert np.mean(found) == pytest.approx(fact["recall"][name], abs=0.01), name
    assert "recall@10" in described(fact)


def test_status_shows_it(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--index", place]) == 0
    assert described(Index(place).facts["ann"]) in capsys.readouterr().out
    assert main(["status", "--index", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["approximate"]["recall"] == Index(place).facts["ann"]["recall"]


def test_new_deleted_and_unfinished_files(tmp_path: Path) -> None:
    model, index = tiny_model(), new_index(tmp_path / "i")
    files = add(index, 0, 60)
    refresh(index, model)
    searcher = Given(index, model)
    late = add(index, 60, 3)
    unfinished = add(index, 63, 3, reason="interrupted")
    index.remove(f.id for f in files[:20])

    def paths(k: int) -> set[str]:
        return {h.path for h in searcher.search(Query(["a circle"]), k)}

    wanted = {f.path for f in [*files[20:], *late]}
    assert paths(200) == wanted
    for q in vectors(20):
        searcher.given = q
        assert paths(5) <= wanted
    for file in late:
        row = index.rows(f"file = '{file.id}'").to_pylist()[0]
        searcher.given = np.asarray(row["vector"], np.float32)
        assert searcher.search(Query(["x"]), 1)[0].path == file.path
    assert not paths(200) & {f.path for f in unfinished}
    index.tidy()
    assert paths(200) == wanted


def test_index_builds_it_above_the_threshold_and_drops_it_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, index, model = library(tmp_path / "v"), new_index(tmp_path / "i"), tiny_model()
    monkeypatch.setattr(ann, "THRESHOLD", 12)  # there are 3 + 4 + 5 vectors
    update(index, model, [str(folder)])
    assert "ann" not in index.facts
    monkeypatch.setattr(ann, "THRESHOLD", 11)
    update(index, model, [str(folder)])
    assert index.facts["ann"]["rows"] == 12
    assert Index(index.place).facts["ann"] == index.facts["ann"]
    hits = Searcher(index, model).search(Query(["a red circle"]), 3)
    assert hits == Searcher(index, model, exact=True).search(Query(["a red circle"]), 3)
    (folder / "a.mp4").unlink()
    update(index, model, [str(folder)])
    assert index.facts["ann"]["rows"] == 9  # not dropped at once, and measured again
    (folder / "b.mp4").unlink()
    update(index, model, [str(folder)])
    assert "ann" not in index.facts
    assert "ann" not in Index(index.place).facts
    assert len(Searcher(index, model).search(Query(["a red circle"]), 3)) == 1


def test_a_grown_index_is_measured_and_trained_again(tmp_path: Path) -> None:
    model, index = tiny_model(), new_index(tmp_path / "i")
    add(index, 0, 30)
    first = refresh(index, model)
    assert refresh(index, model) == first
    add(index, 30, 10)
    index.tidy()
    second = refresh(index, model)
    assert first is not None
    assert second is not None
    assert (second["rows"], second["trained"], second["partitions"]) == (280, 210, first["partitions"])
    add(index, 40, 60)
    index.tidy()
    third = refresh(index, model)
    assert third is not None
    assert third["trained"] == third["rows"] == 700
