"""An answer as HTML for a notebook: the moment of each hit as a few frames, with its time and what its score means."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from clipreel.search.answer import Answer, Hit
from clipreel.search.index import text_of
from clipreel.video.decode import read_frames
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling

FRAMES, HEIGHT, SHOWN = 4, 90, 10


def view(answer: Answer) -> str:
    """The first SHOWN hits; their frames are decoded now, and a file that gives none says why."""
    said = "" if answer.state == "ok" else "<p>Nothing here matches; these are the nearest.</p>"
    rows = "".join(row(rank, hit) for rank, hit in enumerate(answer.hits[:SHOWN], 1))
    more = f"<p>and {len(answer.hits) - SHOWN} more</p>" if len(answer.hits) > SHOWN else ""
    return f"{said}<table>{rows}</table>{more}"


def row(rank: int, hit: Hit) -> str:
    place = escape(text_of(f"{hit.folder}/{hit.name}" if hit.folder else hit.name))
    when = f"{hit.start_s:.1f}-{hit.end_s:.1f} s"
    try:
        shown = f'<img alt="frames of {place}" src="{strip(hit)}">'
    except DecodeError as e:
        shown = escape(e.reason)
    return (
        f"<tr><td>{rank}</td><td>{shown}</td><td>{place}<br>{when}<br>{escape(hit.words)} ({hit.score:.3f})</td></tr>"
    )


def strip(hit: Hit) -> str:
    """Frames of the moment side by side as a data URI (JPEG). Raises DecodeError."""
    found = read_frames(hit.path, Sampling("uniform", FRAMES), start_s=hit.start_s, end_s=hit.end_s).pixels.numpy()
    width = max(1, round(HEIGHT * found.shape[2] / found.shape[1]))
    small = [np.asarray(Image.fromarray(f).resize((width, HEIGHT), Image.Resampling.BICUBIC)) for f in found]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(small, 1)).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
