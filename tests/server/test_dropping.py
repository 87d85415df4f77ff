"""A body that is refused: who sends all of it before reading anything hears why, within bounds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from clipreel.server.metrics import Metrics
from clipreel.server.security import Guard
from clipreel.server.settings import Settings

MB = 1 << 20
HEAD = "POST /api/v1/search HTTP/1.1\r\nhost: localhost\r\n"
Start = Callable[..., tuple[str, int]]


async def reads(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that reads its body and says how long it was; an exception is answered with its status."""
    size, more = 0, True
    try:
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
    except Exception as e:
        await PlainTextResponse(str(e), getattr(e, "status_code", 500))(scope, receive, send)
        return
    await PlainTextResponse(str(size))(scope, receive, send)


@contextmanager
def running(settings: Settings) -> Iterator[tuple[str, int]]:
    server = uvicorn.Server(
        uvicorn.Config(Guard(reads, settings, Metrics()), port=0, lifespan="off", log_level="error", loop="asyncio")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda **more: stack.enter_context(running(Settings(cache=tmp_path, **more)))


def answer(place: tuple[str, int], head: str, *parts: bytes) -> tuple[str, float]:
    """The first line of the answer to a request that is sent whole before anything is read, and seconds."""
    with socket.create_connection(place, timeout=60) as client:
        began = time.monotonic()
        client.sendall((head + "\r\n").encode())
        for part in parts:
            client.sendall(part)
        said = client.recv(65536).partition(b"\r\n")[0].decode()
        return said, time.monotonic() - began


@pytest.mark.parametrize("closing", ["", "connection: close\r\n"], ids=["kept", "closed"])
def test_who_sends_everything_first_hears_why_it_is_refused(start: Start, closing: str) -> None:
    place, piece = start(), bytes(MB)
    said, _ = answer(place, f"{HEAD}{closing}content-length: {100 * MB}\r\n", *[piece] * 100)
    assert said.startswith("HTTP/1.1 413")
    chunk = b"100000\r\n" + piece + b"\r\n"
    said, _ = answer(place, f"{HEAD}{closing}transfer-encoding: chunked\r\n", *[chunk] * 20, b"0\r\n\r\n")
    assert said.startswith("HTTP/1.1 413")


def test_a_connection_goes_on_after_a_refused_body(start: Start) -> None:
    with socket.create_connection(start(), timeout=60) as client:
        client.sendall(f"{HEAD}content-length: {MB}\r\n\r\n".encode() + bytes(MB))
        said = b""
        while not said.endswith(b"}}"):
            said += client.recv(65536)
        assert said.startswith(b"HTTP/1.1 413")
        client.sendall(f"{HEAD}content-length: 3\r\n\r\nabc".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_nobody_waits_for_what_does_not_come(start: Start) -> None:
    place = start(dropped_s=0.5)
    said, spent = answer(place, f"{HEAD}content-length: {100 * MB}\r\n", bytes(1000))
    assert said.startswith("HTTP/1.1 413")
    assert 0.4 < spent < 5
    said, spent = answer(start(dropped_s=60.0), f"{HEAD}expect: 100-continue\r\ncontent-length: {100 * MB}\r\n")
    assert said.startswith("HTTP/1.1 413")  # and not 100: the body is never sent
    assert spent < 5


def test_no_more_is_read_than_is_allowed(start: Start) -> None:
    place = start(dropped_bytes=4 * MB, dropped_s=60.0)

    def sent() -> int:
        with socket.create_connection(place, timeout=60) as client:
            client.sendall(f"{HEAD}content-length: {10**12}\r\n\r\n".encode())
            for n in range(200):
                try:
                    client.sendall(bytes(MB))
                except OSError:
                    return n
        return 200

    assert sent() < 60  # what lies in the buffers of the system comes on top


def test_who_has_no_token_is_not_read(start: Start) -> None:
    place = start(token="t0ken", loopback=False, dropped_s=60.0)
    said, spent = answer(place, f"{HEAD}content-length: {100 * MB}\r\n", bytes(1000))
    assert said.startswith("HTTP/1.1 401")
    assert spent < 5


def test_sizes_that_are_allowed_are_read(start: Start) -> None:
    settings: dict[str, Any] = {"body_bytes": 2 * MB}
    said, _ = answer(start(**settings), f"{HEAD}content-length: {2 * MB}\r\n", bytes(2 * MB))
    assert said.startswith("HTTP/1.1 200")
