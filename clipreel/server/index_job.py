"""The process of an index job: `python -m clipreel.server.index_job INDEX DEVICE`; lines of JSON say how far it is."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from clipreel.errors import ClipreelError
from clipreel.search.index import Index, text_of
from clipreel.search.indexer import Report, update
from clipreel.server.loading import model_of

EVERY_S = 0.25


def main(place: str, device: str) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # what was stored stays; the next run goes on from there
    os.nice(10)  # answers come first
    said, started = 0.0, time.monotonic()

    def progress(done: int, total: int, report: Report) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said > EVERY_S or done == total:
            said = now
            eta = (now - started) / done * (total - done) if done else None
            say(done=done, total=total, eta_s=eta, skipped=len(report.skipped))

    try:
        index = Index(place)
        roots = index.facts.get("roots", [])
        there = [r for r in roots if os.path.exists(r)]
        if not there:
            raise ClipreelError("none of the folders of this index is there; mount the disk, or index a folder")
        report = update(index, model_of(index, device), there, progress=progress)
    except ClipreelError as e:
        say(failed=text_of(str(e)))
        return 2
    gone = [text_of(r) for r in roots if r not in there]
    counts = {n: getattr(report, n) for n in ("indexed", "moved", "forgotten", "unchanged")}
    say(finished=True, skipped=len(report.skipped) + len(gone), missing_folders=gone, **counts)
    return 0


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
