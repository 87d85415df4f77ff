"""Pictures of compared runs: recall against parameters, storage and time, and the training curves, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipreel.training.checkpoint import disk_errors
from clipreel.training.comparing import Row, Study
from clipreel.training.finished import Run
from clipreel.training.log import Say

MEASURE = "t2v R@1"
AXES = {"parameters": "trained numbers", "storage": "adapter file (MB)", "time": "training time (s)"}


def draw(tables: Sequence[Study], out: Path, say: Say = print) -> list[Path]:
    """Writes parameters, storage, time and curves, each as .png and .svg, where there is something to show. A picture
    holds the runs of one table; later tables get a number. Says what it cannot do."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("matplotlib is not installed, so no plots are drawn (pip install 'clipreel[plots]')")
        return []
    written: list[Path] = []
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for n, found in enumerate(tables, 1):
        ending = "" if n == 1 else f"-{n}"
        for name, label in AXES.items():
            points = [(x, r) for r in found.rows if (x := cost(r, name)) is not None]
            if points:
                figure = Figure(figsize=(7, 4.5), layout="constrained")
                scatter(figure.subplots(), points, label, found)
                written += saved(figure, out / f"{name}{ending}")
        curves = {r.name: measured(r) for r in found.runs}
        if any(curves.values()):
            figure = Figure(figsize=(7, 4.5), layout="constrained")
            trace(figure.subplots(), curves)
            written += saved(figure, out / f"curves{ending}")
    return written


def cost(row: Row, name: str) -> float | None:
    """The place of a row on an axis."""
    if name == "parameters":
        return None if row.trainable is None else float(row.trainable)
    if name == "storage":
        return None if row.adapter_bytes is None else row.adapter_bytes / 1e6
    return None if row.seconds is None else row.seconds.mean


def scatter(axes: Any, points: Sequence[tuple[float, Row]], label: str, found: Study) -> None:
    """A point for each run, with the range over seeds, or the interval where there is one seed."""
    for x, row in points:
        spread = row.recalls[MEASURE]
        i = row.intervals.get(MEASURE)
        low, high = (i.low, i.high) if i is not None and spread.low == spread.high else (spread.low, spread.high)
        axes.errorbar(x, spread.mean, [[spread.mean - low], [high - spread.mean]], fmt="o", capsize=2, ms=4)
        axes.annotate(row.name, (x, spread.mean), xytext=(4, 4), textcoords="offset points", fontsize=7)
    lines = {"zero-shot": found.before.t2v["R@1"]} if found.before is not None else {}
    lines |= {"order-blind bound": found.bound[MEASURE]} if found.bound is not None else {}
    for n, (name, y) in enumerate(lines.items()):
        axes.axhline(y, linestyle=("--", ":")[n], color="0.5", linewidth=1, label=name)
    if lines:
        axes.legend(fontsize=8)
    if len(points) > 1 and max(x for x, _ in points) > 20 * min(x for x, _ in points) > 0:
        axes.set_xscale("log")
    axes.set(xlabel=label, ylabel=f"{MEASURE} (%)")
    axes.grid(alpha=0.3)


def measured(run: Run) -> list[tuple[list[int], list[float]]]:
    """Steps and what was measured on the way, for each seed that has a log."""
    found = []
    for log in run.logs:
        rows = [row for row in log if row["kind"] == "measure" and MEASURE in row]
        if rows:
            found.append(([row["step"] for row in rows], [row[MEASURE] for row in rows]))
    return found


def trace(axes: Any, curves: dict[str, list[tuple[list[int], list[float]]]]) -> None:
    """A line for each seed; those of a run share a colour."""
    for n, (name, seeds) in enumerate(curves.items()):
        for k, (steps, values) in enumerate(seeds):
            axes.plot(steps, values, color=f"C{n % 10}", marker=".", linewidth=1, label=None if k else name)
    axes.set(xlabel="steps", ylabel=f"{MEASURE} measured on the way (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def saved(figure: Any, stem: Path) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg")]
    for path in paths:
        with disk_errors(path):
            figure.savefig(path)
    return paths
