"""A folder of files that can be made again: bounded in size, the longest unused one goes first."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections import OrderedDict
from pathlib import Path

from clipreel.errors import ClipreelError
from clipreel.server.errors import ApiError

FULL = (errno.ENOSPC, errno.EDQUOT)


def key_of(*parts: object) -> str:
    """A file name for what was asked; parts never reach the file system themselves."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()


def disk_full(place: Path) -> ApiError:
    return ApiError(
        507, "disk-full", f"the disk of the cache at {place} is full; make room, or start with another --cache FOLDER"
    )


class Cache:
    """Files by key in a folder, at most `most` bytes together, with `free` bytes of the disk left to others."""

    def __init__(self, folder: Path, suffix: str, most: int, free: int = 0) -> None:
        self.folder, self.suffix, self.most, self.free = folder, suffix, most, free
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = sorted((entry.stat().st_mtime, entry) for entry in folder.iterdir())
        except OSError as e:
            raise ClipreelError(f"no cache can be made at {folder} ({e.strerror}); give another --cache") from e
        for _, entry in found:
            if entry.suffix == suffix:
                self._sizes[entry.stem] = entry.stat().st_size
            else:
                entry.unlink(missing_ok=True)  # what a server that died was making
        self._shrink()

    @property
    def size(self) -> int:
        return sum(self._sizes.values())

    def __len__(self) -> int:
        return len(self._sizes)

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{self.suffix}"

    def part(self, key: str) -> Path:
        """Where to make a file before `keep` puts it in its place."""
        return self.folder / f"{key}.part"

    def get(self, key: str) -> Path | None:
        """The file, which counts as used now; None where there is none."""
        with self._lock:
            if key not in self._sizes:
                return None
            path = self.path(key)
            try:
                os.utime(path)
            except OSError:  # somebody emptied the folder
                del self._sizes[key]
                return None
            self._sizes.move_to_end(key)
            return path

    def keep(self, key: str, made: Path) -> Path:
        """Take in a finished file; older ones go where it needs their room."""
        path = self.path(key)
        made.replace(path)
        with self._lock:
            self._sizes[key] = path.stat().st_size
            self._sizes.move_to_end(key)
            self._shrink(spare=key)
        return path

    def put(self, key: str, data: bytes) -> None:
        """Store bytes; a full disk only costs the caching."""
        part = self.folder / f"{key}.{threading.get_ident()}.part"
        try:
            part.write_bytes(data)
            self.keep(key, part)
        except OSError:
            part.unlink(missing_ok=True)

    def check_room(self, wanted: int = 0) -> None:
        """Raises ApiError 507 where the disk has not enough room, also after giving up what is cached."""
        while shutil.disk_usage(self.folder).free < self.free + wanted:
            with self._lock:
                if not self._sizes:
                    raise disk_full(self.folder)
                self._drop(next(iter(self._sizes)))

    def _shrink(self, spare: str = "") -> None:
        while sum(self._sizes.values()) > self.most:
            oldest = next((k for k in self._sizes if k != spare), None)
            if oldest is None:
                return
            self._drop(oldest)

    def _drop(self, key: str) -> None:
        del self._sizes[key]
        self.path(key).unlink(missing_ok=True)
