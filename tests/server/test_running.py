"""The address is said when somebody answers there."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
import uvicorn
from fastapi import FastAPI

from clipreel.cli.serve import serve
from clipreel.server import running


def test_ready_is_called_when_requests_are_answered() -> None:
    said: list[str] = []

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        said.append("services")
        yield

    app = FastAPI(lifespan=life)
    app.get("/")(lambda: "here")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = running.Announced(uvicorn.Config(app, log_level="error"), lambda: said.append("ready"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        end = time.monotonic() + 30
        while "ready" not in said and time.monotonic() < end:
            time.sleep(0.01)
        port = listening.getsockname()[1]
        assert urlopen(f"http://127.0.0.1:{port}/", timeout=10).read() == b'"here"'
        server.should_exit = True
        thread.join(30)
    assert said == ["services", "ready"]


def test_the_address_is_printed_when_the_server_is_ready_and_not_before(
    archive: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before: list[str] = []

    def run(app: FastAPI, listening: socket.socket, ready: object, log: bool) -> None:
        before.append(capsys.readouterr().out)
        assert callable(ready)
        ready()
        listening.close()

    monkeypatch.setattr(running, "run", run)
    assert serve(index=archive[1], port=0, cache=tmp_path, remember=False) == 0
    assert before == [""]
    assert capsys.readouterr().out.startswith(f"clipreel serves {archive[1]} at http://127.0.0.1:")
