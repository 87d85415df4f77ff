"""A small archive, its index, and a server over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from clipreel.adapter import load
from clipreel.retriever import Retriever
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.server.app import create_app
from clipreel.server.services import Services
from clipreel.server.settings import Settings
from clipreel.video.shots import Segments
from tests.video.make import write

API = "/api/v1"


@lru_cache
def model() -> Retriever:
    return load("shapes-tiny", device="cpu")


def made(folder: Path) -> Path:
    """Videos that browsers play, that have to be repacked, and that have to be encoded; and one that is none."""
    videos = folder / "videos"
    (videos / "sub").mkdir(parents=True)
    write(videos / "a.mp4", frames=24)
    write(videos / "b.mkv", frames=36)
    write(videos / "sub" / "c.avi", frames=24, codec="mpeg4")
    (videos / "bad.mp4").write_text("no video")
    return videos


def indexed(videos: Path, place: Path) -> str:
    index = Index.create(place, facts_of(model(), Segments("windows", 1.0, 0.0, 4.0)))
    update(index, model(), [str(videos)], workers=1)
    return str(place)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Videos and their index, which no test changes."""
    folder = tmp_path_factory.mktemp("archive")
    videos = made(folder)
    return videos, indexed(videos, folder / "index")


@pytest.fixture
def own_archive(tmp_path: Path) -> tuple[Path, str]:
    """The same for one test that changes it."""
    videos = made(tmp_path)
    return videos, indexed(videos, tmp_path / "index")


Serve = Callable[..., TestClient]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers: serve(place, **settings) gives a client."""
    with ExitStack() as stack:

        def start(place: str, **settings: Any) -> TestClient:
            app = create_app(place, model(), Settings(cache=tmp_path / "cache", **settings), "cpu")
            return stack.enter_context(TestClient(app, base_url="http://localhost", raise_server_exceptions=False))

        yield start


@pytest.fixture
def client(serve: Serve, archive: tuple[Path, str]) -> TestClient:
    return serve(archive[1])


def ids(client: TestClient) -> dict[str, str]:
    """Name of each video -> its id."""
    return {v["name"]: v["id"] for v in client.get(f"{API}/videos").json()["videos"]}


def services(client: TestClient) -> Services:
    """The parts of the server behind a client."""
    app: Any = client.app
    return app.state.services


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]
