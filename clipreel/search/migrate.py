"""From one model to another without a pause: the new index grows beside the old one, and takes its place on command.

`PLACE.next` is the index that is being made, `PLACE.before` the one that was replaced: each is a whole index that can
be searched by its own name. A switch is two renames; one that was cut between them is finished by the next call.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from clipreel.errors import ClipreelError
from clipreel.search import canary, judged
from clipreel.search.bank import bank_of
from clipreel.search.calibration import FACT as CALIBRATED
from clipreel.search.calibration import FALSE_ALARM, calibrate
from clipreel.search.index import Index
from clipreel.search.indexer import Report, facts_of, update
from clipreel.search.query import Searcher
from clipreel.search.rerank import FACT as FRAMES
from clipreel.video.shots import Segments

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

NEXT, BEFORE = ".next", ".before"
REPORT = "compared"  # how saved queries moved, in the facts of an index that is whole
# what an archive knows of itself, whatever model looks at it
CARRIED = ("roots", "time_limit", "bank")


def beside(place: str, ending: str) -> str:
    """The folder beside an index. Raises ClipreelError for an object store, which cannot rename."""
    if "://" in place:
        raise ClipreelError(
            f"{place} is in an object store, which cannot rename: make the new index under another name with "
            "clipreel index FOLDER --model MODEL --index NEW, and give that --index from then on"
        )
    return place.rstrip("/") + ending


def grow(
    index: Index,
    model: Retriever,
    *,
    workers: int = 2,
    progress: Callable[[int, int, Report], None] = lambda d, t, r: None,
) -> tuple[Index, Report]:
    """Make or bring up to date the index of the new model beside this one; the same call goes on after a stop.

    Raises ClipreelError where the new model has the space of the old one, or another migration is under way.
    """
    place = beside(index.place, NEXT)
    if model.space == index.facts["space"]:
        raise ClipreelError(
            f"{model.name} is what the index at {index.place} was made with; there is nothing to migrate"
        )
    facts = facts_of(model, Segments(**index.facts["segments"]))
    kept = {name: index.facts[name] for name in CARRIED if name in index.facts}
    new = Index.create(place, {**facts, **kept, **(FRAMES if index.facts.get("frames") else {})})
    if new.facts["space"] != model.space:
        raise ClipreelError(
            f"{place} is a migration to {new.facts['model']} that was begun before; finish it with clipreel migrate "
            "--switch, or end it with clipreel migrate --cancel"
        )
    new.set_facts(**kept, **{REPORT: None})
    roots = [r for r in index.facts.get("roots", []) if os.path.exists(r)]
    if not roots:
        raise ClipreelError(f"no folder of the index at {index.place} is there (is the disk mounted?)")
    report = update(new, model, roots, workers=workers, progress=progress)
    fact = index.facts.get(CALIBRATED)
    if fact and (report.indexed or report.forgotten or CALIBRATED not in new.facts):
        # the bank of the old one, which may be what was asked of it
        bank = bank_of(index, index.facts.get("bank", "general"))
        calibrate(new, model, bank, fact.get("false_alarm", FALSE_ALARM))
    return new, report


def differences(index: Index, new: Index, model: Retriever) -> list[canary.Moved]:
    """How the saved queries of the old index are answered by the new one."""
    searcher = Searcher(new, model)
    return [canary.compared(q, before, canary.answers(searcher, q)) for q, before in canary.canaries(index).items()]


def report(new: Index, rows: Sequence[canary.Moved]) -> None:
    """Keep the numbers of a comparison with the new index, which says thereby that it is whole."""
    queries = [{"query": r.query, "overlap": r.overlap, "first": r.first, "warns": r.warns} for r in rows]
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    new.set_facts(**{REPORT: {"at": at, "warnings": sum(r.warns for r in rows), "queries": queries}})


def switch(place: str, model: Retriever | None = None) -> None:
    """Put the new index in the place of the old one, which becomes PLACE.before. Saved queries go along, with the
    answers of the new model where it is given.

    Raises ClipreelError where there is no new index, or one of them is being written.
    """
    new, old = beside(place, NEXT), beside(place, BEFORE)
    if not os.path.isdir(new):
        raise ClipreelError(f"there is no {new}; make it with: clipreel migrate --to MODEL --index {place}")
    with ExitStack() as locks:
        arriving = Index(new)
        locks.enter_context(arriving.writing())
        if os.path.isdir(place):
            leaving = Index(place)
            locks.enter_context(leaving.writing())
            queries = canary.canaries(leaving)
            judged.settle(leaving)
            if model is not None:
                canary.save(arriving, Searcher(arriving, model), list(queries))
            else:
                canary.store(arriving, queries)
            if os.path.isdir(old):
                shutil.rmtree(old)  # of a migration before this one
            os.rename(place, old)
        os.rename(new, place)


def undo(place: str) -> None:
    """The index that was replaced takes its place again; the newer one becomes PLACE.next."""
    new, old = beside(place, NEXT), beside(place, BEFORE)
    if not os.path.isdir(old):
        raise ClipreelError(f"there is no {old}: nothing was switched at {place}")
    if os.path.isdir(new):
        raise ClipreelError(f"{new} is a migration under way; end it first with: clipreel migrate --cancel")
    with ExitStack() as locks:
        for one in (place, old):
            if os.path.isdir(one):
                locks.enter_context(Index(one).writing())
        if os.path.isdir(place):
            os.rename(place, new)
        os.rename(old, place)


def cancel(place: str) -> None:
    """Delete the new index; the old one is not touched."""
    new = beside(place, NEXT)
    if not os.path.isdir(new):
        raise ClipreelError(f"there is no {new}: no migration is under way at {place}")
    with Index(new).writing():
        shutil.rmtree(new)
