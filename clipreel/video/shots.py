"""Where a video is cut into segments: windows of fixed length, or shots found on the frames that are decoded anyway."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipreel.errors import ClipreelError
from clipreel.video.decode import Frames
from clipreel.video.sampling import Sampling

MODES = ("windows", "shots", "none")


def frame_changes(pixels: Tensor) -> NDArray[np.float64]:
    """How much each frame differs from the one before, 0..1 (T - 1,); pixels uint8 or float (T, 3, n, n)."""
    x = F.adaptive_avg_pool2d(pixels.float(), 8)
    scale = 255.0 if not pixels.dtype.is_floating_point else 1.0
    return ((x[1:] - x[:-1]).abs().mean((1, 2, 3)) / scale).numpy().astype(np.float64)


def cuts(pixels: Tensor, floor: float = 0.08, factor: float = 4.0) -> list[int]:
    """Frames at which a new shot begins: the change is above `floor` and `factor` times the median around it."""
    changes = frame_changes(pixels)
    found = []
    for i, change in enumerate(changes):
        near = np.delete(changes[max(0, i - 8) : i + 9], min(i, 8))
        usual = float(np.median(near)) if len(near) else 0.0
        if change > floor and change > factor * usual:
            found.append(i + 1)
    return found


@dataclass(frozen=True)
class Segments:
    """How videos are cut for search. `windows` of `seconds` that overlap by `overlap` (0..1), `shots`, or `none`.

    Frames are read at `fps`, but never fewer than the model wants of a video; a shot longer than `seconds` is cut into
    windows as well.
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
        return model if self.mode == "none" else Sampling("cover", model.frames, self.fps)

    def cut(self, frames: Frames) -> list[tuple[float, float, list[int]]]:
        """(start_s, end_s, frames inside) of each segment; none where a single one would be the whole video."""
        if self.mode == "none":
            return []
        times, end = frames.times_s, frames.info.duration_s
        borders = [0.0]
        if self.mode == "shots":
            borders += [float(times[i]) for i in cuts(frames.pixels)]
        borders.append(end)
        parts = []
        for start_s, end_s in pairwise(borders):
            for a, b in self._windows(start_s, end_s):
                inside = [i for i, t in enumerate(times) if a <= t < b]
                if inside:
                    parts.append((a, b, inside))
        return parts if len(parts) > 1 else []

    def _windows(self, start_s: float, end_s: float) -> list[tuple[float, float]]:
        step = self.seconds * (1 - self.overlap)
        found = [(start_s, min(start_s + self.seconds, end_s))]
        while found[-1][1] < end_s - 1e-6:
            start = found[-1][0] + step
            found.append((start, min(start + self.seconds, end_s)))
        return found
