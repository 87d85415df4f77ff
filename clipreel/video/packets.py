"""The packets of a file, read without decoding: every frame's time and the keyframes, whatever the header claims.

Specification core.md 3.5. A damaged end or a broken packet is a warning; what gives nothing at all is a DecodeError
with one of REASONS.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from clipreel.errors import ClipreelError

av.logging.set_level(None)  # the reasons go into errors and warnings, not to the terminal

REASONS = ("missing", "no-access", "empty", "incomplete", "not-video", "no-frames", "corrupt", "timeout", "crash")
WHAT_TO_DO = {
    "missing": "check the path",
    "no-access": "give this user the right to read it",
    "empty": "copy it again, it has no bytes",
    "incomplete": "copy it again; if the recording itself broke off, a repair tool such as untrunc may save it",
    "not-video": "leave it out, there is no video stream in it",
    "no-frames": "try to play it; no frame of it can be decoded",
    "corrupt": "copy it again or repair it with ffmpeg -i IN -c copy OUT",
    "timeout": "raise the time limit or leave it out",
    "crash": "leave it out, or convert it with ffmpeg -i IN OUT",
}


class DecodeError(ClipreelError):
    """Why a file gives no frames; `reason` is one of REASONS."""

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        self.path, self.reason, self.detail = path, reason, detail
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        super().__init__(f"{shown!r}: {reason}{f' ({detail})' if detail else ''}; {WHAT_TO_DO[reason]}")


@dataclass(frozen=True)
class VideoInfo:
    """What the packets of a file say. `width` and `height` count coded pixels, `aspect` is the width of one over its
    height; `rotation` in degrees as the file asks for; `start_s` is its first time stamp."""

    path: Path
    duration_s: float
    fps: float
    width: int
    height: int
    codec: str
    start_s: float
    frames: int
    constant_rate: bool
    rotation: int = 0
    aspect: float = 1.0

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as a player shows it: upright, with square pixels."""
        across = max(1, round(self.width * self.aspect))
        return (self.height, across) if self.rotation // 90 % 2 else (across, self.height)


@dataclass
class Packets:
    """The packets of the video stream in presentation order: time stamps in ticks of `tick_s`, and which are key."""

    pts: list[int]
    keys: list[int]
    tick_s: float
    info: VideoInfo
    warnings: list[str]

    def times(self) -> NDArray[np.float64]:
        return (np.asarray(self.pts, np.float64) - self.pts[0]) * self.tick_s


class Clock:
    """A time limit that is looked at between packets."""

    def __init__(self, path: Path, limit_s: float) -> None:
        self.path, self.limit_s, self.end = path, limit_s, time.monotonic() + limit_s

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise DecodeError(self.path, "timeout", f"more than {self.limit_s:g} s")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """While somebody else works with what was decoded."""
        since = time.monotonic()
        yield
        self.end += time.monotonic() - since


STATED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # containers that state the size of pictures and their times

# containers that hold their own pictures, and single pictures: playlists (HLS, DASH, concat) would make a file of the
# archive open others
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,kux,gif,apng,ogg,asf,asf_o,mpeg,mpegvideo,mpegts,mpegtsraw,"
    "mxf,nut,rm,dv,gxf,nsv,nuv,swf,wtv,ty,pva,amv,ivf,obu,av1,h261,h263,h264,hevc,vvc,evc,m4v,vc1,vc1test,mjpeg,cavsvideo,"
    "dirac,dnxhd,yuv4mpegpipe,mp3,aac,flac,wav,aiff,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe,jpegxl_pipe"
)


BOXES = 1000  # of a file that are looked at for its index


def check_file(path: Path) -> None:
    """Raises DecodeError for what cannot be a video file before anything is opened."""
    try:
        found = os.stat(path)
    except FileNotFoundError as e:
        raise DecodeError(path, "missing") from e
    except OSError as e:
        raise DecodeError(path, "no-access", e.strerror or "") from e
    if not stat.S_ISREG(found.st_mode):
        raise DecodeError(path, "not-video", "not a regular file")
    if not os.access(path, os.R_OK):
        raise DecodeError(path, "no-access")
    if found.st_size == 0:
        raise DecodeError(path, "empty")


