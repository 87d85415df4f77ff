"""Where a video is cut into segments: windows of fixed length, shots found on the frames that are decoded anyway, or
intervals between the frames that the encoder stored whole.

Segments come while the frames come, so that a long video is never held whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from clipreel.errors import ClipreelError
from clipreel.video.decode import Frames
from clipreel.video.sampling import Sampling

MODES = ("windows", "shots", "keyframes", "none")

NEAR = 8  # frames on either side that a change is compared with
Part = tuple[float, float, list[int]]  # start_s, end_s, the frames inside


def thumbnail(pixels: Tensor) -> Tensor:
    """What is left of a frame (3, n, n), uint8 or float 0..1, to see cuts by: (3, 8, 8), 0..1."""
    small = F.adaptive_avg_pool2d(pixels.float(), 8)
    return small if pixels.dtype.is_floating_point else small / 255


def is_cut(changes: Sequence[float], i: int, floor: float = 0.08, factor: float = 4.0) -> bool:
    """Whether a shot begins with change i: above `floor` and `factor` times the median of those near it."""
    near = [*changes[max(0, i - NEAR) : i], *changes[i + 1 : i + NEAR + 1]]
    usual = float(np.median(near)) if near else 0.0
    return changes[i] > max(floor, factor * usual)


@dataclass(frozen=True)
class Segments:
    """How videos are cut for search. `windows` of `seconds` that overlap by `overlap` (0..1), `shots`, `keyframes`, or
    `none`.

    Frames are read at `fps`, but never fewer than the model wants of a video; a shot longer than `seconds` is cut into
    windows as well. `keyframes` reads nothing but the frames that the file stores whole, which costs least: each begins
    a segment, unless the one before is not yet `seconds` long.
    """

    mode: str = "windows"
    seconds: float = 8.0
    overlap: float = 0.5
    fps: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ClipreelError(f"segments {self.mode!r}: allowed are {', '.join(MODES)}")
        if not (self.seconds > 0 and 0 <= self.overlap < 1 and self.fps > 0):
            raise ClipreelError("segments need seconds above 0, overlap from 0 to below 1, and fps above 0")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sampling(self, model: Sampling) -> Sampling:
        """The frames to read of a video."""
        if self.mode == "keyframes":
            return Sampling("keyframes", 0)
        return model if self.mode == "none" else Sampling("cover", model.frames, self.fps)

    def cut(self, frames: Frames) -> list[Part]:
        """(start_s, end_s, frames inside) of each segment; none where a single one would be the whole video."""
        cutter = Cutter(self, frames.info.duration_s)
        parts = [p for t, x in zip(frames.times_s, frames.pixels, strict=True) for p in cutter.push(float(t), x)]
        return parts + cutter.close()


class Cutter:
    """Segments of a video of a known length, each as soon as its frames have come; `push` them in order, then `close`.

    What it gave stays right whatever follows: cuts are decided NEAR frames late, and the first segment is held back
    until there is a second. `oldest` is the first frame that may still be in a segment to come.
    """

    def __init__(self, how: Segments, duration_s: float) -> None:
        self.how, self.duration_s = how, duration_s
        self._times: list[float] = []
        self._changes: list[float] = []
        self._thumbnail: Tensor | None = None
        self._start_s = 0.0  # of the next window
        self._last_s: float | None = None  # end of the last window of this shot
        self._first: list[Part] = []
        self._several = False

    @property
    def oldest(self) -> int:
        return self._first[0][2][0] if self._first else bisect_left(self._times, self._start_s)

    def push(self, time_s: float, pixels: Tensor) -> list[Part]:
        """The segments that are whole with this frame (3, n, n)."""
        self._times.append(time_s)
        if self.how.mode == "windows":
            return self._give(self._windows(time_s))
        if self.how.mode == "none":
            self._start_s = time_s
            return []
        if self.how.mode == "keyframes":
            return self._give(self._interval(time_s) if time_s - self._start_s >= self.how.seconds - 1e-6 else [])
        small, before = thumbnail(pixels), self._thumbnail
        self._thumbnail = small
        if before is None:
            return []
        self._changes.append(float((small - before).abs().mean()))
        return self._give(self._decide(len(self._changes) - 1 - NEAR))

    def close(self) -> list[Part]:
        """The segments that end with the video."""
        if self.how.mode == "none":
            return []
        if self.how.mode == "keyframes":
            return self._give(self._interval(self.duration_s))
        late = range(max(0, len(self._changes) - NEAR), len(self._changes))
        parts = [p for i in late for p in self._decide(i)]
        return self._give(parts + self._windows(self.duration_s, last=True))

    def _interval(self, until_s: float) -> list[Part]:
        """The segment from the last border to this one, where a frame lies in it."""
        inside = range(bisect_left(self._times, self._start_s), bisect_left(self._times, until_s))
        part = (self._start_s, until_s, list(inside))
        self._start_s = until_s
        return [part] if inside else []

    def _decide(self, change: int) -> list[Part]:
        """The windows that are sure now that it is known whether there is a cut."""
        if change < 0:
            return []
        border_s = self._times[change + 1]
        if not is_cut(self._changes, change):
            return self._windows(border_s)
        parts = self._windows(border_s, last=True)
        self._start_s, self._last_s = border_s, None
        return parts

    def _windows(self, until_s: float, last: bool = False) -> list[Part]:
        """Windows up to a moment; with `last` the shot ends there, and so does a shorter one."""
        parts = []
        while (self._last_s is None or self._last_s < until_s - 1e-6) if last else self._end_s <= until_s:
            self._last_s = min(self._end_s, until_s)
            inside = range(bisect_left(self._times, self._start_s), bisect_left(self._times, self._last_s))
            parts += [(self._start_s, self._last_s, list(inside))] if inside else []
            self._start_s += self.how.seconds * (1 - self.how.overlap)
        return parts

    @property
    def _end_s(self) -> float:
        return self._start_s + self.how.seconds

    def _give(self, parts: list[Part]) -> list[Part]:
        if self._several:
            return parts
        self._first += parts
        if len(self._first) < 2:
            return []
        self._several = True
        parts, self._first = self._first, []
        return parts
