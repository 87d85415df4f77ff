"""clipreel index, search, status, forget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from clipreel.cli.output import DEFAULT_MODEL, Progress, clock, shown, skipped
from clipreel.errors import ClipreelError

if TYPE_CHECKING:
    from clipreel.retriever import Retriever
    from clipreel.search.index import Index
    from clipreel.search.indexer import Report

Many = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def index(
    folders: Many = (),
    /,
    *,
    index: str | None = None,
    model: str | None = None,
    download: Flag = False,
    segments: Literal["windows", "shots", "none"] = "windows",
    seconds: float = 8.0,
    overlap: float = 0.5,
    fps: float = 1.0,
    time_limit: float = 120.0,
    workers: int = 2,
    device: str = "auto",
    json: Flag = False,
) -> int:
    """Index folders of videos, or bring an index up to date.

    Try `clipreel index demo-output/shapes --model shapes-tiny --index my-index`

    Args:
        folders: Folders or files to index; without any, those that the index knows.
        index: Folder or object-store URI of the index (default: the platform's data folder).
        model: Hub id, folder, file or built-in name (default: that of the index, else openai/clip-vit-base-patch32).
        download: Allow the model to be fetched from the hub.
        segments: How videos are cut into moments.
        seconds: Length of a window.
        overlap: Part of a window that the next one shows again, from 0 to below 1.
        fps: Frames read per second of video.
        time_limit: Seconds after which a file is given up.
        workers: Files decoded at once.
        device: Where the model runs: auto takes the GPU where there is one.
        json: Print the report as JSON.
    """
    from clipreel.search.index import Index, default_place
    from clipreel.search.indexer import facts_of, update
    from clipreel.video.shots import Segments

    if not time_limit > 0 or workers < 1:
        raise ClipreelError(f"--time-limit {time_limit:g} and --workers {workers}: both must be above 0")
    place = index or default_place()
    existing = open_if_there(place)
    roots = [os.path.abspath(f) for f in folders] or known_folders(existing)
    cut = Segments(segments, seconds, overlap, fps)
    retriever = load_model(model or (existing.facts["model"] if existing else DEFAULT_MODEL), download, device)
    store = existing or Index.create(place, facts_of(retriever, cut))
    if cut.to_dict() not in (store.facts["segments"], Segments().to_dict()):
        print(f"note: the index keeps {described(store.facts['segments'])}; use another --index", file=sys.stderr)
    line = Progress("indexing")

    def progress(done: int, total: int, report: Report) -> None:
        line(done, total, f"{clock(report.video_s)} of video")

    gone = [] if folders else [r for r in roots if not os.path.exists(r)]
    there = [r for r in roots if r not in gone]
    report = update(store, retriever, there, timeout_s=time_limit, workers=workers, progress=progress)
    report.skipped += [(r, "missing (is the disk mounted? else: clipreel forget)") for r in gone]
    return told(report, place, roots, json)


def told(report: Report, place: str, roots: Sequence[str], json: bool) -> int:
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
    if nothing and not report.skipped:
        raise ClipreelError(f"no video files below {', '.join(map(shown, roots))}; nothing was indexed")
    return (2 if nothing else 1) if report.skipped else 0


def described(segments: dict) -> str:
    """How an index cuts videos."""
    from clipreel.video.shots import Segments

    how = Segments(**segments)
    return f"{how.mode} of {how.seconds:g} s, overlap {how.overlap:g}, {how.fps:g} frames/s"


def search(
    text: str = "",
    /,
    *,
    k: Annotated[int, Parameter(name=["-k", "--results"])] = 10,
    index: str | None = None,
    image: Many = (),
    video: Many = (),
    minus: Many = (),
    minus_weight: float = 0.5,
    under: str | None = None,
    name: str | None = None,
    min_duration: float = 0.0,
    max_duration: float = float("inf"),
    after: float = 0.0,
    before: float = float("inf"),
    model: str | None = None,
    device: str = "auto",
    json: Flag = False,
    open: Flag = False,
    exact: Flag = False,
) -> int:
    """Find the videos and moments that fit a text, an image or a video best.

    Words that begin with - are taken away: "dog on a beach -people".
    Try `clipreel search "a red circle moves to the left" --index my-index`

    Args:
        text: What to look for.
        k: How many videos.
        index: Folder or URI of the index.
        image: An image that the video should look like; may be given several times.
        video: A video that it should be like; may be given several times.
        minus: A text to take away; may be given several times.
        minus_weight: How much of it is taken away.
        under: Only videos below this folder.
        name: Only paths that contain this.
        min_duration: Only videos at least this long, in seconds.
        max_duration: Only videos at most this long, in seconds.
        after: Only moments that end after this second.
        before: Only moments that begin before this second.
        model: The model, where it lies elsewhere than when the index was made.
        device: Where the model runs: auto takes the GPU where there is one.
        json: One JSON object per line and nothing else.
        open: Play the first hit at its moment.
        exact: Compare with every vector even where the index has an approximate index.
    """
    from dataclasses import replace

    from clipreel.search.index import Index, default_place
    from clipreel.search.query import Filter, Query, Searcher

    if k < 1:
        raise ClipreelError(f"{k} results: ask for at least 1 (-k)")
    store = Index(index or default_place())
    query = Query.parse(text)
    query = replace(
        query,
        minus=[*query.minus, *minus],
        images=image,
        videos=video,
        minus_weight=minus_weight,
        filter=Filter(under, name, min_duration, max_duration, after, before),
    )
    if not (query.texts or image or video):
        raise ClipreelError('the query is empty; say what to look for, e.g. clipreel search "a red circle"')
    searcher = Searcher(store, load_model(model or store.facts["model"], False, device), exact)
    hits = searcher.search(query, k)
    for rank, hit in enumerate(hits, 1):
        if json:
            print(hit.to_json())
        else:
            print(f"{rank:3d}  {hit.score:.3f}  {clock(hit.start_s)}-{clock(hit.end_s)}  {shown(hit.path)}")
    if not hits:
        print("nothing in the index passes these filters", file=sys.stderr)
        return 2
    if open:
        play(hits[0].path, hits[0].start_s)
    return 0


def status(*, index: str | None = None, json: Flag = False) -> int:
    """Say what an index holds, and which files were skipped and why.

    Try `clipreel status --index my-index`

    Args:
        index: Folder or URI of the index (default: the platform's data folder).
        json: Print the facts as JSON.
    """
    from clipreel.search import ann
    from clipreel.search.index import Index, default_place

    store = Index(index or default_place())
    files = store.list_files()
    bad = [(f.path, f.reason) for f in files if f.reason]
    good = [f for f in files if not f.reason]
    facts = {
        "index": store.place,
        "model": store.facts["model"],
        "space": store.facts["space"],
        "segments": store.facts["segments"],
        "folders": store.facts.get("roots", []),
        "videos": len(good),
        "duration_s": round(sum(f.duration_s for f in good), 3),
        "vectors": store.vectors.count_rows(),
        "approximate": store.facts.get("ann"),
        "skipped": bad,
    }
    if json:
        print(dump(facts))
        return 1 if bad else 0
    print(f"index    {store.place}\nmodel    {facts['model']} (space {facts['space']})")
    print(f"folders  {', '.join(map(shown, facts['folders'])) or 'none known'}")
    print(f"videos   {len(good)}, {clock(float(facts['duration_s']))} in all")
    print(f"vectors  {facts['vectors']} (segments: {described(store.facts['segments'])})")
    print(f"search   {ann.described(store.facts['ann']) if 'ann' in store.facts else 'exact, in memory'}")
    skipped(bad)
    return 1 if bad else 0


def forget(paths: tuple[str, ...], /, *, index: str | None = None) -> int:
    """Take files or folders out of an index. The videos themselves are not touched.

    Try `clipreel forget demo-output/shapes/test-rest-001a.mp4 --index my-index`

    Args:
        paths: Files or folders in the index.
        index: Folder or URI of the index (default: the platform's data folder).
    """
    from clipreel.search.index import Index, default_place
    from clipreel.search.indexer import unremember

    store = Index(index or default_place())
    with store.writing():
        found = {k.id for path in paths for k in store.known(path)}
        if not unremember(store, paths) and not found:
            raise ClipreelError(
                f"nothing in the index lies at {', '.join(map(shown, paths))}; clipreel status shows it"
            )
        store.remove(found)
    print(f"forgot {len(found)} files")
    return 0


def known_folders(store: Index | None) -> list[str]:
    """The folders that an index was made of."""
    roots = store.facts.get("roots", []) if store else []
    if not roots:
        where = f"the index at {store.place} remembers none" if store else "there is no index yet"
        raise ClipreelError(f"name a folder to index, e.g. clipreel index ~/Videos ({where})")
    return list(roots)


def load_model(name: str, download: bool, device: str) -> Retriever:
    """The model of a command; its warnings go to standard error."""
    from clipreel.retriever import load

    retriever = load(name, download=download, device=device)
    for warning in retriever.warnings:
        print(f"note: {warning}", file=sys.stderr)
    if name == "shapes-tiny" and sys.stderr.isatty():
        print("note: shapes-tiny knows only the shapes world; for real videos use a CLIP (--model)", file=sys.stderr)
    return retriever


def open_if_there(place: str) -> Index | None:
    """The index at a place, None where nothing was made yet; a damaged one is an error."""
    from clipreel.search.index import Index, NoIndex

    try:
        return Index(place)
    except NoIndex:
        return None


def dump(data: dict) -> str:
    return json.dumps(data, default=str)


def play(path: str, start_s: float) -> None:
    """Open a player at a moment; without a known player, say the command."""
    players = {
        "mpv": [f"--start={start_s:.2f}"],
        "vlc": [f"--start-time={start_s:.2f}"],
        "ffplay": ["-ss", f"{start_s:.2f}"],
    }
    for player, options in players.items():
        program = which(player)
        if program:
            subprocess.Popen([program, *options, str(Path(path))], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return
    print(f"no player found (mpv, vlc or ffplay); the moment is at {start_s:.1f} s", file=sys.stderr)
