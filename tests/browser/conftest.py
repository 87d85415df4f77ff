"""The page in headless Chromium against a real `clipreel serve`: `make browser`, and no part of `make test`."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from PIL import Image

from tests.browser import world
from tests.browser.steps import RING, until

START_S = 120  # a server loads its model; a busy machine takes its time
WAIT_MS = 20_000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", default=None, metavar="DIR", help="where the pictures of the README are written")
    parser.addoption("--chromium", default=None, metavar="FILE", help="the browser, where it is not on the path")


def clipreel(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "clipreel", *map(str, args)]


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(clipreel(*args), capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    return done


@dataclass
class Served:
    """A running server: its address, the folder of videos, the index, what is in the films."""

    address: str
    folder: Path
    index: Path
    films: list[world.Film]

    def film(self, name: str) -> world.Film:
        return next(f for f in self.films if f.path.stem == name)


def serve(index: Path, cache: Path, *more: str | Path) -> tuple[subprocess.Popen[str], str]:
    """Start `clipreel serve` on a free port and wait for the address that it prints."""
    command = clipreel("serve", "--index", index, "--port", "0", "--cache", cache, *more)
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert server.stdout is not None
    lines: Queue[str] = Queue()
    threading.Thread(target=lambda out: [lines.put(line) for line in out], args=(server.stdout,), daemon=True).start()
    said = ""
    try:
        while "http://" not in said:
            said += lines.get(timeout=START_S)
    except Empty:
        server.kill()
        pytest.fail(f"the server did not start: {said}")
    return server, "http://" + said.partition("http://")[2].split()[0]


def wait_until_it_listens(address: str) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            return urlopen(f"{address}/api/v1/health", timeout=10).close()
        except URLError:
            assert time.monotonic() < until_s, f"nobody answers at {address}"
            time.sleep(0.2)


def index_of(folder: Path, name: str, *more: str | Path) -> Path:
    """An index of the folders below `folder`, with a segment for each scene."""
    index = folder.parent / name
    roots = sorted(p for p in folder.iterdir() if p.is_dir())
    scenes = ("--seconds", str(world.SCENE_S), "--overlap", "0")
    run("index", *roots, "--index", index, "--model", "shapes-tiny", *scenes, *more)
    return index


def tuned(folder: Path) -> Path:
    """An adapter of a few steps, with its report; whether it helps does not matter here."""
    world.ShapesWorld().write_videos(folder / "captioned", "val", count=32)
    shares = ("data.validation_share=0.3", "data.held_out_share=0.4")
    steps = ("frames=2", "batch=8", "train.steps=4", "train.select.every_steps=2", "options.rank=2")
    out = folder / "my footage"
    run("tune", folder / "captioned", *steps, *shares, "--on", "shapes-tiny", "--method", "lora", "--out", out)
    return out / "adapter"


def served(folder: Path, films: list[world.Film], *more: str | Path, kept: tuple[str, ...] = ()) -> Iterator[Served]:
    """The folders below `folder`, indexed (with what is `kept`) and served until the tests are done."""
    index = index_of(folder, "index", *kept)
    server, address = serve(index, folder.parent / "cache", *more)
    wait_until_it_listens(address)
    yield Served(address, folder, index, films)
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> Iterator[Served]:
    """All films and one file that is none, with an adapter to switch to. Tests only look at it."""
    folder = tmp_path_factory.mktemp("looked-at") / "films"
    films = world.write(folder)
    (folder / "workshop" / "broken reel.mp4").write_text("not a film")
    other = index_of(folder, "other", "--adapter", adapter, "--unhelpful")
    yield from served(folder, films, "--other", other)


@pytest.fixture(scope="session")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A small archive that tests may change."""
    folder = tmp_path_factory.mktemp("living") / "films"
    films = world.write(folder)
    shutil.rmtree(folder / "workshop")
    shutil.rmtree(folder / "harbour")
    world.write_remade(folder / "garden" / "old camera.avi")
    yield from served(folder, films)


@pytest.fixture(scope="session")
def moving(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> Iterator[Served]:
    """A small archive on its way to another model, with two saved queries."""
    folder = tmp_path_factory.mktemp("moving") / "films"
    films = world.write(folder)
    shutil.rmtree(folder / "workshop")
    shutil.rmtree(folder / "harbour")
    for one in served(folder, films):
        run("canary", "add", RING, "a little yellow bar", "--index", one.index)
        run("migrate", "--adapter", adapter, "--index", one.index)
        yield one


@pytest.fixture(scope="session")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An archive that keeps the vectors of its frames, served with a head that orders hits anew."""
    folder = tmp_path_factory.mktemp("framed") / "films"
    films = world.write(folder)
    yield from served(folder, films, "--rerank", "mean", kept=("--frames",))


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    found = request.config.getoption("--chromium") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        raise pytest.UsageError("no Chromium: install it (apt-get install chromium), or name it with --chromium FILE")
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=found, args=["--disable-gpu", "--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, archive: Served) -> Iterator[Callable]:
    """Opens a page in a fresh profile; an error of a script, or a breach of the content policy, fails the test."""
    contexts, wrong = [], []

    def opened(address: str = "/", served: Served = archive, width: int = 1280, height: int = 800, **more):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("console", lambda m: wrong.append(m.text) if "Content Security Policy" in m.text else None)
        page.goto(served.address + address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Callable:
    """Keeps a picture of the page, small enough for a README."""
    folder = Path(request.config.getoption("--pictures") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(page, name: str) -> None:
        until(page, "[...document.images].every((i) => i.complete || i.loading === 'lazy')")
        page.wait_for_timeout(250)  # transitions
        full = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        colours = full.quantize(256, dither=Image.Dither.NONE, kmeans=2)
        path = folder / f"{name}.png"
        colours.save(path, optimize=True)
        assert path.stat().st_size < 150_000

    return take
