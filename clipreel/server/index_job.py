"""The process of an index job: `python -m clipreel.server.index_job DEVICE INDEX...`; JSON lines say how far it is."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from clipreel.errors import ClipreelError
from clipreel.search.bank import bank_of
from clipreel.search.calibration import FALSE_ALARM, calibrate
from clipreel.search.index import Index, text_of
from clipreel.search.indexer import Report, update
from clipreel.search.loading import model_of

EVERY_S = 0.25
COUNTED = ("indexed", "moved", "forgotten", "unchanged")


def main(device: str, *places: str) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # what was stored stays; the next run goes on from there
    os.nice(10)  # answers come first
    counts = dict.fromkeys(COUNTED, 0)
    skipped = 0
    gone: list[str] = []
    try:
        for n, place in enumerate(places):
            report, gone = brought_up_to_date(place, device)
            rated(Index(place), device, bool(report.indexed or report.forgotten))
            if n == 0:  # the others hold the same videos
                counts, skipped = {c: getattr(report, c) for c in COUNTED}, len(report.skipped) + len(gone)
    except ClipreelError as e:
        say(failed=text_of(str(e)))
        return 2
    say(finished=True, skipped=skipped, missing_folders=gone, **counts)
    return 0


def brought_up_to_date(place: str, device: str) -> tuple[Report, list[str]]:
    """Makes an index equal to its folders; returns what was done, and the folders that are not there."""
    said, started = 0.0, time.monotonic()

    def progress(done: int, total: int, report: Report) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said > EVERY_S or done == total:
            said = now
            eta = (now - started) / done * (total - done) if done else None
            say(done=done, total=total, eta_s=eta, skipped=len(report.skipped))

    def begun(path: str) -> None:
        say(current=text_of(os.path.basename(path)))

    index = Index(place)
    roots = index.facts.get("roots", [])
    there = [r for r in roots if os.path.exists(r)]
    if not there:
        raise ClipreelError("none of the folders of this index is there; mount the disk, or index a folder")
    report = update(index, model_of(index, device), there, progress=progress, begun=begun)
    say(current=None)
    return report, [text_of(r) for r in roots if r not in there]


def rated(index: Index, device: str, changed: bool) -> None:
    """Compares new videos with the bank of queries, where the index has one."""
    fact = index.facts.get("calibration")
    if fact and changed:
        bank = bank_of(index, index.facts.get("bank", "general"))
        aim = fact.get("false_alarm", FALSE_ALARM)
        calibrate(index, model_of(index, device), bank, aim, lambda done, total: say(queries=done, queries_total=total))


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
