"""Evaluation by counting against double argsort, and how much memory 50,000 x 50,000 takes.

`python benchmarks/evaluation.py` -> results/evaluation.json. Memory is the peak of a process of its own, less what
Python and torch take before.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from machine import describe, in_turns, save, summary

from clipreel.evaluation.metrics import evaluate
from clipreel.evaluation.ranks import rank_texts
from clipreel.evaluation.similarity import Cosine

MSVD = (27_763, 670)


def vectors(texts: int, videos: int, width: int = 512) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    v = torch.nn.functional.normalize(torch.randn(videos, width, generator=g), dim=1)
    truth = torch.arange(texts) % videos
    t = torch.empty(texts, width)
    for rows in torch.arange(texts).split(4096):
        t[rows] = v[truth[rows]] + torch.randn(len(rows), width, generator=g) * 0.1
    return t, v, truth


def by_argsort(t: torch.Tensor, v: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Ranks as most public code has them: the whole matrix, sorted twice."""
    order = (t @ v.T).argsort(1, descending=True).argsort(1)
    return order.gather(1, truth[:, None])[:, 0] + 1


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(texts: int, videos: int) -> None:
    torch.set_num_threads(2)
    start_mb = peak_mb()
    t, v, truth = vectors(texts, videos)
    started = time.perf_counter()
    result = evaluate(t, v, truth)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "before_mb": start_mb, "R@1": result.t2v["R@1"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", type=int, nargs=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    torch.set_num_threads(2)
    t, v, truth = vectors(*MSVD)
    ours = rank_texts(Cosine(t, v), truth)
    assert torch.equal(ours.expected().long(), by_argsort(t, v, truth))
    times = in_turns(
        {"counting": lambda: rank_texts(Cosine(t, v), truth), "argsort": lambda: by_argsort(t, v, truth)}, args.rounds
    )
    best = summary(times)
    result: dict[str, object] = {
        "machine": describe("torch"),
        "msvd 27,763 x 670, text to video": best,
        "counting_speed_ratio": best["argsort"]["best_s"] / best["counting"]["best_s"],
    }
    for size in (MSVD, (50_000, 50_000)):
        run = [sys.executable, __file__, "--child", *map(str, size)]
        out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        result[f"both directions {size[0]} x {size[1]}"] = json.loads(out)
    print(json.dumps(result, indent=1))
    save("evaluation", result)


if __name__ == "__main__":
    main()
