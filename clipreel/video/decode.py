"""From a video file to frames with their times: what was asked for, or one clear reason why not.

Specification core.md 3.5. The file is first read packet by packet without decoding, which gives every frame's time and
the keyframes whatever the header claims; then only what leads to the wanted frames is decoded. Frames are addressed by
presentation time; a broken stretch costs its frames and a warning, a broken file is a DecodeError and never a blank.
"""

from __future__ import annotations

import bisect
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from clipreel.errors import ClipreelError
from clipreel.video.sampling import Rng, Sampling, clip4clip

av.logging.set_level(None)  # the reasons go into errors and warnings, not to the terminal

Item = TypeVar("Item")
REASONS = ("missing", "no-access", "empty", "not-video", "no-frames", "corrupt", "timeout")
WHAT_TO_DO = {
    "missing": "check the path",
    "no-access": "give this user the right to read it",
    "empty": "copy it again, it has no bytes",
    "not-video": "leave it out, there is no video stream in it",
    "no-frames": "try to play it; no frame of it can be decoded",
    "corrupt": "copy it again or repair it with ffmpeg -i IN -c copy OUT",
    "timeout": "raise the time limit or leave it out",
}


class DecodeError(ClipreelError):
    """Why a file gives no frames; `reason` is one of REASONS."""

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        self.path, self.reason = path, reason
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        super().__init__(f"{shown!r}: {reason}{f' ({detail})' if detail else ''}; {WHAT_TO_DO[reason]}")


@dataclass(frozen=True)
class VideoInfo:
    """What the packets of a file say. `rotation` in degrees as the file asks for; `start_s` is its first time stamp."""

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


@dataclass
class Frames:
    """Decoded frames: `pixels` uint8 (T, H, W, 3) RGB, upright (or what `transform` made of them); `times_s` (T,)."""

    pixels: Tensor
    times_s: NDArray[np.float64]
    info: VideoInfo
    warnings: list[str] = field(default_factory=list)


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


def open_video(path: Path) -> tuple[InputContainer, VideoStream]:
    """The container and its first moving video stream, one decoding thread."""
    check_file(path)
    try:
        container = av.open(os.fsencode(path).decode("utf-8", "surrogateescape"), metadata_errors="ignore")
    except (av.FFmpegError, UnicodeError, OSError) as e:
        raise DecodeError(path, "not-video", str(getattr(e, "strerror", "") or type(e).__name__)) from e
    streams = [s for s in container.streams.video if not is_cover(s)]
    if not streams or streams[0].codec_context is None:
        container.close()
        raise DecodeError(path, "not-video", "no video stream")
    streams[0].thread_count = 1  # several files at once beat several threads on one
    return container, streams[0]


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


def probe(path: str | Path, timeout_s: float = 60.0) -> VideoInfo:
    """Facts of a video from its packets and its first frame. Raises DecodeError."""
    frames = read_frames(path, Sampling("uniform", 1), end_s=0.0, timeout_s=timeout_s)
    return frames.info


