"""Pictures of a run from its log: the losses, and what was measured on the way, as PNG and SVG in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipreel.training.checkpoint import disk_errors
from clipreel.training.log import Say, read_log

NOT_PLOTTED = {"kind", "step", "lr", "grad_norm", "steps_per_s", "left_s", "data_wait", "memory_gb", "seconds"}


def plot_run(folder: Path, say: Say = print) -> list[Path]:
    """Writes loss.png, loss.svg and, where something was measured, recall.png, recall.svg; says what it cannot do."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("matplotlib is not installed, so no plots are drawn (pip install 'clipreel[plots]')")
        return []
    rows, written = read_log(folder), []
    for name, kind, label in (("loss", "train", "loss"), ("recall", "measure", "measured")):
        curves = _curves([row for row in rows if row["kind"] == kind], kind)
        if not curves:
            continue
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for curve, (steps, values) in curves.items():
            axes.plot(steps, values, label=curve, marker="." if len(steps) < 40 else None)
        axes.set(xlabel="updates", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
        for suffix in ("png", "svg"):
            path = folder / f"{name}.{suffix}"
            with disk_errors(path):
                figure.savefig(path)
            written.append(path)
    return written


def _curves(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values by name: the loss and its parts, or the measured recalls."""
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n not in NOT_PLOTTED]
    names = [n for n in names if ("loss" in n if kind == "train" else "R@" in n or len(names) == 1)]
    return {n: ([r["step"] for r in rows if n in r], [r[n] for r in rows if n in r]) for n in names}
