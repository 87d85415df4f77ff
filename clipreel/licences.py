"""What an adapter comes from, and whether that may be used commercially: its base, the data that it was tuned on.

A table of what the owners of bases and data sets say, and what users state of their own. What nobody stated is not
allowed under --commercial. This is a reminder with reasons, not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clipreel.adapter import read_config, write_config
from clipreel.errors import ClipreelError

# pattern of a name -> what its owner says, and whether that allows commercial use (None: not said for all of it)
BASES: tuple[tuple[str, str, bool | None], ...] = (
    (r"shapes-tiny|shapes-alpro", "Apache-2.0, part of clipreel", True),
    (r"openai/clip-.*", "MIT", True),
    (r"laion/.*", "MIT", True),
)
DATA: tuple[tuple[str, str, bool | None], ...] = (
    (r"shapes", "Apache-2.0, part of clipreel", True),
    (r"msr-?vtt.*", "for research; its films belong to their owners", False),
    (r"msvd.*", "for research; its films belong to their owners", False),
    (r"lsmdc.*", "an agreement for research", False),
    (r"webvid.*", "withdrawn; it was for research", False),
    (r"didemo.*", "annotations BSD-2; its films have the licences of their owners", None),
    (r"activitynet.*", "annotations MIT; its films belong to their owners", None),
    (r"vatex.*", "annotations CC-BY-4.0; its films belong to their owners", None),
)


@dataclass(frozen=True)
class Link:
    """One thing that an adapter comes from: `what` it is (base, data), its name, its licence, and whether that allows
    commercial use (None: nobody said)."""

    what: str
    name: str
    licence: str
    commercial: bool | None

    def __str__(self) -> str:
        allows = {True: "allows commercial use", False: "no commercial use", None: "commercial use not stated"}
        return f"{self.what} {self.name}: {self.licence} ({allows[self.commercial]})"


def link(what: str, name: str, stated: Mapping[str, str]) -> Link:
    """What is known of a base or a data set; what a user stated of it goes before the table."""
    if f"{what}_licence" in stated:
        return Link(what, name, stated[f"{what}_licence"], stated.get(f"{what}_commercial") == "yes")
    for pattern, licence, commercial in BASES if what == "base" else DATA:
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return Link(what, name, licence, commercial)
    return Link(what, name, "unknown", None)


def lineage(adapter: str | Path) -> list[Link]:
    """What the adapter in a folder comes from; each data set by itself."""
    config = read_config(adapter)
    data = [d.strip() for d in config.licence.get("data", "unknown").split(",")]
    base = config.licence.get("base", config.base_name)
    return [link("base", base, config.licence), *(link("data", d, config.licence) for d in data)]


def state(adapter: str | Path, what: str, licence: str, commercial: bool) -> None:
    """Write into an adapter what its owner knows of its base or its data. Raises ClipreelError for another word."""
    if what not in ("base", "data"):
        raise ClipreelError(f"{what!r} is nothing that an adapter comes from; say base or data")
    config = read_config(adapter)
    stated = {f"{what}_licence": licence, f"{what}_commercial": "yes" if commercial else "no"}
    write_config(Path(adapter), replace(config, licence={**config.licence, **stated}))


def require_commercial(base: str, adapter: str | Path | None) -> None:
    """Raises ClipreelError that names the first link which does not allow commercial use."""
    links = [link("base", base, {})] if adapter is None else lineage(adapter)
    bad = next((x for x in links if not x.commercial), None)
    if bad is None:
        return
    if bad.commercial is None and adapter is not None:
        step = f"if you know that it does: clipreel adapters licence {adapter} {bad.what} TEXT --allows"
    elif adapter is not None:
        step = "take another adapter, or leave --commercial out"
    else:
        step = "take another base, or leave --commercial out"
    raise ClipreelError(f"--commercial: {bad}; {step}")
