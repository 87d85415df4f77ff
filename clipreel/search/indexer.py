"""Brings an index up to date with a folder: walk, decode, encode, store, and say what was left out and why.

Decoding runs in processes ahead of the encoder, which takes frames as they come; the stages are timed apart. Whatever
was stored before an interruption stays, and the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipreel.errors import ClipreelError
from clipreel.search.ann import refresh
from clipreel.search.index import File, Index, text_of
from clipreel.search.library import Changes, Found, compare, walk
from clipreel.search.rerank import FrameStore
from clipreel.search.vectors import vectors_of
from clipreel.video.decode import Stream, stream_frames
from clipreel.video.many import stream_many
from clipreel.video.packets import DecodeError
from clipreel.video.shots import Segments

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

STORE_EVERY = 32  # files a write: small writes cost more than they protect
TIDY_EVERY = 1024


@dataclass
class Report:
    """What a run did. `skipped` are (path, reason); seconds per stage, those of decoding summed over processes."""

    indexed: int = 0
    moved: int = 0
    forgotten: int = 0
    unchanged: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decode", "encode", "store"), 0.0))
    video_s: float = 0.0
    vectors: int = 0


def file_id(found: Found, mark: str) -> str:
    raw = found.path.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(raw + b"\0" + mark.encode(), digest_size=12).hexdigest()


def facts_of(model: Retriever, segments: Segments) -> dict[str, Any]:
    """What an index must know of its vectors."""
    base = model.base_name
    return {
        "space": model.space,
        "model": os.path.abspath(base) if os.path.exists(base) else base,
        **({"adapter": model.adapter_folder} if model.adapter_folder else {}),
        "engine": model.engine_name,
        "embed_dim": model.embed_dim,
        "segments": segments.to_dict(),
        "sampling": model.sampling.to_dict(),
    }


def check_space(index: Index, model: Retriever) -> None:
    """Vectors of two models never meet: ClipreelError when the model is not the one of the index."""
    if index.facts["space"] != model.space:
        mine, theirs, adapter = model.engine_name, index.facts.get("engine", "torch"), index.facts.get("adapter")
        use = f"--model {index.facts['model']}" + (f" --adapter {adapter}" if adapter else "")
        use += "" if mine == theirs else f" --engine {theirs.partition('/')[0]}"
        raise ClipreelError(
            f"the index at {index.place} was made with {index.facts['model']} (engine {theirs}, space "
            f"{index.facts['space']}), and {model.name} (engine {mine}) has space {model.space}: use {use}, or another "
            "--index"
        )


def update(
    index: Index,
    model: Retriever,
    roots: Sequence[str],
    *,
    timeout_s: float = 120.0,
    workers: int = 2,
    progress: Callable[[int, int, Report], None] = lambda done, total, report: None,
    begun: Callable[[str], None] = lambda path: None,
) -> Report:
    """Make the index equal to what lies below the folders; `begun` gets the path of each new file when it is at it.

    Raises ClipreelError when a folder is not there.
    """
    check_space(index, model)
    segments = Segments(**index.facts["segments"])
    for root in roots:
        if not os.path.exists(root):
            raise ClipreelError(
                f"{text_of(root)} does not exist, so nothing was changed (is the disk mounted?). To take its videos "
                f"out of the index: clipreel forget {text_of(root)!r}"
            )
        if not os.access(root, os.R_OK):
            raise ClipreelError(f"{text_of(root)} cannot be read by this user; nothing was changed")
    report = Report()
    with index.writing():
        remember(index, roots)
        index.sweep()
        again = _more_time(index, timeout_s)
        for root in roots:
            unreadable: list[tuple[str, str]] = []
            known = [replace(k, mtime_ns=-1, hash="") if k.id in again else k for k in index.known(root)]
            changes = compare(list(walk(root, unreadable)), known, unreadable)
            report.skipped += unreadable
            _bookkeep(index, changes, report)
            _add(index, model, changes, segments, timeout_s, workers, report, progress, begun)
        index.tidy()
        if index.facts.get("frames"):
            FrameStore(index).sweep()
        refresh(index, model)
    return report


def remember(index: Index, roots: Sequence[str]) -> None:
    """Adds folders to those that an index is brought up to date with; one inside another is not named."""
    known = index.facts.get("roots", [])
    every = dict.fromkeys([*known, *(os.path.abspath(r) for r in roots)])
    kept = [r for r in every if not any(r != other and within(r, other) for other in every)]
    if kept != known:
        index.set_facts(roots=kept)


def unremember(index: Index, paths: Sequence[str]) -> int:
    """Takes the folders at and below some paths out of those; returns how many."""
    known = index.facts.get("roots", [])
    kept = [r for r in known if not any(within(r, os.path.abspath(p)) for p in paths)]
    if kept != known:
        index.set_facts(roots=kept)
    return len(known) - len(kept)


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _more_time(index: Index, timeout_s: float) -> set[str]:
    """Files that took too long under a lower time limit than this: they are tried again."""
    before = index.facts.get("time_limit", math.inf)
    if timeout_s != before:
        index.set_facts(time_limit=timeout_s)
    return {f.id for f in index.list_files() if f.reason == "timeout"} if timeout_s > before else set()


def _bookkeep(index: Index, changes: Changes, report: Report) -> None:
    """Moved and touched files keep their vectors; gone ones go."""
    rows = {f.id: f for f in index.list_files()}
    renewed = []
    for old, found in [*changes.moved, *changes.touched]:
        row = rows[old.id]
        renewed.append(replace(row, path=found.path, size=found.size, mtime_ns=found.mtime_ns))
    index.put(renewed, [])
    index.remove(k.id for k in changes.gone)
    report.moved, report.forgotten = report.moved + len(changes.moved), report.forgotten + len(changes.gone)
    report.unchanged += changes.same + len(changes.touched)
    kept = {k.id for k in changes.gone}
    # files that failed before and did not change fail again: they are named in every report
    fresh = {found.path for found, _ in changes.new}
    report.skipped += [
        (f.path, f.reason) for f in rows.values() if f.reason and f.id not in kept and f.path not in fresh
    ]


def _add(
    index: Index,
    model: Retriever,
    changes: Changes,
    segments: Segments,
    timeout_s: float,
    workers: int,
    report: Report,
    progress: Callable[[int, int, Report], None],
    begun: Callable[[str], None],
) -> None:
    by_path = {Path(found.path): (found, mark) for found, mark in changes.new}
    how = segments.sampling(model.sampling)
    read = partial(stream_frames, sampling=how, timeout_s=timeout_s, transform=model.preprocess.pixels)
    store = FrameStore(index) if index.facts.get("frames") else None
    files: list[File] = []
    rows: list[dict[str, Any]] = []
    total = len(by_path)
    for done, (path, video) in enumerate(stream_many(by_path, read, min(workers, total), timeout_s), 1):
        found, mark = by_path[path]
        begun(found.path)
        row = File(file_id(found, mark), found.path, found.size, found.mtime_ns, mark)
        try:
            made = _encode(model, segments, video, store is not None, report)
        except DecodeError as e:
            files.append(replace(row, reason=e.reason))
            report.skipped.append((found.path, e.reason))
        else:
            stream, vectors = made
            info = stream.info
            width, height = info.shown
            files.append(replace(row, duration_s=info.duration_s, width=width, height=height))
            rows += [{"id": f"{row.id}/{n}", "file": row.id, **fields} for n, fields in enumerate(vectors)]
            report.indexed, report.video_s = report.indexed + 1, report.video_s + info.duration_s
            report.vectors += len(vectors)
            report.warnings += [(found.path, w) for w in stream.warnings]
        if len(files) >= STORE_EVERY or done == total:
            started = time.perf_counter()
            if store is not None:
                store.put(rows)
            index.put(files, rows)
            if done % TIDY_EVERY == 0:
                index.tidy()
            report.seconds["store"] += time.perf_counter() - started
            files, rows = [], []
        progress(done, total, report)


def _encode(
    model: Retriever, segments: Segments, video: Stream | DecodeError, keep_frames: bool, report: Report
) -> tuple[Stream, list[dict[str, Any]]]:
    """The vectors of a video, with the time spent. Raises DecodeError."""
    if isinstance(video, DecodeError):
        raise video
    started = time.perf_counter()
    vectors = vectors_of(model, segments, video, keep_frames)
    report.seconds["encode"] += time.perf_counter() - started - video.waited_s
    report.seconds["decode"] += video.decode_s
    return video, vectors
