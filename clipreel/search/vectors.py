"""From the frames of a video, one after the other, to its vectors: few frames are held however long the video is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from clipreel.heads import mean_pool
from clipreel.search.index import LEVELS
from clipreel.video.decode import Stream
from clipreel.video.shots import Cutter, Part, Segments

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

MOST_FRAMES = 64  # of one forward pass


def vectors_of(model: Retriever, segments: Segments, video: Stream) -> list[dict[str, Any]]:
    """One row of the whole video (from evenly spread frames) and one of each segment. Raises DecodeError.

    Held are the frames of the segments that are not whole yet, those that show the whole video, and one batch.
    """
    cutter = Cutter(segments, video.info.duration_s)
    whole = spread(video.count, model.sampling.frames)
    kept = set(whole)
    held: dict[int, Tensor] = {}
    encoder: Encoder = Pooled(model) if model.pools_frames else Jointly(model)
    parts: list[Part] = []

    def take(ready: Sequence[Part]) -> None:
        for part in ready:
            inside = part[2]
            chosen = [inside[i] for i in spread(len(inside), model.sampling.frames)]
            encoder.add(chosen, held)
            parts.append(part)

    gone = 0
    for n, (time_s, pixels) in enumerate(video.frames):
        # a copy: what comes from another process is a view of a piece of many frames
        held[n] = pixels.clone()
        take(cutter.push(time_s, pixels[0]))
        for i in range(gone, cutter.oldest):
            if i not in kept:
                del held[i]
        gone = cutter.oldest
    take(cutter.close())
    encoder.add(whole, held)
    *others, first = encoder.vectors()
    times = [(0.0, video.info.duration_s), *((start_s, end_s) for start_s, end_s, _ in parts)]
    rows = []
    for n, ((start_s, end_s), vector) in enumerate(zip(times, [first, *others], strict=True)):
        level = LEVELS.index("segment" if n else "video")
        rows.append({"level": level, "start_s": start_s, "end_s": end_s, "vector": vector.cpu().numpy()})
    return rows


class Encoder(Protocol):
    """Collects what is to be encoded; the frames of an `add` need not be held any longer."""

    def add(self, chosen: Sequence[int], held: dict[int, Tensor]) -> None: ...

    def vectors(self) -> list[Tensor]: ...


class Pooled:
    """For a model that means frames: each is encoded once, however many segments share it."""

    def __init__(self, model: Retriever) -> None:
        self.model = model
        self.waiting: dict[int, Tensor] = {}
        self.done: dict[int, Tensor] = {}
        self.chosen: list[Sequence[int]] = []

    def add(self, chosen: Sequence[int], held: dict[int, Tensor]) -> None:
        self.chosen.append(chosen)
        for i in chosen:
            if i not in self.done and i not in self.waiting:
                self.waiting[i] = held[i]
                if len(self.waiting) == MOST_FRAMES:
                    self._encode()

    def vectors(self) -> list[Tensor]:
        self._encode()
        return [mean_pool(torch.stack([self.done[i] for i in chosen])[None])[0] for chosen in self.chosen]

    def _encode(self) -> None:
        if self.waiting:
            pixels = self.model.preprocess.normalise(torch.cat(list(self.waiting.values())))
            self.done |= zip(self.waiting, self.model.encode_frames(pixels[None])[0], strict=True)
            self.waiting = {}


class Jointly:
    """For a model in which the frames of a video meet: each segment is encoded by itself."""

    def __init__(self, model: Retriever) -> None:
        self.model = model
        self.made: list[Tensor] = []

    def add(self, chosen: Sequence[int], held: dict[int, Tensor]) -> None:
        pixels = self.model.preprocess.normalise(torch.cat([held[i] for i in chosen]))
        self.made.append(self.model.encode_video(pixels[None])[0])

    def vectors(self) -> list[Tensor]:
        return self.made


def spread(n: int, frames: int) -> list[int]:
    """`frames` indices evenly over n, or all of them."""
    return list(range(n)) if n <= frames else [(2 * i + 1) * n // (2 * frames) for i in range(frames)]
