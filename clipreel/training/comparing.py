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
from clipreel.evaluation.bootstrap import Interval
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.report import subjects
from clipreel.evaluation.runs import shapes_bound
from clipreel.training.config import as_dict
from clipreel.training.finished import MEASURES, Run, Spread, is_done, paired, pooled, read_run
from clipreel.training.settings import TuneConfig, read_config

SHAPES_SPLITS = ("shapes held out", "shapes test")  # whose bound is known
RUN = "from clipreel.cli import entry; entry()"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One run: what it costs, and its recalls with the selected weights and with those of the last step. Costs are None
    for an evaluation alone; `intervals` over resampled videos are there where the vectors were kept. `made` names base,
    adapter, training list, seeds and versions, each once over the seeds; `validation` are the recalls by which the
    weights were selected, where the reports have them."""

    name: str
    config: dict[str, Any]
    seeds: list[int]
    trainable: int | None
    adapter_bytes: int | None
    seconds: Spread | None
    peak_memory_bytes: Spread | None
    recalls: dict[str, Spread]
    last: dict[str, Spread]
    steps: Spread | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    made: dict[str, list[str]] = field(default_factory=dict)
    validation: dict[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True)
class Gain:
    """How many points run `b` lies above run `a` on the same queries, per direction and measure."""

    a: str
    b: str
    gains: dict[str, Interval]


@dataclass
class Study:
    """One table, whose rows were made in the same way. `before` is the base without tuning, `bound` what no model
    without a sense of time can pass, `apart` why the rows are not in the first table: field -> both values."""

    rows: list[Row] = field(default_factory=list)
    before: Result | None = None
    bound: dict[str, float] | None = None
    failed: list[tuple[str, str]] = field(default_factory=list)
    made: Result | None = None
    gains: list[Gain] = field(default_factory=list)
    apart: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [asdict(r) for r in self.rows],
            "before": None if self.before is None else self.before.to_dict(),
            "order_blind_bound": self.bound,
            "failed": self.failed,
            "stamp": None if self.made is None else self.made.stamp.to_dict(),
            "gains": [asdict(g) for g in self.gains],
            "apart": self.apart,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Study:
        """The table of `to_dict` again, without its runs; also one of before steps, intervals and validation were in
        it. Raises ClipreelError for anything else."""
        try:
            rows = []
            for row in data["rows"]:
                one = {k: Spread(**row[k]) for k in ("seconds", "peak_memory_bytes", "steps") if row.get(k)}
                ways = {
                    k: {n: Spread(**v) for n, v in row.get(k, {}).items()} for k in ("recalls", "last", "validation")
                }
                intervals = {n: Interval(**v) for n, v in row.get("intervals", {}).items()}
                rows.append(Row(**{**row, **one, **ways, "intervals": intervals}))
            gains = [
                Gain(g["a"], g["b"], {n: Interval(**v) for n, v in g["gains"].items()}) for g in data.get("gains", [])
            ]
            before = None if data["before"] is None else Result.from_dict(data["before"])
            return cls(rows, before, data["order_blind_bound"], gains=gains, apart=data.get("apart", {}))
        except (KeyError, TypeError, AttributeError) as e:
            raise ClipreelError(f"this is no table of clipreel compare ({type(e).__name__}: {e})") from e


def study(
    configs: Sequence[Path], seeds: int, out: Path, *, jobs: int = 1, device: str = "auto", download: bool = False
) -> list[Study]:
    """Run what is not done yet, `jobs` at a time, then read all reports: one table, and more of them where runs turn
    out to be made differently. A run that fails is named in the first and does not stop the others.

    Raises ClipreelError for configs that are wrong, or that differ in base, data or frames.
    """
    if not configs or seeds < 1 or jobs < 1:
        raise ClipreelError("give at least one config, seed and job, as: clipreel compare configs/shapes/*.yaml")
    names = [p.stem for p in configs]
    if len(set(names)) < len(names):
        raise ClipreelError(f"two configs have the same file name ({', '.join(sorted(names))}); rename one")
    read_all = {p.stem: read_config(p) for p in configs if p.stem != "default"}
    if not read_all:
        raise ClipreelError(f"{configs[0]} is what other configs share and trains nothing; give those beside it")
    first = next(iter(read_all.values()))
    for name, c in read_all.items():
        odd = [k for k in ("model", "data", "frames") if getattr(c, k) != getattr(first, k)]
        if odd:
            raise ClipreelError(f"{name} differs from the other configs in {', '.join(odd)}: that is no comparison")
    runs = {
        (name, seed): replace(config, train=replace(config.train, seed=seed))
        for name, config in read_all.items()
        for seed in range(seeds)
    }
    problems = run_all(runs, out, jobs, device, download)
    done = []
    for name in read_all:
        good = [seed for seed in range(seeds) if out / name / f"seed-{seed}" not in problems]
        if good:
            done.append(read_run(out / name, good))
    found = tables(done, against_first=len(done) == 2) or [Study()]
    found[0].failed = [(str(folder), problem) for folder, problem in problems.items()]
    return found


def finished(folders: Sequence[Path]) -> list[Study]:
    """The tables of runs that are done. Raises ClipreelError for a folder that is none, or two of one name."""
    names = [p.resolve().name for p in folders]
    twice = {n for n in names if names.count(n) > 1}
    runs = [read_run(p) for p in folders]
    for i, path in enumerate(folders):
        if names[i] in twice:  # told apart by the folders that they lie in
            runs[i] = replace(runs[i], name=f"{path.resolve().parent.name}/{names[i]}")
    if len({r.name for r in runs}) < len(runs):
        raise ClipreelError(f"two runs have the same name ({', '.join(sorted(r.name for r in runs))}); rename a folder")
    return tables(runs)


def as_json(found: Sequence[Study]) -> dict[str, Any]:
    """The first table as `Study.to_dict`, those of runs that were made differently as `others`."""
    return {**found[0].to_dict(), "others": [other.to_dict() for other in found[1:]]}


def tables(runs: Sequence[Run], against_first: bool = True) -> list[Study]:
    """A table for each way in which runs were made, in the order of the runs; runs that differ in any item of the
    protocol never share one. Where vectors were kept, the others of a table are compared with its first by query."""
    groups: list[list[Run]] = []
    for run in runs:
        home = next((g for g in groups if not differences(g[0], run)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    found = []
    for group in groups:
        first = group[0]
        before = [r.before for r in group if r.before is not None]
        same = before and all(b.t2v == before[0].t2v and b.v2t == before[0].v2t for b in before)
        bound = order_blind_bound() if first.results[0].stamp.split in SHAPES_SPLITS else None
        pairs = [r for r in group[1:] if against_first and r.features and first.features]
        gains = [Gain(first.name, r.name, flat(paired(first, r))) for r in pairs]
        apart = {} if group is groups[0] else differences(groups[0][0], first)
        rows = [row_of(run) for run in group]
        found.append(Study(rows, before[0] if same else None, bound, [], first.results[0], gains, apart, group))
    return found


def differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """In what two runs were made differently: the fields of their stamps, the sizes, and the captions where known."""
    one, other = a.results[0], b.results[0]
    found = one.stamp.differences(other.stamp)
    for size in ("queries", "gallery"):
        both = one.t2v[size], other.t2v[size]
        if both[0] != both[1]:
            found[size] = both
    if a.queries and b.queries and a.queries != b.queries:
        found["videos and captions"] = (a.queries, b.queries)
    return found


def order_blind_bound() -> dict[str, float]:
    return {f"{way} {m}": d[m] for way, d in zip(("t2v", "v2t"), shapes_bound(), strict=True) for m in MEASURES}


def flat(nested: dict[str, dict[str, Interval]]) -> dict[str, Interval]:
    return {f"{way} {m}": i for way, row in nested.items() for m, i in row.items()}


def row_of(run: Run) -> Row:
    def spread(results: Sequence[Result]) -> dict[str, Spread]:
        ways = [(way, m) for way in ("t2v", "v2t") for m in MEASURES]
        return {f"{way} {m}": Spread.of([getattr(r, way)[m] for r in results]) for way, m in ways} if results else {}

    costs = run.costs[0] if run.costs else {}
    return Row(
        run.name,
        run.config,
        run.seeds,
        costs.get("trainable"),
        costs.get("adapter_bytes"),
        run.cost("seconds"),
        run.cost("peak_memory_bytes"),
        spread(run.results),
        spread(run.last),
        run.steps,
        flat(pooled(run.ranked)) if run.features else {},
        made_with(run),
        validated(run),
    )


def made_with(run: Run) -> dict[str, list[str]]:
    """What the run is about, from the stamps of its results."""
    every = [subjects(r.stamp) for r in run.results]
    found = {what: list(dict.fromkeys(s[what] for s in every)) for what in every[0]}
    return found | {"seeds": [str(seed) for seed in run.seeds]}


def validated(run: Run) -> dict[str, Spread]:
    """What validation said over the seeds, of the measures that it knows for all of them."""
    known = [f"{way} {m}" for way in ("t2v", "v2t") for m in MEASURES]
    both = [k for k in known if run.validation and all(k in v for v in run.validation)]
    return {k: Spread.of([v[k] for v in run.validation]) for k in both}


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
    if is_done(folder, config):
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
