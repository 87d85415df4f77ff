"""Several methods, several seeds, one table that only ranks what was made in the same way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clipreel.adapter import write
from clipreel.errors import ClipreelError
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.report import protocol
from clipreel.evaluation.runs import shapes_bound
from clipreel.training.config import as_dict
from clipreel.training.pairs import SHAPES
from clipreel.training.tuning import TuneConfig, read_config

MEASURES = ("R@1", "R@5", "R@10")
RUN = "from clipreel.cli import entry; entry()"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Mean, lowest and highest over the seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(sum(values) / len(values), min(values), max(values))

    def __str__(self) -> str:
        same = self.low == self.high
        return f"{self.mean:.1f}" if same else f"{self.mean:.1f} ({self.low:.1f}-{self.high:.1f})"


@dataclass(frozen=True)
class Row:
    """One config: what it costs, and its recalls with the selected weights and with those of the last step."""

    name: str
    config: dict[str, Any]
    seeds: list[int]
    trainable: int
    adapter_bytes: int
    seconds: Spread
    peak_memory_bytes: Spread
    recalls: dict[str, Spread]
    last: dict[str, Spread]


@dataclass
class Study:
    """The table. `before` is the base without tuning, `bound` what no model without a sense of time can pass."""

    rows: list[Row] = field(default_factory=list)
    before: Result | None = None
    bound: dict[str, float] | None = None
    failed: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [asdict(r) for r in self.rows],
            "before": None if self.before is None else self.before.to_dict(),
            "order_blind_bound": self.bound,
            "failed": self.failed,
        }


def study(
    configs: Sequence[Path], seeds: int, out: Path, *, jobs: int = 1, device: str = "auto", download: bool = False
) -> Study:
    """Run what is not done yet, `jobs` at a time, then read all reports. A run that fails is named and does not stop
    the others.

    Raises ClipreelError for configs that are wrong, or that differ in base, data or frames.
    """
    if not configs or seeds < 1 or jobs < 1:
        raise ClipreelError("give at least one config, seed and job, as: clipreel compare configs/shapes/*.yaml")
    names = [p.stem for p in configs]
    if len(set(names)) < len(names):
        raise ClipreelError(f"two configs have the same file name ({', '.join(sorted(names))}); rename one")
    read_all = {p.stem: read_config(p) for p in configs if p.stem != "default"}
    first = next(iter(read_all.values()))
    for name, c in read_all.items():
        odd = [k for k in ("model", "data", "frames") if getattr(c, k) != getattr(first, k)]
        if odd:
            raise ClipreelError(f"{name} differs from the other configs in {', '.join(odd)}: that is no comparison")
    found = Study()
    if first.data.path == SHAPES:
        both = shapes_bound()
        found.bound = {f"{way} {m}": d[m] for way, d in zip(("t2v", "v2t"), both, strict=True) for m in MEASURES}
    runs = {
        (name, seed): replace(config, train=replace(config.train, seed=seed))
        for name, config in read_all.items()
        for seed in range(seeds)
    }
    problems = run_all(runs, out, jobs, device, download)
    for name, config in read_all.items():
        reports = []
        for folder in (out / name / f"seed-{seed}" for seed in range(seeds)):
            if folder in problems:
                found.failed.append((str(folder), problems[folder]))
            else:
                reports.append(json.loads((folder / "report.json").read_text("utf-8")))
        if reports:
            add(found, name, config, reports)
    write(out / "table.json", (json.dumps(found.to_dict(), indent=1) + "\n").encode())
    write(out / "table.md", (markdown(found) + "\n").encode())
    return found


def run_all(
    runs: dict[tuple[str, int], TuneConfig], out: Path, jobs: int, device: str, download: bool
) -> dict[Path, str]:
    """Train what is not done; what comes out are the folders that failed, with the reason."""
    # the first alone: it decodes the frames that all of them read
    todo = list(runs.items())
    results: dict[Path, str] = {}

    def one(item: tuple[tuple[str, int], TuneConfig]) -> None:
        (name, seed), config = item
        folder = out / name / f"seed-{seed}"
        results[folder] = one_run(config, folder, out, device, download, jobs)

    one(todo[0])
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, todo[1:]))
    return {folder: problem for folder, problem in results.items() if problem}


def one_run(config: TuneConfig, folder: Path, out: Path, device: str, download: bool, jobs: int) -> str:
    """Train in a process of its own unless it is done; returns what went wrong, or nothing."""
    wanted = as_dict(config)
    done = folder / "report.json"
    if done.is_file() and json.loads(done.read_text("utf-8"))["config"] == json.loads(json.dumps(wanted)):
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    stated = folder / "asked.yaml"
    write(stated, json.dumps(wanted).encode())  # JSON is YAML
    arguments = ["tune", "--config", str(stated), "--out", str(folder), "--cache", str(out), "--device", device]
    arguments += ["--json", *(["--download"] if download else [])]
    print(f"{folder}", file=sys.stderr)
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    command = [sys.executable, "-c", RUN, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads})
    if run.returncode not in (0, 1):
        return (run.stderr.strip().splitlines() or [f"ended with {run.returncode}"])[-1]
    return ""


def add(found: Study, name: str, config: TuneConfig, reports: list[dict[str, Any]]) -> None:
    """A row from the reports of its seeds; ClipreelError where the protocol differs from the other rows'."""
    before = Result.from_dict(reports[0]["compared"]["before"])
    if found.before is None:
        found.before = before
    for report in reports:
        # the weights of another step may have been selected; how they were must not differ
        found.before.stamp.require_equal(Result.from_dict(report["compared"]["after"]).stamp)

    def spread(which: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Spread]:
        ways = [(way, m) for way in ("t2v", "v2t") for m in MEASURES]
        return {f"{way} {m}": Spread.of([which(r)[way][m] for r in reports]) for way, m in ways}

    costs = [r["costs"] for r in reports]
    found.rows.append(
        Row(
            name,
            as_dict(config),
            [r["config"]["train"]["seed"] for r in reports],
            costs[0]["trainable"],
            costs[0]["adapter_bytes"],
            Spread.of([c["seconds"] for c in costs]),
            Spread.of([c["peak_memory_bytes"] for c in costs]),
            spread(lambda r: r["compared"]["after"]),
            spread(lambda r: r["last"]),
        )
    )


def markdown(found: Study) -> str:
    """The table, best t2v R@1 last, and the protocol under it."""
    ways = [f"{way} {m}" for way in ("t2v", "v2t") for m in MEASURES]
    cells = [["method", "trained", "file", *ways, "time", "memory"]]
    if found.before is not None:
        d = {"t2v": found.before.t2v, "v2t": found.before.v2t}
        cells.append(["zero-shot", "0", "", *(f"{d[w[:3]][w[4:]]:.1f}" for w in ways), "", ""])
    if found.bound is not None:
        cells.append(["order-blind bound", "", "", *(f"{found.bound[w]:.1f}" for w in ways), "", ""])
    for r in sorted(found.rows, key=lambda r: r.recalls["t2v R@1"].mean):
        size = f"{r.adapter_bytes / 1e6:.2f} MB"
        memory = f"{r.peak_memory_bytes.high / 1e9:.2f} GB"
        recalls = [str(r.recalls[w]) for w in ways]
        cells.append([r.name, f"{r.trainable:,}", size, *recalls, f"{r.seconds.mean:.0f} s", memory])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    fitted = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells]
    rows = [f"| {' | '.join(line)} |" for line in [fitted[0], ["-" * w for w in widths], *fitted[1:]]]
    return "\n".join([*rows, "", protocol(found.before) if found.before is not None else ""]).rstrip()
