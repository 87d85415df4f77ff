"""Hub ids through a stand-in for the hub on the loopback interface; offline, the message says what to do."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipreel.retriever import BUILT_IN

REPO, COMMIT = "someone/tiny-clip", "a" * 40
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")


class Hub(BaseHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        type(self).asked.append(path)
        if path.startswith(f"/api/models/{REPO}/tree/"):
            sizes = {f: (BUILT_IN["shapes-tiny"] / f).stat().st_size for f in FILES}
            rows = [{"type": "file", "path": f, "size": n, "oid": "b" * 40} for f, n in sizes.items()]
            self.reply(json.dumps(rows).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"/api/models/{REPO}"):
            data = json.dumps({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": f} for f in FILES]}).encode()
            self.reply(data, {"Content-Type": "application/json"}, body)
        elif path.startswith(f"/{REPO}/resolve/") and path.rsplit("/", 1)[1] in FILES:
            data = (BUILT_IN["shapes-tiny"] / path.rsplit("/", 1)[1]).read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.reply(data, {"ETag": etag, "X-Repo-Commit": COMMIT}, body)
        else:
            self.send_error(404)

    def reply(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(code: str, home: Path, **env: str) -> subprocess.CompletedProcess:
    whole = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **env}
    return subprocess.run([sys.executable, "-c", code], env=whole, capture_output=True, text=True, timeout=120)


LOAD = f"import clipreel; m = clipreel.load({REPO!r}); print(m.encode_text(['a red circle']).shape)"


def test_a_hub_id_is_fetched_once_and_then_works_offline(hub: str, tmp_path: Path) -> None:
    first = run(LOAD, tmp_path, HF_ENDPOINT=hub)
    assert "torch.Size([1, 128])" in first.stdout, first.stderr
    assert any("model.safetensors" in path for path in Hub.asked)
    again = run(LOAD, tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert "torch.Size([1, 128])" in again.stdout, again.stderr


def test_offline_says_what_to_download_and_where_to_put_it(tmp_path: Path) -> None:
    out = run(LOAD, tmp_path, HF_HUB_OFFLINE="1")
    assert "could not be fetched" in out.stderr
    assert "--model FOLDER" in out.stderr


def broken_off(home: Path, **files: str) -> Path:
    """A cache as a download leaves it that was broken off after some files."""
    repository = home / "hub" / f"models--{REPO.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


SNAPSHOT = f"from clipreel.hub import snapshot; print(*(p.name for p in snapshot({REPO!r}, {{}}).iterdir()))"


def test_a_download_that_was_broken_off_is_finished(hub: str, tmp_path: Path) -> None:
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    one_of_two = {"model__safetensors__index__json": json.dumps(shards), "model-00001-of-00002__safetensors": "x"}
    for i, files in enumerate(({}, one_of_two)):
        broken_off(tmp_path / str(i), **files)
        out = run(SNAPSHOT.format(False), tmp_path / str(i), HF_ENDPOINT=hub)
        assert "needs one download" in out.stderr
        assert Hub.asked == []
        out = run(SNAPSHOT.format(True), tmp_path / str(i), HF_ENDPOINT=hub)
        assert all(name in out.stdout for name in FILES), out.stderr
        weights = Hub.asked.index(f"/{REPO}/resolve/{COMMIT}/model.safetensors")
        assert weights > Hub.asked.index(f"/{REPO}/resolve/{COMMIT}/tokenizer.json")
        Hub.asked.clear()


def test_what_the_cache_has_is_taken_without_asking(hub: str, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    parts = {"model__safetensors__index__json": index, "model-00001-of-00001__safetensors": "x"}
    for i, files in enumerate(({"pytorch_model__bin": "x"}, parts)):
        broken_off(tmp_path / str(i), **files)
        out = run(SNAPSHOT.format(True), tmp_path / str(i), HF_ENDPOINT=hub)
        assert len(out.stdout.split()) == len(files)
    assert Hub.asked == []


def test_without_leave_nothing_is_asked(hub: str, tmp_path: Path) -> None:
    code = f"import clipreel; clipreel.load({REPO!r}, download=False)"
    out = run(code, tmp_path, HF_ENDPOINT=hub)
    assert "needs one download" in out.stderr
    assert "--download" in out.stderr
    assert Hub.asked == []
