"""Frozen configs of published tables: one file per data set, one cell per method, with the figure that was printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clipreel.errors import ClipreelError
from clipreel.training.config import build, merge
from clipreel.training.settings import TuneConfig

# points of R@1 that seeds move a mean of few runs on a test set of 1,000 queries (specification core.md 7.13)
TOLERANCE = 1.0
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Cell:
    """How a cell is trained, and what was printed for it: measure -> value, for both directions, and for text to video
    after dual softmax. What is not known is left out; `unverified` names those recalled from no source at hand.
    `tolerance` is how many points of R@1 from it count as reproduced."""

    name: str
    config: TuneConfig
    t2v: dict[str, float]
    v2t: dict[str, float]
    source: str
    dual_softmax: dict[str, float] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    tolerance: float = TOLERANCE

    @property
    def figures(self) -> Figures:
        """Way -> measure -> printed value, for the ways that were printed."""
        return {way: row for way in WAYS if (row := getattr(self, way))}


WAYS = ("t2v", "v2t", "dual_softmax")


def printed(columns: list[str], target: dict[str, list[float | None]], way: str) -> dict[str, float]:
    row = dict(zip(columns, target.get(way, [None] * len(columns)), strict=True))
    return {name: value for name, value in row.items() if value is not None}


def cells(path: Path) -> dict[str, Cell]:
    """All cells of a file. Raises ClipreelError that names the cell whose config or target is wrong."""
    try:
        data: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
        columns, source, shared = data["columns"], data["source"], data["config"]
        found = {}
        for name, cell in data["cells"].items():
            strange = set(cell["target"]) - set(WAYS) | set(cell.get("unverified", ())) - set(cell["target"])
            if strange or not cell["target"]["t2v"]:
                raise ValueError(f"cell {name}: targets are {', '.join(WAYS)}, not {', '.join(sorted(strange))}")
            t2v, v2t, dual = (printed(columns, cell["target"], way) for way in WAYS)
            config = build(TuneConfig, merge(shared, cell["config"]), f"{path}, cell {name}")
            unverified, tolerance = tuple(cell.get("unverified", ())), float(data.get("tolerance", TOLERANCE))
            found[name] = Cell(name, config, t2v, v2t, source, dual, unverified, tolerance)
        return found
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise ClipreelError(f"{path} is no table of cells ({type(e).__name__}: {e})") from e
