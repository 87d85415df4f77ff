"""The process that opens foreign files for the server: what hangs or crashes in it harms nobody else.

`clipreel.server.sandbox` starts it as `python -m clipreel.server.decoding`. A request is a line of JSON, followed by
`body` bytes; so is the answer: {"ok": true, "body": N, ...} or {"ok": false, "code", "message"}. It may write no file.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image, ImageOps

from clipreel.video.packets import WHAT_TO_DO, DecodeError, open_video, sought

MEMORY = 4 << 30
IMAGES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
Image.MAX_IMAGE_PIXELS = None  # the limit is the server's, which can say it
SIDE = 1024  # of a stored upload: several times what any model looks at
LOOK_AHEAD = 2000  # frames that are decoded to reach a moment
Answer = tuple[dict[str, Any], bytes]


class Refused(Exception):
    """Something about the file that the user can act on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def probe(request: dict[str, Any], _: bytes) -> Answer:
    """What a browser needs to know of a file: container, codecs, pixel format, rotation."""
    container, stream = open_video(Path(request["path"]))
    with container:
        audio = container.streams.audio[0] if container.streams.audio else None
        frame = next(shown(container, stream), None)
        if frame is None:
            raise Refused("no-frames", "no frame of it can be decoded")
        facts = {
            "container": container.format.name,
            "codec": stream.codec_context.name,
            "pix_fmt": frame.format.name,
            "rotation": int(frame.rotation or 0),
            "timed": frame.pts is not None,
            "rate": float(stream.average_rate or stream.guessed_rate or 25),
            "audio": audio.codec_context.name if audio is not None and audio.codec_context is not None else "",
        }
    return facts, b""


def thumbnail(request: dict[str, Any], _: bytes) -> Answer:
    """JPEG of the frame at a moment."""
    (picture,) = frames_at(Path(request["path"]), [request["at_s"]], request["width"])
    return {}, jpeg(picture)


def strip(request: dict[str, Any], _: bytes) -> Answer:
    """JPEG of n frames side by side, evenly spread over a part of the video."""
    n, start, end = request["n"], request["start_s"], request["end_s"]
    moments = [start + (end - start) * (2 * i + 1) / (2 * n) for i in range(n)]
    pictures = frames_at(Path(request["path"]), moments, request["width"])
    height = pictures[0].height
    sheet = Image.new("RGB", (sum(p.width for p in pictures), height))
    left = 0
    for p in pictures:
        sheet.paste(p, (left, 0))
        left += p.width
    return {}, jpeg(sheet)


def image(request: dict[str, Any], data: bytes) -> Answer:
    """An uploaded picture as a small upright PNG; its size is looked at before a pixel is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=IMAGES) as opened:
            width, height = opened.size
            if width * height > request["pixels"]:
                raise Refused("too-large", f"{width} x {height} pixels: at most {request['pixels'] / 1e6:g} million")
            opened.draft("RGB", (SIDE, SIDE))
            small = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise Refused("not-an-image", "no readable image; send PNG, JPEG or WebP") from e
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "PNG", compress_level=1)
    return {"width": width, "height": height}, out.getvalue()


TASKS: dict[str, Callable[[dict[str, Any], bytes], Answer]] = {
    "probe": probe,
    "thumbnail": thumbnail,
    "strip": strip,
    "image": image,
}


# ------------------------------------------------------------------ frames


def shown(container: Any, stream: Any) -> Iterator[VideoFrame]:
    """Frames from where the container is; a broken packet costs its frames."""
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.FFmpegError:
                continue
    except av.FFmpegError:
        return


class Film:
    """An open video that shows frames at ascending moments."""

    def __init__(self, path: Path) -> None:
        self.path, self.seeks = path, True
        self._start()

    def _start(self) -> None:
        self.container, self.stream = open_video(self.path)
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)
        self.zero = (self.stream.start_time or 0) * float(self.stream.time_base or 0)
        self.count = 0  # of frames, for streams without times
        self._from_here()

    def _from_here(self) -> None:
        self.source, self.position = shown(self.container, self.stream), -1.0
        self.last: VideoFrame | None = None

    def at(self, moment: float) -> VideoFrame:
        """The frame that a player shows at a moment; the last one there is where the file ends before."""
        if moment > 0 and self.seeks and (self.last is None or moment - self.position > 4.0):
            self.seeks = sought(self.container, self.stream, moment)
            if self.seeks:
                self._from_here()
            else:
                self._again()
        self._go(moment)
        if self.last is None:  # the seek misled
            self._again()
            self._go(moment)
        if self.last is None:
            raise Refused("no-frames", "no frame of it can be decoded")
        return self.last

    def _again(self) -> None:
        self.close()
        self._start()

    def _go(self, moment: float) -> None:
        if self.last is not None and self.position >= moment - 0.02:
            return
        for frame in islice(self.source, LOOK_AHEAD):
            self.last = frame
            self.position = self.count / self.rate if frame.time is None else frame.time - self.zero
            self.count += 1
            if self.position >= moment - 0.02:
                break

    def close(self) -> None:
        self.container.close()


def frames_at(path: Path, moments: list[float], width: int) -> list[Image.Image]:
    """The pictures of a video at ascending moments."""
    with closing(Film(path)) as film:
        return [small(film.at(moment), film.stream, width) for moment in moments]


def small(frame: VideoFrame, stream: Any, width: int) -> Image.Image:
    """Upright, with square pixels, of a width that is at most the frame's own."""
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    turned = int(frame.rotation or 0) % 180 != 0
    full = frame.width * aspect, float(frame.height)
    across, down = (full[1], full[0]) if turned else full
    scale = min(1.0, width / across)
    size = max(2, round(across * scale)), max(2, round(down * scale))
    inner = (size[1], size[0]) if turned else size
    pixels = frame.reformat(width=inner[0], height=inner[1], format="rgb24").to_ndarray()
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, int(frame.rotation or 0) // 90)))


def jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return out.getvalue()


# ------------------------------------------------------------------ the process


def limited() -> None:
    """Bounds on this process: memory, no files written, no core dumps."""
    import resource

    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def answer(request: dict[str, Any], data: bytes) -> Answer:
    try:
        facts, made = TASKS[request["task"]](request, data)
        return {"ok": True, "body": len(made), **facts}, made
    except Refused as e:
        return {"ok": False, "code": e.code, "message": str(e)}, b""
    except DecodeError as e:
        return {"ok": False, "code": e.reason, "message": e.detail or e.reason}, b""
    except (av.FFmpegError, MemoryError, ValueError, OSError) as e:
        why = "it needs too much memory" if isinstance(e, MemoryError) else getattr(e, "strerror", None)
        message = f"it cannot be decoded{f' ({why})' if why else ''}; {WHAT_TO_DO['corrupt']}"
        return {"ok": False, "code": "corrupt", "message": message}, b""


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    limited()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    for line in source:
        request = json.loads(line)
        facts, made = answer(request, source.read(request.get("body", 0)))
        sink.write(json.dumps(facts).encode() + b"\n" + made)
        sink.flush()


if __name__ == "__main__":
    main()
