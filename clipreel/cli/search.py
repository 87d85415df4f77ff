"""clipreel search, status, forget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from clipreel.cli.output import clock, shown, skipped, span
from clipreel.errors import ClipreelError

if TYPE_CHECKING:
    from clipreel.retriever import Retriever
    from clipreel.search.answer import Like
    from clipreel.search.ask import Reorder
    from clipreel.search.index import Index

Many = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def search(
    text: str = "",
    /,
    *,
    k: Annotated[int, Parameter(name=["-k", "--results"])] = 10,
    index: str | None = None,
    image: Many = (),
    video: Many = (),
    like: Many = (),
    minus: Many = (),
    minus_weight: float = 0.5,
    weight: Many = (),
    folder: str | None = None,
    under: str | None = None,
    name: str | None = None,
    min_duration: float = 0.0,
    max_duration: float = float("inf"),
    after: float = 0.0,
    before: float = float("inf"),
    after_date: date | None = None,
    before_date: date | None = None,
    orientation: Literal["landscape", "portrait", "square"] | None = None,
    rank: Literal["plain", "bank"] = "plain",
    refine: Literal["none", "stored", "decode"] = "stored",
    rerank: str | None = None,
    candidates: int = 50,
    model: str | None = None,
    adapter: str | None = None,
    device: str = "auto",
    tag: Many = (),
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
        like: More like a video of the index: id or path, and @SECOND.
        minus: A text to take away; may be given several times.
        minus_weight: How much of it is taken away.
        weight: How much text, image or like counts, e.g. image=2.
        folder: Only videos in this folder of the index, Videos/2024.
        under: Only videos below this folder.
        name: Only paths that contain this.
        min_duration: Only videos at least this long, in seconds.
        max_duration: Only videos at most this long, in seconds.
        after: Only moments that end after this second.
        before: Only moments that begin before this second.
        after_date: Only files of this day or later, 2024-05-31.
        before_date: Only files of this day or earlier.
        orientation: Only pictures of this shape.
        rank: By the cosine, or by what it means for the bank.
        refine: Whether frames of the index, or of files, sharpen a moment.
        rerank: What orders the best hits anew: folder of a head or of an ALPRO, mean, top_frames, soft_frames, or alpro
            for the model of the index.
        candidates: How many hits it looks at.
        model: The model, where it lies elsewhere than when the index was made.
        adapter: The adapter of the index, where it lies elsewhere.
        device: Where the model runs: auto takes the GPU where there is one.
        tag: Only videos with this tag (see clipreel tag); may be given several times.
        json: One JSON object per line and nothing else.
        open: Play the first hit at its moment.
        exact: Compare with every vector even where the index has an approximate index.
    """
    from clipreel.search.answer import Filters, Request
    from clipreel.search.ask import Asker
    from clipreel.search.index import Index, default_place

    if k < 1:
        raise ClipreelError(f"{k} results: ask for at least 1 (-k)")
    store = Index(index or default_place())
    request = Request(
        text,
        minus,
        [*image],
        [liked(store, one) for one in like],
        video,
        {"minus": minus_weight, **weights(weight)},
        Filters(
            folder, tag, min_duration, max_duration, after_date, before_date, orientation, under, name, after, before
        ),
        rank=rank,
        refine=refine,
        rerank=rerank,
        candidates=candidates,
        k=k,
    )
    lies = adapter or store.facts.get("adapter")
    retriever = load_model(model or store.facts["model"], False, device, lies, engine_of(store))
    failed: list[tuple[str, str]] = []
    rerankers = {} if rerank is None else {rerank: reranker(rerank, retriever, store, device, failed)}
    answer = Asker(store, retriever, rerankers=rerankers, exact=exact).answer(request)
    if not answer.hits:
        print("nothing in the index passes these filters", file=sys.stderr)
        return 2
    if answer.state == "nothing":
        print("nothing here matches; these are merely the nearest", file=sys.stderr)
    for note in answer.notes:
        print(f"note: {note}", file=sys.stderr)
    # what a reranker could not read again is gone from its part
    looked_at = 0 if rerank is None else candidates - len(failed)
    if rerank is not None and looked_at < len(answer.hits):
        print(f"note: {rerank} scored the first {looked_at}; those behind keep their cosines", file=sys.stderr)
    for place, hit in enumerate(answer.hits, 1):
        reranked = place <= looked_at
        if json:
            own = {} if rerank is None else {"reranked": reranked}
            print(dump({"path": str(hit.path), **hit.to_dict(), "score": round(hit.score, 6), **own}))
        else:
            # the words are about cosines, which no reranker's score need be
            said = hit.words if rerank is None else "reranked" if reranked else "not reranked"
            words = "" if said == "unrated" else f"{said:12}  "
            print(f"{place:3d}  {hit.score:.3f}  {words}{span(hit.start_s, hit.end_s)}  {shown(str(hit.path))}")
    if open:
        play(str(answer.hits[0].path), answer.hits[0].start_s)
    skipped(failed)
    return 1 if failed else 0


def liked(store: Index, text: str) -> Like:
    """ID or PATH, with @SECOND for a moment."""
    from clipreel.search.answer import Like

    which, at, second = text.rpartition("@")
    try:
        at_s = float(second) if at else None
    except ValueError:
        which, at_s = text, None
    which = which if at_s is not None else text
    by_path = [k.id for k in store.known(which) if k.path == os.path.abspath(which)]
    return Like(by_path[0] if by_path else which, at_s)


