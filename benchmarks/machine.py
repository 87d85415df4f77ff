"""What every benchmark shares: the machine's name, peers timed in turns, and the result as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(*packages: str) -> dict[str, object]:
    """The machine and the versions of the packages that a figure depends on."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": found,
    }


def in_turns(peers: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each peer, A B A B ...: clocks drift, so only figures of one interleaved run compare.

    One untimed round goes first.
    """
    times: dict[str, list[float]] = {name: [] for name in peers}
    for r in range(rounds + 1):
        for name, run in peers.items():
            start = time.perf_counter()
            run()
            if r:
                times[name].append(time.perf_counter() - start)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Best and median seconds of each peer."""
    return {n: {"best_s": min(t), "median_s": statistics.median(t)} for n, t in times.items()}


def in_fresh_process(script: str, asked: Sequence[str], args: argparse.Namespace, options: Sequence[str]) -> Any:
    """The JSON that `SCRIPT --alone ASKED` prints, with these options as they were given here.

    Freed tensors leave that process at once, so that its peak is that of the tensors and not of malloc's heap.
    """
    given = [word for option in options for word in (f"--{option}", str(getattr(args, option)))]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    words = [sys.executable, script, "--alone", *asked, *given]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{', '.join(asked)}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return json.loads(done.stdout)


def save(name: str, result: dict[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")
