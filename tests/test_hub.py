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


def test_without_leave_nothing_is_asked(hub: str, tmp_path: Path) -> None:
    code = f"import clipreel; clipreel.load({REPO!r}, download=False)"
    out = run(code, tmp_path, HF_ENDPOINT=hub)
    assert "needs one download" in out.stderr
    assert "--download" in out.stderr
    assert Hub.asked == []
