"""Small videos that tests make themselves. Frame number n is told by its brightness: 8 n + 8 (mod 248)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

WIDTH, HEIGHT = 64, 48


def level(n: int) -> int:
    return 8 + (8 * n) % 240


def numbers(pixels: Tensor, count: int) -> list[int]:
    """The frame numbers that pixels (T, H, W, 3) show, of a video of `count` <= 30 frames."""
    shown = pixels.float().mean((1, 2, 3)).numpy()
    levels = np.array([level(n) for n in range(count)])
    return [int(np.abs(levels - s).argmin()) for s in shown]


def write(
    path: Path,
    frames: int = 24,
    *,
    rate: int = 12,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    times: Sequence[int] | None = None,
    gop: int = 12,
    b_frames: int = 0,
    start: int = 0,
    container: str | None = None,
    top_mark: bool = False,
    aspect: Fraction | None = None,
) -> Path:
    """A video whose frame n has brightness `level(n)`; `times` are time stamps in units of 1 / rate; `aspect` is the
    width of a pixel over its height."""
    with av.open(str(path), "w", format=container) as out:
        options = {"crf": "1", "preset": "ultrafast"} if codec == "libx264" else {}
        stream = out.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.thread_count = 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None or start:
            stream.codec_context.time_base = Fraction(1, rate)
        for n in range(frames):
            pixels = np.full((size[1], size[0], 3), level(n), np.uint8)
            if top_mark:
                pixels[: size[1] // 2] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None or start:
                frame.pts = (times[n] if times is not None else n) + start
                frame.time_base = Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def turned(path: Path) -> Path:
    """An MP4 that asks to be shown a quarter turn on, as upright films of phones do."""
    raw = bytearray(path.read_bytes())
    at = raw.index(b"tkhd") + 44  # the matrix of the track, in fixed point
    raw[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(raw)
    return path


def write_audio(path: Path) -> Path:
    """A sound file without pictures."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
