"""Latency of exact search over vectors in memory: p50 and p95, one query at a time and in batches.

`python benchmarks/search.py [--sizes 10000 200000 1000000]` -> results/search.json. Random unit vectors, 512 wide;
NumPy's own matrix product with a full sort runs in turns as the peer.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from machine import describe, save

from clipreel.search.index import File, Moments
from clipreel.search.query import best_per_file


def made(n: int, width: int = 512, per_file: int = 8) -> Moments:
    rng = np.random.default_rng(0)
    vectors = np.empty((n, width), np.float32)
    for start in range(0, n, 50_000):
        part = rng.standard_normal((min(50_000, n - start), width), dtype=np.float32)
        vectors[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    owner = np.arange(n) // per_file
    files = tuple(File(str(i), f"/v/{i:07d}.mp4", 1, 1, "", 60.0) for i in range(int(owner[-1]) + 1))
    level = (np.arange(n) % per_file > 0).astype(np.int64)
    start = (np.arange(n) % per_file * 8).astype(np.float32)
    return Moments(vectors, owner, level, start, start + 8, files)


def percentiles(seconds: list[float]) -> dict[str, float]:
    ms = np.array(seconds) * 1000
    return {"p50_ms": float(np.percentile(ms, 50)), "p95_ms": float(np.percentile(ms, 95))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--queries", type=int, default=60)
    args = parser.parse_args()
    result: dict[str, object] = {"machine": describe("numpy", "lancedb")}
    rng = np.random.default_rng(1)
    for n in args.sizes:
        moments = made(n)
        ours: list[float] = []
        peer: list[float] = []
        for _ in range(args.queries + 5):
            q = rng.standard_normal(512).astype(np.float32)
            start = time.perf_counter()
            best_per_file(moments, moments.vectors @ q, 10)
            middle = time.perf_counter()
            np.argsort(-(moments.vectors @ q), kind="stable")[:10]
            ours.append(middle - start)
            peer.append(time.perf_counter() - middle)
        batch = rng.standard_normal((64, 512)).astype(np.float32)
        start = time.perf_counter()
        scores = batch @ moments.vectors.T
        per_query = (time.perf_counter() - start) / 64 * 1000
        assert scores.shape == (64, n)
        result[f"{n} vectors"] = {
            "exact, best moment per video": percentiles(ours[5:]),
            "product and full sort": percentiles(peer[5:]),
            "product in batches of 64, ms a query": per_query,
        }
        print(n, result[f"{n} vectors"])
    save("search", result)


if __name__ == "__main__":
    main()
