"""A page that shows what a model found: numbers, bars and film strips in one HTML file without network or scripts.

It follows the reader's light or dark setting. A film strip links to its video, at the moment that it shows.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipreel.evaluation.report import Rows, lines
from clipreel.video.decode import read_frames
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling

STYLE = Path(__file__).with_name("gallery.css")
FRAMES = 6


@dataclass(frozen=True)
class Shown:
    """An answer: a video or a part of it (seconds), its rank from 1 (0: not shown), its score (NaN: not shown), and
    whether it was the right one. With `sampling` the strip shows the frames that it chooses, and their times; else an
    even few."""

    path: Path
    note: str
    rank: int
    score: float
    right: bool = False
    start_s: float | None = None
    end_s: float | None = None
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Card:
    """A query and its answers."""

    query: str
    answers: Sequence[Shown]


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading, a sentence on what is seen, and HTML made by the functions below."""

    heading: str
    lead: str
    content: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole file as text."""
    body = "".join(f"<h2>{html.escape(s.heading)}</h2><p>{html.escape(s.lead)}</p>{s.content}" for s in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE.read_text('utf-8')}</style></head>"
        f"<body><main><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{body}</main></body></html>\n"
    )


def numbers(rows: Rows) -> str:
    """The table of `report.table`."""
    head, *body = lines(rows)
    half = len(head) // 2
    measures = "".join(f"<th>{html.escape(c.split()[-1])}</th>" for c in head[1:])
    found = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(c)}</td>' for c in cells)}</tr>"
        for name, *cells in body
    )
    return (
        f'<div class="wide"><table><thead><tr><th></th><th colspan="{half}">text to video</th>'
        f'<th colspan="{half}">video to text</th></tr><tr><th></th>{measures}</tr></thead>'
        f"<tbody>{found}</tbody></table></div>"
    )


def meter(what: str, value: float, bound: float, bound_says: str) -> str:
    """A bar of a percentage with a mark at its bound."""
    value_in, bound_in = (min(max(v, 0.0), 100.0) for v in (value, bound))
    return (
        f'<div class="meter"><b>{value:.1f}</b> <span>% {html.escape(what)}</span>'
        f'<div class="bar"><i style="width:{value_in:.1f}%"></i><u style="left:{bound_in:.1f}%"></u></div>'
        f"<span>mark: {bound:.1f} %, {html.escape(bound_says)}</span></div>"
    )


def meters(items: Sequence[str]) -> str:
    return f'<div class="meters">{"".join(items)}</div>'


def small(text: str) -> str:
    return f'<p class="small">{html.escape(text)}</p>'


def cards(items: Sequence[Card], base: Path) -> str:
    """Cards side by side; links to videos are relative to the folder `base`, where the page will lie."""
    return f'<div class="cards">{"".join(_card(c, base) for c in items)}</div>'


def strip(shown: Shown, height: int = 120) -> tuple[str, NDArray[np.float64]]:
    """Frames side by side as a data URI (JPEG), and their times in seconds. Raises DecodeError."""
    sampling = shown.sampling or Sampling("uniform", FRAMES)
    found = read_frames(shown.path, sampling, start_s=shown.start_s, end_s=shown.end_s)
    pixels, times = found.pixels.numpy(), found.times_s
    if shown.sampling is None:
        chosen = np.arange(FRAMES) * len(pixels) // FRAMES  # a short video repeats frames, the layout stays
        pixels, times = pixels[chosen], times[chosen]
    width = max(1, round(height * pixels.shape[2] / pixels.shape[1]))
    resized = [np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC)) for p in pixels]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(resized, 1)).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode(), times


def _card(card: Card, base: Path) -> str:
    answers = "".join(_answer(a, base) for a in card.answers)
    return f'<section class="card"><h3>{html.escape(card.query)}</h3><ol>{answers}</ol></section>'


def _answer(a: Shown, base: Path) -> str:
    note = html.escape(printable(a.note))
    try:
        uri, times = strip(a)
        image = f'<img src="{uri}" alt="frames of {html.escape(printable(a.path.name))}">'
        link = f'<a class="strip" style="--frames:{len(times)}" href="{html.escape(_link(a, base))}">{image}</a>'
        if a.sampling is not None:
            link += f'<div class="times">{"".join(f"<span>{t:.2f}</span>" for t in times)}</div>'
    except DecodeError as e:
        link = f"<span>{html.escape(e.reason)}</span>"
    mark, class_ = ("<em>right</em> ", ' class="right"') if a.right else ("", "")
    score = "" if math.isnan(a.score) else f'<data value="{a.score:.4f}">{a.score:.3f}</data>'
    return (
        f'<li>{link}<div class="told"><span{class_}>{f"{a.rank}. " if a.rank else ""}{mark}{note}</span>'
        f"{score}</div></li>"
    )


def _link(a: Shown, base: Path) -> str:
    relative = os.fsencode(os.path.relpath(a.path, base))
    return quote(relative) + (f"#t={a.start_s:g}" if a.start_s else "")


def printable(name: str) -> str:
    """A file name that UTF-8 can hold: undecodable bytes become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
