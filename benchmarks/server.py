"""The server under load: an index of many segments, many clients at once, memory over many requests, time to answer.

`python benchmarks/server.py [--segments 200000] [--clients 50] [--requests 10000]` -> results/server.json. The server
is a process of its own, started by `clipreel serve`; clients are tasks of this one, so both share the machine: they
write to their sockets themselves, as an HTTP library would take a third of it. Every query is another text. Clients
that type ask about once a second each, the others at once when they have an answer: as
much as the server can do. Vectors are random units as wide as the model's; --model takes any source.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from machine import describe, save

from clipreel.adapter import load
from clipreel.retriever import Retriever
from clipreel.search.calibration import calibrate
from clipreel.search.index import Index, file_schema, vector_schema
from clipreel.search.indexer import facts_of
from clipreel.video.shots import Segments

PER_FILE, PIECE = 8, 20_000
TYPING_S = 1.0  # between two requests of a client that types
COLOURS = ("red", "green", "blue", "yellow", "white", "orange", "cyan", "purple")
SHAPES = ("circle", "square", "star", "moon", "cross", "bar", "triangle", "ring")
DEEDS = ("moves to the left", "grows", "shrinks", "rises", "falls", "turns around", "comes to rest", "goes away")
PLACES = ("above", "below", "left of", "right of", "behind", "in front of", "beside", "after")


def texts() -> list[str]:
    """32,768 different queries, in a fixed random order: none comes twice, so none is remembered."""
    parts = itertools.product(COLOURS, SHAPES, DEEDS, PLACES, COLOURS)
    every = [f"a {c} {s} {d} {p} a {other} thing" for c, s, d, p, other in parts]
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def made_index(place: str, model: Retriever, segments: int) -> None:
    """An index of random unit vectors: one of the whole video and the rest segments, PER_FILE a file."""
    index = Index.create(place, facts_of(model, Segments()) | {"roots": ["/archive"]})
    rng = np.random.default_rng(1)
    files = segments // PER_FILE
    rows = [
        {"id": f"{i:024x}", "path": f"/archive/{i % 40}/{i:07d}.mp4".encode(), "size": 1, "mtime_ns": i, "hash": ""}
        | {"duration_s": 60.0, "width": 1280, "height": 720, "reason": ""}
        for i in range(files)
    ]
    index.files.add(pa.Table.from_pylist(rows, file_schema()))
    width = model.embed_dim
    for start in range(0, segments, PIECE):
        n = min(PIECE, segments - start)
        vectors = rng.standard_normal((n, width), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        owner, part = np.divmod(np.arange(start, start + n), PER_FILE)
        begin = np.where(part > 0, (part - 1) * 8.0, 0.0).astype(np.float32)
        columns = [
            pa.array([f"{o:024x}/{p}" for o, p in zip(owner, part, strict=True)]),
            pa.array([f"{o:024x}" for o in owner]),
            pa.array((part > 0).astype(np.int8)),
            pa.array(begin),
            pa.array(np.where(part > 0, begin + 8.0, 60.0).astype(np.float32)),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width),
        ]
        index.vectors.add(pa.Table.from_arrays(columns, schema=vector_schema(width)))
    calibrate(index, model)


def started(place: str, model: str, cache: str) -> tuple[subprocess.Popen[str], str]:
    """The server's process and address, when it has said it."""
    command = [sys.executable, "-m", "clipreel", "serve", "--index", place, "--model", model, "--port", "0"]
    process = subprocess.Popen([*command, "--cache", cache], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, next(word for word in line.split() if word.startswith("http"))


class Client:
    """One connection, which is kept."""

    def __init__(self, address: str) -> None:
        self.host = urlsplit(address).netloc
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def search(self, text: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError or IncompleteReadError where the server goes away."""
        if self.streams is None:
            host, port = self.host.rsplit(":", 1)
            self.streams = await asyncio.open_connection(host, int(port))
        reader, writer = self.streams
        body = json.dumps({"text": text, "k": 24}).encode()
        head = f"POST /api/v1/search HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        return int(status.split()[1]), await reader.readexactly(length)

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


async def first_answer(address: str) -> None:
    client = Client(address)
    while True:
        try:
            status, body = await client.search("a red circle")
        except (OSError, EOFError):
            client.close()
            await asyncio.sleep(0.02)
            continue
        client.close()
        assert status == 200, body
        return


async def asked(address: str, clients: int, requests: int, queries: Any, pause_s: float = 0.0) -> dict[str, Any]:
    """Milliseconds and errors of `requests` by `clients`, each of which waits `pause_s` on average before it asks."""
    ms: list[float] = []
    errors: list[str] = []
    left = iter(range(requests))
    pause = random.Random(0)

    async def one() -> None:
        client = Client(address)
        for _ in left:
            await asyncio.sleep(pause.uniform(0, 2 * pause_s))
            began = time.perf_counter()
            try:
                status, body = await client.search(next(queries))
                took = time.perf_counter() - began
                if status != 200 or len(json.loads(body)["hits"]) != 24:
                    errors.append(f"{status} {body[:80]!r}")
            except (OSError, EOFError) as e:
                took = time.perf_counter() - began
                errors.append(type(e).__name__)
                client.close()
            ms.append(took * 1000)
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    took = time.perf_counter() - began
    return {
        "clients": clients,
        "requests": requests,
        "per_second": round(requests / took, 1),
        **{f"p{q}_ms": round(float(np.percentile(ms, q)), 1) for q in (50, 95, 99)},
        "max_ms": round(max(ms), 1),
        "errors": len(errors),
        "first_errors": errors[:3],
    }


def memory_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as f:
        return round(int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


async def measured(place: str, model: str, clients: int, requests: int, cache: str) -> dict[str, Any]:
    began = time.perf_counter()
    process, address = started(place, model, cache)
    queries = itertools.cycle(texts())
    try:
        await first_answer(address)
        start_s = round(time.perf_counter() - began, 2)
        alone = await asked(address, 1, min(50, requests), queries)
        await asked(address, clients, min(500, requests), queries)  # warm: pools, allocator
        typing = await asked(address, clients, max(1, requests // 5), queries, TYPING_S)
        before = memory_mb(process.pid)
        load = await asked(address, clients, requests, queries)
        after = memory_mb(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    memory = {"before_mb": before, "after_mb": after, "requests_between": requests}
    loads = {"one_client": alone, "clients_that_type": typing, "clients_that_do_not_wait": load}
    return {"first_answer_s": start_s, **loads, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--model", default="shapes-tiny")
    parser.add_argument("--out", default="server")
    args = parser.parse_args()
    model = load(args.model, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        place = str(Path(scratch, "index"))
        made_index(place, model, args.segments)
        found = asyncio.run(measured(place, args.model, args.clients, args.requests, str(Path(scratch, "cache"))))
    about = {"segments": args.segments, "width": model.embed_dim, "model": args.model}
    save(args.out, {"machine": describe("torch", "fastapi", "uvicorn"), **about, **found})


if __name__ == "__main__":
    main()
