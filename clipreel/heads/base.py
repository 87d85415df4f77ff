"""What every head is: scores of texts with videos, from the vectors of texts and frames as CLIP projects them.

A pooling head makes one vector of a video, whatever the text (CLIP4Clip's loose heads); other heads look at the frames
with the text in mind. All pairs of a whole test set are scored in pieces of bounded size (specification core.md 6).
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipreel.errors import ClipreelError

LARGEST = 2**22  # floats in the largest tensor while scoring: 16 MB, more is no faster


def unit(x: Tensor) -> Tensor:
    """Rows of length one, in float32, without an epsilon: a zero vector gives NaN instead of a silent zero."""
    x = x.float()
    return x / x.norm(dim=-1, keepdim=True)


def mean_pool(frames_BTE: Tensor, frame_mask: Tensor | None = None, normalize: bool = True) -> Tensor:
    """The mean (B, E) of the unit vectors of the real frames; `normalize` gives it length one.

    `frame_mask` (B, T) is False on padded frames. CLIP4Clip meanP and the four papers (specification mv_adapter 2.8).
    """
    z = unit(frames_BTE)
    if frame_mask is None:
        pooled = z.mean(1)
    else:
        real = frame_mask[..., None]
        pooled = z.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)  # masked_fill: a padded NaN stays out
    return unit(pooled) if normalize else pooled


class Head(nn.Module, ABC):
    """Scores (N, V) of texts (N, E) with videos of frames (V, T, E), all raw projections of CLIP, not unit vectors.

    `frame_mask` (V, T) is False on padded frames, which change nothing. Where scores are cosines (`cosine`), a loss
    multiplies them by the logit scale. `name` and `options` are those it was built with.
    """

    cosine = True
    name = ""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.options: dict[str, Any] = {}

    def start(self, text_blocks: nn.ModuleList, text_positions: Tensor) -> None:
        """Begin as the text tower of CLIP, where a head has blocks of its shape."""

    @abstractmethod
    def videos(self, frames_VTE: Tensor, frame_mask: Tensor | None) -> Any:
        """What is computed once for each video, whatever the texts."""

    @abstractmethod
    def pairs(self, text_NE: Tensor, videos: Any) -> Tensor:
        """Scores (N, V) from what `videos` gave."""

    @abstractmethod
    def floats(self, frames: int) -> tuple[int, int]:
        """Numbers in the largest tensor for each video, and for each pair, with that many frames."""

    def forward(self, text_NE: Tensor, frames_VTE: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """All scores at once, differentiable: for batches, not for test sets (`score`).

        Raises ClipreelError where a video has no real frame, or a size does not fit.
        """
        fitting(self.width, frames_VTE, frame_mask, text_NE)
        return self.pairs(text_NE.float(), self.videos(checked(frames_VTE, frame_mask), frame_mask))

    @torch.inference_mode()
    def score(
        self, text_NE: Tensor, frames_VTE: Tensor, frame_mask: Tensor | None = None, largest: int = LARGEST
    ) -> Tensor:
        """All scores (N, V) in float32, in pieces: no tensor but inputs and result holds more than `largest` numbers
        (or those of a single pair)."""
        fitting(self.width, frames_VTE, frame_mask, text_NE)
        N, V, T = len(text_NE), len(frames_VTE), frames_VTE.shape[1]
        per_video, per_pair = self.floats(T)
        columns = max(1, min(V, largest // per_video, math.isqrt(largest // per_pair)))
        rows = max(1, largest // (columns * per_pair))
        scores = text_NE.new_empty(N, V, dtype=torch.float32)
        for v in range(0, V, columns):
            part = slice(v, v + columns)
            mask = None if frame_mask is None else frame_mask[part]
            known = self.videos(checked(frames_VTE[part], mask), mask)
            for n in range(0, N, rows):
                scores[n : n + rows, part] = self.pairs(text_NE[n : n + rows].float(), known)
        return scores

    def fingerprint(self) -> str:
        """Identity of the head: its name, options and values."""
        digest = hashlib.blake2b(f"{self.name}{sorted(self.options.items())}".encode(), digest_size=16)
        for name, p in sorted(self.named_parameters()):
            digest.update(f"{name}{tuple(p.shape)}".encode())
            digest.update(p.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class PoolingHead(Head):
    """A head that gives every video a vector of its own, so that videos can be indexed by it."""

    def context(self, frames_VTE: Tensor, frame_mask: Tensor | None) -> Tensor:
        """The frames (V, T, E) as each is seen among the others; padded ones are left to the mean to take out."""
        return frames_VTE

    def pool(self, frames_VTE: Tensor, frame_mask: Tensor | None = None, normalize: bool = True) -> Tensor:
        """The vector (V, E) of each video; `normalize` gives it length one."""
        fitting(self.width, frames_VTE, frame_mask)
        return mean_pool(self.context(checked(frames_VTE, frame_mask), frame_mask), frame_mask, normalize)

    def videos(self, frames_VTE: Tensor, frame_mask: Tensor | None) -> Tensor:
        return mean_pool(self.context(frames_VTE, frame_mask), frame_mask)

    def pairs(self, text_NE: Tensor, videos: Tensor) -> Tensor:
        return unit(text_NE) @ videos.T

    def floats(self, frames: int) -> tuple[int, int]:
        return 4 * frames * self.width, 1


class MeanHead(PoolingHead):
    """The mean over frames (CLIP4Clip meanP), as a head."""

    name = "mean"


def fitting(width: int, frames_VTE: Tensor, frame_mask: Tensor | None, text_NE: Tensor | None = None) -> None:
    """Raises ClipreelError where vectors are not of this width, where there is no frame, or for another mask."""
    shape = tuple(frames_VTE.shape)
    if len(shape) != 3 or shape[2] != width or not shape[1]:
        raise ClipreelError(f"frames must be (V, T, {width}) with at least one frame for this head, not {shape}")
    if text_NE is not None and (text_NE.ndim != 2 or text_NE.shape[1] != width):
        raise ClipreelError(f"texts must be (N, {width}) for this head, not {tuple(text_NE.shape)}")
    real_frames(frame_mask, shape[:2])


def real_frames(frame_mask: Tensor | None, shape: Sequence[int]) -> None:
    """Raises ClipreelError for a mask that is not bool (B, T) as the videos are."""
    if frame_mask is None or (frame_mask.dtype is torch.bool and tuple(frame_mask.shape) == tuple(shape)):
        return
    kind = str(frame_mask.dtype).removeprefix("torch.")
    raise ClipreelError(
        f"frame_mask is {kind} {tuple(frame_mask.shape)}: give bool {tuple(shape)}, True for real frames"
        + ("" if frame_mask.dtype is torch.bool else "; .bool() makes it of ones and zeros")
    )


def checked(frames_VTE: Tensor, frame_mask: Tensor | None) -> Tensor:
    """The frames in float32, padded ones replaced: they may hold NaN, which no weight of zero takes out of a sum.

    Raises ClipreelError that names the first video without a single real frame.
    """
    if frame_mask is None:
        return frames_VTE.float()
    real = frame_mask.any(1)
    if not bool(real.all()):
        raise ClipreelError(
            f"frame_mask hides every frame of video {int(real.int().argmin())} of {len(real)}; leave that video out, "
            "or give its frames"
        )
    return frames_VTE.float().masked_fill(~frame_mask[..., None], 1.0)  # not zero, which has no direction
