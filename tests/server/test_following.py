"""A server that runs follows a switch that another process makes."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from clipreel.adapter import save_adapter, with_adapter
from clipreel.retriever import Retriever
from clipreel.search import migrate
from clipreel.search.answer import Request
from clipreel.search.ask import Asker
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.search.loading import base_of
from clipreel.search.rerank import FACT
from clipreel.tuners import build
from clipreel.video.shots import Segments
from tests.server.conftest import API, Serve, code, ids, model

ASKED = {"q": "a red circle"}


@pytest.fixture
def tuned(tmp_path: Path) -> Retriever:
    adapted = model().adapted(build("lora", model().clip, {}), adapter="new")
    return with_adapter(model(), save_adapter(tmp_path / "mine" / "adapter", adapted, "lora", {}))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipreel.server.services.FOLLOW_S", 0.02)
    monkeypatch.setattr("clipreel.server.models.RETRY_S", 0.05)


def grown(place: str, tuned: Retriever) -> None:
    new, _ = migrate.grow(Index(place), tuned, workers=1)
    migrate.report(new, [])


def first(client: TestClient, says: str, **body: Any) -> Any:
    """The first answer that says this; until then a search is told to come back."""
    end = time.monotonic() + 60
    while says not in (found := client.post(f"{API}/search", json={"text": "a red circle", **body})).text:
        assert found.status_code == 503, found.text
        assert time.monotonic() < end, found.text
        time.sleep(0.02)
    return found


def test_a_switch_made_elsewhere_is_followed_there_and_back(
    serve: Serve, own_archive: tuple[Path, str], tuned: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = own_archive[1]
    grown(place, tuned)
    client = serve(place)
    before = client.get(f"{API}/search", params=ASKED).json()["hits"]
    go_on = threading.Event()

    def slowly(index: Index, device: str) -> Retriever:
        assert go_on.wait(60)
        return base_of(index, device)

    monkeypatch.setattr("clipreel.server.models.base_of", slowly)
    migrate.switch(place, tuned)
    told = client.get(f"{API}/search", params=ASKED)
    assert code(told) == (503, "switching")
    assert told.headers["retry-after"] == "2"
    assert "its model is being loaded" in told.json()["error"]["message"]
    assert client.get(f"{API}/health").json()["status"] == "switching"
    assert not any(m["active"] for m in client.get(f"{API}/models").json()["models"])
    assert set(ids(client)) == {"a.mp4", "b.mkv", "c.avi"}  # the rest goes on
    go_on.set()
    after = first(client, "hits").json()["hits"]
    index = Index(place)
    wanted = Asker(index, tuned).answer(Request("a red circle")).hits
    assert [(h["video"], h["adapter"]) for h in after] == [(h.video, "mine") for h in wanted]
    assert [h["score"] for h in after] == pytest.approx([h.score for h in wanted], abs=1e-4)
    assert client.get(f"{API}/health").json()["status"] == "ok"
    assert client.get(f"{API}/status").json()["model"]["space"] == tuned.space
    assert (Path(place) / "server.lock").is_file()  # this server is the one that writes the new index
    migrate.undo(place)
    again = first(client, "hits").json()["hits"]
    assert {h["adapter"] for h in again} == {"base"}
    assert [h["score"] for h in again] == pytest.approx([h["score"] for h in before], abs=1e-5)


def test_a_model_that_cannot_be_loaded_is_told_with_what_mends_it(
    serve: Serve, own_archive: tuple[Path, str], tuned: Retriever, tmp_path: Path
) -> None:
    place = own_archive[1]
    grown(place, tuned)
    client, far = serve(place, read_only="it reads"), serve(place, read_only="it reads", loopback=False)
    os.rename(tmp_path / "mine", tmp_path / "gone")
    migrate.switch(place)
    told = first(client, f"{tmp_path / 'mine' / 'adapter'} is no adapter")
    assert code(told) == (503, "no-model")
    assert told.json()["error"]["message"].endswith("the former index comes back with: clipreel migrate --undo")
    assert client.get(f"{API}/health").json()["status"] == "no-model"
    assert str(tmp_path) not in first(far, "the log of the server says why").text
    os.rename(tmp_path / "gone", tmp_path / "mine")
    assert {h["adapter"] for h in first(client, "hits").json()["hits"]} == {"mine"}
    assert not (Path(place) / "server.lock").exists()  # who only reads claims nothing


def test_nothing_is_downloaded_for_a_switch(serve: Serve, own_archive: tuple[Path, str], tuned: Retriever) -> None:
    place = own_archive[1]
    grown(place, tuned)
    Index(place + migrate.NEXT).set_facts(model="nobody/nothing")
    client = serve(place)
    migrate.switch(place)
    said = "nobody/nothing is not on this machine; fetch it with: clipreel info nobody/nothing --download"
    assert code(first(client, said)) == (503, "no-model")
    migrate.undo(place)  # its model is still in memory
    assert {h["adapter"] for h in first(client, "hits").json()["hits"]} == {"base"}


def test_rerankers_and_other_adapters_follow(
    serve: Serve, archive: tuple[Path, str], tuned: Retriever, tmp_path: Path
) -> None:
    index = Index.create(tmp_path / "index", facts_of(model(), Segments("windows", 1.0, 0.0, 4.0)) | FACT)
    update(index, model(), [str(archive[0])], workers=1)
    grown(index.place, tuned)
    shutil.copytree(archive[1], tmp_path / "other")
    client = serve(index.place, others=(str(tmp_path / "other"),), rerankers=("mean",))
    migrate.switch(index.place)
    found = first(client, "hits", rerank="mean").json()["hits"]
    assert {h["adapter"] for h in found} == {"mine"}
    names = [a["name"] for a in client.get(f"{API}/adapters").json()["adapters"]]
    assert names == ["mine", "base (other)"]
    assert {h["adapter"] for h in first(client, "hits", adapters=names[1:]).json()["hits"]} == {names[1]}
