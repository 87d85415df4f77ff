"""Which content a file has, in milliseconds however long it is."""

from __future__ import annotations

import hashlib
import os

PIECE = 1 << 20


def content_hash(path: str) -> str:
    """Identity of a file's content: its size and its first, middle and last MiB (an archive may hold terabytes)."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        digest.update(str(size).encode())
        for start in sorted({0, max(0, size // 2 - PIECE // 2), max(0, size - PIECE)}):
            f.seek(start)
            digest.update(f.read(PIECE))
    return digest.hexdigest()
