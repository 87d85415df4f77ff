"""Latency of search: exact over vectors in memory, and approximate over an index on disk, with its recall.

`python benchmarks/search.py [--sizes 10000 200000] [--approximate 1000000]` -> results/search.json. Exact: random unit
vectors, 512 wide; NumPy's own matrix product with a full sort runs in turns as the peer. Approximate: made vectors that
lie as CLIP's do (frames and texts in two narrow cones, topics, shots); from the query's vector to the best moment of
each of ten videos, with fresh queries of both kinds, all videos or a tenth of them allowed, against the exact answer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from machine import describe, save
from numpy.typing import NDArray

from clipreel.search import ann
from clipreel.search.index import File, Index, Moments, file_schema, vector_schema
from clipreel.search.query import best_per_file

WIDTH, PER_FILE, PIECE = 512, 8, 48_000
Vectors = NDArray[np.float32]


def unit(x: NDArray[np.floating]) -> Vectors:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def uniform(rng: np.random.Generator, owner: NDArray[np.int64]) -> Vectors:
    return unit(rng.standard_normal((len(owner), WIDTH), dtype=np.float32))


def directions(rng: np.random.Generator, count: int) -> Vectors:
    """Unit vectors of about 80 dimensions: what a model tells apart has fewer than its vectors."""
    return unit(rng.standard_normal((count, WIDTH), dtype=np.float32) * np.exp(-np.arange(WIDTH) / 80))


class World:
    """Made vectors of a model: frames of a video, other videos and texts differ about as much as CLIP's do."""

    tokenizer, space = "made", "made"

    def __init__(self, topics: int = 2000) -> None:
        rng = np.random.default_rng(7)
        self.video, text = unit(rng.standard_normal((2, WIDTH)))
        self.text = unit(0.95 * text + 0.3 * self.video)
        self.topics = directions(rng, topics)
        self.rng = np.random.default_rng(8)

    def frames(self, rng: np.random.Generator, owner: NDArray[np.int64]) -> Vectors:
        _, place = np.unique(owner, return_inverse=True)
        videos = self._meaning(rng, int(place.max()) + 1)
        return unit(0.7 * self.video + 0.6 * videos[place] + 0.4 * directions(rng, len(owner)))

    def texts(self, rng: np.random.Generator, count: int) -> Vectors:
        return unit(0.8 * self.text + 0.5 * self._meaning(rng, count))

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(self.texts(self.rng, len(texts)))

    def _meaning(self, rng: np.random.Generator, count: int) -> Vectors:
        first, second = self.topics[rng.integers(0, len(self.topics), (2, count))]
        return unit(first + 0.6 * second + 0.5 * directions(rng, count))


def made(n: int, source: Callable[[np.random.Generator, NDArray[np.int64]], Vectors]) -> Moments:
    rng = np.random.default_rng(0)
    vectors = np.empty((n, WIDTH), np.float32)
    owner = np.arange(n) // PER_FILE
    for start in range(0, n, PIECE):
        vectors[start : start + PIECE] = source(rng, owner[start : start + PIECE])
    files = tuple(File(f"{i:024d}", f"/v/{i % 10}/{i:07d}.mp4", 1, 1, "", 60.0) for i in range(int(owner[-1]) + 1))
    level = (np.arange(n) % PER_FILE > 0).astype(np.int64)
    start_s = (np.arange(n) % PER_FILE * 8).astype(np.float32)
    return Moments(vectors, owner, level, start_s, start_s + 8, files)


def percentiles(seconds: list[float]) -> dict[str, float]:
    ms = np.array(seconds) * 1000
    return {"p50_ms": float(np.percentile(ms, 50)), "p95_ms": float(np.percentile(ms, 95))}


def exact(n: int, queries: int) -> dict[str, object]:
    moments = made(n, uniform)
    rng = np.random.default_rng(1)
    ours: list[float] = []
    peer: list[float] = []
    for _ in range(queries + 5):
        q = rng.standard_normal(WIDTH).astype(np.float32)
        start = time.perf_counter()
        best_per_file(moments, moments.vectors @ q, 10)
        middle = time.perf_counter()
        np.argsort(-(moments.vectors @ q), kind="stable")[:10]
        ours.append(middle - start)
        peer.append(time.perf_counter() - middle)
    batch = rng.standard_normal((64, WIDTH)).astype(np.float32)
    start = time.perf_counter()
    scores = batch @ moments.vectors.T
    per_query = (time.perf_counter() - start) / 64 * 1000
    assert scores.shape == (64, n)
    return {
        "exact, best moment per video": percentiles(ours[5:]),
        "product and full sort": percentiles(peer[5:]),
        "product in batches of 64, ms a query": per_query,
    }


