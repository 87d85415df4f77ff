"""What the index holds, as the API shows it: read once for each state of the index, not once for each request.

Files are known by their id only. Before one is opened it is compared with what was indexed, so that another file under
the same name is never served.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from datetime import datetime, timezone
from stat import S_ISREG
from typing import Any

from clipreel.search.catalog import label
from clipreel.search.index import File, Index, text_of
from clipreel.search.tags import TABLE, read_tags
from clipreel.server.errors import ApiError
from clipreel.video.content import content_hash
from clipreel.video.packets import WHAT_TO_DO

FRESH_S = 1.0  # how long an answer about the version of the index holds
STAMPS = 50_000  # files of which it is remembered that they are what was indexed
Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """The index at one version. `folders` and `tags` are labels with their number of videos."""

    version: tuple[int, ...]
    facts: dict[str, Any]
    files: dict[str, File]
    ids: dict[str, str]
    labels: dict[str, str]
    tags_of: dict[str, list[str]]
    folders: list[tuple[str, int]]
    tags: list[tuple[str, int]]
    skipped: list[File]
    vectors: int
    duration_s: float
    members: dict[str, list[str]]

    def in_folder(self, folder: str | None) -> list[str]:
        """Ids of the videos with this label, or below it; of all without one."""
        if folder is None:
            return self.members[""]
        below = [m for name, m in self.members.items() if name and f"{name}/".startswith(f"{folder}/")]
        return below[0] if len(below) == 1 else [i for m in below for i in m]


class Archive:
    """An index and the files that it names."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._lock = threading.Lock()
        self._looked = self._written = 0.0
        self._stamps: OrderedDict[str, Stamp] = OrderedDict()
        self._snapshot = self._read(index.version(), index)

    def now(self) -> Snapshot:
        """The index as it is; another process may have written. Call in a thread: it reads the disk."""
        overdue = self._looked <= self._written
        if (overdue or time.monotonic() - self._looked > FRESH_S) and self._lock.acquire(blocking=overdue):
            try:
                began = time.monotonic()
                version = self.index.version()
                if version != self._snapshot.version:
                    self._snapshot = self._read(version, self.index)
                self._looked = began
            finally:
                self._lock.release()
        return self._snapshot

    def written(self) -> None:
        """The index was written to, or another took its place: what was read before no longer holds, however new."""
        self._written = time.monotonic()

    @property
    def last(self) -> Snapshot:
        """The index as it was when it was last looked at, at once."""
        return self._snapshot

    def _read(self, version: tuple[int, ...], index: Index) -> Snapshot:
        every = index.list_files()
        roots = index.facts.get("roots", [])
        files = {f.id: f for f in sorted((f for f in every if not f.reason), key=lambda f: f.path)}
        labels = {i: label(f.path, roots) for i, f in files.items()}
        members: dict[str, list[str]] = {"": list(files)}
        for i, name in labels.items():
            members.setdefault(name, []).append(i)
        ids = {f.path: i for i, f in files.items()}
        tags_of: dict[str, list[str]] = {}
        if TABLE in index._names():
            for tag in read_tags(index):
                found = tags_of.setdefault(ids.get(tag.path, ""), [])
                if tag.tag not in found:
                    found.append(tag.tag)
            tags_of.pop("", None)
        return Snapshot(
            version=version,
            facts=dict(index.facts),
            files=files,
            ids=ids,
            labels=labels,
            tags_of=tags_of,
            folders=sorted(Counter(labels.values()).items()),
            tags=Counter(t for ts in tags_of.values() for t in ts).most_common(),
            skipped=sorted((f for f in every if f.reason), key=lambda f: f.path),  # so that pages do not overlap
            vectors=index.vectors.count_rows(),
            duration_s=sum(f.duration_s for f in files.values()),
            members=members,
        )

    def file(self, id: str) -> File:
        """The row of a video. Raises ApiError 404."""
        found = self._snapshot.files.get(id) or self.now().files.get(id)
        if found is None:
            raise ApiError(404, "no-such-video", f"no video has the id {id[:40]!r}; search again, the index changed")
        return found

    def open(self, file: File) -> int:
        """A descriptor of the file that was indexed. Raises ApiError 404 where it is gone, 409 where it is another."""
        name = text_of(os.path.basename(file.path))
        try:
            fd = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as e:
            message = f"{name} is gone since it was indexed ({e.strerror}); mount its disk, or index again"
            raise ApiError(404, "missing", message, state="missing") from e
        try:
            self._check(file, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check(self, file: File, fd: int) -> None:
        stat = os.fstat(fd)
        stamp = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if self._stamps.get(file.id) == stamp:
            return
        same = S_ISREG(stat.st_mode) and stat.st_size == file.size
        try:
            # size and time can be made equal, the content not; a stamp cannot be forged without the rights of this user
            same = same and content_hash(f"/dev/fd/{fd}" if os.path.isdir("/dev/fd") else file.path) == file.hash
        except OSError:
            same = False
        if not same:
            name = text_of(os.path.basename(file.path))
            message = f"{name} is not the file that was indexed; index again (the page can, and clipreel index)"
            raise ApiError(409, "changed", message, state="changed")
        self._stamps[file.id] = stamp
        while len(self._stamps) > STAMPS:
            self._stamps.popitem(last=False)

    def state(self, file: File) -> str:
        """present, missing or changed."""
        try:
            os.close(self.open(file))
        except ApiError as e:
            return str(e.facts["state"])
        return "present"


def date_of(file: File) -> str:
    """When the file was last written, as an ISO time."""
    try:
        return datetime.fromtimestamp(file.mtime_ns / 1e9, timezone.utc).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):
        return ""


def next_step(reason: str) -> str:
    """What the user can do about a skipped file."""
    return WHAT_TO_DO.get(reason.split(" ")[0], "try to play it")
