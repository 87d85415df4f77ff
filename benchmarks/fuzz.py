"""Throws what the OpenAPI description allows, and much that it does not, at a server over a small archive: no 5xx.

`python benchmarks/fuzz.py [--cases 100]` needs `pip install schemathesis`. Event streams are left out: they do not end.
The last line counts answers by status; the first answer of 500 and above ends it with code 1 and says how to repeat it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.core.result import Ok

from clipreel.adapter import load
from clipreel.data.shapes import ShapesWorld
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.server.app import create_app
from clipreel.server.settings import Settings
from clipreel.video.shots import Segments

VIDEOS = 4


def served(folder: Path) -> tuple[uvicorn.Server, str]:
    """A server over a few videos of the shapes world, in a thread, and its address."""
    model = load("shapes-tiny", device="cpu")
    ShapesWorld().write_videos(folder / "videos", "test", count=VIDEOS)
    index = Index.create(folder / "index", facts_of(model, Segments()))
    update(index, model, [str(folder / "videos")], workers=1)
    limits = Settings(cache=folder / "cache", read_only="this server only answers")
    app = create_app(index.place, model, limits, "cpu")
    server = uvicorn.Server(uvicorn.Config(app, port=0, loop="asyncio", log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    return server, f"http://127.0.0.1:{port}"


def fuzz(address: str, cases: int) -> Counter[str]:
    """Answers by route and status. Raises AssertionError for one of 500 and above."""
    seen: Counter[str] = Counter()
    client = httpx.Client(base_url=address, timeout=60)
    known = [v["id"] for v in client.get("/api/v1/videos").json()["videos"]]
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")

    def check(case: Case) -> None:
        # half of the ids are real, so that more than the first check is reached
        if isinstance(case.path_parameters, dict) and "videos" in case.path and len(seen) % 2:
            case.path_parameters["id"] = known[sum(seen.values()) % len(known)]
        answer = case.call()
        seen[f"{case.method} {case.path} {answer.status_code}"] += 1
        assert answer.status_code < 500, f"{answer.status_code} {answer.text[:200]}\n{case.as_curl_command()}"

    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation: Any = result.ok()
        if operation.path.endswith("/events"):
            continue
        checks = list(HealthCheck)
        run = settings(max_examples=cases, deadline=None, suppress_health_check=checks, phases=(Phase.generate,))
        run(given(case=operation.as_strategy())(check))()
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="of each operation")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        server, address = served(Path(scratch))
        try:
            seen = fuzz(address, args.cases)
        except AssertionError as e:
            print(e)
            return 1
        finally:
            server.should_exit = True
            time.sleep(1)
    for line, count in sorted(seen.items()):
        print(f"{count:6d}  {line}")
    by_status = Counter(line.rsplit(" ", 1)[1] for line in seen.elements())
    print(f"{sum(seen.values())} requests, no 5xx: {dict(sorted(by_status.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
