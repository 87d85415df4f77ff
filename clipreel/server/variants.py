"""The adapters that can answer here: each with the index that was made with it, on one base in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipreel.adapter import WEIGHTS, AdapterConfig, read_config, with_adapter
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever
from clipreel.search.index import Index
from clipreel.search.indexer import check_space
from clipreel.server.errors import ApiError
from clipreel.server.sizes import comes_from, licences

REPORT = "report.html"


@dataclass(frozen=True)
class Variant:
    """An index with its model; `folder` is that of its adapter, empty for the plain base."""

    name: str
    model: Retriever
    index: Index
    folder: str

    def to_dict(self, active: bool) -> dict[str, Any]:
        """What the API says of it."""
        told: dict[str, Any] = {"name": self.name, "active": active, "helped": None, "before": None, "after": None}
        told |= {
            "bytes": 0,
            "method": None,
            "licence": licences(self.index.facts),
            "lineage": comes_from(self.index.facts),
        }
        told |= {"report": False, "data": None, "title": self.name}
        if not self.folder:
            return told
        try:
            config = read_config(self.folder)
            size = os.path.getsize(os.path.join(self.folder, WEIGHTS))
        except (ClipreelError, OSError):
            return told
        data = data_of(config)
        # a folder that is called as its method was named by nobody
        title = f"{self.name} on {data}" if data and self.name.split(" ")[0] == config.method else self.name
        return told | {
            "title": title,
            "data": data,
            "helped": config.helped,
            "method": config.method,
            "before": recalls(config, "before"),
            "after": recalls(config, "after"),
            "bytes": size,
            "report": self.report is not None,
        }

    @property
    def report(self) -> Path | None:
        """The page that `clipreel tune` wrote beside the adapter."""
        if not self.folder:
            return None
        found = Path(self.folder).parent / REPORT
        return found if found.is_file() else None


def data_of(config: AdapterConfig) -> str | None:
    """The name of what an adapter was tuned on, without its place on the disk."""
    data = config.trained_on.get("config", {}).get("data", {})
    path = data.get("path") if isinstance(data, dict) else None
    return Path(path).stem if isinstance(path, str) else None


def recalls(config: AdapterConfig, when: str) -> dict[str, float] | None:
    """R@1 in both directions, in per cent."""
    found = config.metrics.get(when)
    try:
        return None if found is None else {way: float(found[way]["R@1"]) for way in ("t2v", "v2t")}
    except (KeyError, TypeError, ValueError):
        return None


class Variants:
    """All of them, the first being the index that is served, and which one answers."""

    def __init__(self, first: Index, model: Retriever, base: Retriever, others: Sequence[str], kept: Path) -> None:
        self.all = {"": Variant(named(first, ""), model, first, first.facts.get("adapter") or "")}
        for place in others:
            index = Index(place)
            folder = index.facts.get("adapter") or ""
            name = free(named(index, place), {v.name for v in self.all.values()})
            variant = Variant(name, with_adapter(base, folder) if folder else base, index, folder)
            check_space(index, variant.model)
            self.all[name] = variant
        self.base, self.kept = base, kept
        self.active = ""
        if kept.is_file() and (before := kept.read_text("utf-8", "replace").strip()) in self.all:
            self.active = before

    def take(self, other: Variants, index: Index) -> None:
        """Become those of `other`, the first of which is at `index` now."""
        self.all = {**other.all, "": replace(other.all[""], index=index)}
        self.base, self.active = other.base, other.active

    @property
    def replaced(self) -> bool:
        """Whether another index, or one of another model, is where one of these was."""
        return any(v.index.replaced or v.index.facts["space"] != v.model.space for v in self.all.values())

    @property
    def beside(self) -> dict[str, tuple[Retriever, Index]]:
        """What an `Asker` takes as adapters."""
        return {key: (v.model, v.index) for key, v in self.all.items() if key}

    def key(self, name: str) -> str:
        """Raises ApiError 404."""
        for key, variant in self.all.items():
            if variant.name == name:
                return key
        known = ", ".join(v.name for v in self.all.values())
        raise ApiError(404, "no-such-adapter", f"no adapter {name[:80]!r} answers here; those that do: {known}")

    def activate(self, name: str) -> None:
        """Let it answer where a search names none, also after the next start."""
        self.active = self.key(name)
        try:
            self.kept.parent.mkdir(parents=True, exist_ok=True)
            self.kept.write_text(self.active, "utf-8")
        except OSError:  # then it is so until the server ends
            return

    def listed(self) -> list[dict[str, Any]]:
        return [v.to_dict(key == self.active) for key, v in self.all.items()]


def named(index: Index, place: str) -> str:
    """What people call an index: by its adapter, else the base."""
    folder = index.facts.get("adapter")
    if not folder:
        return "base" if not place else f"base ({Path(place).name})"
    parts = [p for p in Path(folder).parts if p not in ("adapter", os.sep)]
    return parts[-1] if parts else "adapter"


def free(name: str, taken: set[str]) -> str:
    return next(n for n in (name, *(f"{name} {i}" for i in range(2, 1000))) if n not in taken)
