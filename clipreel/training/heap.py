"""The heap of a training process on Linux: what a step frees is kept for the next one.

glibc gives large blocks back to the system as soon as they are free, and the system clears every page that it hands out
again. A step on the CPU frees and asks for the same gigabyte each time, which can cost a quarter of it.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # numbers of mallopt's parameters
NEVER = 2**31 - 1  # bytes of free memory at the end of the heap above which it would shrink


def keep_freed_memory() -> bool:
    """Whether that could be arranged: False where the C library is not glibc. The peak of memory stays as it is."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, NEVER))
