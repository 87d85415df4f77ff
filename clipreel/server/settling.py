"""Keeps Python's collector of cycles away from what stays in memory.

A large index is some hundred thousand objects, which hold no garbage until the index changes. Gone through again and
again, as they are by default, they stop every thread for a fifth of a second every second or two under load.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence


class Settling:
    """Looks now and then at what is held; what stayed the same from one look to the next has settled."""

    def __init__(self) -> None:
        self._held: list[object] = []
        self._due = False

    def look(self, held: Sequence[object]) -> bool:
        """Whether the collector was told now. Call in a thread: it takes a fifth of a second for a large index."""
        same = len(held) == len(self._held) and all(a is b for a, b in zip(held, self._held, strict=True))
        self._held = list(held)
        if not same or not self._due:
            self._due = not same
            return False
        gc.unfreeze()  # what was held before may be garbage now
        gc.collect()
        gc.freeze()
        self._due = False
        return True
