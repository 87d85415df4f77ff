"""Frozen configs of published tables: one file per data set, one cell per method, with the figure that was printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clipreel.errors import ClipreelError
from clipreel.training.config import build, merge
from clipreel.training.tuning import TuneConfig


@dataclass(frozen=True)
class Cell:
    """How a cell is trained, and what was printed for it: measure -> value, for both directions, and for text to video
    after dual softmax. What is not known is left out; `unverified` names those recalled from no source at hand."""

    name: str
    config: TuneConfig
    t2v: dict[str, float]
    v2t: dict[str, float]
    source: str
    dual_softmax: dict[str, float] = field(default_factory=dict)
    unverified: tuple[str, ...] = ()


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
            target = {way: printed(columns, cell["target"], way) for way in WAYS}
            config = build(TuneConfig, merge(shared, cell["config"]), f"{path}, cell {name}")
            found[name] = Cell(name, config, **target, source=source, unverified=tuple(cell.get("unverified", ())))
        return found
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise ClipreelError(f"{path} is no table of cells ({type(e).__name__}: {e})") from e
