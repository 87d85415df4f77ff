"""Where training goes on from: an adapter of the same method with its head, or a released checkpoint of it."""

from __future__ import annotations

from pathlib import Path

from clipreel.adapter import fill, read_config, read_tensors, trained
from clipreel.errors import ClipreelError
from clipreel.head_files import CONFIG, read_head
from clipreel.heads import Head
from clipreel.official.clip_vip import clip_vip_start
from clipreel.retriever import Retriever
from clipreel.sites import Tuner
from clipreel.tuners.clip_vip import ClipVip


def start_from(tuner: Tuner, base: Retriever, method: str, source: str, head: Head | None = None) -> None:
    """Fill a new tuner on `base`, and a new head, with what was trained before, every tensor accounted for.

    `source` is the folder of an adapter, or for CLIP-ViP the file of a released checkpoint, whose frame positions are
    resampled; a head goes on from the one in that folder, where there is one. Raises ClipreelError for another method,
    head or base, and for tensors that do not fit.
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
        if head is not None and (path / CONFIG).is_file():
            own, _ = read_head(path)
            if (own.name, own.options) != (head.name, head.options):
                raise ClipreelError(f"start: {source} holds a {own.name} {own.options}, not {head.name} {head.options}")
            fill(head, trained(own), source)
    elif isinstance(tuner, ClipVip):
        fill(tuner, clip_vip_start(path, tuner, base.clip.config), source)
    else:
        raise ClipreelError(f"start: {source} is no folder of an adapter, and {method} has no released checkpoints")


def origin(base: str, data: str, start: str | None) -> dict[str, str]:
    """What an adapter says that it comes from: its base, its data, and before them the data of what it started from.

    What an owner stated of the base goes on. What was stated of the data goes on where they stay the same, and where
    it forbids; leave to use the former data says nothing about the new ones.
    """
    found = {"base": base, "data": data}
    if start is None:
        return found
    path = Path(start)
    if not path.is_dir():  # a released checkpoint
        return {**found, "data": f"{path.name}, {data}"}
    before = read_config(path).licence
    names = [d.strip() for d in before.get("data", "unknown").split(",")]
    found["data"] = ", ".join(dict.fromkeys([*names, data]))
    goes_on = found["data"] == ", ".join(names) or before.get("data_commercial") == "no"
    stated = [w for w in ("base", "data") if w == "base" or goes_on]
    return found | {k: v for k, v in before.items() if k.partition("_")[0] in stated and "_" in k}


def before_that(start: str) -> str:
    """What a stamp says of where training went on from: an adapter by its tensors, with the names of its data, or the
    file of a released checkpoint."""
    path = Path(start)
    if not path.is_dir():
        return path.name
    found = read_config(path)
    data = [Path(d.strip()).name for d in found.licence.get("data", "unknown").split(",")]
    return f"{found.method} {found.tensors[:12]} ({', '.join(data)})"
