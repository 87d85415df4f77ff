"""One module per kind of parity fixture, each with `check(path)`, which asserts that our numbers are the official ones.

The kind of a file is the name of the folder it lies in.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

KINDS = (
    *("alpro", "clip", "clip4clip", "clip_vip", "metrics", "mv_adapter", "petl", "preprocess", "tokenizer", "vop"),
    "xpool",
)


def checker(kind: str) -> Callable[[Path], None]:
    """The check of a kind; an unknown kind fails instead of being skipped."""
    if kind not in KINDS:
        raise AssertionError(f"no check for parity fixtures of the kind {kind!r}; built kinds: {', '.join(KINDS)}")
    return importlib.import_module(f"tests.parity.kinds.{kind}").check
