"""Saved queries and the answers that they had: what moved since the index, the model or the adapter changed?

They are kept in the facts of the index, so they follow it. A ranking is compared with the one that was accepted last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clipreel.errors import ClipreelError
from clipreel.search.index import Index, text_of
from clipreel.search.query import Query, Searcher

DEPTH = 10  # answers that are remembered of a query
LEAST = 0.7  # of the remembered answers must still be among the first DEPTH
FACT = "canary"


@dataclass(frozen=True)
class Moved:
    """A query whose answers were compared: `overlap` is the share of the remembered answers that are still there,
    `first` the rank from 1 of the former best answer (None: below DEPTH), `entered` and `left` are paths."""

    query: str
    overlap: float
    first: int | None
    entered: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def warns(self) -> bool:
        """Whether somebody should look: the best answer fell, or many others went."""
        return self.first != 1 or self.overlap < LEAST

    def __str__(self) -> str:
        place = "still first" if self.first == 1 else f"now {self.first}." if self.first else f"below {DEPTH}"
        return f"{self.query}: {self.overlap:.0%} of the answers are the same, the former best is {place}"


def canaries(index: Index) -> dict[str, list[str]]:
    """Saved queries with the paths of their answers, best first."""
    return {c["query"]: list(c["answers"]) for c in index.facts.get(FACT, [])}


def answers(searcher: Searcher, query: str) -> list[str]:
    return [text_of(hit.path) for hit in searcher.search(Query.parse(query), DEPTH)]


def save(index: Index, searcher: Searcher, queries: Sequence[str]) -> None:
    """Remember the present answers of these queries, beside those that are saved already.

    Raises ClipreelError for an empty query.
    """
    kept = canaries(index)
    for query in queries:
        kept[query] = answers(searcher, query)
    store(index, kept)


def forget(index: Index, queries: Sequence[str]) -> None:
    """Take saved queries out; ClipreelError for one that is not saved."""
    kept = canaries(index)
    for query in queries:
        if kept.pop(query, None) is None:
            raise ClipreelError(f"{query!r} is no saved query; saved are: {', '.join(map(repr, kept)) or 'none'}")
    store(index, kept)


def store(index: Index, kept: dict[str, list[str]]) -> None:
    rows: list[dict[str, Any]] = [{"query": q, "answers": a} for q, a in kept.items()]
    index.set_facts(**{FACT: rows or None})


def compared(query: str, before: Sequence[str], now: Sequence[str]) -> Moved:
    """Two rankings of one query."""
    same = set(before) & set(now)
    overlap = len(same) / len(before) if before else float(not now)
    first = now.index(before[0]) + 1 if before and before[0] in now else None
    if not before and not now:
        first = 1  # nothing was first and nothing is
    entered, left = (tuple(p for p in one if p not in same) for one in (now, before))
    return Moved(query, overlap, first, entered, left)


def moved(index: Index, searcher: Searcher) -> list[Moved]:
    """Every saved query against its remembered answers."""
    return [compared(query, before, answers(searcher, query)) for query, before in canaries(index).items()]
