"""Heads, from frame vectors to one video vector or to a score with a text; one file each.

`build_head("x_pool", clip)` makes one for a CLIP; `HEADS` lists them all.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.heads.base import Head, MeanHead, PoolingHead, mean_pool, unit
from clipreel.heads.by_text import SoftFrames, TopFrames
from clipreel.heads.seq_lstm import SeqLstm
from clipreel.heads.seq_transf import SeqTransf
from clipreel.heads.tight_transf import TightTransf
from clipreel.heads.x_pool import XPool

__all__ = ["HEADS", "Head", "PoolingHead", "build_head", "head_of", "mean_pool", "unit"]

HEADS: Mapping[str, type[Head]] = {
    h.name: h for h in (MeanHead, SeqLstm, SeqTransf, TightTransf, XPool, TopFrames, SoftFrames)
}


def head_of(name: str, width: int, options: Mapping[str, Any] | None = None) -> Head:
    """A new head for vectors of this width; ClipreelError for a name or an option that there is not."""
    if name not in HEADS:
        near = get_close_matches(name, HEADS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ClipreelError(f"there is no head {name!r}{hint} Heads: {', '.join(HEADS)}")
    rules = inspect.signature(HEADS[name]).parameters
    known = {n: p.default for n, p in rules.items() if n != "width"}
    for key in options or {}:
        if key not in known:
            raise ClipreelError(f"the head {name} has no option {key!r} Options: {', '.join(known) or 'none'}")
    head = HEADS[name](width, **(options or {}))
    head.options = {**known, **(options or {})}
    return head


def build_head(name: str, clip: Clip, options: Mapping[str, Any] | None = None) -> Head:
    """A new head on a CLIP, begun from its text tower where the head has blocks of that shape."""
    head = head_of(name, clip.config.embed, options)
    head.start(clip.text.blocks, clip.text.pos.detach())
    return head
