"""Sizes, ages and licences of what a server works with."""

from __future__ import annotations

import os
from typing import Any

from clipreel.adapter import read_config
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever


def index_bytes(place: str) -> int:
    """What an index takes on disk."""
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # compacted meanwhile
                continue
    return total


def made_at(place: str) -> float | None:
    """When an index was last written, in seconds since 1970."""
    try:
        return max(os.stat(os.path.join(place, n)).st_mtime for n in os.listdir(place) if n.endswith(".lance"))
    except (OSError, ValueError):
        return None


def model_bytes(model: Retriever) -> int:
    """What the weights take in memory."""
    return sum(p.numel() * p.element_size() for p in model.network.parameters())


def licences(facts: dict[str, Any]) -> dict[str, str]:
    """Licences as the adapter of an index states them: of the base and of the data; unknown where nothing is stated."""
    stated: dict[str, str] = {}
    if adapter := facts.get("adapter"):
        try:
            stated = dict(read_config(adapter).licence)
        except ClipreelError:
            stated = {}
    return {"base": stated.pop("base", "unknown"), **stated}
