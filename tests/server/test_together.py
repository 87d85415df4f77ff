"""Searches that are answered together are answered as each alone; several indexes on one base answer by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from clipreel.adapter import save_adapter, with_adapter
from clipreel.errors import ClipreelError
from clipreel.search.answer import Answer, Filters, Like, Request
from clipreel.search.ask import Asker
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.server.together import Texts, Together, products, remembering
from clipreel.server.variants import Variant
from clipreel.tuners import build
from clipreel.video.shots import Segments
from tests.server.conftest import API, Serve, code, ids, model, services

QUERIES = ("a red circle", "a blue square grows", "a red circle", "", "a star -red", "a cross -red")


def same(a: Answer, b: Answer) -> None:
    assert [h.name for h in a.hits] == [h.name for h in b.hits]
    for x, y in zip(a.hits, b.hits, strict=True):
        assert (x.start_s, x.end_s, x.words, x.tags) == (y.start_s, y.end_s, y.words, y.tags)
        assert x.score == pytest.approx(y.score, abs=1e-5)
        assert [m.start_s for m in x.moments] == [m.start_s for m in y.moments]
    assert (a.state, a.total, a.facets, a.notes) == (b.state, b.total, b.facets, b.notes)


def test_together_is_as_alone(archive: tuple[Path, str]) -> None:
    index = Index(archive[1])
    alone, together = Asker(index, model()), Together(Index(archive[1]), model())
    liked = index.visible()[0].id
    requests = [Request(text, k=2) for text in QUERIES]
    requests += [Request("a red circle", filters=Filters(folder="videos/sub")), Request(like=(Like(liked, 0.5),))]
    requests += [Request("a red circle", minus=("blue",), offset=1), Request("x", filters=Filters(min_duration_s=2.5))]
    for _ in range(2):  # the second time everything is remembered
        answers = together.answer_all(requests)
        for request, answer in zip(requests, answers, strict=True):
            if request.text == "" and not request.like:
                assert isinstance(answer, ClipreelError)
                continue
            assert isinstance(answer, Answer)
            same(answer, alone.answer(request))


def test_one_bad_request_does_not_spoil_the_others(archive: tuple[Path, str]) -> None:
    together = Together(Index(archive[1]), model())
    found = together.answer_all([Request("red", rank="bank"), Request("red", adapters=("none",)), Request("red")])
    assert isinstance(found[1], ClipreelError)
    assert isinstance(found[2], Answer)


def test_texts_are_read_once_and_as_the_model_reads_them() -> None:
    texts = Texts(model())
    assert texts.crops  # shapes-tiny is a plain CLIP
    said = ["a red circle", "a small blue square moves to the left and then grows"]
    expected = model().encode_text(said, strip_special=True).numpy()
    np.testing.assert_allclose(texts(said, strip_special=True).numpy(), expected, atol=1e-5)
    assert list(texts.known) == said
    np.testing.assert_allclose(np.stack([texts.known[t].numpy() for t in said]), expected, atol=1e-5)
    assert remembering(model()).space == model().space


def test_products_are_cosines() -> None:
    rng = np.random.default_rng(0)
    q, v = (rng.standard_normal((n, 8), dtype=np.float32) for n in (3, 40_000))
    np.testing.assert_allclose(products(q, v), q @ v.T, atol=1e-5)


@pytest.fixture(scope="module")
def tuned(archive: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second index of the same videos, made with an adapter; its report lies beside the adapter."""
    folder = tmp_path_factory.mktemp("tuned")
    tuner = build("lora", model().clip, {})
    facts = {"helped": True, "licence": {"base": "shapes-tiny", "data": "shapes"}}
    facts["trained_on"] = {"config": {"data": {"path": "/home/somebody/holidays.jsonl"}}, "pairs": 8}
    facts["metrics"] = {
        when: {w: {"R@1": r} for w in ("t2v", "v2t")} for when, r in (("before", 40.0), ("after", 60.0))
    }
    save_adapter(folder / "mine" / "adapter", model().adapted(tuner, adapter="new"), "lora", {}, **facts)
    (folder / "mine" / "report.html").write_text("<!doctype html><title>report</title>")
    retriever = with_adapter(model(), folder / "mine" / "adapter")
    index = Index.create(folder / "index", facts_of(retriever, Segments("windows", 1.0, 0.0, 4.0)))
    update(index, retriever, [str(archive[0])], workers=1)
    return str(folder / "index")


def test_an_adapter_in_a_folder_of_its_methods_name_is_called_by_what_it_is(tuned: str, tmp_path: Path) -> None:
    index = Index(tuned)
    shutil.copytree(index.facts["adapter"], tmp_path / "lora" / "adapter")
    called = [Variant(name, model(), index, str(tmp_path / "lora" / "adapter")) for name in ("lora", "lora 2", "beach")]
    assert [v.to_dict(False)["title"] for v in called] == ["lora on holidays", "lora 2 on holidays", "beach"]


