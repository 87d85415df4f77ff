"""Who may ask, how much, and that nothing grows or blocks."""

from __future__ import annotations

import asyncio
import io
import logging
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from clipreel.server.cache import Cache
from clipreel.server.desk import Desk
from clipreel.server.errors import Busy
from clipreel.server.events import KEPT, Events
from clipreel.server.metrics import Metrics
from clipreel.server.security import WithoutToken, is_loopback, own_names
from tests.server.conftest import API, Serve, code, ids, services


def png(width: int = 40, height: int = 30) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, "PNG")
    return out.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few kilobytes that says it has 3.6 thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# ------------------------------------------------------------------ who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8017", "localhost.evil.example", "192.168.1.9", "", "["]
)
def test_other_names_are_refused(client: TestClient, host: str) -> None:
    assert code(client.get(f"{API}/health", headers={"host": host})) == (403, "host")


@pytest.mark.parametrize("host", ["localhost", "localhost:8017", "127.0.0.1:8017", "[::1]:8017", "LOCALHOST"])
def test_names_of_this_machine_are_not(client: TestClient, host: str) -> None:
    assert client.get(f"{API}/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_sites_may_not_ask(client: TestClient, headers: dict[str, str]) -> None:
    for answer in (
        client.post(f"{API}/search", json={"text": "red"}, headers=headers),
        client.post(f"{API}/jobs", json={"kind": "index"}, headers=headers),
        client.get(f"{API}/videos", headers=headers),
    ):
        assert code(answer) == (403, "origin")
    assert client.get(f"{API}/jobs").json()["jobs"] == []


def test_the_own_page_and_programs_may(client: TestClient) -> None:
    for headers in ({"origin": "http://localhost", "sec-fetch-site": "same-origin"}, {}):
        assert client.post(f"{API}/search", json={"text": "red"}, headers=headers).status_code == 200
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=visit).status_code == 200
    assert code(client.get(f"{API}/videos", headers=visit)) == (403, "origin")


def test_other_addresses_need_the_token(serve: Serve, archive: tuple[Path, str]) -> None:
    client = serve(archive[1], token="t0ken", loopback=False, hosts=("nas.local",))
    for url in (f"{API}/health", "/", "/openapi.json", f"{API}/metrics", "/?token=wrong"):
        assert code(client.get(url, follow_redirects=False)) == (401, "token")
    assert client.get(f"{API}/health", headers={"authorization": "Bearer t0ken"}).status_code == 200
    assert code(client.get(f"{API}/health", headers={"authorization": "Bearer t0ke"})) == (401, "token")
    assert code(client.get(f"{API}/health", params={"token": "t0ken"})) == (401, "token")
    entry = client.get("/", params={"token": "t0ken"}, follow_redirects=False)
    assert (entry.status_code, entry.headers["location"]) == (303, "/")
    given = entry.headers["set-cookie"].lower()
    assert "httponly" in given
    assert "samesite=strict" in given
    assert client.get(f"{API}/health").status_code == 200  # the cookie
    for host, status in (("nas.local", 200), ("10.0.0.7:8017", 200), ("evil.example", 403)):
        headers = {"host": host, "authorization": "Bearer t0ken"}
        assert client.get(f"{API}/health", headers=headers).status_code == status


def test_what_is_loopback() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "192.168.0.4", "nas.local", "")] == [False] * 5
    assert "nas.lan" in own_names("NAS.lan")


def test_every_answer_carries_the_headers(client: TestClient) -> None:
    for url in ("/", f"{API}/health", "/nothing", f"{API}/videos/none"):
        headers = client.get(url).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-frame-options"] == "DENY"
    assert client.get(f"{API}/health").headers["cache-control"] == "no-store"


# ------------------------------------------------------------------ how much


def test_a_huge_query_is_refused_before_it_is_read(client: TestClient) -> None:
    def endless() -> Any:
        for _ in range(1000):
            yield b"x" * 100_000

    assert code(client.post(f"{API}/search", content=b"x" * 300_000)) == (413, "too-large")
    assert code(client.post(f"{API}/search", content=endless())) == (413, "too-large")  # no length said
    assert code(client.get(f"{API}/search", params={"q": "x" * 20_000})) == (413, "too-large")
    assert code(client.get(f"{API}/search", params={"q": "x" * 2001})) == (422, "invalid")


def test_an_upload_is_made_small_and_can_be_searched_with(client: TestClient) -> None:
    answer = client.post(f"{API}/uploads", files={"file": ("red.png", png(2000, 1000), "image/png")})
    found = answer.json()
    assert (answer.status_code, found["width"], found["height"]) == (200, 2000, 1000)
    assert 0 < found["expires_s"] <= 3600
    stored = services(client).uploads.get(found["id"]).path
    assert Image.open(stored).size == (1024, 512)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bomb(), (413, "too-large")),
        (b"no image", (422, "not-an-image")),
        (b"", (422, "not-an-image")),
        (png()[:60], (422, "not-an-image")),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", (422, "not-an-image")),
    ],
    ids=["bomb", "text", "empty", "cut", "svg"],
)
def test_what_is_no_image_is_refused(client: TestClient, data: bytes, expected: tuple[int, str]) -> None:
    assert code(client.post(f"{API}/uploads", files={"file": ("x.png", data, "image/png")})) == expected
    assert len(services(client).uploads) == 0


