"""clipreel canary, pairs, migrate and index --commercial, as a user runs them."""

import json
from pathlib import Path

import pytest

import clipreel
from clipreel.adapter import save_adapter
from clipreel.cli import main
from clipreel.data.shapes import ShapesWorld
from clipreel.tuners import build, options

QUERY = "a red circle moves to the left"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("archive")
    ShapesWorld().write_videos(folder / "films", "test", count=4)
    place = str(folder / "index")
    assert main(["index", str(folder / "films"), "--model", "shapes-tiny", "--index", place, "--commercial"]) == 0
    return place


def test_saved_queries_and_another_model(index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--index", index]
    assert main(["canary", "run", *at]) == 2
    assert "no query is saved" in capsys.readouterr().err
    assert main(["canary", "add", QUERY, *at]) == 0
    assert main(["canary", "run", "--json", *at]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["overlap"] == 1.0
    assert main(["canary", "list", *at]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{QUERY}  ")
    assert line.endswith(".mp4")
    assert main(["canary", "list", "--json", *at]) == 0
    assert len(json.loads(capsys.readouterr().out)["answers"]) == 4

    base = clipreel.load("shapes-tiny")
    model = base.adapted(build("lora", base.clip, options("lora", {})), adapter="x")
    adapter = str(save_adapter(tmp_path / "lora", model, "lora", options("lora", {})))
    assert main(["migrate", "--adapter", adapter, *at]) == 0
    told = capsys.readouterr()
    assert f"{QUERY}: 100% of the answers are the same, the former best is still first" in told.out
    assert "4 videos by shapes-tiny + lora" in told.err
    assert main(["migrate", "--switch", *at]) == 0
    assert main(["search", QUERY, "--json", *at]) == 0
    assert main(["canary", "run", *at]) == 0
    assert main(["migrate", "--undo", *at]) == 0
    assert main(["migrate", "--cancel", *at]) == 0
    assert main(["migrate", *at]) == 2
    assert "say one of --to MODEL" in capsys.readouterr().err


def test_answers_become_pairs(index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at, out = ["--index", index], tmp_path / "mine.jsonl"
    assert main(["pairs", "write", str(out), *at]) == 2
    assert main(["search", QUERY, "--json", "-k", "2", *at]) == 0
    hits = capsys.readouterr().out
    first, second = (json.loads(line)["path"] for line in hits.splitlines())
    (tmp_path / "hits.jsonl").write_text(hits)
    assert main(["pairs", "add", QUERY, "--hit", f"{first}@0.5-1.5", "--miss", second, *at]) == 0
    assert main(["pairs", "take", str(tmp_path / "hits.jsonl"), "--query", "red things", *at]) == 0
    assert main(["pairs", "write", str(out), *at]) == 0
    assert "3 pairs" in (said := capsys.readouterr().out)
    assert "1 wrong answers beside them" in said
    assert "stay here" not in said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    wrong = [{"video": second, "start": 0.0, "end": pytest.approx(rows[0]["not"][0]["end"])}]
    assert rows[0] == {"video": first, "start": 0.5, "end": 1.5, "captions": [QUERY], "not": wrong}
    assert all("not" not in row for row in rows[1:])  # of another query
    assert main(["pairs", "add", "never seen", "--miss", first, *at]) == 0
    assert main(["pairs", "write", str(out), *at]) == 0
    assert "1 wrong answers stay here: no right one of their queries" in capsys.readouterr().out
    assert main(["pairs", "add", QUERY, "--hit", f"{first}@1-..", *at]) == 2
    assert main(["pairs", "add", QUERY, *at]) == 2


def test_answers_in_videos_that_are_gone_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films, at, out = tmp_path / "films", ["--index", str(tmp_path / "index")], tmp_path / "mine.jsonl"
    first, second = (str(s.video) for s in ShapesWorld().write_videos(films, "test", count=2))
    assert main(["index", str(films), "--model", "shapes-tiny", *at]) == 0
    assert main(["pairs", "add", QUERY, "--hit", first, "--miss", second, *at]) == 0
    Path(second).unlink()
    assert main(["index", str(films), *at]) == 0
    assert main(["pairs", "write", str(out), *at]) == 0
    assert "1 answers stay here: their videos are no longer in the index" in capsys.readouterr().out
    assert "not" not in json.loads(out.read_text())
    Path(first).unlink()
    main(["index", str(films), *at])
    assert main(["pairs", "write", str(out), *at]) == 2
    assert "no right answer in a video of the index is remembered" in capsys.readouterr().err
