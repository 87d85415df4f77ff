"""What is known of the files of an index beside their vectors: folders as labels, dates, tags; filters and counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clipreel.errors import ClipreelError
from clipreel.search.answer import Facet, Facets, Filters
from clipreel.search.index import File, text_of

SQUARE = 0.05  # how far the sides of a square may differ
FACETS = 100  # of each kind that are listed


class Catalog:
    """The files that can be found, in the order of the index, with what filters look at as arrays."""

    def __init__(self, files: Sequence[File], roots: Sequence[str], tags: Mapping[str, Sequence[str]]) -> None:
        """`tags` are those of each path."""
        self.files, self.roots, self._tags = files, tuple(roots), tags

    def tags(self, file: File) -> tuple[str, ...]:
        return tuple(self._tags.get(file.path, ()))

    @cached_property
    def labels(self) -> list[str]:
        """The folder of each file from the name of the indexed one on, e.g. Videos/2024; never a place on the disk."""
        return [label(f.path, self.roots) for f in self.files]

    @cached_property
    def number(self) -> dict[str, int]:
        """Place of each file by its id."""
        return {f.id: i for i, f in enumerate(self.files)}

    def allowed(self, filters: Filters) -> NDArray[np.bool_]:
        """Which files pass (V,). Raises ClipreelError for a tag that no video has."""
        if not self._narrow(filters):
            return np.ones(len(self.files), bool)
        duration = np.array([f.duration_s for f in self.files], np.float64)
        fits = (duration >= filters.min_duration_s) & (duration <= filters.max_duration_s)
        if filters.folder is not None:
            wanted = filters.folder.strip("/")
            fits &= np.array([x == wanted or x.startswith(wanted + "/") for x in self.labels], bool)
        if filters.under is not None:
            below = os.path.abspath(filters.under)
            fits &= np.array([f.path == below or f.path.startswith(os.path.join(below, "")) for f in self.files], bool)
        if filters.name is not None:
            fits &= np.array([filters.name.lower() in f.path.lower() for f in self.files], bool)
        if filters.after is not None or filters.before is not None:
            changed = np.array([f.mtime_ns for f in self.files], np.int64)
            if filters.after is not None:
                fits &= changed >= midnight_ns(filters.after)
            if filters.before is not None:
                fits &= changed < midnight_ns(filters.before + timedelta(days=1))
        if filters.orientation is not None:
            fits &= np.array([orientation(f) == filters.orientation for f in self.files], bool)
        if filters.tags:
            fits &= self._tagged(filters.tags)
        return fits

    @staticmethod
    def _narrow(filters: Filters) -> bool:
        plain = Filters(ends_after_s=filters.ends_after_s, starts_before_s=filters.starts_before_s)
        return filters != plain

    def _tagged(self, wanted: Sequence[str]) -> NDArray[np.bool_]:
        counts = Counter(tag for tags in self._tags.values() for tag in set(tags))
        for tag in wanted:
            if not counts[tag]:
                common = ", ".join(text_of(name) for name, _ in counts.most_common(10))
                told = f"the most frequent are {common}" if common else "there are none; clipreel tag makes them"
                raise ClipreelError(f"no video has the tag {tag!r}; {told}")
        return np.array([set(wanted) <= set(self.tags(f)) for f in self.files], bool)

    def facets(self, allowed: NDArray[np.bool_]) -> Facets:
        """Counts over the files that pass."""
        inside = np.flatnonzero(allowed).tolist()
        folders = Counter(self.labels[i] for i in inside)
        tags = Counter(tag for i in inside for tag in set(self.tags(self.files[i]))) if self._tags else Counter()
        return Facets(counted(folders), counted(tags))


def counted(counts: Mapping[str, int]) -> tuple[Facet, ...]:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:FACETS]
    return tuple(Facet(text_of(name), count) for name, count in most)


def label(path: str, roots: Iterable[str]) -> str:
    """The folder of a file from the name of its root on."""
    for root in roots:
        root = root.rstrip(os.sep)
        if path.startswith(root + os.sep):
            below = os.path.dirname(path[len(root) + 1 :])
            return text_of("/".join(part for part in (os.path.basename(root), *below.split(os.sep)) if part))
    return text_of(os.path.basename(os.path.dirname(path)))


def orientation(file: File) -> str:
    if abs(file.width - file.height) <= SQUARE * max(file.width, file.height):
        return "square"
    return "landscape" if file.width > file.height else "portrait"


def midnight_ns(day: date) -> int:
    """When a day begins on this machine's clock."""
    return int(datetime(day.year, day.month, day.day).timestamp()) * 10**9


def day_of(file: File) -> str:
    """The date of a file, ISO."""
    return datetime.fromtimestamp(file.mtime_ns / 1e9).date().isoformat()


def state_of(file: File) -> str:
    """`present`, `missing`, or `changed` where another file lies under the name since it was indexed."""
    try:
        found = os.stat(file.path)
    except (OSError, ValueError):
        return "missing"
    return "present" if (found.st_size, found.st_mtime_ns) == (file.size, file.mtime_ns) else "changed"
