"""Progress on a terminal, silence elsewhere; the closing report of a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

DEFAULT_MODEL = "openai/clip-vit-base-patch32"


class Progress:
    """One line on standard error that is rewritten: done, rate, time left. Nothing when that is no terminal.

    The rate counts from the first report, so neither what went before nor what a resumed run found done is in it.
    """

    def __init__(self, what: str, visible: bool = True) -> None:
        self.what, self.shown = what, 0.0
        self.first: tuple[int, float] | None = None
        self.visible = visible and sys.stderr.isatty()

    def __call__(self, done: int, total: int, extra: str = "") -> None:
        now = time.monotonic()
        if self.first is None or done < self.first[0]:  # what counts again from the start is another piece of work
            self.first = done, now
        if not self.visible or (now - self.shown < 0.2 and done < total):
            return
        self.shown = now
        rate = (done - self.first[0]) / max(now - self.first[1], 1e-6)
        pace = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each" if rate else ""
        speed = f"{pace}  {clock((total - done) / rate)} left  " if rate else ""
        line = f"{self.what} {done}/{total}  {speed}{extra}".rstrip()
        print(f"\r\x1b[K{line}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def spoken(first: bool, what: str) -> tuple[Progress, Callable[[str], None]]:
    """Progress and messages of a run in several processes: the first says them, the others nothing."""

    def say(text: str) -> None:
        if first:
            print(text, file=sys.stderr)

    return Progress(what, first), say


def clock(seconds: float) -> str:
    """Minutes and seconds, hours where needed: 1:05, 2:00:05."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def span(start_s: float, end_s: float) -> str:
    """From one second to another, 0:12-0:16, with tenths where whole seconds would be equal: 0:12.0-0:12.9."""
    if clock(start_s) != clock(end_s):
        return f"{clock(start_s)}-{clock(end_s)}"
    return "-".join(f"{clock(s)}.{int(10 * s) % 10}" for s in (start_s, end_s))


def shown(path: str) -> str:
    """A path on one line whatever its name holds."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def skipped(rows: Sequence[tuple[str, str]]) -> None:
    """The last lines of a run that left inputs out: each with its reason."""
    if not rows:
        return
    from clipreel.video.packets import WHAT_TO_DO

    print(f"skipped {len(rows)}:", file=sys.stderr)
    for path, reason in rows:
        # this one can be had back, so nobody should delete it as broken
        more = f"; {WHAT_TO_DO[reason]}" if reason == "incomplete" else ""
        print(f"  {shown(path)}: {reason}{more}", file=sys.stderr)
