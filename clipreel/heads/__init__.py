"""Heads, from frame vectors to one video vector or to a score with a text; one file each.

`build_head("x_pool", clip)` makes one for a CLIP; `HEADS` lists them all.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_type_hints

from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.heads.base import Head, MeanHead, PoolingHead, mean_pool, real_frames, unit
from clipreel.heads.by_text import SoftFrames, TopFrames
from clipreel.heads.seq_lstm import SeqLstm
from clipreel.heads.seq_transf import SeqTransf
from clipreel.heads.tight_transf import TightTransf
from clipreel.heads.x_pool import XPool
from clipreel.typed import read

__all__ = ["HEADS", "Head", "PoolingHead", "build_head", "head_of", "head_options", "mean_pool", "real_frames", "unit"]

HEADS: Mapping[str, type[Head]] = {
    h.name: h for h in (MeanHead, SeqLstm, SeqTransf, TightTransf, XPool, TopFrames, SoftFrames)
}
# as the papers write them
IN_PAPERS: Mapping[str, str] = {
    "meanP": "mean",
    "seqLSTM": "seq_lstm",
    "seqTransf": "seq_transf",
    "tightTransf": "tight_transf",
    "X-Pool": "x_pool",
}


def head_named(name: str) -> str:
    """Our name of a head, also for that of its paper; ClipreelError lists those there are."""
    found = IN_PAPERS.get(name, name)
    if found not in HEADS:
        near = get_close_matches(name, [*HEADS, *IN_PAPERS], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ClipreelError(f"there is no head {name!r}{hint} Heads: {', '.join(HEADS)}")
    return found


def head_options(name: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All options of a head, its defaults changed by `changes`; ClipreelError for one that it does not have, or that is
    of another type."""
    kind, found = HEADS[head_named(name)], dict(changes or {})
    known = {n: p.default for n, p in inspect.signature(kind).parameters.items() if n != "width"}
    hints = get_type_hints(kind.__init__)
    for key, value in found.items():
        if key not in known:
            raise ClipreelError(f"the head {name} has no option {key!r} Options: {', '.join(known) or 'none'}")
        found[key] = read(key, hints[key], value)
    share = found.get("dropout", 0.0)
    if not 0 <= share < 1:
        raise ClipreelError(f"dropout {share}: give 0 up to 1, without 1")
    return {**known, **found}


def head_of(name: str, width: int, options: Mapping[str, Any] | None = None) -> Head:
    """A new head for vectors of this width; ClipreelError for a name or an option that there is not."""
    stated = head_options(name, options)
    head = HEADS[head_named(name)](width, **stated)
    head.options = stated
    return head


def build_head(name: str, clip: Clip, options: Mapping[str, Any] | None = None) -> Head:
    """A new head on a CLIP, begun from its text tower where the head has blocks of that shape."""
    head = head_of(name, clip.config.embed, options)
    head.start(clip.text.blocks, clip.text.pos.detach())
    return head
