"""What `clipreel search` can be asked beside words, and what scores are compared with."""

import json
from datetime import date, timedelta
from pathlib import Path

import pytest

from clipreel.cli import main
from clipreel.data.shapes import ShapesWorld
from clipreel.search.index import Index


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("archive")
    ShapesWorld().write_videos(folder / "films" / "new", "test", count=4)
    index = str(folder / "index")
    films = str(folder / "films")
    assert main(["index", films, "--model", "shapes-tiny", "--index", index, "--frames", "--segments", "none"]) == 0
    return index


def asked(place: str, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    capsys.readouterr()
    assert main(["search", *words, "--index", place, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_hits_say_where_why_and_how_unusual(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = asked(place, capsys, ShapesWorld().videos("test")[0].captions[0])
    assert len(rows) == 4
    for row in rows:
        assert row["folder"] == "films/new"
        assert 0 <= row["unusual"] <= 1
        assert row["words"] in {"strong match", "good match", "weak match", "unlikely"}
        assert row["matched"]
    assert main(["search", "a red circle", "--index", place]) == 0
    assert any(w in capsys.readouterr().out for w in ("match", "unlikely"))


def test_more_like_a_video_by_its_id_or_path(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = asked(place, capsys, "a red circle")[0]
    by_id, by_path = (asked(place, capsys, "--like", f"{x}@1.0") for x in (first["video"], first["path"]))
    assert [r["video"] for r in by_id] == [r["video"] for r in by_path]
    assert first["video"] not in [r["video"] for r in by_id]
    assert main(["search", "--like", "unknown", "--index", place]) == 2
    assert "no video of the index has the id 'unknown'" in capsys.readouterr().err


def test_filters_by_folder_date_and_shape(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    tomorrow = (date.today() + timedelta(1)).isoformat()
    assert (
        len(asked(place, capsys, "x", "--folder", "films", "--orientation", "square", "--before-date", tomorrow)) == 4
    )
    for words in (("--folder", "other"), ("--orientation", "portrait"), ("--after-date", tomorrow)):
        assert main(["search", "x", "--index", place, *words]) == 2
        assert "nothing in the index passes" in capsys.readouterr().err


def test_what_nothing_answers_is_said(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    index = Index(place)
    fact = index.facts["calibration"]
    index.set_facts(calibration={**fact, "cutoff": 1000.0})
    try:
        assert main(["search", "a red circle", "--index", place]) == 0
        assert "nothing here matches" in capsys.readouterr().err
    finally:
        index.set_facts(calibration=fact)


def test_a_rank_by_the_bank_and_weights(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(asked(place, capsys, "a red circle", "--rank", "bank", "--weight", "text=2")) == 4
    assert main(["search", "x", "--index", place, "--weight", "text"]) == 2
    assert "say it as text=1" in capsys.readouterr().err


def test_the_bank_can_be_changed_or_left_out(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("\n".join(i.captions[0] for i in ShapesWorld().videos("val")[:30]))
    assert main(["index", "--index", place, "--bank", str(mine), "--false-alarm", "0.2"]) == 0
    assert main(["index", "--index", place]) == 0  # keeps it
    capsys.readouterr()
    assert main(["status", "--index", place]) == 0
    assert f"with the bank {mine} (30 queries)" in capsys.readouterr().out
    assert main(["index", "--index", place, "--bank", "none"]) == 0
    capsys.readouterr()
    assert main(["status", "--index", place]) == 0
    assert "scores are bare cosines" in capsys.readouterr().out
    assert {r["words"] for r in asked(place, capsys, "a red circle")} == {"unrated"}
