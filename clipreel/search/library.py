"""Walks folders of videos and says what changed: by size and time first, by content only where those moved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from clipreel.video.content import content_hash
from clipreel.video.quarantine import NAME, read_quarantine

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "avi", "flv", "gif", "h264", "h265", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"),
        *("mts", "mxf", "ogv", "ts", "vob", "webm", "wmv"),
    )
)


@dataclass(frozen=True)
class Found:
    """A file on disk; `path` may hold undecodable bytes as surrogates."""

    path: str
    size: int
    mtime_ns: int


def walk(root: str | Path, unreadable: list[tuple[str, str]]) -> Iterator[Found]:
    """Video files below a folder (or the file itself), sorted, hidden ones left out, links to folders not followed.

    Folders and files that cannot be looked at, and those that a quarantine list names (in the folder above, the folder
    or one below it), are added to `unreadable` with the reason.
    """
    root = os.fspath(root)
    bad = read_quarantine(os.path.dirname(os.path.abspath(root)))
    if os.path.isfile(root):
        yield from _found(root, unreadable)
        return

    def failed(e: OSError) -> None:
        unreadable.append((os.fsdecode(e.filename or root), f"no-access ({e.strerror})"))

    for folder, folders, files in os.walk(root, onerror=failed):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        bad |= read_quarantine(folder) if NAME in files else {}
        for name in sorted(files):
            path = os.path.abspath(os.path.join(folder, name))
            if path in bad:
                unreadable.append((path, f"quarantined ({bad[path]})"))
            elif not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield from _found(os.path.join(folder, name), unreadable)


def _found(path: str, unreadable: list[tuple[str, str]]) -> Iterator[Found]:
    try:
        stat = os.stat(path)
    except OSError as e:
        unreadable.append((path, f"missing ({e.strerror})"))
        return
    if not S_ISREG(stat.st_mode):  # a pipe would be read without end
        unreadable.append((path, "not-video (not a regular file)"))
        return
    yield Found(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Known:
    """What the index remembers of a file."""

    id: str
    path: str
    size: int
    mtime_ns: int
    hash: str


@dataclass
class Changes:
    """What to do: encode `new`, write `moved` (old id, new place) and `touched`, take `gone` out of the index."""

    new: list[tuple[Found, str]]
    moved: list[tuple[Known, Found]]
    touched: list[tuple[Known, Found]]
    gone: list[Known]
    same: int


def compare(found: Iterable[Found], known: Iterable[Known], unreadable: list[tuple[str, str]]) -> Changes:
    """Files on disk against the index. `known` holds only entries below the folder that was walked."""
    by_path = {k.path: k for k in known}
    fresh: list[tuple[Found, str]] = []
    touched: list[tuple[Known, Found]] = []
    same = 0
    for f in found:
        old = by_path.pop(f.path, None)
        if old is not None and (old.size, old.mtime_ns) == (f.size, f.mtime_ns):
            same += 1
            continue
        try:
            mark = content_hash(f.path)
        except OSError as e:
            unreadable.append((f.path, f"no-access ({e.strerror})"))
            if old is not None:  # it may be readable again tomorrow: not forgotten
                same += 1
            continue
        if old is not None and old.hash == mark:
            touched.append((old, f))
            continue
        if old is not None:
            by_path[f.path] = old  # the content changed: the old entry goes
        fresh.append((f, mark))
    kept_away = {path for path, _ in unreadable}
    left = {k.hash: k for k in by_path.values() if not any(k.path.startswith(p) for p in kept_away)}
    gone = {k.id: k for k in left.values()}
    gone |= {k.id: k for k in by_path.values() if not any(k.path.startswith(p) for p in kept_away)}
    new, moved = [], []
    for f, mark in fresh:
        old = left.pop(mark, None)
        if old is not None and old.path != f.path:
            moved.append((old, f))
            gone.pop(old.id, None)
        else:
            new.append((f, mark))
    return Changes(new, moved, touched, list(gone.values()), same)
