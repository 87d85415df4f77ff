"""An archive that lives: files that come and go, saved queries, another model, answers that people judged."""

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from clipreel.data.readers import read_samples
from clipreel.errors import ClipreelError
from clipreel.search import canary, migrate
from clipreel.search.bank import bank_of
from clipreel.search.calibration import calibrate
from clipreel.search.index import Index
from clipreel.search.indexer import Report, check_space, update
from clipreel.search.judged import Judged, judge, judged, pairs, read_collection
from clipreel.search.query import Query, Searcher
from clipreel.search.watch import watch
from tests.search.tiny import library, new_index, tiny_model

WORDS = ["a red circle", "a green star grows"]


def indexed(tmp_path: Path) -> tuple[Index, Path]:
    films = library(tmp_path / "films")
    index = new_index(tmp_path / "index")
    update(index, tiny_model(), [str(films)])
    return index, films


def test_saved_queries_tell_what_moved(tmp_path: Path) -> None:
    index, films = indexed(tmp_path)
    searcher = Searcher(index, tiny_model())
    canary.save(index, searcher, WORDS)
    assert not any(m.warns for m in canary.moved(Index(index.place), searcher))
    best = canary.canaries(index)[WORDS[0]][0]
    os.remove(best)
    update(index, tiny_model(), [str(films)])
    found = canary.moved(index, searcher)[0]
    assert found.warns
    assert found.first is None
    assert found.left == (best,)
    assert found.overlap == pytest.approx(2 / 3)
    canary.forget(index, [WORDS[0]])
    assert list(canary.canaries(Index(index.place))) == [WORDS[1]]
    with pytest.raises(ClipreelError, match="no saved query; saved are: 'a green star grows'"):
        canary.forget(index, ["another"])


def test_rankings_are_compared_by_their_best_and_their_members() -> None:
    assert canary.compared("q", ["a", "b", "c"], ["a", "c", "b"]) == canary.Moved("q", 1.0, 1, (), ())
    fell = canary.compared("q", ["a", "b"], ["b", "a"])
    assert (fell.first, fell.overlap, fell.warns) == (2, 1.0, True)
    assert canary.compared("q", list("abcdefghij"), list("abcdefwxyz")).warns
    assert not canary.compared("q", list("abcdefghij"), list("abcdefghyz")).warns
    assert not canary.compared("q", [], []).warns


def test_a_new_model_is_compared_with_the_bank_of_the_old_one(tmp_path: Path) -> None:
    index, _ = indexed(tmp_path)
    assert "calibration" not in migrate.grow(index, tiny_model(1))[0].facts  # the old one has none either
    migrate.cancel(index.place)
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(f"a red circle {n}" for n in range(20)))
    calibrate(index, tiny_model(), bank_of(index, str(file)), 0.1)
    index.set_facts(bank=str(file))
    new, _ = migrate.grow(index, tiny_model(1))
    fact = new.facts["calibration"]
    assert (fact["bank"], fact["false_alarm"], fact["videos"]) == (str(file), 0.1, 3)
    assert new.facts["bank"] == str(file)
    file.unlink()
    assert migrate.grow(index, tiny_model(1))[0].facts["calibration"] == fact  # nothing changed: not read again


def test_another_model_grows_beside_and_takes_the_place(tmp_path: Path) -> None:
    index, _ = indexed(tmp_path)
    first, second = tiny_model(), tiny_model(1)
    canary.save(index, Searcher(index, first), WORDS)
    film = index.visible()[0]
    judge(index, [Judged("a red circle", film.path, 0.0, 0.5, True)])
    with pytest.raises(ClipreelError, match="nothing to migrate"):
        migrate.grow(index, first)
    new, report = migrate.grow(index, second)
    assert report.indexed == 3
    # both answer
    assert len(Searcher(index, first).search(Query(["a"]))) == len(Searcher(new, second).search(Query(["a"]))) == 3
    assert [m.query for m in migrate.differences(index, new, second)] == WORDS
    _, again = migrate.grow(index, second)
    assert (again.indexed, again.unchanged) == (0, 3)
    with pytest.raises(ClipreelError, match="was begun before"):
        migrate.grow(index, tiny_model(2))
    before = Searcher(Index(index.place), first)
    before.search(Query(["a"]))
    migrate.switch(index.place, second)
    with pytest.raises(ClipreelError, match="was made with"):  # whoever had the old one open
        before.search(Query(["a"]))
    now = Index(index.place)
    check_space(now, second)
    assert not any(m.warns for m in canary.moved(now, Searcher(now, second)))
    assert judged(now) == judged(index)
    check_space(Index(index.place + migrate.BEFORE), first)
    migrate.undo(index.place)
    check_space(Index(index.place), first)
    migrate.cancel(index.place)
    # what people judged is not the index's to take along
    assert sorted(os.listdir(tmp_path)) == ["films", "index", "index.pairs.jsonl"]
    with pytest.raises(ClipreelError, match="no migration is under way"):
        migrate.cancel(index.place)
    with pytest.raises(ClipreelError, match="nothing was switched"):
        migrate.undo(index.place)
    with pytest.raises(ClipreelError, match="cannot rename"):
        migrate.beside("s3://bucket/index", migrate.NEXT)


