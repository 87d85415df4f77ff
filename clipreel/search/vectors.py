"""From the frames of a video, one after the other, to its vectors: few frames are held however long the video is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from clipreel.search.index import LEVELS
from clipreel.video.decode import Stream
from clipreel.video.shots import Cutter, Part, Segments

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

MOST_FRAMES = 64  # of one forward pass


def vectors_of(model: Retriever, segments: Segments, video: Stream, keep_frames: bool = False) -> list[dict[str, Any]]:
    """One row of the whole video (from evenly spread frames) and one of each segment. Raises DecodeError.

    `keep_frames` adds what the vectors are made of: `frames` (T, E) float16, before any normalisation, and `times_s`
    of each. Held are the
    frames of the segments that are not whole yet, those that show the whole video, and one batch.
    """
    cutter = Cutter(segments, video.info.duration_s)
    whole = spread(video.count, model.sampling.frames)
    kept = set(whole)
    held: dict[int, Tensor] = {}
    encoder: Encoder = Pooled(model) if model.pools_frames else Jointly(model)
    parts: list[Part] = []
    times_s: list[float] = []

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
        times_s.append(time_s)
        take(cutter.push(time_s, pixels[0]))
        for i in range(gone, cutter.oldest):
            if i not in kept:
                del held[i]
        gone = cutter.oldest
    take(cutter.close())
    encoder.add(whole, held)
    *others, first = encoder.stacks()
    pieces: list[Part] = [(0.0, video.info.duration_s, whole), *parts]
    rows = []
    for n, ((start_s, end_s, inside), stack) in enumerate(zip(pieces, [first, *others], strict=True)):
        level, vector = LEVELS.index("segment" if n else "video"), model.pool(stack[None])[0].cpu().numpy()
        row = {"level": level, "start_s": start_s, "end_s": end_s, "vector": vector}
        if keep_frames:
            shown = [times_s[inside[i]] for i in spread(len(inside), model.sampling.frames)]
            # a tower whose frames meet may give fewer vectors than it saw frames: they have no times
            row |= {"frames": stack.half().cpu().numpy(), "times_s": shown if len(shown) == len(stack) else []}
        rows.append(row)
    return rows


class Encoder(Protocol):
    """Collects what is to be encoded; the frames of an `add` need not be held any longer."""

    def add(self, chosen: Sequence[int], held: dict[int, Tensor]) -> None: ...

    def stacks(self) -> list[Tensor]:
        """For each `add` what the tower makes of its frames, (T, E)."""
        ...


class Pooled:
    """For a model that encodes each frame by itself: once, however many segments share it."""

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

    def stacks(self) -> list[Tensor]:
        self._encode()
        return [torch.stack([self.done[i] for i in chosen]) for chosen in self.chosen]

    def _encode(self) -> None:
        if self.waiting:
            self.done |= zip(self.waiting, raw(self.model, list(self.waiting.values())), strict=True)
            self.waiting = {}


class Jointly:
    """For a model in which the frames of a video meet: each segment is encoded by itself."""

    def __init__(self, model: Retriever) -> None:
        self.model = model
        self.made: list[Tensor] = []

    def add(self, chosen: Sequence[int], held: dict[int, Tensor]) -> None:
        self.made.append(raw(self.model, [held[i] for i in chosen]))

    def stacks(self) -> list[Tensor]:
        return self.made


def raw(model: Retriever, frames: list[Tensor]) -> Tensor:
    """What the tower makes of frames, each (1, 3, n, n) -> (T, E), before any normalisation."""
    return model.encode_frames(model.preprocess.normalise(torch.cat(frames))[None], normalize=False)[0]


def spread(n: int, frames: int) -> list[int]:
    """`frames` indices evenly over n, or all of them."""
    return list(range(n)) if n <= frames else [(2 * i + 1) * n // (2 * frames) for i in range(frames)]
