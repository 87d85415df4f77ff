"""The published stages of ALPRO as they are frozen in configs/alpro, with the figures that were printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipreel.errors import ClipreelError
from clipreel.training.alpro_stages import StageConfig
from clipreel.training.config import build


@dataclass(frozen=True)
class StageCell:
    """A stage as it was published: its config, the figures that were printed, and where."""

    config: StageConfig
    target: dict[str, float]
    source: str


def stage_cell(path: Path) -> StageCell:
    """The stage in a YAML file: `source`, `target` and `config`. Raises ClipreelError for what is wrong in it."""
    try:
        data: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
        config = build(StageConfig, data["config"], str(path))
        return StageCell(config, {k: float(v) for k, v in data.get("target", {}).items()}, data.get("source", ""))
    except FileNotFoundError as e:
        raise ClipreelError(f"config {path} is missing; those of the published stages are in configs/alpro") from e
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as e:
        why = " ".join(f"{type(e).__name__}: {e}".split())
        raise ClipreelError(f"{path} is no config of a stage ({why})") from e
