"""What people said of answers: this moment is right for the query, that one is not. Right ones train the next adapter.

Kept in the facts of the index: the archive's own test and training set grows where it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipreel.errors import ClipreelError
from clipreel.search.index import Index

FACT = "judged"


@dataclass(frozen=True)
class Judged:
    """A query, a part of a video (seconds), and whether it is a right answer."""

    query: str
    path: str
    start_s: float
    end_s: float
    right: bool


def judged(index: Index) -> list[Judged]:
    return [Judged(**row) for row in index.facts.get(FACT, [])]


def judge(index: Index, rows: Iterable[Judged]) -> int:
    """Remember judgements; a later one of the same part replaces the earlier. Returns how many there are now.

    Raises ClipreelError for a file that the index does not hold, and for a part that does not lie in it.
    """
    files = {f.path: f for f in index.visible()}
    kept = {(j.query, j.path, j.start_s, j.end_s): j for j in judged(index)}
    for row in rows:
        if row.path not in files:
            raise ClipreelError(f"{row.path} is not in the index at {index.place}; clipreel status shows its folders")
        length = files[row.path].duration_s
        if not (0 <= row.start_s < row.end_s and row.start_s < length):
            raise ClipreelError(f"{row.start_s:g}-{row.end_s:g} is no part of {row.path}, which has {length:.1f} s")
        if not row.query.strip():
            raise ClipreelError(f"a judgement of {row.path} without a query; say what it was the answer to")
        kept[row.query, row.path, row.start_s, row.end_s] = row
    index.set_facts(**{FACT: [asdict(j) for j in kept.values()] or None})
    return len(kept)


def read_collection(path: Path, query: str = "") -> list[Judged]:
    """The hits of a collection as the page or `clipreel search --json` writes them: JSON, or one object a line.

    Each needs `path`, `start_s`, `end_s`; `query` (or the argument) names what it answers, `right` is true unless said.
    Raises ClipreelError with the row that is wrong.
    """
    try:
        text = path.read_text("utf-8")
        whole = json.loads(text) if text.lstrip().startswith(("[", "{\n")) else None
        rows = [json.loads(line) for line in text.splitlines() if line.strip()] if whole is None else whole
    except (OSError, ValueError) as e:
        raise ClipreelError(f"{path} is no readable JSON of hits ({e})") from e
    if isinstance(rows, Mapping):
        rows = rows.get("hits", [])
    return [_row(row, f"{path}, hit {n}", query) for n, row in enumerate(rows, 1)]


def _row(row: Any, where: str, query: str) -> Judged:
    try:
        start, end = float(row["start_s"]), float(row["end_s"])
        found = Judged(row.get("query") or query, str(row["path"]), start, end, bool(row.get("right", True)))
    except (TypeError, KeyError, ValueError, AttributeError) as e:
        raise ClipreelError(f"{where}: needs path, start_s and end_s ({e!r})") from e
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ClipreelError(f"{where}: the times {start:g}-{end:g} are not finite")
    if not found.query:
        raise ClipreelError(f"{where}: says no query; give one for all of them with --query")
    return found


def pairs(rows: Iterable[Judged]) -> list[dict[str, Any]]:
    """Right answers as rows of an annotation file for `clipreel tune`: video, start, end, captions."""
    parts: dict[tuple[str, float, float], list[str]] = {}
    for row in rows:
        if row.right:
            parts.setdefault((row.path, row.start_s, row.end_s), []).append(row.query)
    return [{"video": path, "start": start, "end": end, "captions": said} for (path, start, end), said in parts.items()]
