"""What people said of answers: this moment is right for the query, that one is not. Both train the next adapter.

Kept beside the index (`PLACE.pairs.jsonl`, see lines.py), in an object store in its facts: the archive's own test and
training set grows where it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clipreel.errors import ClipreelError
from clipreel.search.index import File, Index
from clipreel.search.lines import Lines, Row

FACT = "judged"  # where they are in an object store, and were before they had a file
KIND = "pairs"
MOST = 10_000


@dataclass(frozen=True)
class Judged:
    """A query, a part of a video (seconds), and whether it is a right answer; the id of the video, which stays when
    its file moves, and when that was said (ISO)."""

    query: str
    path: str
    start_s: float
    end_s: float
    right: bool
    video: str = ""
    at: str = ""

    @property
    def id(self) -> str:
        """The same for the same query and part, whatever was said of it."""
        part = [self.query, self.video or self.path, self.start_s, self.end_s]
        return hashlib.blake2b(json.dumps(part).encode(), digest_size=12).hexdigest()


Kept = dict[str, Judged]


def judged(index: Index) -> list[Judged]:
    """All judgements, the oldest first, with the paths that their videos have now."""
    index.version()  # another index may have taken the place of this one (migrate.py)
    files = {f.id: f.path for f in index.visible()}
    return [replace(j, path=files.get(j.video, j.path)) for j in stored(index)]


def stored(index: Index) -> list[Judged]:
    """All judgements as they were written."""
    rows = index.facts.get(FACT, [])
    if index.local:
        rows = [*rows, *Lines.of(index, KIND).read()]
    return list({j.id: j for j in map(of_row, rows)}.values())


def of_row(row: Row) -> Judged:
    try:
        return Judged(**row)
    except TypeError as e:
        raise ClipreelError(f"a judgement that cannot be read ({e}); clipreel pairs shows them, delete its line") from e


def judge(index: Index, rows: Iterable[Judged], files: Mapping[str, File] | None = None) -> int:
    """Remember judgements; a later one of the same part replaces the earlier. Returns how many there are now.

    `files` are those of the index by path, where they are known already. Raises ClipreelError for a file that the index
    does not hold, for a part that does not lie in it, and where there are too many.
    """
    files = {f.path: f for f in index.visible()} if files is None else files
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    new: dict[str, Judged] = {}
    for row in rows:
        if row.path not in files:
            raise ClipreelError(f"{row.path} is not in the index at {index.place}; clipreel status shows its folders")
        length = files[row.path].duration_s
        if not (0 <= row.start_s < row.end_s and row.start_s < length):
            raise ClipreelError(f"{row.start_s:g}-{row.end_s:g} is no part of {row.path}, which has {length:.1f} s")
        if not row.query.strip():
            raise ClipreelError(f"a judgement of {row.path} without a query; say what it was the answer to")
        row = replace(row, video=files[row.path].id, at=row.at or now)
        new[row.id] = row

    def added(kept: Kept) -> Kept:
        return {**{i: j for i, j in kept.items() if i not in new}, **new}

    return len(changed(index, added))


def forget(index: Index, ids: Iterable[str]) -> int:
    """Take judgements out by their ids; returns how many of them there were."""
    gone = set(ids)
    found: set[str] = set()

    def without(kept: Kept) -> Kept:
        found.update(gone & kept.keys())
        return {i: j for i, j in kept.items() if i not in gone}

    changed(index, without)
    return len(found)


def settle(index: Index) -> None:
    """Put those that an older version kept in the facts of a local index into its file."""
    if index.local and FACT in index.facts:
        changed(index, lambda kept: kept)


def changed(index: Index, edit: Callable[[Kept], Kept]) -> Kept:
    """Put what `edit` makes of the judgements by id in their place."""
    made: Kept = {}

    def whole(rows: list[Row]) -> list[Row]:
        kept = {j.id: j for j in map(of_row, [*index.facts.get(FACT, []), *rows])}
        made.update(edit(kept))
        if len(made) > max(MOST, len(kept)):
            raise ClipreelError(
                f"{len(made)} judgements: at most {MOST} are kept; write them out with clipreel pairs write, then take "
                "some back with clipreel pairs remove"
            )
        return [asdict(j) for j in made.values()]

    if index.local:
        Lines.of(index, KIND).change(whole)
        if FACT in index.facts:
            index.set_facts(**{FACT: None})
    else:
        index.set_facts(**{FACT: whole([]) or None})
    return made


def read_collection(path: Path, query: str = "") -> list[Judged]:
    """The hits of a collection as the page or `clipreel search --json` writes them: JSON, or one object a line.

    Each needs `path` (or `source`), `start_s`, `end_s`; `query` (or the argument) names what it answers, `right` is
    true unless said.
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
        path = str(row["path"] if "path" in row else row["source"])  # an export of the page says source
        found = Judged(row.get("query") or query, path, start, end, bool(row.get("right", True)))
    except (TypeError, KeyError, ValueError, AttributeError) as e:
        raise ClipreelError(f"{where}: needs path, start_s and end_s ({e!r})") from e
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ClipreelError(f"{where}: the times {start:g}-{end:g} are not finite")
    if not found.query:
        raise ClipreelError(f"{where}: says no query; give one for all of them with --query")
    return found


def pairs(rows: Iterable[Judged]) -> list[dict[str, Any]]:
    """Right answers as rows of an annotation file for `clipreel tune`: video, start, end, captions.

    A query with wrong answers has rows of its own, whose `not` lists them; without a right one it is left out. The last
    word about a moment counts.
    """
    said = {(row.query, row.path, row.start_s, row.end_s): row.right for row in rows}
    wrong: dict[str, list[dict[str, Any]]] = {}
    parts: dict[tuple[str, float, float, str | None], list[str]] = {}
    for (query, path, start, end), right in said.items():
        if not right:
            wrong.setdefault(query, []).append({"video": path, "start": start, "end": end})
    for (query, path, start, end), right in said.items():
        if right:
            parts.setdefault((path, start, end, query if query in wrong else None), []).append(query)
    return [
        {"video": path, "start": start, "end": end, "captions": queries, **({"not": wrong[own]} if own else {})}
        for (path, start, end, own), queries in parts.items()
    ]
