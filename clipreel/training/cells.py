"""Frozen configs of published tables: one file per data set, one cell per method, with the figure that was printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipreel.errors import ClipreelError
from clipreel.training.config import build, merge
from clipreel.training.tuning import TuneConfig


@dataclass(frozen=True)
class Cell:
    """How a cell is trained, and what the paper printed for it: measure -> value, for both directions."""

    name: str
    config: TuneConfig
    t2v: dict[str, float]
    v2t: dict[str, float]
    source: str


def cells(path: Path) -> dict[str, Cell]:
    """All cells of a file. Raises ClipreelError that names the cell whose config or target is wrong."""
    try:
        data: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
        columns, source, shared = data["columns"], data["source"], data["config"]
        found = {}
        for name, cell in data["cells"].items():
            target = {way: dict(zip(columns, cell["target"][way], strict=True)) for way in ("t2v", "v2t")}
            config = build(TuneConfig, merge(shared, cell["config"]), f"{path}, cell {name}")
            found[name] = Cell(name, config, **target, source=source)
        return found
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise ClipreelError(f"{path} is no table of cells ({type(e).__name__}: {e})") from e