def test_a_switch_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    index, _ = indexed(tmp_path)
    migrate.grow(index, tiny_model(1))
    os.rename(index.place, index.place + migrate.BEFORE)  # the process died here
    migrate.switch(index.place)
    check_space(Index(index.place), tiny_model(1))


def test_a_switch_waits_for_writers(tmp_path: Path) -> None:
    index, _ = indexed(tmp_path)
    new, _ = migrate.grow(index, tiny_model(1))
    with Index(new.place).writing(), pytest.raises(ClipreelError, match="is writing the index"):
        migrate.switch(index.place)
    check_space(Index(index.place), tiny_model())


def test_judged_answers_become_pairs(tmp_path: Path) -> None:
    index, _ = indexed(tmp_path)
    film, other = index.visible()[:2]
    rows = [
        Judged("a red circle", film.path, 0.0, 0.5, True),
        Judged("something round", film.path, 0.0, 0.5, True),
        Judged("a red circle", other.path, 0.5, 1.0, False),
    ]
    assert judge(index, rows) == 3
    assert judge(Index(index.place), [replace(rows[2], right=True)]) == 3  # the later word counts
    made = tmp_path / "pairs.jsonl"
    made.write_text("".join(json.dumps(row) + "\n" for row in pairs(judged(index))))
    samples = read_samples(made)
    assert [s.captions for s in samples] == [("a red circle", "something round"), ("a red circle",)]
    assert (samples[0].start_s, samples[0].end_s, str(samples[0].video)) == (0.0, 0.5, film.path)
    judge(index, [rows[2], Judged("nothing right", film.path, 0.0, 0.5, False)])
    part = {"start": 0.0, "end": 0.5}
    assert pairs(judged(index)) == [
        {
            "video": film.path,
            **part,
            "captions": ["a red circle"],
            "not": [{"video": other.path, "start": 0.5, "end": 1}],
        },
        {"video": film.path, **part, "captions": ["something round"]},
    ]
    for bad, says in (
        (Judged("q", str(tmp_path / "no.mp4"), 0, 1, True), "is not in the index"),
        (Judged("q", film.path, 5, 2, True), "5-2 is no part"),
        (Judged("q", film.path, 90, 99, True), "no part"),
        (Judged(" ", film.path, 0, 1, True), "without a query"),
    ):
        with pytest.raises(ClipreelError, match=says):
            judge(index, [bad])


def test_collections_are_read(tmp_path: Path) -> None:
    file = tmp_path / "hits.json"
    first, second = '{"path": "/a.mp4", "start_s": 1, "end_s": 2.5}', '{"path": "/b.mp4", "start_s": 0, "end_s": 1,'
    lines = f'{first}\n{second} "right": false}}\n'
    file.write_text(lines)
    wanted = [Judged("q", "/a.mp4", 1.0, 2.5, True), Judged("q", "/b.mp4", 0.0, 1.0, False)]
    assert read_collection(file, "q") == wanted
    file.write_text(json.dumps({"hits": [json.loads(line) | {"query": "q"} for line in lines.splitlines()]}, indent=1))
    assert read_collection(file) == wanted
    for text, says in (
        ("[{]", "no readable JSON"),
        ('{"path": "/a.mp4"}', "hit 1: needs path, start_s"),
        ('{"path": "/a.mp4", "start_s": 1, "end_s": 2}', "says no query"),
        ('{"path": "/a.mp4", "start_s": 1, "end_s": NaN, "query": "q"}', "not finite"),
    ):
        file.write_text(text)
        with pytest.raises(ClipreelError, match=says):
            read_collection(file)


def test_the_index_follows_its_folder(tmp_path: Path) -> None:
    index, films = indexed(tmp_path)
    reports: list[Report] = []
    stop, came = threading.Event(), threading.Event()

    def told(report: Report) -> None:
        reports.append(report)
        came.set()

    thread = threading.Thread(
        target=watch,
        args=(index, tiny_model(), [str(films)], told),
        kwargs={"stop": stop, "polling": True, "quiet_ms": 200},
    )
    thread.start()
    try:
        for change in (
            lambda: shutil.copy(films / "a.mp4", films / "copy.mp4"),
            lambda: os.rename(films / "copy.mp4", films / "renamed.mp4"),
            lambda: os.remove(films / "renamed.mp4"),
        ):
            came.clear()
            time.sleep(0.5)  # the watcher must have seen the folder as it was
            change()
            assert came.wait(30)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert [(r.indexed, r.moved, r.forgotten) for r in reports] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
