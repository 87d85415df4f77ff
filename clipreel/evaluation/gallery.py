"""A page of hits and misses with film strips: one HTML file, no network, light and dark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clipreel.video.decode import read_frames
from clipreel.video.sampling import Sampling

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #6a7280; --paper: #fbfbfa; --card: #fff; --line: #e4e6ea;
  --accent: #2f6fde; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --soft: #98a0ad; --paper: #14161a; --card: #1c1f25;
  --line: #2c313a; --accent: #7aa7ff; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem }
p { margin: .25rem 0 1rem; max-width: 46rem } .soft { color: var(--soft); font-size: .9rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--soft); font-size: .85rem } th:first-child, td:first-child { text-align: left }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem }
.card h3 { font-size: 1rem; margin: 0 0 .6rem } .card img { width: 100%; display: block; border-radius: 6px }
.row { margin-top: .6rem } .row small { color: var(--soft) } .right { color: var(--accent); font-weight: 600 }
.wide { overflow-x: auto }
"""


@dataclass(frozen=True)
class Shown:
    """One answer: a video, what to say about it, and whether it was the right one."""

    path: Path
    note: str
    right: bool = False


@dataclass(frozen=True)
class Card:
    """A query and its answers."""

    query: str
    answers: Sequence[Shown]


def strip(path: Path, frames: int = 6, height: int = 84) -> str:
    """A film strip as a data URI."""
    pixels = read_frames(path, Sampling("uniform", frames)).pixels.numpy()
    pictures = [Image.fromarray(p) for p in pixels]
    pictures = [p.resize((max(1, round(height * p.width / p.height)), height)) for p in pictures]
    joined = Image.fromarray(np.concatenate([np.asarray(p) for p in pictures], 1))
    out = io.BytesIO()
    joined.save(out, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def card(c: Card) -> str:
    rows = []
    for n, a in enumerate(c.answers, 1):
        mark = '<span class="right">right</span> ' if a.right else ""
        rows.append(
            f'<div class="row"><img src="{strip(a.path)}" alt="frames of {html.escape(a.path.name)}">'
            f"<small>{n}. {mark}{html.escape(a.note)}</small></div>"
        )
    return f'<section class="card"><h3>{html.escape(c.query)}</h3>{"".join(rows)}</section>'


def numbers(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{html.escape(c)}</th>" for c in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in body)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page; sections are (heading, HTML)."""
    body = "".join(f"<h2>{html.escape(h)}</h2>{content}" for h, content in sections)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{body}</html>"
    )


def paragraph(text: str) -> str:
    return f'<p class="soft">{html.escape(text)}</p>'


def cards(items: Sequence[Card]) -> str:
    return f'<div class="cards">{"".join(card(c) for c in items)}</div>'
