"""One server writes an index; a second one on the same index only reads."""

from __future__ import annotations

import os
from typing import IO

from clipreel.search.index import Index

HELD: dict[tuple[int, int], IO[str]] = {}  # locks by their file; they live as long as the process


def claimed(index: Index) -> str:
    """Empty where this process is now the server of the index, else why it only reads."""
    if not index.local:
        return ""
    import fcntl

    try:
        fd = os.open(os.path.join(index.place, "server.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        return f"the folder of the index cannot be written ({e.strerror}), so this server only reads"
    lock = os.fdopen(fd, "r+")
    stat = os.fstat(fd)
    if (stat.st_dev, stat.st_ino) in HELD:
        lock.close()
        return ""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        other = lock.read().strip() or "unknown"
        lock.close()
        return f"another server ({other}) serves this index, so this one only reads; start index jobs there"
    lock.truncate(0)
    lock.write(f"pid {os.getpid()}")
    lock.flush()
    HELD[stat.st_dev, stat.st_ino] = lock
    return ""