def test_uploads_are_bounded_and_expire(serve: Serve, archive: tuple[Path, str], tmp_path: Path) -> None:
    client = serve(archive[1], uploads=3, upload_bytes=5000)
    sent = [client.post(f"{API}/uploads", files={"file": ("x.png", png(), "image/png")}).json() for _ in range(5)]
    assert len(list((tmp_path / "cache" / "uploads").iterdir())) == 3
    assert code(client.post(f"{API}/search", json={"images": [sent[0]["id"]]})) == (404, "no-such-upload")
    large = client.post(f"{API}/uploads", files={"file": ("x.png", bytes(400_000), "image/png")})
    assert code(large) == (413, "too-large")
    kept = services(client).uploads
    for id, upload in list(kept._kept.items()):
        kept._kept[id] = upload.__class__(**{**vars(upload), "until": time.monotonic() - 1})
    assert code(client.post(f"{API}/search", json={"images": [sent[-1]["id"]]})) == (404, "no-such-upload")
    assert list((tmp_path / "cache" / "uploads").iterdir()) == []


def test_listeners_are_counted() -> None:
    async def run() -> None:
        events = Events(2)
        streams = [events.listen(list) for _ in range(2)]
        for s in streams:
            await anext(s)
        with pytest.raises(Busy) as refused:
            events.listen(list)
        assert refused.value.headers == {"retry-after": "30"}
        for n in range(KEPT + 10):  # nobody reads: the oldest are dropped, and nothing waits
            events.send("job", {"n": n})
        assert '"n": 10' in await anext(streams[0])
        assert all(q.qsize() <= KEPT for q in events.clients)
        await streams[1].aclose()
        await anext(events.listen(list))  # there is room again
        events.close()

    asyncio.run(run())


def test_a_full_line_is_503_and_others_are_answered_together() -> None:
    go, batches = threading.Event(), []

    def answer(requests: Sequence[Any]) -> list[Any]:
        batches.append(len(requests))
        go.wait(10)
        return [ValueError("no") if r == "bad" else r for r in requests]

    async def run() -> None:
        desk = Desk(answer, waiting=4, batch=3, limit_s=10, metrics=Metrics())
        first = asyncio.ensure_future(desk.ask("first"))
        while not batches:
            await asyncio.sleep(0.01)
        others = [asyncio.ensure_future(desk.ask(r)) for r in ("a", "bad", "gone", "c")]
        await asyncio.sleep(0.05)
        with pytest.raises(Busy) as refused:
            await desk.ask("too many")
        assert refused.value.status == 503
        assert refused.value.headers == {"retry-after": "2"}
        others[2].cancel()
        await asyncio.sleep(0.05)
        go.set()
        assert await first == "first"
        found = await asyncio.gather(*others, return_exceptions=True)
        assert (found[0], found[3]) == ("a", "c")
        assert isinstance(found[1], ValueError)
        assert batches == [1, 2, 1]  # who went away was not answered
        desk.close()

    asyncio.run(run())


def test_slow_readers_do_not_hold_up_others(serve: Serve, archive: tuple[Path, str]) -> None:
    """Clients that take one piece of a video and then nothing: a search is answered while all of them wait."""
    client = serve(archive[1])
    assert client.portal is not None
    path = f"{API}/videos/{ids(client)['a.mp4']}/media"
    go_on = client.portal.call(asyncio.Event)
    waiting: list[int] = []

    async def receive() -> dict[str, Any]:
        await go_on.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            waiting.append(1)
            await go_on.wait()

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http", "root_path": ""}
    app: Any = client.app
    slow = [client.portal.start_task_soon(app, dict(scope), receive, send) for _ in range(60)]
    end = time.monotonic() + 60
    while len(waiting) < len(slow) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(waiting) == len(slow)
    assert client.get(f"{API}/search", params={"q": "red"}).json()["hits"]
    assert len(waiting) == len(slow)
    assert not any(s.done() for s in slow)
    client.portal.call(go_on.set)
    for s in slow:
        s.result(60)


def test_the_cache_drops_the_longest_unused(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ".bin", most=250)
    for key in ("a", "b"):
        cache.put(key, bytes(100))
    assert cache.get("a") is not None
    cache.put("c", bytes(100))
    assert [cache.get(k) is not None for k in "abc"] == [True, False, True]
    (tmp_path / "left.part").write_bytes(b"x")
    again = Cache(tmp_path, ".bin", most=150)  # another run, with less room
    assert (len(again), again.size) == (1, 100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.bin"] or again.get("a") is not None
    assert not (tmp_path / "left.part").exists()


def test_the_log_does_not_show_the_token() -> None:
    args = ("127.0.0.1:9", "GET", "/?x=1&token=s3cret&y=2", "1.1", 303)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', args, None)
    assert WithoutToken().filter(record)
    assert record.getMessage() == '127.0.0.1:9 - "GET /?x=1&token=...&y=2 HTTP/1.1" 303'
