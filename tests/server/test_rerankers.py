"""Searches whose best hits are ordered anew: by heads over stored frames, and by an ALPRO that reads the files."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipreel.alpro.retriever import save_alpro
from clipreel.errors import ClipreelError
from clipreel.search.answer import Request
from clipreel.search.ask import Asker
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.search.rerank import FACT
from clipreel.search.rerankers import by_head, by_matching, matching
from clipreel.server.app import create_app
from clipreel.server.settings import Settings
from clipreel.video.shots import Segments
from tests.alpro.tiny import retriever
from tests.server.conftest import API, Serve, code, model, services
from tests.video.make import write

SEARCH = f"{API}/search"


@pytest.fixture(scope="module")
def framed(archive: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of the same videos that keeps the vectors of frames."""
    place = tmp_path_factory.mktemp("framed") / "index"
    index = Index.create(place, facts_of(model(), Segments("windows", 1.0, 0.0, 4.0)) | FACT)
    update(index, model(), [str(archive[0])], workers=1)
    return str(place)


@pytest.fixture(scope="module")
def alpro(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_alpro(retriever(), tmp_path_factory.mktemp("judges") / "judge"))


def loaded(name: str) -> Callable[[str], Any]:
    from clipreel.adapter import load

    return lambda source: load(source, device="cpu")


def test_a_head_and_an_alpro_order_the_hits_of_a_search(serve: Serve, framed: str, alpro: str, tmp_path: Path) -> None:
    client = serve(framed, rerankers=("mean", alpro), reread_candidates=2)
    listed = client.get(f"{API}/status").json()["rerankers"]
    assert listed == [
        {"name": "mean", "kind": "head", "candidates": 50, "adapters": ["base"]},
        {"name": "judge", "kind": "matching", "candidates": 2, "adapters": ["base"]},
    ]
    assert str(Path(alpro).parent) not in client.get(f"{API}/status").text
    index = Index(framed)
    judge = matching(alpro, model(), loaded(alpro))
    assert judge is not None
    orders = {"mean": by_head("mean", model(), index), "judge": by_matching(judge, [])}
    alone = Asker(index, model(), rerankers=orders)
    for name, candidates in (("mean", 50), ("judge", 2)):
        found = client.post(SEARCH, json={"text": "a red circle", "rerank": name})
        wanted = alone.answer(Request("a red circle", rerank=name, candidates=candidates)).hits
        assert found.status_code == 200
        assert [h["video"] for h in found.json()["hits"]] == [h.video for h in wanted]
        assert [h["score"] for h in found.json()["hits"]] == pytest.approx([h.score for h in wanted], abs=1e-4)
    # a second index in memory costs nothing: the vectors are those of the other thread
    askers = [desk.answer.asker for desk in (services(client).desk, services(client).reranking)]
    client.get(SEARCH, params={"q": "red"})
    for view in (a.first for a in askers):
        view._looked = 0.0
    client.get(SEARCH, params={"q": "red"})
    client.post(SEARCH, json={"text": "red", "rerank": "mean"})
    assert askers[0].first.holding.held is askers[1].first.holding.held
    unknown = client.post(SEARCH, json={"text": "red", "rerank": "median"})
    assert code(unknown) == (422, "no-such-reranker")
    assert "those that are: mean, judge" in unknown.json()["error"]["message"]
    for body in ({"text": "red", "minus": ["blue"], "rerank": "mean"}, {"text": "-red", "rerank": "judge"}):
        assert client.post(SEARCH, json=body).status_code == 422


def test_a_reranker_sees_at_once_what_was_written(serve: Serve, framed: str, tmp_path: Path) -> None:
    place, videos = str(shutil.copytree(framed, tmp_path / "index")), tmp_path / "more"
    client = serve(place, rerankers=("mean",))
    videos.mkdir()

    def found(**body: str) -> set[str]:
        return {h["name"] for h in client.post(SEARCH, json={"text": "red", **body}).json()["hits"]}

    assert found() == found(rerank="mean") == {"a.mp4", "b.mkv", "c.avi"}
    for n in range(2):  # no other search has looked at the index meanwhile; then one has
        write(videos / f"{n}.mp4", frames=24 + n)
        update(Index(place), model(), [str(videos)], workers=1)
        services(client).written()
        assert n == 0 or f"{n}.mp4" in found()
        assert f"{n}.mp4" in found(rerank="mean")
    plain, second = (desk.answer.asker.first.holding for desk in (services(client).desk, services(client).reranking))
    assert plain.held is second.held  # in memory once


def test_nobody_waits_for_a_reranker(serve: Serve, framed: str) -> None:
    client = serve(framed, rerankers=("mean",))
    go_on, begun = threading.Event(), threading.Event()
    orders = services(client).reranking.answer.asker.rerankers

    def slow(query: Any, hits: list[Any]) -> list[Any]:
        begun.set()
        assert go_on.wait(60)
        return hits

    orders.update(dict.fromkeys(orders, slow))
    answers: list[int] = []
    body = {"text": "red", "rerank": "mean"}
    asking = threading.Thread(target=lambda: answers.append(client.post(SEARCH, json=body).status_code))
    asking.start()
    assert begun.wait(60)
    assert client.get(SEARCH, params={"q": "red"}).json()["hits"]
    assert answers == []
    go_on.set()
    asking.join(60)
    assert answers == [200]


def test_a_file_that_cannot_be_read_again_is_told(serve: Serve, own_archive: tuple[Path, str], alpro: str) -> None:
    videos, place = own_archive
    client = serve(place, rerankers=(alpro,))
    (videos / "a.mp4").write_text("gone bad")
    found = client.post(SEARCH, json={"text": "red", "rerank": "judge"}).json()
    assert {h["name"] for h in found["hits"]} == {"b.mkv", "c.avi"}
    assert "1 of the best videos could not be read again and is left out" in found["notes"]
    assert "rerank" not in str(client.get(SEARCH, params={"q": "red"}).json()["notes"])


def test_what_cannot_rerank_is_said_at_the_start(serve: Serve, archive: tuple[Path, str], tmp_path: Path) -> None:
    for source, says in (("mean", "keeps no frame vectors"), ("alpro", "no matching head"), ("nothing", "is no head")):
        with pytest.raises(ClipreelError, match=says):
            create_app(archive[1], model(), Settings(cache=tmp_path, rerankers=(source,)), "cpu")
    none = serve(archive[1]).post(SEARCH, json={"text": "red", "rerank": "mean"})
    assert code(none) == (422, "no-such-reranker")
    assert "serve --rerank" in none.json()["error"]["message"]


def test_a_head_judges_what_its_own_index_found(
    serve: Serve, framed: str, archive: tuple[Path, str], alpro: str
) -> None:
    client = serve(framed, others=(archive[1],), rerankers=("mean", alpro))
    other = "base (index)"
    listed = client.get(f"{API}/status").json()["rerankers"]
    assert [r["adapters"] for r in listed] == [["base"], ["base", other]]

    def asked(name: str, *adapters: str) -> Any:
        return client.post(SEARCH, json={"text": "red", "adapters": adapters, "rerank": name})

    assert asked("mean", "base", "base").status_code == 200
    assert "keeps no frame vectors" in asked("mean", other).json()["error"]["message"]
    assert code(asked("mean", "base", other)) == (422, "rerank")
    both = asked("judge", "base", other).json()["hits"]
    assert [h["video"] for h in both] == [h["video"] for h in asked("judge", "base").json()["hits"]]
