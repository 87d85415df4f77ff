"""Where indexes and their videos lie: folders that are known, URIs, and making an index that was interrupted."""

import os
from pathlib import Path

import numpy as np
import pytest

from clipreel.cli import main
from clipreel.cli.search import open_if_there
from clipreel.search import ann
from clipreel.search.index import Index, NoIndex, file_schema
from clipreel.search.indexer import facts_of, remember, unremember, update
from clipreel.search.query import Query, Searcher
from clipreel.video.shots import Segments
from tests.search.tiny import library, new_index, tiny_model
from tests.video.make import write


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_store_takes_a_uri(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the life of an index through LanceDB's object-store layer (memory://), and a folder written as file://."""
    folder, model = library(tmp_path / "v"), tiny_model()
    place = {"memory": "memory://library", "file": f"file://{tmp_path}/i"}[kind]
    facts = facts_of(model, Segments("windows", 0.5, 0.0, 4.0))
    index = Index.create(place, facts)
    local = new_index(tmp_path / "local")
    for each in (index, local):
        assert update(each, model, [str(folder)]).indexed == 3
    (folder / "a.mp4").rename(folder / "moved.mp4")
    (folder / "b.mp4").unlink()
    write(folder / "d.mp4", frames=15)
    for each in (index, local):
        report = update(each, model, [str(folder)])
        assert (report.moved, report.indexed, report.forgotten, report.unchanged) == (1, 1, 1, 1)
    np.testing.assert_array_equal(index.moments().vectors, local.moments().vectors)
    query = Query(["a red circle"])
    exact = Searcher(local, model).search(query)
    assert Searcher(index, model).search(query) == exact
    monkeypatch.setattr(ann, "THRESHOLD", 0)
    update(index, model, [str(folder)])
    searcher = Searcher(index, model)
    assert searcher.search(query) == exact
    assert isinstance(searcher.source(), ann.Approximate)
    if kind == "file":
        assert Index(place).place == str(tmp_path / "i")
        assert os.path.isdir(tmp_path / "i" / "vectors.lance")
    else:
        with pytest.raises(NoIndex, match="--index memory://other"):
            Index("memory://other")


def test_a_uri_that_cannot_be_reached_says_what_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "x", "--index", "nosuch://bucket/index"]) == 2
    said = capsys.readouterr().err
    assert "nosuch://bucket/index" in said
    assert "check the address" in said
    assert len(said.splitlines()) == 1


def test_making_an_index_that_was_interrupted(tmp_path: Path) -> None:
    index = new_index(tmp_path / "i")
    index.db.drop_table("facts")  # it is written last
    with pytest.raises(NoIndex, match="interrupted"):
        Index(tmp_path / "i")
    assert open_if_there(str(tmp_path / "i")) is None
    again = new_index(tmp_path / "i")
    update(again, tiny_model(), [str(library(tmp_path / "v"))])
    again.db.drop_table("facts")  # damaged, and something is stored: not made anew
    with pytest.raises(Exception, match="not a whole clipreel index"):
        new_index(tmp_path / "i")
    assert again.db.open_table("files").count_rows() == 3
    assert again.db.open_table("files").schema == file_schema()


def test_folders_inside_others_are_not_named(tmp_path: Path) -> None:
    index, (a, b) = new_index(tmp_path / "i"), (str(tmp_path / "a"), str(tmp_path / "b"))
    remember(index, [os.path.join(a, "deep"), b, os.fsdecode(b"/broken\xff")])
    remember(index, [a, os.path.join(b, "deep")])
    assert Index(tmp_path / "i").facts["roots"] == [b, os.fsdecode(b"/broken\xff"), a]
    assert unremember(index, [str(tmp_path)]) == 2
    assert index.facts["roots"] == [os.fsdecode(b"/broken\xff")]
    assert unremember(index, [a]) == 0


def test_index_without_folders_takes_those_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "i")
    assert main(["index", "--index", place]) == 2
    assert "name a folder to index" in capsys.readouterr().err
    one, two = library(tmp_path / "one", ("a.mp4",)), library(tmp_path / "two", ("b.mp4",))
    given = ["--index", place, "--model", "shapes-tiny", "--overlap", "0", "--seconds", "0.5"]
    assert main(["index", str(one), *given]) == 0
    assert main(["index", str(two), "--index", place]) == 0
    write(one / "c.mp4", frames=12)
    (two / "b.mp4").unlink()
    capsys.readouterr()
    assert main(["index", "--index", place]) == 0
    assert "indexed 1 videos" in (said := capsys.readouterr().out)
    assert "forgot 1, unchanged 1" in said
    assert main(["status", "--index", place]) == 0
    assert f"{one}, {two}" in capsys.readouterr().out
    one.rename(tmp_path / "unmounted")
    assert main(["index", "--index", place]) == 2  # nothing is left to do
    assert f"{one}: missing (is the disk mounted?" in capsys.readouterr().err
    assert len(Index(place).moments().files) == 2  # and nothing is lost
    write(two / "d.mp4", frames=12)
    assert main(["index", "--index", place]) == 1
    assert main(["forget", str(one), "--index", place]) == 0
    assert main(["index", "--index", place]) == 0
    assert Index(place).facts["roots"] == [str(two)]


def test_overlap_of_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = library(tmp_path / "v", ("a.mp4",))  # one second
    starts = {}
    for overlap in ("0", "0.5"):
        place = str(tmp_path / f"i{overlap}")
        given = ["--model", "shapes-tiny", "--index", place, "--seconds", "0.5", "--fps", "12", "--overlap", overlap]
        assert main(["index", str(folder), *given]) == 0
        m = Index(place).moments()
        starts[overlap] = m.start_s[m.level == 1].tolist()
    assert starts == {"0": [0.0, 0.5], "0.5": [0.0, 0.25, 0.5]}
    assert main(["index", str(folder), "--index", place, "--overlap", "0.8"]) == 0
    assert "the index keeps windows of 0.5 s, overlap 0.5" in capsys.readouterr().err
    for wrong in ("1", "-0.1", "nan"):
        assert main(["index", str(folder), "--index", place, "--overlap", wrong]) == 2
        assert "overlap from 0 to below 1" in capsys.readouterr().err
