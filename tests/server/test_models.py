"""A migration to another model, seen and finished over HTTP while the server answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipreel.adapter import save_adapter, with_adapter
from clipreel.retriever import Retriever
from clipreel.search import canary, migrate
from clipreel.search.answer import Request
from clipreel.search.ask import Asker
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.search.query import Searcher
from clipreel.search.rerank import FACT
from clipreel.search.rerankers import by_head
from clipreel.server.jobs import Job
from clipreel.tuners import build
from clipreel.video.shots import Segments
from tests.server.conftest import API, Serve, code, ids, model, services

MODELS = f"{API}/models"
NEW = "shapes-tiny + mine"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    folder = tmp_path_factory.mktemp("tuned") / "mine" / "adapter"
    adapted = model().adapted(build("lora", model().clip, {}), adapter="new")
    return with_adapter(model(), save_adapter(folder, adapted, "lora", {}))


def roles(told: dict) -> list[tuple[str, str, bool]]:
    return [(m["name"], m["role"], m["active"]) for m in told["models"]]


def test_a_migration_is_shown_and_finished(
    serve: Serve, own_archive: tuple[Path, str], tuned: Retriever, tmp_path: Path
) -> None:
    place = own_archive[1]
    index = Index(place)
    canary.save(index, Searcher(index, model()), ["a red circle"])
    client = serve(place)
    known = ids(client)
    before = client.get(MODELS).json()
    assert roles(before) == [("shapes-tiny", "current", True)]
    assert before["canary"] is None
    new, _ = migrate.grow(index, tuned, workers=1)
    growing = client.get(MODELS).json()
    assert roles(growing) == [("shapes-tiny", "current", True), (NEW, "next", False)]
    assert [m["ready"] for m in growing["models"]] == [True, False]
    assert code(client.post(f"{MODELS}/{NEW}/activate")) == (409, "not-ready")
    migrate.report(new, migrate.differences(index, new, tuned))
    told = client.get(MODELS).json()
    assert [(m["videos"], m["ready"]) for m in told["models"]] == [(3, True), (3, True)]
    assert all(m["bytes"] > 1000 and 0 <= m["age_s"] < 3600 and m["vectors"] > 3 for m in told["models"])
    assert told["canary"]["queries"] == [{"query": "a red circle", "overlap": 1.0, "first": 1, "warns": False}]
    assert str(tmp_path) not in client.get(MODELS).text

    hits = client.get(f"{API}/search", params={"q": "a red circle"}).json()["hits"]
    switched = client.post(f"{MODELS}/{NEW}/activate")
    assert switched.status_code == 200
    assert roles(switched.json()) == [(NEW, "current", True), ("shapes-tiny", "before", False)]
    assert Index(place).facts["space"] == tuned.space
    after = client.get(f"{API}/search", params={"q": "a red circle"}).json()["hits"]
    assert {h["video"] for h in after} == {h["video"] for h in hits} == set(known.values())
    assert {h["adapter"] for h in after} == {"mine"}
    assert client.get(f"{API}/status").json()["model"]["space"] == tuned.space
    assert client.get(f"{API}/videos/{known['a.mp4']}/media").status_code == 200
    assert client.post(f"{MODELS}/{NEW}/activate").status_code == 200  # it answers already
    back = client.post(f"{MODELS}/shapes-tiny/activate").json()
    assert roles(back) == [("shapes-tiny", "current", True), (NEW, "next", False)]
    again = client.get(f"{API}/search", params={"q": "a red circle"}).json()["hits"]
    assert [h["score"] for h in again] == pytest.approx([h["score"] for h in hits], abs=1e-5)
    assert sorted(os.listdir(Path(place).parent)) == ["cache", "index", "index.next", "videos"]


def test_what_stands_in_the_way_of_a_switch_is_said(
    serve: Serve, own_archive: tuple[Path, str], tuned: Retriever
) -> None:
    place = own_archive[1]
    new, _ = migrate.grow(Index(place), tuned, workers=1)
    migrate.report(new, [])
    client = serve(place)
    assert code(client.post(f"{MODELS}/nothing/activate")) == (404, "no-such-model")
    assert code(client.post(f"{MODELS}/a%2fb/activate")) == (404, "no-such-model")
    assert client.post(f"{MODELS}/{'x' * 300}/activate").status_code == 422
    jobs = services(client).jobs
    jobs.jobs["x"] = Job("x", "index")
    busy = client.post(f"{MODELS}/{NEW}/activate")
    assert code(busy) == (409, "busy")
    assert "clipreel migrate --switch" in busy.json()["error"]["message"]
    jobs.jobs.clear()
    with new.writing():
        assert code(client.post(f"{MODELS}/{NEW}/activate")) == (409, "switch")
    assert code(serve(place, read_only="it reads").post(f"{MODELS}/{NEW}/activate")) == (409, "read-only")
    assert client.get(f"{API}/search", params={"q": "red"}).json()["hits"]
    assert roles(client.get(MODELS).json())[0] == ("shapes-tiny", "current", True)


def test_rerankers_follow_a_switch(serve: Serve, archive: tuple[Path, str], tuned: Retriever, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index", facts_of(model(), Segments("windows", 1.0, 0.0, 4.0)) | FACT)
    update(index, model(), [str(archive[0])], workers=1)
    client = serve(index.place, rerankers=("mean",))
    body = {"text": "a red circle", "rerank": "mean"}
    assert client.post(f"{API}/search", json=body).status_code == 200
    new, _ = migrate.grow(index, tuned, workers=1)
    migrate.report(new, [])
    assert client.post(f"{MODELS}/{NEW}/activate").status_code == 200
    found = client.post(f"{API}/search", json=body).json()["hits"]
    now = Index(index.place)
    alone = Asker(now, tuned, rerankers={"mean": by_head("mean", tuned, now)})
    wanted = alone.answer(Request("a red circle", rerank="mean")).hits
    assert [(h["video"], h["adapter"]) for h in found] == [(h.video, "mine") for h in wanted]
    assert [h["score"] for h in found] == pytest.approx([h.score for h in wanted], abs=1e-4)
    assert client.get(f"{API}/status").json()["rerankers"][0]["adapters"] == ["mine"]
