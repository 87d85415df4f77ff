"""clipreel canary, migrate, pairs: living with an archive."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from clipreel.cli.output import Progress, clock, shown, skipped, span
from clipreel.cli.search import Flag, Many, dump, engine_of, load_model
from clipreel.errors import ClipreelError

if TYPE_CHECKING:
    from clipreel.search.canary import Moved
    from clipreel.search.index import Index
    from clipreel.search.indexer import Report
    from clipreel.search.judged import Judged
    from clipreel.search.query import Searcher

canary = App(
    name="canary",
    help='Saved queries, and a warning when their answers move. Try `clipreel canary add "a red circle"`',
)
pairs = App(
    name="pairs",
    help="Right and wrong answers that you collected, as pairs to tune on. Try `clipreel pairs write mine.jsonl`",
)


def opened(index: str | None) -> Index:
    from clipreel.search.index import Index, default_place

    return Index(index or default_place())


def searcher_of(store: Index, model: str | None, adapter: str | None, device: str) -> Searcher:
    from clipreel.search.query import Searcher

    lies = adapter or store.facts.get("adapter")
    return Searcher(store, load_model(model or store.facts["model"], False, device, lies, engine_of(store)))


def tell(rows: list[Moved], json: bool) -> int:
    """Prints what moved; 1 where something warns."""
    for row in rows:
        if json:
            print(dump({**vars(row), "warns": row.warns}))
        else:
            print(f"{'! ' if row.warns else '  '}{shown(str(row))}")
            for word, paths in (("new", row.entered), ("gone", row.left)):
                for path in paths if row.warns else ():
                    print(f"      {word:5}{shown(path)}")
    return 1 if any(row.warns for row in rows) else 0


@canary.command
def add(queries: tuple[str, ...], /, *, index: str | None = None, device: str = "auto") -> int:
    """Save queries with the answers that they have now.

    Args:
        queries: What is looked for.
        index: Folder or URI of the index.
        device: Where the model runs.
    """
    from clipreel.search.canary import save

    store = opened(index)
    save(store, searcher_of(store, None, None, device), queries)
    print(f"saved {len(queries)}; clipreel canary run compares")
    return 0


@canary.command(name="list")
def listed(*, index: str | None = None, json: Flag = False) -> int:
    """Show the saved queries with the first of the answers that they had.

    Args:
        index: Folder or URI of the index.
        json: Print one JSON object a query, with all answers.
    """
    from clipreel.search.canary import canaries

    for query, paths in canaries(opened(index)).items():
        if json:
            print(dump({"query": query, "answers": paths}))
        else:
            print(f"{shown(query)}  {shown(paths[0]) if paths else '-'}")
    return 0


@canary.command
def remove(queries: tuple[str, ...], /, *, index: str | None = None) -> int:
    """Take saved queries out.

    Args:
        queries: Saved queries, as they were written.
        index: Folder or URI of the index.
    """
    from clipreel.search.canary import forget

    forget(opened(index), queries)
    return 0


@canary.command
def run(*, index: str | None = None, accept: Flag = False, device: str = "auto", json: Flag = False) -> int:
    """Ask every saved query again; ends with 1 where rankings moved.

    Args:
        index: Folder or URI of the index.
        accept: Remember the present answers from now on.
        device: Where the model runs.
        json: Print one JSON object a query.
    """
    from clipreel.search.canary import canaries, moved, save

    store = opened(index)
    saved = list(canaries(store))
    if not saved:
        raise ClipreelError('no query is saved; save some with: clipreel canary add "a red circle"')
    searcher = searcher_of(store, None, None, device)
    code = tell(moved(store, searcher), json)
    if accept:
        save(store, searcher, saved)
        return 0
    return code


def migrate(
    *,
    to: str | None = None,
    adapter: str | None = None,
    switch: Flag = False,
    undo: Flag = False,
    cancel: Flag = False,
    index: str | None = None,
    download: Flag = False,
    workers: int = 2,
    device: str = "auto",
    json: Flag = False,
) -> int:
    """Move an index to another model: it is made anew beside the old one, compared, and put in its place on command.

    The old index answers until --switch, the new one by --index PLACE.next. The same command goes on after a stop.
    Try `clipreel migrate --to shapes-tiny --adapter tuned/vop_fc/adapter --index my-index`

    Args:
        to: The new model (with --adapter alone: that of the index).
        adapter: The adapter on it.
        switch: Put the new index in the place of the old one, which is kept as PLACE.before.
        undo: Put the replaced index back.
        cancel: Delete the new index.
        index: Folder of the index.
        download: Allow the model to be fetched from the hub.
        workers: Files decoded at once.
        device: Where the model runs.
        json: Print the differences as JSON.
    """
    from clipreel.search import migrate as moving
    from clipreel.search.index import default_place

    place = index or default_place()
    if sum((switch, undo, cancel, bool(to or adapter))) != 1:
        raise ClipreelError("say one of --to MODEL (or --adapter), --switch, --undo and --cancel")
    if switch:
        grown = moving.beside(place, moving.NEXT)
        moving.switch(place, searcher_of(opened(grown), None, None, device).model if os.path.isdir(grown) else None)
        print(f"{shown(place)} is now the new index; the old one is {shown(place)}{moving.BEFORE} (--undo)")
        return 0
    if undo or cancel:
        (moving.undo if undo else moving.cancel)(place)
        print(f"{shown(place)} is the {'former' if undo else 'only'} index")
        return 0
    store = opened(place)
    model = load_model(to or store.facts["model"], download, device, adapter)
    line = Progress("encoding")

    def progress(done: int, total: int, report: Report) -> None:
        line(done, total, f"{clock(report.video_s)} of video")

    new, report = moving.grow(store, model, workers=workers, progress=progress)
    rows = moving.differences(store, new, model)
    moving.report(new, rows)
    print(f"{new.place}: {report.indexed + report.unchanged} videos by {model.name}", file=sys.stderr)
    if not rows:
        print("note: no query is saved, so nothing was compared; see clipreel canary add", file=sys.stderr)
    tell(rows, json)
    own = f" --index {shown(place)}" if index else ""
    print(f"search it with --index {shown(new.place)}; take it with: clipreel migrate --switch{own}", file=sys.stderr)
    skipped(report.skipped)
    return 1 if report.skipped else 0


@pairs.command(name="add")
def add_pairs(query: str, /, *, hit: Many = (), miss: Many = (), index: str | None = None) -> int:
    """Remember right and wrong answers of a query.

    Args:
        query: What was looked for.
        hit: A right answer, as FILE@START-END in seconds, or a whole FILE; may be given several times.
        miss: A wrong one.
        index: Folder or URI of the index.
    """
    from clipreel.search.judged import judge

    store = opened(index)
    files = {f.path: f.duration_s for f in store.visible()}
    rows = [part(text, query, right, files) for right, many in ((True, hit), (False, miss)) for text in many]
    if not rows:
        raise ClipreelError("nothing to remember; give --hit FILE@START-END or --miss FILE@START-END")
    print(f"{judge(store, rows)} answers are remembered; clipreel pairs write FILE.jsonl makes pairs of them")
    return 0


def part(text: str, query: str, right: bool, files: dict[str, float]) -> Judged:
    """A judgement from FILE@START-END."""
    from clipreel.search.judged import Judged

    found = re.fullmatch(r"(.+)@([\d.]+)-([\d.]+)", text)
    path = os.path.abspath(found.group(1) if found else text)
    try:
        start, end = (float(found.group(2)), float(found.group(3))) if found else (0.0, files.get(path, 0.0))
    except ValueError as e:
        raise ClipreelError(f"{text!r}: write FILE@START-END with seconds, e.g. film.mp4@12-15.5") from e
    return Judged(query, path, start, end, right)


@pairs.command
def take(file: Path, /, *, query: str = "", index: str | None = None) -> int:
    """Remember the hits of a collection: what the page exports as JSON, or what `clipreel search --json` printed.

    Args:
        file: JSON of hits.
        query: What they answer, where the file does not say.
        index: Folder or URI of the index.
    """
    from clipreel.search.judged import judge, read_collection

    print(f"{judge(opened(index), read_collection(file, query))} answers are remembered")
    return 0


@pairs.command(name="list")
def list_pairs(*, index: str | None = None, json: Flag = False) -> int:
    """Show what is remembered: right and wrong answers, from here and from the page.

    Args:
        index: Folder or URI of the index.
        json: Print one JSON object each.
    """
    from dataclasses import asdict

    from clipreel.search.judged import judged

    for row in judged(opened(index)):
        if json:
            print(dump({"id": row.id, **asdict(row)}))
        else:
            word = "hit " if row.right else "miss"
            times = span(row.start_s, row.end_s)
            print(f"{row.id}  {word}  {times}  {shown(row.path)}  {shown(row.query)}")
    return 0


@pairs.command(name="remove")
def remove_pairs(ids: tuple[str, ...], /, *, index: str | None = None) -> int:
    """Take remembered answers back.

    Args:
        ids: As `clipreel pairs list` shows them.
        index: Folder or URI of the index.
    """
    from clipreel.search.judged import forget as take_out

    count = take_out(opened(index), ids)
    if not count:
        raise ClipreelError(f"none of {', '.join(ids) or 'no ids'} is remembered; see clipreel pairs list")
    print(f"took out {count}")
    return 0


@pairs.command
def write(out: Path, /, *, index: str | None = None) -> int:
    """Write right answers, with the wrong ones of the same query, as an annotation file for `clipreel tune`.

    Those of the page are among them. What teaches nothing stays: wrong answers of a query that has no right one, and
    answers in videos that are gone.

    Args:
        out: The file to write (.jsonl).
        index: Folder or URI of the index.
    """
    from clipreel.adapter import write as whole
    from clipreel.search.judged import judged
    from clipreel.search.judged import pairs as made

    store = opened(index)
    remembered, there = judged(store), {f.path for f in store.visible()}
    kept = [j for j in remembered if j.path in there]
    rows = made(kept)
    if not rows:
        raise ClipreelError("no right answer in a video of the index is remembered; see clipreel pairs add --help")
    whole(out, "".join(dump(row) + "\n" for row in rows).encode())
    right = {j.query for j in kept if j.right}
    wrong, alone = (sum(not j.right and (j.query in right) == taken for j in kept) for taken in (True, False))
    print(f"{len(rows)} pairs in {shown(str(out))}, {wrong} wrong answers beside them")
    if alone:
        print(f"{alone} wrong answers stay here: no right one of their queries is known to learn them against")
    if len(kept) < len(remembered):
        print(f"{len(remembered) - len(kept)} answers stay here: their videos are no longer in the index")
    print(f"go on: clipreel tune {shown(str(out))}")
    return 0
