"""clipreel index."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from clipreel.cli.output import DEFAULT_MODEL, Progress, clock, shown, skipped
from clipreel.cli.search import Flag, Many, check_helps, described, dump, engine_of, load_model, open_if_there
from clipreel.errors import ClipreelError

if TYPE_CHECKING:
    from clipreel.retriever import Retriever
    from clipreel.search.index import Index
    from clipreel.search.indexer import Report


def index(
    folders: Many = (),
    /,
    *,
    index: str | None = None,
    model: str | None = None,
    adapter: str | None = None,
    unhelpful: Flag = False,
    download: Flag = False,
    segments: Literal["windows", "shots", "keyframes", "none"] = "windows",
    seconds: float = 8.0,
    overlap: float = 0.5,
    fps: float = 1.0,
    time_limit: float = 120.0,
    workers: int = 2,
    frames: Flag = False,
    bank: str | None = None,
    false_alarm: float | None = None,
    watch: Flag = False,
    commercial: Flag = False,
    device: str = "auto",
    engine: Literal["torch", "int8"] | None = None,
    json: Flag = False,
) -> int:
    """Index folders of videos, or bring an index up to date.

    Try `clipreel index demo-output/shapes/test --model shapes-tiny --index my-index`

    Args:
        folders: Folders or files to index; without any, those that the index knows.
        index: Folder or object-store URI of the index (default: the platform's data folder).
        model: Hub id, folder, file or built-in name (default: that of the index, else openai/clip-vit-base-patch32).
        adapter: Folder of an adapter on the model (default: that of the index).
        unhelpful: Take the adapter although it did not help on its held-out pairs.
        download: Allow the model to be fetched from the hub.
        segments: How videos are cut into moments; keyframes reads least.
        seconds: Length of a window; the least length of an interval of keyframes.
        overlap: Part of a window that the next one shows again, from 0 to below 1.
        fps: Frames read per second of video.
        time_limit: Seconds after which a file is given up.
        workers: Files decoded at once.
        frames: Keep the vectors of frames as well, which sharpen moments and which `clipreel search --rerank` needs;
            said when an index is made.
        bank: Queries that scores are compared with: general, past (what was asked before), a file with one query a
            line, or none (default: that of the index, else general).
        false_alarm: Share of queries that nothing answers for which the search may still find something.
        watch: Stay, and follow what comes, changes and goes, until Ctrl-C.
        commercial: Refuse a base or an adapter that may not be used commercially, saying why.
        device: Where the model runs: auto takes the GPU where there is one.
        engine: What computes the videos; int8 only after `clipreel quantize` (default: that of the index, else torch).
        json: Print the report as JSON.
    """
    from clipreel.licences import require_commercial
    from clipreel.search.index import Index, default_place
    from clipreel.search.indexer import facts_of, update
    from clipreel.search.rerank import FACT, FrameStore
    from clipreel.video.shots import Segments

    if not time_limit > 0 or workers < 1:
        raise ClipreelError(f"--time-limit {time_limit:g} and --workers {workers}: both must be above 0")
    place = index or default_place()
    existing = open_if_there(place)
    roots = [os.path.abspath(f) for f in folders] or known_folders(existing)
    cut = Segments(segments, seconds, overlap, fps)
    if adapter and not existing:
        check_helps(adapter, unhelpful)
    adapter = adapter or (
        existing.facts.get("adapter") if existing and model in (None, existing.facts["model"]) else None
    )
    if existing and frames:
        FrameStore(existing)  # refuses an index that was made without
    name = model or (existing.facts["model"] if existing else DEFAULT_MODEL)
    if commercial:
        require_commercial(name, adapter)
    retriever = load_model(name, download, device, adapter, engine or engine_of(existing))
    store = existing or Index.create(place, facts_of(retriever, cut) | (FACT if frames else {}))
    if cut.to_dict() not in (store.facts["segments"], Segments().to_dict()):
        print(f"note: the index keeps {described(store.facts['segments'])}; use another --index", file=sys.stderr)
    line = Progress("indexing")

    def progress(done: int, total: int, report: Report) -> None:
        line(done, total, f"{clock(report.video_s)} of video")

    gone = [] if folders else [r for r in roots if not os.path.exists(r)]
    there = [r for r in roots if r not in gone]
    report = update(store, retriever, there, timeout_s=time_limit, workers=workers, progress=progress)
    rate(store, retriever, bank, false_alarm, bool(report.indexed or report.forgotten))
    report.skipped += [(r, "missing (is the disk mounted? else: clipreel forget)") for r in gone]
    code = told(report, place, roots, json, watch)
    canaries(store, retriever)
    if watch:
        from clipreel.search.watch import watch as follow

        def again(found: Report) -> None:
            rate(store, retriever, bank, false_alarm, bool(found.indexed or found.forgotten))
            told(found, place, roots, json, True)
            canaries(store, retriever)

        print(f"watching {', '.join(map(shown, there))}; Ctrl-C ends it", file=sys.stderr)
        follow(store, retriever, there, again, timeout_s=time_limit, workers=workers)
    return code


def canaries(store: Index, model: Retriever) -> None:
    """Warns where the answers of saved queries moved."""
    from clipreel.search.canary import moved
    from clipreel.search.query import Searcher

    if store.facts.get("canary"):
        for row in moved(store, Searcher(store, model)):
            if row.warns:
                print(f"note: {shown(str(row))} (clipreel canary run)", file=sys.stderr)


def rate(store: Index, model: Retriever, which: str | None, false_alarm: float | None, changed: bool) -> None:
    """Compares the videos with a bank of queries, where they, the bank or the rate of false alarms are others."""
    from clipreel.search.bank import OFFERED, bank_of, remembered
    from clipreel.search.calibration import FALSE_ALARM, calibrate

    fact = store.facts.get("calibration", {})
    source = which or store.facts.get("bank", "general")
    said = source if source in ("general", "past", "none") else os.path.abspath(source)
    if said != store.facts.get("bank"):  # a write makes every reader load the index again
        store.set_facts(bank=said)
    if source == "none":
        store.set_facts(calibration=None)
        return
    if source == "general" and which is None and (asked := len(remembered(store))) >= OFFERED:
        print(f"note: {asked} asked queries are kept; --bank past compares scores with them", file=sys.stderr)
    aim = false_alarm or fact.get("false_alarm", FALSE_ALARM)
    bank = bank_of(store, source)
    if changed or (bank.fingerprint, aim) != (fact.get("fingerprint"), fact.get("false_alarm")):
        calibrate(store, model, bank, aim, Progress("reading the queries that scores are compared with"))


def told(report: Report, place: str, roots: Sequence[str], json: bool, stays: bool = False) -> int:
    """Prints what indexing did; returns the exit code."""
    if json:
        print(dump({**vars(report), "index": place}))
    else:
        spent = ", ".join(f"{stage} {s:.1f} s" for stage, s in report.seconds.items())
        print(
            f"indexed {report.indexed} videos ({clock(report.video_s)}, {report.vectors} vectors), "
            f"moved {report.moved}, forgot {report.forgotten}, unchanged {report.unchanged}; {spent}; index at {place}"
        )
    for path, warning in report.warnings:
        print(f"note: {shown(path)}: {warning}", file=sys.stderr)
    skipped(report.skipped)
    nothing = not (report.indexed or report.moved or report.forgotten or report.unchanged)
    if nothing and not report.skipped and not stays:
        raise ClipreelError(f"no video files below {', '.join(map(shown, roots))}; nothing was indexed")
    return (2 if nothing else 1) if report.skipped else 0


def known_folders(store: Index | None) -> list[str]:
    """The folders that an index was made of."""
    roots = store.facts.get("roots", []) if store else []
    if not roots:
        where = f"the index at {store.place} remembers none" if store else "there is no index yet"
        raise ClipreelError(f"name a folder to index, e.g. clipreel index ~/Videos ({where})")
    return list(roots)
