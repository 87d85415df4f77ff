"""Pixels of the shapes world: anti-aliased shapes from signed distances, videos as H.264 MP4."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # floats; the precision follows the grid
Image = NDArray[np.uint8]

COLOURS = {
    "red": (222, 48, 48),
    "green": (50, 180, 72),
    "blue": (52, 92, 232),
    "yellow": (240, 218, 50),
    "purple": (158, 62, 204),
    "orange": (244, 138, 30),
    "white": (240, 240, 240),
    "cyan": (60, 208, 220),
}


class Mark(NamedTuple):
    """One shape to draw: centre in -1..1 (x right, y down), radius in the same unit, angle in turns (clockwise)."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float = 0.0
    alpha: float = 1.0


def _star(x: Field, y: Field) -> Field:
    fifth = 2 * math.pi / 5
    angle = np.arctan2(x, -y)
    folded = np.abs((angle + fifth / 2) % fifth - fifth / 2)
    r = np.hypot(x, y)
    px, py = r * np.cos(folded), r * np.sin(folded)
    ex, ey = 0.42 * math.cos(fifth / 2) - 1.05, 0.42 * math.sin(fifth / 2)
    return ((px - 1.05) * ey - py * ex) / math.hypot(ex, ey)


def _triangle(x: Field, y: Field) -> Field:
    side = math.sqrt(3) / 2
    return np.maximum(y, np.maximum(side * x - 0.5 * y, -side * x - 0.5 * y)) - 0.55


def _box(x: Field, y: Field, w: float, h: float) -> Field:
    return np.maximum(np.abs(x) - w, np.abs(y) - h)


# signed distance (negative inside) of each shape with radius one
SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: _box(x, y, 0.82, 0.82),
    "triangle": _triangle,
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 1.0, 0.3), _box(x, y, 0.3, 1.0)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.74) - 0.24,
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 1.0, 0.8 - np.hypot(x - 0.5, y)),
    "bar": lambda x, y: _box(x, y, 1.1, 0.36),
}


def grid(width: int, height: int) -> tuple[Field, Field]:
    """Pixel centres in -1..1: x (1, width), y (height, 1)."""
    x = ((np.arange(width, dtype=np.float32) + 0.5) * 2 / width - 1)[None]
    y = ((np.arange(height, dtype=np.float32) + 0.5) * 2 / height - 1)[:, None]
    return x, y


def draw(marks: Sequence[Mark], background: NDArray[np.float32], width: int, height: int) -> Image:
    """An image (height, width, 3) of the marks, later ones in front, on a background colour (3,)."""
    canvas = np.broadcast_to(background, (height, width, 3)).astype(np.float32)
    x, y = grid(width, height)
    for m in marks:
        if m.alpha <= 0 or m.radius <= 0:
            continue
        cos, sin = math.cos(2 * math.pi * m.angle), math.sin(2 * math.pi * m.angle)
        dx, dy = (x - m.x) / m.radius, (y - m.y) / m.radius
        distance = SHAPES[m.shape](cos * dx + sin * dy, cos * dy - sin * dx)
        pixel = 2.0 / min(width, height) / m.radius
        cover = m.alpha * np.clip(0.5 - distance / pixel, 0, 1)[..., None]
        canvas += cover * (np.asarray(COLOURS[m.colour], np.float32) - canvas)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Frames (T, H, W, 3) RGB as an H.264 file that players and the reader take; H and W must be even."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(fps), options={"crf": "14", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # threads change the bits, and the files are to be the same everywhere
        for pixels in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        out.mux(stream.encode(None))
