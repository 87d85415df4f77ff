"""Time and peak memory of evaluation from features, both directions: counting in blocks against sorting.

`python benchmarks/evaluation.py [--threads N] [--rounds R]` -> results/evaluation.json. Every run is a process of its
own, so that its peak resident size is its own; the peers take turns. `torch argsort` is what public codes do: the
whole matrix, argsort twice for t2v, argsort for v2t; `numpy argsort` is the best one can make of sorting: once per
direction. They run only where their matrices fit; all must find the same ranks.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from machine import describe, save
from torch import Tensor

WIDTH = 512
# texts, videos, rounds, whether sorting fits into 8 GB, more options of `evaluate`
CASES: dict[str, tuple[int, int, int, bool, dict[str, str]]] = {
    "27,763 x 670 (MSVD test)": (27763, 670, 5, True, {}),
    "8,000 x 8,000": (8000, 8000, 3, True, {}),
    "8,000 x 8,000, dual softmax": (8000, 8000, 2, False, {"dual_softmax": "softmax"}),
    "50,000 x 50,000": (50000, 50000, 1, False, {}),
}
PEERS = ("clipreel", "torch argsort", "numpy argsort")


def features(texts: int, videos: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors whose own pairs are a little closer than the others, and the video of each text."""
    g = torch.Generator().manual_seed(0)
    v = torch.nn.functional.normalize(torch.randn(videos, WIDTH, generator=g), dim=1)
    more = torch.randint(0, videos, (texts - videos,), generator=g)
    truth = torch.cat([torch.arange(videos), more]).sort().values
    t = torch.randn(texts, WIDTH, generator=g).mul_(8).add_(v[truth], alpha=WIDTH**0.5)
    return torch.nn.functional.normalize(t, dim=1), v, truth


def by_sorting(library: str, texts: Tensor, videos: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks from 1 of each text's video, and of each video's best own caption."""
    s = texts @ videos.T
    if library == "numpy argsort":
        scores = -s.numpy()
        first = torch.from_numpy((scores.argsort(1) == truth.numpy()[:, None]).argmax(1))
        mine = truth.numpy()[scores.argsort(0)] == np.arange(len(videos))
        return first + 1, torch.from_numpy(mine.argmax(0)) + 1
    t2v = (-s).argsort(1).argsort(1).gather(1, truth[:, None])[:, 0] + 1
    order = (-s).argsort(0)
    own = truth[order] == torch.arange(len(videos))
    return t2v, own.byte().argmax(0) + 1  # the first own caption has none of its own before it


def run(peer: str, case: str) -> dict[str, float]:
    """One measurement, in this process."""
    texts, videos, _, _, options = CASES[case]
    t, v, truth = features(texts, videos)
    from clipreel.evaluation import evaluate

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    if peer != "clipreel":
        t2v, v2t = by_sorting(peer, t, v, truth)
    else:
        ranks = evaluate(t, v, truth, **options).ranks
        assert ranks is not None
        t2v, v2t = (r.pessimistic() for r in ranks)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check = int(t2v.sum()), int(v2t.sum())
    memory = {"peak_mb": peak / 1024, "before_mb": before / 1024}
    return {"seconds": seconds, "cpu_s": cpu_s, **memory, "t2v": check[0], "v2t": check[1]}


def measure(case: str, threads: int, most: int | None) -> dict[str, object]:
    rounds, sortable = CASES[case][2:4]
    found: dict[str, list[dict[str, float]]] = {p: [] for p in (PEERS if sortable else PEERS[:1])}
    for _ in range(rounds if most is None else min(rounds, most)):
        for peer, runs in found.items():
            command = [sys.executable, __file__, "--one", peer, case, "--threads", str(threads)]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    sums = {(r["t2v"], r["v2t"]) for runs in found.values() for r in runs}
    # a last bit may differ between one big product and blocks, so a few of all ranks may differ by one
    apart = max(abs(a - b) for a, b in zip(max(sums), min(sums), strict=True))
    assert apart <= 3, f"ranks differ: {sums}"
    out: dict[str, object] = {
        peer: {
            "best_s": min(r["seconds"] for r in runs),
            "best_cpu_s": min(r["cpu_s"] for r in runs),
            "rounds": len(runs),
            "peak_mb": max(r["peak_mb"] for r in runs),
            "of_it_before_mb": max(r["before_mb"] for r in runs),
        }
        for peer, runs in found.items()
    }
    if not sortable:
        out["sorting"] = "not run"
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=None, help="at most so many")
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--one", nargs=2, metavar=("PEER", "CASE"), help="one measurement as JSON; used by this script")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(run(*args.one)))
        return
    result: dict[str, object] = {"machine": describe("torch"), "threads": args.threads, "width": WIDTH}
    for case in args.only:
        result[case] = measured = measure(case, args.threads, args.rounds)
        print(case, json.dumps(measured), flush=True)
    save("evaluation", result)


if __name__ == "__main__":
    main()