def weights(given: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in given:
        kind, _, number = text.partition("=")
        try:
            found[kind] = float(number)
        except ValueError as e:
            raise ClipreelError(f"the weight {text!r}: say it as text=1, image=2 or like=0.5") from e
    return found


def reranker(source: str, model: Retriever, store: Index, device: str, failed: list[tuple[str, str]]) -> Reorder:
    """What orders candidates anew; files that cannot be read again are added to `failed`."""
    from clipreel.search.rerankers import by_head, by_matching, matching

    judge = matching(source, model, lambda name: load_model(name, False, device))
    return by_head(source, model, store) if judge is None else by_matching(judge, failed)


def status(*, index: str | None = None, json: Flag = False) -> int:
    """Say what an index holds, and which files were skipped and why.

    Try `clipreel status --index my-index`

    Args:
        index: Folder or URI of the index (default: the platform's data folder).
        json: Print the facts as JSON.
    """
    from clipreel.search import ann, calibration
    from clipreel.search.index import Index, default_place

    store = Index(index or default_place())
    files = store.list_files()
    bad = [(f.path, f.reason) for f in files if f.reason]
    good = [f for f in files if not f.reason]
    facts = {
        "index": store.place,
        "model": store.facts["model"],
        "adapter": store.facts.get("adapter"),
        "space": store.facts["space"],
        "segments": store.facts["segments"],
        "folders": store.facts.get("roots", []),
        "videos": len(good),
        "duration_s": round(sum(f.duration_s for f in good), 3),
        "vectors": store.vectors.count_rows(),
        "approximate": store.facts.get("ann"),
        "calibration": store.facts.get("calibration"),
        "skipped": bad,
    }
    if json:
        print(dump(facts))
        return 1 if bad else 0
    with_adapter = f" with {shown(facts['adapter'])}" if facts["adapter"] else ""
    print(f"index    {store.place}\nmodel    {facts['model']}{with_adapter} (space {facts['space']})")
    print(f"folders  {', '.join(map(shown, facts['folders'])) or 'none known'}")
    print(f"videos   {len(good)}, {clock(float(facts['duration_s']))} in all")
    print(f"vectors  {facts['vectors']} (segments: {described(store.facts['segments'])})")
    print(f"scores   {calibration.described(store.facts.get('calibration'))}")
    print(f"search   {ann.described(store.facts['ann']) if 'ann' in store.facts else 'exact, in memory'}")
    skipped(bad)
    return 1 if bad else 0


def described(segments: dict) -> str:
    """How an index cuts videos."""
    from clipreel.video.shots import Segments

    how = Segments(**segments)
    return f"{how.mode} of {how.seconds:g} s, overlap {how.overlap:g}, {how.fps:g} frames/s"


def forget(paths: tuple[str, ...], /, *, index: str | None = None) -> int:
    """Take files or folders out of an index. The videos themselves are not touched.

    Try `clipreel forget demo-output/shapes/test/test-rest-001a.mp4 --index my-index`

    Args:
        paths: Files or folders in the index.
        index: Folder or URI of the index (default: the platform's data folder).
    """
    from clipreel.search.index import Index, default_place
    from clipreel.search.indexer import unremember
    from clipreel.search.rerank import FrameStore

    store = Index(index or default_place())
    with store.writing():
        found = {k.id for path in paths for k in store.known(path)}
        if not unremember(store, paths) and not found:
            raise ClipreelError(
                f"nothing in the index lies at {', '.join(map(shown, paths))}; clipreel status shows it"
            )
        store.remove(found)
        if store.facts.get("frames"):
            FrameStore(store).sweep()
    print(f"forgot {len(found)} files")
    return 0


def engine_of(index: Index | None) -> str:
    """What computed the videos of an index."""
    return "torch" if index is None else index.facts.get("engine", "torch").partition("/")[0]


def load_model(
    name: str, download: bool, device: str, adapter: str | Path | None = None, engine: str = "torch"
) -> Retriever:
    """The model of a command, with its adapter; its warnings go to standard error."""
    from clipreel.adapter import is_alpro, load, with_adapter

    int8 = engine == "int8"
    if int8 and adapter:
        raise ClipreelError("the int8 engine computes the base alone: leave out --engine int8 or --adapter")
    if is_alpro(name) and (int8 or adapter):
        raise ClipreelError(f"{name} is an ALPRO, which takes neither an adapter nor --engine int8; leave it out")
    retriever = load(name, download=download, device="cpu" if int8 and device == "auto" else device)
    if int8:
        from clipreel.int8 import enable

        retriever = enable(retriever)
    for warning in retriever.warnings:
        print(f"note: {warning}", file=sys.stderr)
    if name == "shapes-tiny" and sys.stderr.isatty():
        print("note: shapes-tiny knows only the shapes world; for real videos use a CLIP (--model)", file=sys.stderr)
    return with_adapter(retriever, adapter) if adapter else retriever


def check_helps(adapter: str, unhelpful: bool) -> None:
    """An adapter that was compared and did not help is not taken unless the user says so."""
    from clipreel.adapter import read_config

    config = read_config(adapter)
    gain = config.metrics.get("overall_gain", {}).get("value", 0.0)
    if config.helped is False and not unhelpful:
        general, where = config.metrics.get("general", {}).get("overall_gain", {}), "did not help on its held-out pairs"
        if general.get("high", 0.0) < 0:
            gain, where = general["value"], "is worse on the videos that it must not get worse on"
        raise ClipreelError(
            f"the adapter {shown(adapter)} {where} ({gain:+.1f} points over six recalls), "
            "so the base is better: leave --adapter out, or say --unhelpful to take it all the same"
        )
    if config.helped is None:
        print(f"note: nothing shows that the adapter {shown(adapter)} helps; clipreel tune compares", file=sys.stderr)


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
