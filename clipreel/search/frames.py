"""Frames in and around a moment with their scores: those that the index keeps, or decoded again for a few hits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from clipreel.search.answer import Matched
from clipreel.search.index import File, Index
from clipreel.search.rerank import FrameStore, Timed
from clipreel.search.spans import Span, best_frames, sharpened
from clipreel.video.decode import DecodeError, read_frames
from clipreel.video.sampling import Sampling
from clipreel.video.shots import Segments

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

DECODED = 3  # hits of an answer whose file is opened
FPS, MOST, PATIENCE_S = 2.0, 48, 10.0  # frames a second, of one moment, and seconds for a file


class Frameside:
    """Where the frames of an index come from."""

    def __init__(self, index: Index, model: Retriever) -> None:
        self.index, self.model = index, model
        how = Segments(**index.facts["segments"])
        self.around_s, self.loose = how.seconds, how.mode == "keyframes"  # too few frames to move an end by
        self.store = FrameStore(index) if index.facts.get("frames") else None

    def sharpen(
        self, file: File, span: Span, vector: NDArray[np.float32], decode: bool
    ) -> tuple[float, float, tuple[Matched, ...]] | None:
        """Start, end and best frames of a moment; None where there are no frames to look at."""
        first = max(0.0, span.start_s - self.around_s / 2)
        last = min(file.duration_s, span.end_s + self.around_s / 2)
        kept = None if self.store is None else self.store.between(file.id, first, last)
        found = self.decoded(file, first, last) if kept is None and decode else kept
        if found is None:
            return None
        times_s, vectors = found
        if self.loose and kept is not None:
            inside = (times_s >= span.start_s - 1e-3) & (times_s < span.end_s)
            return span.start_s, span.end_s, best_frames(times_s[inside], vectors[inside] @ vector)
        return sharpened(span, times_s, vectors @ vector)

    def decoded(self, file: File, start_s: float, end_s: float) -> Timed | None:
        """Frames of a part of a file, each encoded as a video of one frame; None where it cannot be read any more."""
        how = Sampling("rate", MOST, FPS)
        try:
            frames = read_frames(
                file.path,
                how,
                start_s=start_s,
                end_s=end_s,
                timeout_s=PATIENCE_S,
                transform=self.model.preprocess.pixels,
            )
        except (DecodeError, OSError):
            return None
        pixels = self.model.preprocess.normalise(frames.pixels)[:, None]
        times, first = np.unique(frames.times_s, return_index=True)
        return times, self.model.encode_video(pixels[torch.from_numpy(first)]).cpu().numpy()