def test_an_adapter_answers_by_name_and_can_be_made_the_one_that_does(
    serve: Serve, archive: tuple[Path, str], tuned: str
) -> None:
    client = serve(archive[1], others=(tuned,))
    listed = client.get(f"{API}/adapters").json()["adapters"]
    assert [(a["name"], a["active"], a["report"]) for a in listed] == [("base", True, False), ("mine", False, True)]
    assert listed[1]["before"] == {"t2v": 40.0, "v2t": 40.0}
    assert listed[1]["after"] == {"t2v": 60.0, "v2t": 60.0}
    assert listed[1]["helped"] is True
    assert (listed[1]["title"], listed[1]["data"], listed[0]["title"]) == ("mine", "holidays", "base")
    assert listed[1]["bytes"] > 100
    assert listed[1]["licence"] == dict.fromkeys(("base", "data"), "Apache-2.0, part of clipreel")
    assert [x["commercial"] for x in listed[1]["lineage"]] == [True, True]
    both = client.post(f"{API}/search", json={"text": "red", "adapters": ["base", "mine"]}).json()
    assert {h["name"] for h in both["hits"]} == {"a.mp4", "b.mkv", "c.avi"}
    # one ranking, each video once, and every name can be asked for again
    ways = [client.post(f"{API}/search", json={"text": "red", "adapters": a}).json() for a in (["base"], ["mine"])]
    assert [{h["adapter"] for h in way["hits"]} for way in ways] == [{"base"}, {"mine"}]
    assert {h["adapter"] for h in both["hits"]} <= {"base", "mine"}
    assert len(both["hits"]) == both["total"] == 3
    assert both["hits"][0]["video"] in {way["hits"][0]["video"] for way in ways}
    again = client.post(f"{API}/search", json={"text": "red", "adapters": ["base", "mine"], "k": 1, "offset": 2}).json()
    assert again["hits"][0]["video"] == both["hits"][2]["video"]
    assert code(client.post(f"{API}/search", json={"text": "red", "adapters": ["other"]})) == (404, "no-such-adapter")
    active = client.post(f"{API}/adapters/mine/activate").json()["adapters"]
    assert [a["active"] for a in active] == [False, True]
    assert {h["adapter"] for h in client.get(f"{API}/search", params={"q": "red"}).json()["hits"]} == {"mine"}
    again = serve(archive[1], others=(tuned,))  # the next start
    assert again.get(f"{API}/adapters").json()["adapters"][1]["active"]
    assert code(client.post(f"{API}/adapters/other/activate")) == (404, "no-such-adapter")


def test_the_simple_forms_name_adapters_too(serve: Serve, archive: tuple[Path, str], tuned: str) -> None:
    client = serve(archive[1], others=(tuned,))
    like = {"video": ids(client)["a.mp4"]}
    for path, simple, body in (("search", {"q": "red"}, {"text": "red"}), ("similar", like, {"like": [like]})):
        for adapters in ([], ["mine"], ["base", "mine"]):
            wanted = client.post(f"{API}/search", json={**body, "adapters": adapters}).json()
            found = client.get(f"{API}/{path}", params={**simple, "adapters": adapters}).json()
            assert found["hits"] == wanted["hits"]
        for wrong, says in ((["mine", "other"], (404, "no-such-adapter")), (["mine"] * 9, (422, "invalid"))):
            assert code(client.get(f"{API}/{path}", params={**simple, "adapters": wrong})) == says
            assert code(client.post(f"{API}/search", json={**body, "adapters": wrong})) == says
        told = client.get("/openapi.json").json()["paths"][f"{API}/{path}"]["get"]["parameters"]
        assert "names of GET /adapters" in next(p["description"] for p in told if p["name"] == "adapters")


def test_a_report_is_shown_and_can_do_nothing(serve: Serve, archive: tuple[Path, str], tuned: str) -> None:
    client = serve(archive[1], others=(tuned,))
    page = client.get(f"{API}/adapters/mine/report")
    assert "<title>report</title>" in page.text
    assert "sandbox" in page.headers["content-security-policy"]
    assert code(client.get(f"{API}/adapters/base/report")) == (404, "no-report")


def test_a_liked_moment_is_not_its_own_answer(client: TestClient) -> None:
    known = ids(client)
    found = client.get(f"{API}/similar", params={"video": known["a.mp4"], "at_s": 0.5}).json()
    assert {h["name"] for h in found["hits"]} == {"b.mkv", "c.avi"}
    assert code(client.get(f"{API}/similar", params={"video": "none"})) == (404, "no-such-video")


def test_an_uploaded_picture_is_searched_with(client: TestClient, archive: tuple[Path, str]) -> None:
    known = ids(client)
    picture = client.get(f"{API}/videos/{known['b.mkv']}/thumbnail", params={"at_s": 2.4}).content
    sent = client.post(f"{API}/uploads", files={"file": ("x.jpg", picture, "image/jpeg")}).json()
    found = client.post(f"{API}/search", json={"images": [sent["id"]]}).json()["hits"]
    stored = services(client).uploads.get(sent["id"]).path
    wanted = Asker(Index(archive[1]), model()).answer(Request(images=(stored,))).hits
    assert [h["name"] for h in found] == [h.name for h in wanted]
    assert found[0]["score"] == pytest.approx(wanted[0].score, abs=1e-5)
    assert found[0]["score"] > 0.8
