"""Runs that are done: what `tune`, `reproduce` and `evaluate --store` left behind, read again for tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipreel.errors import ClipreelError
from clipreel.evaluation.bootstrap import CUTS, Interval, drawn, hits, interval
from clipreel.evaluation.features import ABOUT, Features, load_features
from clipreel.evaluation.metrics import Result
from clipreel.training.config import build
from clipreel.training.log import read_log
from clipreel.training.settings import TuneConfig, same_run

REPORT = "report.json"
MEASURES = ("R@1", "R@5", "R@10")


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


@dataclass(frozen=True, eq=False)
class Run:
    """One config with one or several seeds: its results with the selected weights, with those of the last step, and
    without tuning; what each cost; the logs of training; what `validation` said of the selected weights, by measure
    (all empty for an evaluation alone); the features where they were kept."""

    name: str
    results: list[Result]
    features: list[Features]
    config: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)
    last: list[Result] = field(default_factory=list)
    before: Result | None = None
    logs: list[list[dict[str, Any]]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)

    def spread(self, way: str, measure: str) -> Spread:
        return Spread.of([getattr(r, way)[measure] for r in self.results])

    def cost(self, name: str) -> Spread | None:
        """A cost over the seeds, or None where nothing was trained."""
        return Spread.of([c[name] for c in self.costs]) if self.costs else None

    @cached_property
    def ranked(self) -> list[Result]:
        """The results of the kept features, with their ranks."""
        return [f.result() for f in self.features]

    @property
    def steps(self) -> Spread | None:
        """How many steps were trained, which may be more than those of the selected weights."""
        known = [max(row["step"] for row in log) for log in self.logs if log]
        stated = self.config.get("train", {}).get("steps")
        known = known or ([stated] if stated else [])
        return Spread.of(known) if known else None

    @property
    def queries(self) -> str:
        """Identity of videos and captions where the features were kept, else nothing."""
        return self.features[0].queries() if self.features else ""


def is_done(folder: Path, config: TuneConfig) -> bool:
    """Whether a run of this very config was finished here, by this version or by one that had fewer settings."""
    if not (folder / REPORT).is_file():
        return False
    try:
        return same_run(build(TuneConfig, read_report(folder)["config"]), config)
    except ClipreelError:
        return False  # of settings that are gone


def read_report(folder: Path) -> dict[str, Any]:
    """report.json of a run. Raises ClipreelError for anything else."""
    path = folder / REPORT
    try:
        data = json.loads(path.read_text("utf-8"))
        if not {"config", "costs", "compared", "last"} <= set(data):
            raise ValueError(f"it holds {', '.join(data) or 'nothing'}")
        return data
    except FileNotFoundError as e:
        raise ClipreelError(f"{path} is missing: the run is not finished; start its command again") from e
    except (OSError, ValueError, TypeError) as e:
        raise ClipreelError(f"{path} is no report of a run ({e}); run it again") from e


def seeds_of(path: Path) -> list[Path]:
    return sorted((p for p in path.glob("seed-*") if (p / REPORT).is_file()), key=lambda p: (len(p.name), p.name))


def read_run(path: Path, only: Sequence[int] | None = None) -> Run:
    """The run of a folder, of the seeds `only`: of `clipreel tune` (report.json), of several seeds (seed-0, seed-1 and
    so on), or of `clipreel evaluate --store`. Raises ClipreelError for other folders, and for seeds that were made
    differently."""
    if (path / ABOUT).is_file():
        found = load_features(path)
        return Run(path.name, [found.result()], [found])
    folders = [path] if (path / REPORT).is_file() else seeds_of(path)
    folders = folders if only is None else [path / f"seed-{seed}" for seed in only]
    if not folders:
        raise ClipreelError(
            f"{path} holds no finished run: {REPORT} of clipreel tune, seed-0/{REPORT} of several, or {ABOUT} of "
            "clipreel evaluate --store is expected"
        )
    reports = [read_report(f) for f in folders]
    results = [Result.from_dict(r["compared"]["after"]) for r in reports]
    for folder, other in zip(folders[1:], results[1:], strict=True):
        if results[0].stamp.differences(other.stamp):
            raise ClipreelError(f"{folder} was made differently from {folders[0]}; give one run of them at a time")
    kept = [load_features(f / "features") for f in folders if (f / "features" / ABOUT).is_file()]
    return Run(
        path.name,
        results,
        kept if len(kept) == len(folders) else [],
        reports[0]["config"],
        [r["config"]["train"]["seed"] for r in reports],
        [r["costs"] for r in reports],
        [Result.from_dict(r["last"]) for r in reports],
        Result.from_dict(reports[0]["compared"]["before"]),
        [read_log(f / "run") for f in folders],
        [r.get("validation") or {} for r in reports],
    )


def mean_hits(results: Sequence[Result], way: str) -> np.ndarray:
    """How often each query finds its own at 1, 5, 10, mean over the seeds: (Q, 3), in per cent."""
    side = 0 if way == "t2v" else 1
    ranks = [r.ranks[side] for r in results if r.ranks is not None]
    return np.mean([hits(r) for r in ranks], 0)


def owners(features: Features, way: str) -> list[int]:
    return features.truth.tolist() if way == "t2v" else list(range(len(features.samples)))


def pooled(results: Sequence[Result]) -> dict[str, dict[str, Interval]]:
    """Recalls of both directions with intervals over resampled videos, of the mean over seeds."""
    features = results[0].features
    assert features is not None
    found = {}
    for way in ("t2v", "v2t"):
        values = mean_hits(results, way)
        draws = drawn(values, owners(features, way))
        found[way] = {f"R@{k}": interval(values[:, i].mean(), draws[:, i]) for i, k in enumerate(CUTS)}
    return found


def paired(a: Run, b: Run) -> dict[str, dict[str, Interval]]:
    """How many points b's recalls lie above a's on the same queries, with intervals over resampled videos; means over
    the seeds of each. Raises ClipreelError where the queries are not the same, or the vectors were not kept."""
    for run in (a, b):
        if not run.features:
            raise ClipreelError(f"{run.name} kept no vectors to compare query by query; evaluate it with --store")
    a.results[0].stamp.require_equal(b.results[0].stamp)
    if a.queries != b.queries:
        raise ClipreelError(f"{a.name} and {b.name} have other videos or captions; they cannot be compared by query")
    ranked = a.ranked, b.ranked
    found = {}
    for way in ("t2v", "v2t"):
        change = mean_hits(ranked[1], way) - mean_hits(ranked[0], way)
        draws = drawn(change, owners(a.features[0], way))
        found[way] = {f"R@{k}": interval(change[:, i].mean(), draws[:, i]) for i, k in enumerate(CUTS)}
    return found
