"""Sizes, ages and licences of what a server works with."""

from __future__ import annotations

import os
from typing import Any

from clipreel.errors import ClipreelError
from clipreel.licences import lineage, link
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


def comes_from(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What the model of an index comes from: base and data, each with its licence and whether that allows commercial
    use (null where nobody said)."""
    folder = facts.get("adapter")
    try:
        links = lineage(folder) if folder else [link("base", facts["model"], {})]
    except ClipreelError:
        links = [link("base", facts["model"], {})]
    return [vars(found) for found in links]


def licences(facts: dict[str, Any]) -> dict[str, str]:
    """The licences of base and data in short."""
    short: dict[str, str] = {}
    for found in comes_from(facts):
        before = f"{short[found['what']]}; " if found["what"] in short else ""
        short[found["what"]] = before + found["licence"]
    return short