def read_frames(
    path: str | Path,
    sampling: Sampling,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    rotate: bool = True,
    timeout_s: float = 60.0,
    rng: Rng | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Frames:
    """The sampled frames of a video, or of its part from `start_s` to `end_s` (seconds from its first frame).

    `transform` gets each frame as uint8 (1, H, W, 3) as soon as it is decoded, so no full-size frames pile up.
    A frame that cannot be decoded is replaced by the next that can, with a warning. Raises DecodeError.
    """
    path = Path(path)
    clock = Clock(path, timeout_s)
    try:
        packets = scan(path, clock)
        wanted = choose(packets, sampling, start_s, end_s, rng)
        return collect(path, packets, wanted, sampling.kind == "keyframes", rotate, transform, clock)
    except (av.FFmpegError, MemoryError) as e:
        raise DecodeError(path, "corrupt", str(e)[:120]) from e


def choose(
    packets: Packets, sampling: Sampling, start_s: float | None, end_s: float | None, rng: Rng | None
) -> list[int]:
    """The time stamps to show, ascending, repeated where a frame is wanted twice."""
    times = packets.times()
    first = 0 if start_s is None else int(np.searchsorted(times, start_s - 1e-9))
    first = min(first, len(times) - 1)
    last = len(times) if end_s is None else max(first + 1, int(np.searchsorted(times, end_s, "right")))
    pts = packets.pts[first:last]
    if sampling.kind == "keyframes":
        keys = [p for p in packets.keys if pts[0] <= p <= pts[-1]] or [pts[0]]
        return keys if not sampling.frames else [keys[i] for i in clip4clip(len(keys), sampling.frames)]
    if sampling.by_index:
        return [pts[i] for i in sampling.indices(len(pts), rng)]
    end = times[last] if last < len(times) else packets.info.duration_s
    moments = sampling.times(float(times[first]), float(end), rng)
    # what a player shows at that moment; containers round the first and this time stamp to a tick
    slack = min(1.01 * packets.tick_s, 0.25 * packets.info.duration_s / packets.info.frames)
    shown = np.searchsorted(times[first:last], moments + slack, "right") - 1
    return [pts[i] for i in np.clip(shown, 0, len(pts) - 1)]


def collect(
    path: Path,
    packets: Packets,
    wanted: Sequence[int],
    keys_only: bool,
    rotate: bool,
    transform: Callable[[Tensor], Tensor] | None,
    clock: Clock,
) -> Frames:
    """Decode the wanted time stamps, jumping ahead only where a keyframe lies between here and the next of them."""
    warnings = list(packets.warnings)
    untimed = any("no time stamps" in w for w in warnings)
    pictures: dict[int, tuple[Tensor, int]] = {}
    rotation = 0
    todo = sorted(set(wanted))
    container, stream = open_video(path)
    with container:
        if keys_only:
            stream.codec_context.skip_frame = "NONKEY"
        position: int | None = None
        source: Iterator[tuple[int, VideoFrame]] = iter(())
        spare: VideoFrame | None = None  # read beyond the last target: may be the next one
        for target in todo:
            jump = not untimed and leap(packets.keys, position, target)
            if position is None or jump:
                if jump:
                    container.seek(target, stream=stream, backward=True)
                source = numbered(container, stream, clock, warnings, keys_only, untimed)
                spare = None
            hit = advance(source, target, spare)
            if jump and (hit is None or hit[0] > target):  # the index of the file misleads: from the start
                container.seek(packets.pts[0], stream=stream, backward=True)
                source = numbered(container, stream, clock, warnings, keys_only, untimed)
                hit = advance(source, target, None)
            if hit is None:
                break
            position, spare = hit
            if position not in pictures:
                rotation = rotation_of(spare)
                pictures[position] = (picture(spare, rotation if rotate else 0, transform), position)
            pictures[target] = pictures[position]
    if not pictures:
        raise DecodeError(path, "no-frames", "; ".join(warnings[:2]))
    last = pictures[max(pictures)]
    lost = [t for t in todo if t not in pictures or pictures[t][1] != t]
    if lost:
        warnings.append(f"{len(lost)} of {len(todo)} wanted frames could not be decoded; the nearest were taken")
    chosen = [pictures.get(t, last) for t in wanted]
    ticks = np.asarray([shown for _, shown in chosen], np.float64)
    info = VideoInfo(**{**vars(packets.info), "rotation": rotation})
    pixels = torch.cat([p for p, _ in chosen])
    return Frames(pixels, (ticks - packets.pts[0]) * packets.tick_s, info, warnings)


def leap(keys: Sequence[int], position: int | None, target: int) -> bool:
    """Whether a keyframe lies behind the position and not behind the target, so that seeking saves decoding."""
    i = bisect.bisect_right(keys, target) - 1
    return i > 0 and (position is None or keys[i] > position)


def numbered(
    container: InputContainer,
    stream: VideoStream,
    clock: Clock,
    warnings: list[str],
    keys_only: bool,
    untimed: bool,
) -> Iterator[tuple[int, VideoFrame]]:
    """Frames with their time stamps; those of an untimed stream are numbered."""
    keep = (lambda p: p.is_keyframe) if keys_only else (lambda p: True)
    for i, frame in enumerate(decoded(container, stream, clock, warnings, keep)):
        if untimed:
            yield i, frame
        elif frame.pts is not None:
            yield frame.pts, frame


def advance(
    source: Iterable[tuple[int, VideoFrame]], target: int, spare: VideoFrame | None
) -> tuple[int, VideoFrame] | None:
    """The first frame at or behind the target; `spare` is the frame that the last call ended on."""
    if spare is not None and spare.pts is not None and spare.pts >= target:
        return spare.pts, spare
    return next(((pts, frame) for pts, frame in source if pts >= target), None)


def rotation_of(frame: VideoFrame) -> int:
    """The turn that the file asks for, in degrees against the clock; PyAV does not apply it."""
    return int(frame.rotation or 0)


def picture(frame: VideoFrame, rotation: int, transform: Callable[[Tensor], Tensor] | None) -> Tensor:
    """uint8 (1, H, W, 3) of a frame, turned upright, or what `transform` makes of it."""
    rgb = np.rot90(frame.to_ndarray(format="rgb24"), rotation // 90)
    pixels = torch.from_numpy(np.ascontiguousarray(rgb))[None]
    return pixels if transform is None else transform(pixels)


def read_many(
    items: Iterable[Item],
    read: Callable[[Item], Frames],
    workers: int = 2,
    ahead: int = 4,
) -> Iterator[tuple[Item, Frames | DecodeError]]:
    """Each path, or what else `read` takes, with its frames or its error, in order; at most `ahead` are under way."""
    todo = iter(items)
    queue: list[tuple[Item, Future[Frames]]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(queue) < max(ahead, 1):
                    item = next(todo, None)
                    if item is None:
                        break
                    queue.append((item, pool.submit(read, item)))
                if not queue:
                    return
                item, job = queue.pop(0)
                yield item, outcome(job)
        finally:
            for _, job in queue:
                job.cancel()


def outcome(job: Future[Frames]) -> Frames | DecodeError:
    try:
        return job.result()
    except DecodeError as e:
        return e
