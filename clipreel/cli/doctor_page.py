"""The page of `clipreel doctor`: every kind of finding with film strips of what is wrong, in one file."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from clipreel.data.cache import amount
from clipreel.data.doctor import KINDS, Checkup, Costs, Finding
from clipreel.data.sets import Part
from clipreel.evaluation.gallery import FRAMES, Section, Shown, page, printable, small, strip
from clipreel.video.packets import DecodeError

MOST = 24  # findings of a kind that are shown; all are in doctor.json
NAMED = 200  # missing files that are named


def write_page(file: Path, title: str, parts: Mapping[str, Part], checkup: Checkup, forecast: str) -> None:
    """The whole page, beside which videos are linked."""
    kinds = {kind: [f for f in checkup.findings if f.kind == kind] for kind in KINDS}
    sections = [Section("Splits", "What is listed, and what of it is here.", splits(parts, checkup))]
    for kind, found in kinds.items():
        if found:
            most = NAMED if kind == "missing" else MOST
            more = "" if len(found) <= most else f" The first {most} are shown; doctor.json has all."
            drawn = names(found[:most]) if kind == "missing" else cards(found[:most], file.parent)
            sections.append(Section(f"{kind}: {len(found):,}", KINDS[kind] + more, drawn))
    if len(sections) == 1:
        sections.append(Section("Nothing is wrong", "Every file was decoded from beginning to end.", ""))
    file.write_text(page(title, forecast, sections), "utf-8")


def splits(parts: Mapping[str, Part], checkup: Checkup) -> str:
    cells = ("videos here", "listed", "missing", "quarantined", "captions")
    head = "".join(f"<th>{c}</th>" for c in cells)
    rows = ""
    for part in parts.values():
        here = checkup.present(part)
        counts = (here, part.listed, len(part.missing) + len(part.samples) - here, len(part.quarantined))
        texts = sum(len(s.captions) for s in part.samples)
        values = "".join(f"<td>{n:,}</td>" for n in (*counts, texts))
        rows += f"<tr><th>{html.escape(part.label)}</th>{values}</tr>"
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def names(found: Sequence[Finding]) -> str:
    """Of files of which there is nothing to see."""
    by_split: dict[str, list[str]] = {}
    for f in found:
        by_split.setdefault(f.says, []).append(printable(f.name))
    return "".join(small(f"{says}{': ' if says else ''}{', '.join(of)}") for says, of in by_split.items())


def cards(found: Sequence[Finding], base: Path) -> str:
    return f'<div class="cards">{"".join(card(f, base) for f in found)}</div>'


def card(f: Finding, base: Path) -> str:
    picture = "" if f.path is None or f.kind in ("missing", "broken") else film(f.path, base)
    return (
        f'<section class="card"><h3>{html.escape(printable(f.name))}</h3>{picture}{small(printable(f.says))}</section>'
    )


def film(path: Path, base: Path) -> str:
    """Frames of the file, with a link to it."""
    try:
        uri, _ = strip(Shown(path, "", 1, 0.0))
    except DecodeError as e:
        return small(e.reason)
    image = f'<img src="{uri}" alt="frames of {html.escape(printable(path.name))}">'
    link = quote(os.fsencode(os.path.relpath(path, base)))
    return f'<a class="strip" style="--frames:{FRAMES}" href="{html.escape(link)}">{image}</a>'


def said(c: Costs, checkup: Checkup, what: str) -> str:
    """The forecast in a sentence or two."""
    training = "" if c.training_hours is None else f"; training {what}: about {hours(c.training_hours)}"
    return (
        f"{c.videos:,} videos can be decoded, {hours(checkup.hours)} of film. A frame cache takes "
        f"{amount(c.cache_bytes)} and at most {hours(c.cache_hours)} to fill{training}."
    )


def hours(value: float) -> str:
    """A length of time in the unit that fits it."""
    return (
        f"{value:.1f} hours" if value >= 1 else f"{value * 60:.1f} minutes" if value > 0.02 else f"{value * 3600:.0f} s"
    )
