"""From a video file to frames with their times: what was asked for, or one clear reason why not.

Specification core.md 3.5. Of the packets that `clipreel.video.packets` found, only what leads to the wanted frames is
decoded. Frames are addressed by presentation time; a broken stretch costs its frames and a warning, and a broken file
is a DecodeError and never a blank.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from clipreel.video.packets import Clock, DecodeError, Packets, VideoInfo, decoded, open_video, scan
from clipreel.video.sampling import Rng, Sampling, clip4clip


@dataclass
class Frames:
    """Decoded frames: `pixels` uint8 (T, H, W, 3) RGB, upright (or what `transform` made of them); `times_s` (T,)."""

    pixels: Tensor
    times_s: NDArray[np.float64]
    info: VideoInfo
    warnings: list[str] = field(default_factory=list)


@dataclass
class Stream:
    """Frames while they are decoded, so that none need be kept.

    `frames` gives `count` times a moment in seconds and its pixels (1, H, W, 3), or what `transform` made of them, and
    raises DecodeError. The `warnings` and the rotation in `info` are whole when it has ended. `decode_s` is the time
    that another process spent on it, and `waited_s` how long the reader waited for it.
    """

    info: VideoInfo
    count: int
    warnings: list[str]
    frames: Iterator[tuple[float, Tensor]]
    decode_s: float = 0.0
    waited_s: float = 0.0


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
    stream = stream_frames(
        path,
        sampling,
        start_s=start_s,
        end_s=end_s,
        rotate=rotate,
        timeout_s=timeout_s,
        rng=rng,
        transform=transform,
    )
    found = list(stream.frames)
    times = np.asarray([t for t, _ in found], np.float64)
    return Frames(torch.cat([p for _, p in found]), times, stream.info, stream.warnings)


def stream_frames(
    path: str | Path,
    sampling: Sampling,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    rotate: bool = True,
    timeout_s: float = 60.0,
    rng: Rng | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Stream:
    """What `read_frames` gives, one frame after the other; the time limit does not count what is done with them."""
    path = Path(path)
    clock = Clock(path, timeout_s)
    with one_reason(path):
        packets = scan(path, clock)
        wanted = choose(packets, sampling, start_s, end_s, rng)
    stream = Stream(packets.info, len(wanted), list(packets.warnings), iter(()))
    stream.frames = pictures(stream, packets, wanted, sampling.kind == "keyframes", rotate, transform, clock)
    return stream


@contextmanager
def one_reason(path: Path) -> Iterator[None]:
    """Turns what a decoder raises into a DecodeError."""
    try:
        yield
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


def pictures(
    stream: Stream,
    packets: Packets,
    wanted: Sequence[int],
    keys_only: bool,
    rotate: bool,
    transform: Callable[[Tensor], Tensor] | None,
    clock: Clock,
) -> Iterator[tuple[float, Tensor]]:
    """The frames of a stream: time and pixels of each wanted time stamp, of the nearest where it is lost."""
    often = Counter(wanted)
    todo = sorted(often)
    found = lost = 0
    ticks: int | None = None
    moment, pixels = 0.0, torch.empty(0)
    with one_reason(packets.info.path):
        for target, at, frame in located(packets, todo, keys_only, clock, stream.warnings):
            if at != ticks:
                rotation = rotation_of(frame)
                stream.info = replace(stream.info, rotation=rotation)
                ticks, moment = at, (at - packets.pts[0]) * packets.tick_s
                pixels = picture(frame, rotation if rotate else 0, transform)
            found, lost = found + 1, lost + (at != target)
            for _ in range(often[target]):
                with clock.stopped():
                    yield moment, pixels
    if ticks is None:
        raise DecodeError(packets.info.path, "no-frames", "; ".join(stream.warnings[:2]))
    if lost := lost + len(todo) - found:
        stream.warnings.append(f"{lost} of {len(todo)} wanted frames could not be decoded; the nearest were taken")
    for _ in range(sum(often[t] for t in todo[found:])):
        yield moment, pixels


def located(
    packets: Packets, todo: Sequence[int], keys_only: bool, clock: Clock, warnings: list[str]
) -> Iterator[tuple[int, int, VideoFrame]]:
    """For each time stamp, ascending, the first frame at or behind it: wanted, found, frame; it ends where none is.

    Jumps ahead only where a keyframe lies between here and the next target.
    """
    untimed = any("no time stamps" in w for w in warnings)
    container, stream = open_video(packets.info.path)
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
                return
            position, spare = hit
            yield target, position, spare


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
