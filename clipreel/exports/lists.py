"""Hits as text: CSV and JSON for tables and programs, EDL (CMX 3600) and FCPXML for editing programs.

An EDL names its sources and counts frames at one rate; FCPXML links the files, each with its own rate, and
keeps fractions of seconds exact.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from clipreel.errors import ClipreelError

VERSION = 1
FORMATS = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "edl": "text/plain; charset=utf-8",
    "fcpxml": "application/xml",
}
MOST_EVENTS = 999  # of an EDL, whose events have three digits
FILM = (Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001))


@dataclass(frozen=True)
class Place:
    """A moment of a video (seconds from its first frame). `source` is a path or, for others, a name."""

    source: str
    start_s: float
    end_s: float
    duration_s: float
    rate: float = 25.0
    width: int = 0
    height: int = 0
    score: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < self.end_s:
            times = f"from {self.start_s:g} s to {self.end_s:g} s"
            raise ClipreelError(f"{self.source}: {times} is no moment; the end must lie behind the start")

    @property
    def name(self) -> str:
        return self.source.replace("\\", "/").rsplit("/", 1)[-1]


def listed(format: str, places: Sequence[Place], title: str = "clipreel") -> str:
    """The text of a file in csv, json, edl or fcpxml. Raises ClipreelError for another format or no places."""
    makers: dict[str, Callable[[Sequence[Place], str], str]] = {
        "csv": as_csv,
        "json": as_json,
        "edl": as_edl,
        "fcpxml": as_fcpxml,
    }
    if format not in makers:
        raise ClipreelError(f"{format!r} is no format of a list; allowed are {', '.join(makers)}")
    if not places:
        raise ClipreelError("nothing to export; give at least one hit")
    return MAKERS[format](places, title)


def as_csv(places: Sequence[Place], _: str = "") -> str:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\r\n")
    rows.writerow(("name", "source", "start_s", "end_s", "duration_s", "score"))
    for p in places:
        score = "" if p.score is None else f"{p.score:.6f}"
        text = (harmless(p.name), harmless(p.source))
        rows.writerow((*text, f"{p.start_s:.3f}", f"{p.end_s:.3f}", f"{p.duration_s:.3f}", score))
    return out.getvalue()


def harmless(cell: str) -> str:
    """Spreadsheets run cells that begin like a formula, and a file may have any name."""
    return f"'{cell}" if cell[:1] in "=+-@\t\r" else cell


def as_json(places: Sequence[Place], _: str = "") -> str:
    rows = [
        {
            "name": p.name,
            "source": p.source,
            "start_s": p.start_s,
            "end_s": p.end_s,
            "duration_s": p.duration_s,
            "score": p.score,
        }
        for p in places
    ]
    return json.dumps({"version": VERSION, "hits": rows}, indent=1, ensure_ascii=False) + "\n"


def as_edl(places: Sequence[Place], title: str) -> str:
    """Cuts one after the other; all time codes count frames of the rate that most sources have, without drops.

    Remarks say that rate, and where a source has another one: an EDL has no place for two.
    """
    if len(places) > MOST_EVENTS:
        raise ClipreelError(f"{len(places)} hits: an EDL has at most {MOST_EVENTS} events; export fewer, or FCPXML")
    rate = usual_rate(places)
    counted = f"TIME CODES COUNT {a_second(rate)}"
    lines = [f"TITLE: {one_line(title)}", "FCM: NON-DROP FRAME", ""]
    at = 0
    for n, p in enumerate(places, 1):
        first, last = frames(p.start_s, rate), frames(p.end_s, rate)
        last = max(last, first + 1)
        times = [timecode(f, rate) for f in (first, last, at, at + last - first)]
        lines += [f"{n:03d}  AX       V     C        {' '.join(times)}", f"* FROM CLIP NAME: {one_line(p.name)}"]
        if (own := known_rate(p.rate)) != rate:
            lines.append(f"* NOTE: THIS SOURCE HAS {a_second(own)}, {counted}")
        elif n == 1:  # remarks belong to events: some readers take none before the first
            lines.append(f"* {counted}")
        lines.append("")
        at += last - first
    return "\r\n".join(lines)


def as_fcpxml(places: Sequence[Place], title: str) -> str:
    """Cuts one after the other at the rate that most sources have; each source has its own rate and size."""
    rate = usual_rate(places)
    root = ElementTree.Element("fcpxml", version="1.9")
    resources = ElementTree.SubElement(root, "resources")
    add_format(resources, "r0", next(p for p in places if known_rate(p.rate) == rate))
    assets: dict[str, str] = {}
    for p in places:
        if p.source not in assets:
            n = 2 * len(assets) + 1
            assets[p.source] = f"r{n + 1}"
            add_asset(resources, assets[p.source], f"r{n}", p)
    event = ElementTree.SubElement(ElementTree.SubElement(root, "library"), "event", name=clean(title))
    project = ElementTree.SubElement(event, "project", name=clean(title))
    sequence = ElementTree.SubElement(project, "sequence", format="r0", tcStart="0s", tcFormat="NDF")
    spine = ElementTree.SubElement(sequence, "spine")
    at = 0
    for p in places:
        own = known_rate(p.rate)
        start = frames(p.start_s, own) / own  # a frame of the source, the others of the sequence
        length = max(1, int((frames(p.end_s, own) / own - start) * rate))  # whole ones: none lies behind the end
        times = {"offset": seconds(at / rate), "start": seconds(start), "duration": seconds(length / rate)}
        ElementTree.SubElement(spine, "asset-clip", {"ref": assets[p.source], "name": clean(p.name), **times})
        at += length
    sequence.set("duration", seconds(at / rate))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n{text}\n'


def add_format(resources: ElementTree.Element, id: str, place: Place) -> None:
    """The rate and, where it is known, the size of a source."""
    size = {"width": str(place.width), "height": str(place.height)} if place.width and place.height else {}
    frame = seconds(1 / known_rate(place.rate))
    ElementTree.SubElement(resources, "format", {"id": id, "frameDuration": frame, **size})


def add_asset(resources: ElementTree.Element, id: str, format: str, place: Place) -> None:
    """A source, with a format of its own."""
    add_format(resources, format, place)
    rate = known_rate(place.rate)
    whole = seconds(max(1, frames(place.duration_s, rate)) / rate)
    about = {"name": clean(place.name), "start": "0s", "duration": whole, "hasVideo": "1", "format": format}
    asset = ElementTree.SubElement(resources, "asset", {"id": id, **about})
    source = Path(place.source).as_uri() if Path(place.source).is_absolute() else clean(place.source)
    ElementTree.SubElement(asset, "media-rep", kind="original-media", src=source)


MAKERS: dict[str, Callable[[Sequence[Place], str], str]] = {
    "csv": as_csv,
    "json": as_json,
    "edl": as_edl,
    "fcpxml": as_fcpxml,
}

# ------------------------------------------------------------------ times


def usual_rate(places: Sequence[Place]) -> Fraction:
    """The rate that most of the sources have, as editing programs know it."""
    return Counter(known_rate(p.rate) for p in places).most_common(1)[0][0]


def known_rate(rate: float) -> Fraction:
    """23.976 is 24000/1001; others are whole numbers of frames a second; 25 where the file does not say."""
    if not math.isfinite(rate) or not 1 <= rate <= 240:
        return Fraction(25)
    near = min(FILM, key=lambda f: abs(float(f) - rate))
    whole = Fraction(max(1, round(rate)))
    return near if abs(float(near) - rate) < abs(float(whole) - rate) else whole


def frames(at_s: float, rate: Fraction) -> int:
    return round(at_s * float(rate))


def timecode(frame: int, rate: Fraction) -> str:
    """Hours, minutes, seconds and frames, counted without drops."""
    nominal = round(rate)
    whole, frame = divmod(frame, nominal)
    return f"{whole // 3600 % 24:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}:{frame:02d}"


def seconds(time: Fraction) -> str:
    """A time as FCPXML writes it: a fraction of seconds."""
    return f"{time.numerator}/{time.denominator}s" if time.denominator > 1 else f"{time.numerator}s"


def a_second(rate: Fraction) -> str:
    return f"{float(rate):.5g} FRAMES A SECOND"


def one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def clean(text: str) -> str:
    """Without what XML cannot say."""
    return one_line(text.encode("utf-8", "replace").decode())