def looks_stated(path: Path) -> bool:
    """Whether the first bytes are those of a container in STATED."""
    with open(path, "rb") as file:
        head = file.read(8)
    return head[:4] == b"\x1a\x45\xdf\xa3" or head[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def lacks_index(path: Path) -> bool:
    """Whether it is an MP4 or QuickTime file without all of its index (moov): a copy or a recording broke off."""
    with open(path, "rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        for _ in range(BOXES):
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:  # then it stands in 64 bits
                length = int.from_bytes(head[8:], "big")
            if kind == b"meta" or (at == 0 and kind not in (b"ftyp", b"moov", b"mdat", b"wide")):
                return False  # a picture (HEIF), or something else
            whole = length >= 8 and at + length <= size
            if kind == b"moov" or not whole:  # a length of 0 is "up to the end"
                return kind != b"moov" or not (whole or length == 0)
            at += length
    return False


def unopened(path: Path, detail: str) -> DecodeError:
    """Why a file has no video stream."""
    if lacks_index(path):
        return DecodeError(path, "incomplete", "its index is missing: the file is cut off")
    return DecodeError(path, "not-video", detail)


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """The container and its first moving video stream, one decoding thread."""
    check_file(path)
    try:
        name = os.fsencode(path).decode("utf-8", "surrogateescape")
        # opening decodes a picture to learn its format; containers that state sizes and times do not need it, and at
        # 1080p it costs as much as a keyframe
        known = {"format_whitelist": FORMATS}
        light = {"skip_frame": "all"} if looks_stated(path) else {}
        container = av.open(name, metadata_errors="ignore", options={**known, **light})
        if light and not (container.format.name in STATED and all(s.width for s in container.streams.video)):
            container.close()
            container = av.open(name, metadata_errors="ignore", options=known)
    except (av.FFmpegError, UnicodeError, OSError) as e:
        raise unopened(path, str(getattr(e, "strerror", "") or "it cannot be opened")) from e
    streams = [s for s in container.streams.video if not is_cover(s)]
    if not streams or streams[0].codec_context is None:
        container.close()
        raise unopened(path, "no video stream")
    streams[0].thread_count = 1  # several files at once beat several threads on one
    return container, streams[0]


def sought(container: InputContainer, stream: VideoStream, at_s: float) -> bool:
    """Goes to the keyframe before a moment, in seconds from the first frame. False where the file has no way to find
    one, as raw streams: then the container is of no more use, and another has to be read from the start."""
    try:
        container.seek((stream.start_time or 0) + int(at_s / (stream.time_base or 1)), stream=stream, backward=True)
    except av.FFmpegError:
        return False
    return True


def is_cover(stream: VideoStream) -> bool:
    """Whether a stream is the cover picture of a music file."""
    return bool(stream.disposition & stream.disposition.__class__.attached_pic)


def packets_of(container: InputContainer, stream: VideoStream, clock: Clock, warnings: list[str]) -> Iterator[Packet]:
    """Packets in file order; a damaged end becomes a warning."""
    try:
        for packet in container.demux(stream):
            clock.check()
            yield packet
    except av.FFmpegError as e:
        warnings.append(f"reading stopped early ({e.strerror})")


def scan(path: Path, clock: Clock) -> Packets:
    """Every packet of the video stream, read but not decoded. Raises DecodeError."""
    warnings: list[str] = []
    container, stream = open_video(path)
    with container:
        found: list[tuple[int, bool]] = []
        untimed = 0
        last_ticks = 1
        for packet in packets_of(container, stream, clock, warnings):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                untimed += 1
            else:
                found.append((packet.pts, packet.is_keyframe))
                last_ticks = packet.duration or last_ticks
        tick = float(stream.time_base or 0) or 1e-3
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        if untimed:
            found, tick, rate = untimed_frames(path, rate, clock, warnings)
            last_ticks = 1
        if not found:
            raise DecodeError(path, "no-frames", "; ".join(warnings))
        found.sort()
        promised = (container.duration or 0) / 1e6
        if promised > 1.1 * ((found[-1][0] - found[0][0]) * tick) + 0.1:
            warnings.append(f"the file promises {promised:.1f} s of content and its video ends earlier")
        pts = [p for p, _ in found]
        gaps = np.diff(np.asarray(pts, np.int64))
        duration = (pts[-1] - pts[0] + max(last_ticks, 1)) * tick
        info = VideoInfo(
            path=path,
            duration_s=duration,
            fps=len(pts) / duration if duration > 0 else rate,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            codec=stream.codec_context.name,
            start_s=pts[0] * tick,
            frames=len(pts),
            # one tick of rounding either way is still a constant rate
            constant_rate=bool(len(gaps) == 0 or gaps.max() - gaps.min() <= 2),
            aspect=float(stream.sample_aspect_ratio or 1),
        )
    return Packets(pts, [p for p, key in found if key] or pts[:1], tick, info, warnings)


def untimed_frames(
    path: Path, rate: float, clock: Clock, warnings: list[str]
) -> tuple[list[tuple[int, bool]], float, float]:
    """Frames of a stream without times, counted by decoding; time is the number over the rate (25 if unknown)."""
    rate = rate if 1 <= rate <= 240 else 25.0
    container, stream = open_video(path)
    with container:
        keys = [f.key_frame for f in decoded(container, stream, clock, warnings)]
    warnings.append(f"no time stamps: counted {len(keys)} frames at {rate:g} a second")
    return list(enumerate(keys)), 1.0 / rate, rate


def decoded(
    container: InputContainer,
    stream: VideoStream,
    clock: Clock,
    warnings: list[str],
    keep: Callable[[Packet], bool] = lambda packet: True,
) -> Iterator[VideoFrame]:
    """Frames in presentation order; packets that cannot be decoded are counted in a warning."""
    broken = 0
    for packet in packets_of(container, stream, clock, warnings):
        if packet.size and not keep(packet):
            continue
        try:
            yield from packet.decode()
        except av.FFmpegError:
            broken += 1
    if broken:
        warnings.append(f"{broken} packets could not be decoded")
