"""Where training goes on from: an adapter of the same method, or a released checkpoint of it."""

from __future__ import annotations

from pathlib import Path

from clipreel.adapter import fill, read_config, read_tensors
from clipreel.errors import ClipreelError
from clipreel.official.clip_vip import clip_vip_start
from clipreel.retriever import Retriever
from clipreel.sites import Tuner
from clipreel.tuners.clip_vip import ClipVip


def start_from(tuner: Tuner, base: Retriever, method: str, source: str) -> None:
    """Fill a new tuner on `base` with what was trained before, every tensor accounted for.

    `source` is the folder of an adapter, or for CLIP-ViP the file of a released checkpoint, whose frame positions are
    resampled. Raises ClipreelError for another method or base, and for tensors that do not fit.
    """
    path = Path(source)
    if path.is_dir():
        found = read_config(path)
        if (found.method, found.base) != (method, base.fingerprint):
            raise ClipreelError(
                f"start: {source} is an adapter of {found.method} on {found.base_name} ({found.base[:12]}), not of "
                f"{method} on {base.name} ({base.fingerprint[:12]})"
            )
        fill(tuner, read_tensors(path, found), source)
    elif isinstance(tuner, ClipVip):
        fill(tuner, clip_vip_start(path, tuner, base.clip.config), source)
    else:
        raise ClipreelError(f"start: {source} is no folder of an adapter, and {method} has no released checkpoints")
