"""A video, or a part of it, as an MP4 that browsers and editors play: its packets copied, or its frames encoded anew.

Copying begins at the keyframe before the start, encoding at the very frame. A fragmented file can be played while it is
written. Damage costs the damaged frames; the picture is turned upright; sound that MP4 does not take becomes AAC.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from clipreel.errors import ClipreelError
from clipreel.video.packets import DecodeError, open_video, sought

How = Literal["copy", "encode"]
# the first that this build of FFmpeg has; all are played by browsers in MP4
ENCODERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("libx264", {"preset": "veryfast", "crf": "23"}),
    ("libopenh264", {}),
    ("h264_videotoolbox", {}),
    ("libsvtav1", {"preset": "10", "crf": "35"}),
    ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "33", "b": "0"}),
)
COPIED_SOUND = ("aac", "mp3", "opus", "flac", "ac3")
HEIGHT = 720
KEY_S = 2.0  # between keyframes, which is how fast a player finds a moment
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "1000000"}
STILL_RATE = 25  # of streams without time stamps


@dataclass(frozen=True)
class Made:
    """What was written: from which second of the source it starts, how long it is, and how it was made."""

    how: How
    start_s: float
    duration_s: float


def encoder() -> tuple[str, dict[str, str]]:
    """The video encoder of this build and its options. Raises ClipreelError where it has none."""
    for name, options in ENCODERS:
        if has_encoder(name):
            return name, options
    names = ", ".join(name for name, _ in ENCODERS)
    raise ClipreelError(f"this build of FFmpeg encodes no video for browsers (one of {names}); install PyAV's wheel")


def has_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except (av.FFmpegError, ValueError):
        return False
    return True


def remake(
    path: Path,
    out: Path,
    how: How,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    fragmented: bool = False,
    height: int = HEIGHT,
    progress: Callable[[float], None] = lambda at_s: None,
) -> Made:
    """Writes `out` (MP4) from `path` between two seconds, counted from its first frame, and says what was made.

    Raises DecodeError where the source gives nothing, ClipreelError where `out` cannot be written.
    """
    if not 0 <= start_s < (float("inf") if end_s is None else end_s):
        raise ClipreelError(f"from {start_s:g} s to {end_s:g} s: the end must lie behind the start")
    container, stream = open_video(path)
    if start_s > 0 and not sought(container, stream, start_s):
        container.close()
        if how == "copy":
            raise DecodeError(path, "corrupt", "no keyframe in it can be found without decoding")
        container, stream = open_video(path)
    options = FRAGMENTED if fragmented else {"movflags": "+faststart"}
    try:
        with container, av.open(str(out), "w", format="mp4", options=options) as target:
            sound = container.streams.audio[0] if container.streams.audio else None
            if sound is not None and (sound.codec_context is None or not sound.codec_context.sample_rate):
                sound = None
            part = Part(container, target, stream, sound, start_s, end_s, fragmented, progress)
            made = part.copied() if how == "copy" else part.encoded(height)
    except (av.FFmpegError, OSError) as e:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ClipreelError(f"the disk of {out.parent} is full; make room and try again") from e
        raise DecodeError(path, "corrupt", str(e)[:120]) from e
    if not made.duration_s > 0:
        raise DecodeError(path, "no-frames", f"nothing between {start_s:g} s and the end could be read")
    return made


@dataclass
class Part:
    """One conversion under way, from where the container is. Times are seconds of the source, from its first frame."""

    container: InputContainer
    target: OutputContainer
    video: Any
    sound: Any
    start_s: float
    end_s: float | None
    fragmented: bool
    progress: Callable[[float], None]
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        self.zero_s = (self.video.start_time or 0) * float(self.video.time_base or 0)
        self.first_s: float | None = None
        self.last_s = 0.0
        self.ended = False

    def packets(self) -> Iterator[Packet]:
        """Packets of picture and sound; a damaged end ends them, and so does a second behind the end."""
        streams = [self.video] if self.sound is None else [self.video, self.sound]
        try:
            for packet in self.container.demux(streams):
                if self.ended:
                    return
                at = packet.dts if packet.dts is not None else packet.pts
                if at is not None and self.end_s is not None and self.seconds(packet, at) > self.end_s + 1.0:
                    return
                yield packet
        except av.FFmpegError:
            return

    def seconds(self, packet: Packet, ticks: int) -> float:
        return ticks * float(packet.time_base) - self.zero_s

    def inside(self, at_s: float) -> bool:
        return self.end_s is None or at_s < self.end_s

    def told(self, at_s: float) -> None:
        if self.first_s is None:
            self.first_s = at_s
        self.last_s = max(self.last_s, at_s)
        self.progress(at_s)

    def made(self, how: How, frame_s: float) -> Made:
        first = self.first_s or 0.0
        return Made(how, max(first, 0.0), self.last_s - first + frame_s if self.first_s is not None else 0.0)

    # -------------------------------------------------------------- copying

    def copied(self) -> Made:
        """Packets as they are, shifted so that a part starts at zero; a whole file keeps its times."""
        picture = self.target.add_stream_from_template(self.video, opaque=True)
        voice = None if self.sound is None else Voice(self)
        frame_s = 1 / float(self.video.average_rate or STILL_RATE)
        shift: int | None = None
        for packet in dated(self.packets(), self.video):
            if packet.size == 0 or packet.pts is None or packet.dts is None or packet.is_discard:
                continue
            at_s = self.seconds(packet, packet.pts)
            if packet.stream is not self.video:
                if voice is not None and self.first_s is not None and self.inside(at_s):
                    voice.add(packet, self.first_s)
                continue
            if shift is None:
                if not packet.is_keyframe:
                    continue
                shift = packet.pts if self.start_s > 0 else (self.video.start_time or 0)
                if not self.start_s:
                    self.first_s = 0.0
                if self.fragmented:  # it has no edit list that could hide decoding times before zero
                    self.delay_s = max(0, shift - packet.dts) * float(packet.time_base)
                    shift -= round(self.delay_s / float(packet.time_base))
            if not self.inside(at_s):
                continue
            self.told(at_s)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = picture
            self.target.mux(packet)
        if voice is not None:
            voice.end()
        return self.made("copy", frame_s)

    # -------------------------------------------------------------- encoding

    def encoded(self, height: int) -> Made:
        """Frames from the very start to the end, encoded anew, upright, at most `height` pixels high."""
        name, options = encoder()
        rate = self.video.average_rate or self.video.guessed_rate or Fraction(STILL_RATE)
        rate = rate if 1 <= rate <= 120 else Fraction(STILL_RATE)
        picture: Any = None
        voice = None if self.sound is None else Voice(self, encode=True)
        count, before = 0, -1
        for packet in self.packets():
            if packet.stream is not self.video:
                if voice is not None and self.first_s is not None:
                    voice.add(packet, self.first_s)
                continue
            for frame in frames_of(packet):
                at_s = count / float(rate) if frame.pts is None else frame.pts * float(frame.time_base) - self.zero_s
                count += 1
                self.ended = frame.pts is None and not self.inside(at_s)
                if at_s < self.start_s - 0.5 / float(rate) or not self.inside(at_s):
                    continue
                self.told(at_s)
                ready = upright(frame, height)
                if picture is None:
                    picture = self._picture(name, options, rate, ready, frame)
                    size = ready.width, ready.height
                if (ready.width, ready.height) != size:  # the stream changes its size midway
                    ready = ready.reformat(width=size[0], height=size[1])
                ready.time_base = picture.codec_context.time_base
                ready.pts = round((at_s - (self.first_s or 0.0)) / float(ready.time_base))
                ready.pict_type = av.video.frame.PictureType.NONE
                if ready.pts <= before:
                    continue
                before = ready.pts
                self.target.mux(picture.encode(ready))
        if picture is not None:
            self.target.mux(picture.encode(None))
        if voice is not None:
            voice.end()
        return self.made("encode", 1 / float(rate))

    def _picture(self, name: str, options: dict[str, str], rate: Fraction, ready: Any, frame: Any) -> Any:
        picture: Any = self.target.add_stream(name, rate=rate, options=options)
        picture.width, picture.height, picture.pix_fmt = ready.width, ready.height, "yuv420p"
        picture.codec_context.time_base = Fraction(1, 90_000)
        picture.codec_context.gop_size = max(1, round(KEY_S * float(rate)))
        picture.codec_context.max_b_frames = 0  # so that the first fragment is out at once
        aspect = self.video.sample_aspect_ratio or Fraction(1)
        turned = int(frame.rotation or 0) % 180 != 0
        picture.codec_context.sample_aspect_ratio = 1 / aspect if turned else aspect
        return picture


class Voice:
    """The sound beside the picture: copied where MP4 takes it, else AAC. Broken sound is left out."""

    def __init__(self, part: Part, encode: bool = False) -> None:
        self.part, self.ended = part, False
        source = part.sound.codec_context
        self.copies = source.name in COPIED_SOUND and not encode
        self.resampler: Any = None
        if self.copies:
            self.stream = part.target.add_stream_from_template(part.sound, opaque=True)
        else:
            rate = 48_000
            self.stream = part.target.add_stream("aac", rate=rate)
            self.stream.layout = "stereo" if source.channels > 1 else "mono"
            self.resampler = av.AudioResampler("fltp", self.stream.layout, rate)

    def add(self, packet: Packet, first_s: float) -> None:
        """Sound that belongs behind `first_s`, the second of the source at which the picture starts."""
        if packet.size == 0 or packet.pts is None:
            return
        at_s = self.part.seconds(packet, packet.pts)
        if self.copies:
            if at_s >= first_s - 0.001 and packet.dts is not None:
                shift = round((first_s + self.part.zero_s - self.part.delay_s) / float(packet.time_base))
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = self.stream
                self.part.target.mux(packet)
            return
        for frame in frames_of(packet):
            if frame.pts is None:
                continue
            at_s = frame.pts * float(frame.time_base) - self.part.zero_s
            if at_s < first_s or not self.part.inside(at_s):
                continue
            frame.pts = round((at_s - first_s + self.part.delay_s) / float(frame.time_base))
            self._encode(frame)

    def _encode(self, frame: Any) -> None:
        try:
            for ready in self.resampler.resample(frame):
                self.part.target.mux(self.stream.encode(ready))
        except (av.FFmpegError, ValueError):
            self.ended = True

    def end(self) -> None:
        if not self.copies:
            self._encode(None)
            self.part.target.mux(self.stream.encode(None))


def dated(packets: Iterator[Packet], stream: Any) -> Iterator[Packet]:
    """The packets with decoding times also where Matroska leaves them out: before the first, a duration apart."""
    waiting: list[Packet] = []
    known = False
    for packet in packets:
        if known or packet.stream is not stream or packet.pts is None:
            yield packet
            continue
        waiting.append(packet)
        if packet.dts is not None:
            known = True
            for back, earlier in enumerate(reversed(waiting[:-1]), 1):
                earlier.dts = packet.dts - back * max(packet.duration or 1, 1)
            yield from waiting
    if not known:
        for packet in waiting:
            packet.dts = packet.pts
            yield packet


def frames_of(packet: Packet) -> Iterator[Any]:
    """What a packet decodes to; nothing where it is broken."""
    try:
        yield from packet.decode()
    except av.FFmpegError:
        return


def upright(frame: Any, height: int) -> Any:
    """yuv420p, turned as the file asks, both sides even and at most `height` high."""
    rotation = int(frame.rotation or 0) % 360
    turned = rotation in (90, 270)
    across, down = (frame.height, frame.width) if turned else (frame.width, frame.height)
    scale = min(1.0, height / down)
    width, height = (max(2, round(side * scale) // 2 * 2) for side in (across, down))
    if not rotation:
        return frame.reformat(width=width, height=height, format="yuv420p")
    inner = (height, width) if turned else (width, height)
    pixels = frame.reformat(width=inner[0], height=inner[1], format="rgb24").to_ndarray()
    turned_pixels = np.ascontiguousarray(np.rot90(pixels, rotation // 90))
    return av.VideoFrame.from_ndarray(turned_pixels, format="rgb24").reformat(format="yuv420p")
