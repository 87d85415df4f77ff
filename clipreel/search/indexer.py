"""Brings an index up to date with a folder: walk, decode, encode, store, and say what was left out and why.

Decoding runs in threads ahead of the encoder; the four stages are timed apart. Whatever was stored before an
interruption stays, and the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clipreel.errors import ClipreelError
from clipreel.search.ann import refresh
from clipreel.search.index import LEVELS, File, Index, text_of
from clipreel.search.library import Changes, Found, compare, walk
from clipreel.search.rerank import FrameStore
from clipreel.video.decode import DecodeError, Frames, read_frames, read_many
from clipreel.video.shots import Segments

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

STORE_EVERY = 32  # files a write: small writes cost more than they protect
TIDY_EVERY = 1024
MOST_FRAMES = 64


@dataclass
class Report:
    """What a run did. `skipped` are (path, reason); seconds per stage are sums over threads."""

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
    roots: list[str],
    *,
    timeout_s: float = 120.0,
    workers: int = 2,
    progress: Callable[[int, int, Report], None] = lambda done, total, report: None,
) -> Report:
    """Make the index equal to what lies below the folders. Raises ClipreelError when a folder is not there."""
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
        index.sweep()
        for root in roots:
            unreadable: list[tuple[str, str]] = []
            changes = compare(list(walk(root, unreadable)), index.known(root), unreadable)
            report.skipped += unreadable
            _bookkeep(index, changes, report)
            _encode(index, model, changes, segments, timeout_s, workers, report, progress)
        index.tidy()
        if index.facts.get("frames"):
            FrameStore(index).sweep()
        refresh(index, model)
    return report


def _bookkeep(index: Index, changes: Changes, report: Report) -> None:
    """Moved and touched files keep their vectors; gone ones go."""
    rows = {f.id: f for f in index.list_files()}
    renewed = []
    for old, found in [*changes.moved, *changes.touched]:
        row = rows[old.id]
        renewed.append(File(**{**vars(row), "path": found.path, "size": found.size, "mtime_ns": found.mtime_ns}))
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


def _encode(
    index: Index,
    model: Retriever,
    changes: Changes,
    segments: Segments,
    timeout_s: float,
    workers: int,
    report: Report,
    progress: Callable[[int, int, Report], None],
) -> None:
    sampling = segments.sampling(model.sampling)
    by_path = {Path(found.path): (found, mark) for found, mark in changes.new}

    def read(path: Path) -> Frames:
        started = time.thread_time()
        try:
            return read_frames(path, sampling, timeout_s=timeout_s, transform=model.preprocess.pixels)
        finally:
            report.seconds["decode"] += time.thread_time() - started

    store = FrameStore(index) if index.facts.get("frames") else None
    files: list[File] = []
    rows: list[dict[str, Any]] = []
    total = len(by_path)
    for done, (path, frames) in enumerate(read_many(by_path, read, workers, ahead=2 * workers), 1):
        found, mark = by_path[path]
        row = File(file_id(found, mark), found.path, found.size, found.mtime_ns, mark)
        if isinstance(frames, DecodeError):
            files.append(File(**{**vars(row), "reason": frames.reason}))
            report.skipped.append((found.path, frames.reason))
        else:
            info = frames.info
            row = File(**{**vars(row), "duration_s": info.duration_s, "width": info.width, "height": info.height})
            started = time.perf_counter()
            made = list(vectors_of(model, segments, frames, store is not None))
            report.seconds["encode"] += time.perf_counter() - started
            rows += [{"id": f"{row.id}/{n}", "file": row.id, **fields} for n, fields in enumerate(made)]
            files.append(row)
            report.indexed, report.video_s = report.indexed + 1, report.video_s + info.duration_s
            report.vectors += len(made)
            report.warnings += [(found.path, w) for w in frames.warnings]
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


def vectors_of(
    model: Retriever, segments: Segments, frames: Frames, keep_frames: bool = False
) -> Iterator[dict[str, Any]]:
    """One vector of the whole video (from evenly spread frames) and one of each segment; and what they are made of."""

    def raw(indices: list[int]) -> torch.Tensor:
        return model.encode_frames(model.preprocess.normalise(frames.pixels[indices])[None], normalize=False)[0]

    parts = [(0.0, frames.info.duration_s, list(range(len(frames.pixels)))), *segments.cut(frames)]
    wanted = [[inside[i] for i in spread(len(inside), model.sampling.frames)] for _, _, inside in parts]
    if model.pools_frames:  # overlapping segments share frames: each is encoded once
        used = sorted({i for inside in wanted for i in inside})
        place = {i: n for n, i in enumerate(used)}
        z = torch.cat([raw(p) for p in chunks(used)])
        stacks = [z[[place[i] for i in inside]] for inside in wanted]
    else:
        stacks = [raw(p) for p in wanted]
    for n, ((start_s, end_s, _), stack) in enumerate(zip(parts, stacks, strict=True)):
        level, vector = LEVELS.index("segment" if n else "video"), model.pool(stack[None])[0].cpu().numpy()
        row = {"level": level, "start_s": start_s, "end_s": end_s, "vector": vector}
        yield {**row, "frames": stack.half().cpu().numpy()} if keep_frames else row


def chunks(items: list[int]) -> list[list[int]]:
    """Pieces that one forward pass takes."""
    return [items[i : i + MOST_FRAMES] for i in range(0, len(items), MOST_FRAMES)]


def spread(n: int, frames: int) -> list[int]:
    """`frames` indices evenly over n, or all of them."""
    return list(range(n)) if n <= frames else [(2 * i + 1) * n // (2 * frames) for i in range(frames)]
