"""Keeps an index equal to its folders while files come, change and go."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Event
from typing import TYPE_CHECKING

from clipreel.search.indexer import Report, update
from clipreel.search.library import SUFFIXES

if TYPE_CHECKING:
    from clipreel.retriever import Retriever
    from clipreel.search.index import Index

QUIET_MS = 2000  # a file that is still being copied changes more often than that
LONGEST_MS = 60_000  # where something changes all the time, the rest is not kept waiting longer


def watch(
    index: Index,
    model: Retriever,
    roots: Sequence[str],
    told: Callable[[Report], None],
    *,
    stop: Event | None = None,
    polling: bool = False,
    quiet_ms: int = QUIET_MS,
    timeout_s: float = 120.0,
    workers: int = 2,
) -> None:
    """Update the index whenever videos below the folders changed, until `stop` is set; `told` gets each report.

    `polling` looks at the folders itself, for network drives that report nothing.
    """
    from watchfiles import watch as changes

    def video(_: object, path: str) -> bool:
        # a folder that was moved is one event, without those of its files
        ending = os.path.splitext(path)[1].lower()
        return ending in SUFFIXES or not ending or os.path.isdir(path)

    for _ in changes(
        *roots, watch_filter=video, stop_event=stop, step=quiet_ms, debounce=LONGEST_MS, force_polling=polling or None
    ):
        there = [r for r in roots if os.path.exists(r)]
        if there:
            told(update(index, model, there, timeout_s=timeout_s, workers=workers))
