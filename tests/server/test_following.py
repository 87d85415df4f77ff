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


def answered(client: TestClient, body: dict[str, Any] | None = None, wanted: int = 200) -> Any:
    """The first answer with that status."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = client.post(f"{API}/search", json={"text": "a red circle", **(body or {})})
        if found.status_code == wanted:
            return found
        assert found.status_code == 503, found.text
        time.sleep(0.02)
    raise AssertionError(found.text)


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
    after = answered(client).json()["hits"]
    index = Index(place)
    wanted = Asker(index, tuned).answer(Request("a red circle")).hits
    assert [(h["video"], h["adapter"]) for h in after] == [(h.video, "mine") for h in wanted]
    assert [h["score"] for h in after] == pytest.approx([h.score for h in wanted], abs=1e-4)
    assert client.get(f"{API}/health").json()["status"] == "ok"
    assert client.get(f"{API}/status").json()["model"]["space"] == tuned.space
    assert (Path(place) / "server.lock").is_file()  # this server is the one that writes the new index
    migrate.undo(place)
    again = answered(client).json()["hits"]
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
    assert code(client.get(f"{API}/search", params=ASKED))[0] == 503
    message = ""
    while "adapter" not in message:
        time.sleep(0.02)
        message = client.get(f"{API}/search", params=ASKED).json()["error"]["message"]
    assert code(client.get(f"{API}/search", params=ASKED)) == (503, "no-model")
    assert f"{tmp_path / 'mine' / 'adapter'} is no adapter" in message
    assert message.endswith("the former index comes back with: clipreel migrate --undo")
    assert client.get(f"{API}/health").json()["status"] == "no-model"
    away = far.get(f"{API}/search", params=ASKED)
    assert code(away)[0] == 503
    assert str(tmp_path) not in away.text
    os.rename(tmp_path / "gone", tmp_path / "mine")
    assert {h["adapter"] for h in answered(client).json()["hits"]} == {"mine"}
    assert not (Path(place) / "server.lock").exists()  # who only reads claims nothing


def test_nothing_is_downloaded_for_a_switch(serve: Serve, own_archive: tuple[Path, str], tuned: Retriever) -> None:
    place = own_archive[1]
    grown(place, tuned)
    Index(place + migrate.NEXT).set_facts(model="nobody/nothing")
    client = serve(place)
    migrate.switch(place)
    message = ""
    while "--download" not in message:
        time.sleep(0.02)
        message = client.get(f"{API}/search", params=ASKED).json()["error"]["message"]
    assert "nobody/nothing is not on this machine; fetch it with: clipreel info nobody/nothing --download" in message
    migrate.undo(place)  # its model is still in memory
    assert {h["adapter"] for h in answered(client).json()["hits"]} == {"base"}


def test_rerankers_and_other_adapters_follow(
    serve: Serve, archive: tuple[Path, str], tuned: Retriever, tmp_path: Path
) -> None:
    index = Index.create(tmp_path / "index", facts_of(model(), Segments("windows", 1.0, 0.0, 4.0)) | FACT)
    update(index, model(), [str(archive[0])], workers=1)
    grown(index.place, tuned)
    shutil.copytree(archive[1], tmp_path / "other")
    client = serve(index.place, others=(str(tmp_path / "other"),), rerankers=("mean",))
    migrate.switch(index.place)
    found = answered(client, {"rerank": "mean"}).json()["hits"]
    assert {h["adapter"] for h in found} == {"mine"}
    names = [a["name"] for a in client.get(f"{API}/adapters").json()["adapters"]]
    assert names == ["mine", "base (other)"]
    assert {h["adapter"] for h in answered(client, {"adapters": ["base (other)"]}).json()["hits"]} == {"base (other)"}