def stored(moments: Moments, place: Path) -> Index:
    """An index with these vectors, written in large pieces."""
    index = Index.create(place, {"space": "made", "model": "made", "embed_dim": WIDTH, "segments": {}})
    listed = [{**vars(f), "path": f.path.encode()} for f in moments.files]
    index.files.add(pa.Table.from_pylist(listed, file_schema()))
    schema = vector_schema(WIDTH)
    for start in range(0, len(moments.vectors), PIECE):
        rows = slice(start, start + PIECE)
        owner = moments.file[rows]
        flat = pa.FixedSizeListArray.from_arrays(pa.array(moments.vectors[rows].reshape(-1)), WIDTH)
        columns = [
            pa.array([f"{moments.files[i].id}/{start + n}" for n, i in enumerate(owner)]),
            pa.array([moments.files[i].id for i in owner]),
            *(pa.array(x[rows]) for x in (moments.level, moments.start_s, moments.end_s)),
            flat,
        ]
        table = pa.Table.from_arrays([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
        index.vectors.add(table)
    return index


def approximate(n: int, queries: int) -> dict[str, object]:
    world = World()
    moments = made(n, world.frames)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        index = stored(moments, Path(folder) / "index")
        ingested = time.perf_counter()
        fact = ann.refresh(index, world)
        built = time.perf_counter()
        bytes_on_disk = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        source = ann.Approximate(index)
        opened = time.perf_counter() - built
        # the index lists files by path, as the exact answers must
        order = np.argsort([f.path for f in moments.files], kind="stable")
        rank = np.argsort(order)
        rows = np.argsort(rank[moments.file], kind="stable")
        columns = {c: getattr(moments, c)[rows] for c in ("vectors", "level", "start_s", "end_s")}
        files = tuple(moments.files[i] for i in order)
        moments = replace(moments, **columns, file=rank[moments.file][rows], files=files)
        answers: dict[str, object] = {}
        rng = np.random.default_rng(2)
        asked = {"texts": world.texts(rng, queries), "frames": world.frames(rng, np.arange(queries))}
        for kind, vectors in asked.items():
            for name, allowed in (("all", np.ones(len(files), bool)), ("a tenth", folder_of(files, "/v/3/"))):
                answers[f"{kind}, {name} of the videos"] = compared(moments, source, vectors, allowed)
    return {
        "approximate": answers,
        "parameters and recall that the index measured itself": fact,
        "seconds": {"store": ingested - started, "train and measure": built - ingested, "open": opened},
        "bytes on disk": bytes_on_disk,
    }


def folder_of(files: tuple[File, ...], prefix: str) -> NDArray[np.bool_]:
    return np.array([f.path.startswith(prefix) for f in files])


def compared(
    moments: Moments, source: ann.Approximate, queries: Vectors, allowed: NDArray[np.bool_], k: int = 10
) -> dict[str, float]:
    """Latency, and the share of the exact ten videos that were found."""
    hits, spent = [], []
    inside = allowed[moments.file]
    for n, q in enumerate(queries):
        start = time.perf_counter()
        near = source.moments(q, k, allowed, "")
        found = best_per_file(near, np.where(allowed[near.file], near.vectors @ q, -np.inf).astype(np.float32), k)
        if n >= 5:  # the first ones warm the caches of the store
            spent.append(time.perf_counter() - start)
        right = best_per_file(moments, np.where(inside, moments.vectors @ q, -np.inf).astype(np.float32), k)
        hits.append(len({h.path for h in found} & {h.path for h in right}) / len(right))
    return {**percentiles(spent), "recall@10": float(np.mean(hits))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 200_000])
    parser.add_argument("--approximate", type=int, nargs="*", default=[])
    parser.add_argument("--queries", type=int, default=60)
    args = parser.parse_args()
    ann.THRESHOLD = 0  # at every size, to see what it costs and gives
    result: dict[str, object] = {"machine": describe("numpy", "lancedb")}
    for n in args.sizes:
        result[f"{n} vectors"] = exact(n, args.queries)
        print(n, result[f"{n} vectors"])
    for n in args.approximate:
        result[f"{n} vectors, approximate"] = approximate(n, args.queries)
        print(n, result[f"{n} vectors, approximate"])
    save("search", result)


if __name__ == "__main__":
    main()
