"""What the API answers, in the shape that its version promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from clipreel.search.calibration import calibrate
from clipreel.search.index import Index
from clipreel.search.indexer import update
from clipreel.server.routes.search import EXAMPLE
from clipreel.server.schema import Answer
from clipreel.video.packets import REASONS, WHAT_TO_DO
from tests.server.conftest import API, Serve, code, ids, model, services

HIT = {"video", "name", "folder", "start_s", "end_s", "score", "unusual", "words", "duration_s", "width", "height"} | {
    "date",
    "tags",
    "moments",
    "matched",
    "adapter",
    "state",
    "apart",
}


def test_search_gives_hits_with_every_promised_key(client: TestClient) -> None:
    found = client.post(f"{API}/search", json={"text": "a red circle", "k": 2}).json()
    assert found["version"] == 1
    assert found["state"] in ("ok", "nothing")
    assert set(found) == {"version", "took_ms", "state", "total", "matching", "hits", "facets", "notes"}
    assert 1 <= len(found["hits"]) <= 2
    for hit in found["hits"]:
        assert set(hit) == HIT
        assert 0 <= hit["start_s"] < hit["end_s"] <= hit["duration_s"] + 0.01
        assert hit["folder"] in ("videos", "videos/sub")
        assert "/" not in hit["name"]
    assert client.get(f"{API}/search", params={"q": "a red circle", "k": 2}).json()["hits"] == found["hits"]


def test_moments_are_in_words_too_and_answers_are_what_openapi_says(
    serve: Serve, own_archive: tuple[Path, str]
) -> None:
    calibrate(Index(own_archive[1]), model())
    client = serve(own_archive[1])
    text = client.get(f"{API}/search", params={"q": "a red circle"})
    like = client.get(f"{API}/similar", params={"video": text.json()["hits"][0]["video"]})
    for answer in (text, like):
        Answer.model_validate_json(answer.text, strict=True)
    moments = [m for hit in text.json()["hits"] for m in hit["moments"]]
    assert moments
    assert all(m["words"] != "unrated" and 0 <= m["unusual"] <= 1 for m in moments)
    assert [n for n in like.json()["notes"] if n.startswith("no words: ")]  # three videos are too few to compare with
    described = client.get("/openapi.json").json()
    for path, method in (("search", "post"), ("search", "get"), ("similar", "get")):
        said = described["paths"][f"{API}/{path}"][method]["responses"]["200"]["content"]["application/json"]
        assert said["schema"] == {"$ref": "#/components/schemas/Answer"}
    Answer.model_validate(EXAMPLE[200]["content"]["application/json"]["example"])
    assert set(described["components"]["schemas"]["Moment"]["required"]) == set(moments[0])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"text": "  "}, 422),
        ({"text": "x" * 2001}, 422),
        ({"text": "red", "k": 0}, 422),
        ({"text": "red", "k": 201}, 422),
        ({"text": "red", "colour": 1}, 422),
        ({"text": "\ud800"}, 422),
        ({"images": ["nothing"]}, 404),
        ({"like": [{"video": "nothing"}]}, 404),
    ],
)
def test_a_wrong_search_is_told_what_is_wrong(client: TestClient, body: dict, status: int) -> None:
    import json

    answer = client.post(f"{API}/search", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == status
    found = answer.json()
    assert found["version"] == 1
    assert found["error"]["message"]


def test_no_json_is_no_bug(client: TestClient) -> None:
    for data in (b"{", b"\xff\xfe", b"[1]", b"null", b'{"text": NaN}', b"[" * 50_000):
        answer = client.post(f"{API}/search", content=data, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, data[:20]


def test_videos_are_listed_in_pages_and_by_folder(client: TestClient) -> None:
    every = client.get(f"{API}/videos").json()
    assert [v["name"] for v in every["videos"]] == ["a.mp4", "b.mkv", "c.avi"]
    assert client.get(f"{API}/videos", params={"offset": 1, "k": 1}).json()["videos"] == every["videos"][1:2]
    below = client.get(f"{API}/videos", params={"folder": "videos/sub"}).json()
    assert [v["name"] for v in below["videos"]] == ["c.avi"]
    assert client.get(f"{API}/videos", params={"folder": "vid"}).json()["total"] == 0
    assert client.get(f"{API}/videos", params={"folder": "videos"}).json()["total"] == 3


def test_a_video_says_how_it_can_be_played(client: TestClient) -> None:
    found = {n: client.get(f"{API}/videos/{i}").json() for n, i in ids(client).items()}
    assert {n: (v["state"], v["playable"]) for n, v in found.items()} == {
        "a.mp4": ("present", "direct"),
        "b.mkv": ("present", "remux"),
        "c.avi": ("present", "transcode"),
    }
    assert found["a.mp4"]["ready"]
    assert not found["c.avi"]["ready"]
    assert "mpeg4" in found["c.avi"]["why"]


def test_status_health_skipped_and_tags(client: TestClient, archive: tuple[Path, str]) -> None:
    status = client.get(f"{API}/status").json()
    assert (status["videos"], status["skipped"], status["model"]["name"]) == (3, 1, "shapes-tiny")
    assert status["index"]["bytes"] > 1000
    assert 0 <= status["index"]["age_s"] < 3600
    assert status["model"]["bytes"] > 1_000_000
    assert status["licences"] == {"base": "Apache-2.0, part of clipreel"}
    assert status["lineage"][0] == {
        "what": "base",
        "name": "shapes-tiny",
        "licence": "Apache-2.0, part of clipreel",
        "commercial": True,
    }
    assert client.get(f"{API}/health").json() == {"version": 1, "status": "ok", "videos": 3}
    skipped = client.get(f"{API}/skipped").json()["files"]
    assert skipped == [
        {
            "name": "bad.mp4",
            "folder": "videos",
            "reason": "not-video",
            "next": "leave it out, there is no video stream in it",
        }
    ]
    assert client.get(f"{API}/tags").json()["tags"] == []
    assert client.get(f"{API}/skipped", params={"offset": 1}).json() == {
        "version": 1,
        "total": 1,
        "offset": 1,
        "files": [],
    }
    # the whole path is nobody's business
    for path in ("status", "videos", "skipped"):
        assert str(archive[0]) not in client.get(f"{API}/{path}").text


def test_what_was_skipped_is_given_in_pages(serve: Serve, own_archive: tuple[Path, str]) -> None:
    videos, place = own_archive
    for n in range(4):
        (videos / f"more-{n}.mp4").write_text("no video")
    update(Index(place), model(), [str(videos)], workers=1)
    client = serve(place)
    pages = [client.get(f"{API}/skipped", params={"offset": o, "limit": 2}).json() for o in (0, 2, 4, 6)]
    assert [[f["name"] for f in page["files"]] for page in pages] == [
        ["bad.mp4", "more-0.mp4"],
        ["more-1.mp4", "more-2.mp4"],
        ["more-3.mp4"],
        [],
    ]
    assert [(page["total"], page["offset"]) for page in pages] == [(5, 0), (5, 2), (5, 4), (5, 6)]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"offset": "x"}):
        assert code(client.get(f"{API}/skipped", params=wrong)) == (422, "invalid")


def test_metrics_count_by_route_and_not_by_address(client: TestClient) -> None:
    for n in range(5):
        client.get(f"{API}/videos/none-{n}")
    client.get(f"{API}/search", params={"q": "red"})
    text = client.get(f"{API}/metrics").text
    assert "none-1" not in text
    line = next(x for x in text.splitlines() if "http_requests_total" in x and "videos/{id}" in x and "404" in x)
    assert line.endswith(" 5")
    assert 'clipreel_searches_total{what="requests"} 1' in text
    assert "\nclipreel_videos 3\n" in text
    assert 'le="+Inf"' in text


def test_openapi_describes_every_route_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {f"{API}/search", f"{API}/videos/{{id}}/media", f"{API}/export", f"{API}/events"} <= set(described["paths"])
    assert "examples" in described["components"]["schemas"]["Search"]
    assert client.get("/docs").status_code == 404


def test_errors_have_one_shape(client: TestClient) -> None:
    assert code(client.get("/nothing")) == (404, "not-found")
    assert code(client.get(f"{API}/videos/none")) == (404, "no-such-video")
    assert code(client.put(f"{API}/search")) == (405, "method")
    assert code(client.get(f"{API}/videos", params={"k": "many"})) == (422, "invalid")


def test_the_page_is_served_from_a_list(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert client.get("/static/index.html").text == page.text
    for name in ("../app.py", "%2e%2e/app.py", "..%2fapp.py", "/etc/passwd", "index.html/", "."):
        assert client.get(f"/static/{name}").status_code == 404


def test_a_bug_is_a_500_without_its_insides(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services(client).desk, "answer", lambda requests: 1 / 0)
    answer = client.get(f"{API}/search", params={"q": "red"})
    assert code(answer) == (500, "bug")
    assert "division" not in answer.text


def test_the_page_has_words_for_every_reason(client: TestClient) -> None:
    script = client.get("/static/skipped.js").text
    said = script[script.index("SAID = {") : script.index("};")]
    assert [r for r in REASONS if f"{r}:" not in said.replace('"', "")] == []
    assert set(WHAT_TO_DO) == set(REASONS)
