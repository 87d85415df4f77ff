"""Judgements of answers over HTTP: kept beside the index, counted, taken back, and given to `clipreel tune`."""

from __future__ import annotations

import json
from pathlib import Path
from stat import S_IMODE

import pytest

from clipreel.cli import main
from clipreel.search import judged
from clipreel.search.index import Index
from tests.server.conftest import API, Serve, code, ids

PAIRS = f"{API}/pairs"


def test_judgements_are_kept_and_become_pairs(
    serve: Serve, own_archive: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    videos, place = own_archive
    client = serve(place)
    known = ids(client)
    moment = {"query": " a red\ncircle", "video": known["a.mp4"], "start_s": 0.5, "end_s": 1e6, "judgement": "miss"}
    said = client.post(PAIRS, json=moment)
    assert said.status_code == 201
    assert said.json()["pair"] | {"id": "", "at": ""} == {
        "id": "",
        "query": "a red circle",
        "video": known["a.mp4"],
        "name": "a.mp4",
        "start_s": 0.5,
        "end_s": 2.0,
        "judgement": "miss",
        "at": "",
    }
    version = Index(place).version()
    client.post(PAIRS, json=moment | {"judgement": "hit"})  # the last word counts
    client.post(PAIRS, json=moment | {"video": known["b.mkv"]})
    assert Index(place).version() == version  # nobody has to read the index again
    listed = client.get(PAIRS).json()
    assert [listed[k] for k in ("total", "hits", "misses", "offset")] == [2, 1, 1, 0]
    assert [(p["name"], p["judgement"]) for p in listed["pairs"]] == [("b.mkv", "miss"), ("a.mp4", "hit")]
    assert str(videos) not in client.get(PAIRS).text
    assert client.get(PAIRS, params={"video": known["a.mp4"]}).json()["total"] == 1
    assert client.get(PAIRS, params={"query": "a  red circle", "offset": 1}).json()["pairs"] == listed["pairs"][1:]
    file = Path(place).with_name("index.pairs.jsonl")
    assert S_IMODE(file.stat().st_mode) == 0o600

    (videos / "a.mp4").rename(videos / "renamed.mp4")  # a pair follows its video
    assert main(["index", str(videos), "--index", place, "--workers", "1"]) == 1
    out = videos / "mine.jsonl"
    assert main(["pairs", "write", str(out), "--index", place]) == 0
    moved = {"video": str(videos / "renamed.mp4"), "start": 0.5, "end": 2.0, "captions": ["a red circle"]}
    moved["not"] = [{"video": str(videos / "b.mkv"), "start": 0.5, "end": 3.0}]
    assert [json.loads(line) for line in out.read_text().splitlines()] == [moved]
    capsys.readouterr()
    assert main(["pairs", "list", "--json", "--index", place]) == 0
    assert [json.loads(x)["right"] for x in capsys.readouterr().out.splitlines()] == [True, False]

    assert client.delete(f"{PAIRS}/{listed['pairs'][1]['id']}").json()["hits"] == 0
    assert main(["pairs", "remove", listed["pairs"][0]["id"], "--index", place]) == 0
    assert client.get(PAIRS).json()["total"] == 0
    assert not file.exists()
    assert main(["pairs", "remove", "none", "--index", place]) == 2


def test_what_is_no_judgement_is_refused(
    serve: Serve, own_archive: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(own_archive[1])
    video = ids(client)["a.mp4"]
    good = {"query": "q", "video": video, "start_s": 0.0, "end_s": 1.0, "judgement": "hit"}
    for wrong, expected in (
        ({"video": "none"}, (404, "no-such-video")),
        ({"query": " \n"}, (422, "empty")),
        ({"query": "x" * 2001}, (422, "invalid")),
        ({"start_s": 1.5}, (422, "no-moment")),
        ({"start_s": 90, "end_s": 91}, (422, "no-moment")),
        ({"judgement": "maybe"}, (422, "invalid")),
        ({"more": 1}, (422, "invalid")),
    ):
        assert code(client.post(PAIRS, json=good | wrong)) == expected
    half = json.dumps(good | {"query": "a\ud800b"})
    assert client.post(PAIRS, content=half, headers={"content-type": "application/json"}).status_code in (201, 422)
    assert code(client.delete(f"{PAIRS}/none")) == (404, "no-such-pair")
    monkeypatch.setattr(judged, "MOST", 1)
    client.post(PAIRS, json=good)
    full = client.post(PAIRS, json=good | {"query": "another"})
    assert code(full) == (422, "refused")
    assert "at most 1 are kept" in full.json()["error"]["message"]
    damaged = Path(own_archive[1]).with_name("index.pairs.jsonl")
    damaged.write_text("{broken\n")
    assert "line 1" in client.get(PAIRS).json()["error"]["message"]
    only_reads = serve(own_archive[1], read_only="it only reads")
    assert code(only_reads.post(PAIRS, json=good)) == (409, "read-only")
    assert code(only_reads.delete(f"{PAIRS}/x")) == (409, "read-only")


def test_judgements_of_an_older_version_are_taken_along(own_archive: tuple[Path, str]) -> None:
    videos, place = own_archive
    index = Index(place)
    old = {"query": "q", "path": str(videos / "a.mp4"), "start_s": 0.0, "end_s": 1.0, "right": True}
    index.set_facts(judged=[old])
    new = judged.Judged("q", str(videos / "b.mkv"), 0.0, 1.0, True)
    assert judged.judge(index, [new]) == 2
    assert "judged" not in Index(place).facts
    assert [j.path for j in judged.judged(Index(place))] == [old["path"], new.path]


def test_an_exported_collection_becomes_pairs(
    serve: Serve, own_archive: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, place = own_archive
    client = serve(place)
    video = ids(client)["b.mkv"]
    hits = [{"video": video, "start_s": 0.5, "end_s": 1.5}]
    kept = tmp_path / "clipreel.json"
    kept.write_bytes(client.post(f"{API}/export", json={"format": "json", "hits": hits}).content)
    client.post(PAIRS, json={**hits[0], "query": "a blue star", "judgement": "hit"})
    assert main(["pairs", "take", str(kept), "--query", "a red circle", "--index", place]) == 0
    assert client.get(PAIRS).json()["hits"] == 2
    out = tmp_path / "mine.jsonl"
    assert main(["pairs", "write", str(out), "--index", place]) == 0
    both = {"video": str(videos / "b.mkv"), "start": 0.5, "end": 1.5, "captions": ["a blue star", "a red circle"]}
    assert [json.loads(line) for line in out.read_text().splitlines()] == [both]
    assert "go on: clipreel tune" in capsys.readouterr().out
