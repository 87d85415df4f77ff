"""Two poolings by text that learn nothing: the baselines of X-Pool (arXiv 2203.15086, section 4.1; core.md 8).

Both see unit vectors and compare the pooled frames with the text by their cosine. Checked against layer6ai-labs/xpool.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipreel.errors import ClipreelError
from clipreel.heads.base import Head, unit

Known = tuple[Tensor, "Tensor | None"]


class ByText(Head):
    """Frames weighed by their cosines with the text."""

    def videos(self, frames_VTE: Tensor, frame_mask: Tensor | None) -> Known:
        return unit(frames_VTE), frame_mask

    def weights(self, cosines_VNT: Tensor) -> Tensor:
        """How much each frame counts (V, N, T); cosines with padded frames are -inf."""
        raise NotImplementedError

    def pooled(self, text_NE: Tensor, videos: Known) -> Tensor:
        """What each text makes of each video (V, N, E)."""
        frames, mask = videos
        cosines = unit(text_NE) @ frames.transpose(1, 2)
        if mask is not None:
            cosines = cosines.masked_fill(~mask[:, None], -torch.inf)
        return self.weights(cosines) @ frames

    def pairs(self, text_NE: Tensor, videos: Known) -> Tensor:
        return torch.einsum("ne,vne->nv", unit(text_NE), unit(self.pooled(text_NE, videos)))

    def floats(self, frames: int) -> tuple[int, int]:
        return frames * self.width, max(self.width, frames)


class TopFrames(ByText):
    """The sum of the `k` frames that fit the text best, or of all where there are fewer."""

    name = "top_frames"

    def __init__(self, width: int, *, k: int = 3) -> None:
        super().__init__(width)
        if k < 1:
            raise ClipreelError(f"k {k}: give at least 1 frame")
        self.k = k

    def weights(self, cosines_VNT: Tensor) -> Tensor:
        top = cosines_VNT.topk(min(self.k, cosines_VNT.shape[-1]), -1)
        chosen = top.values.isfinite().to(cosines_VNT.dtype)
        return torch.zeros_like(cosines_VNT).scatter(-1, top.indices, chosen)


class SoftFrames(ByText):
    """All frames, weighed by softmax(cosine / temperature)."""

    name = "soft_frames"

    def __init__(self, width: int, *, temperature: float = 0.01) -> None:
        super().__init__(width)
        if not temperature > 0:
            raise ClipreelError(f"temperature {temperature}: give a number above 0")
        self.temperature = temperature

    def weights(self, cosines_VNT: Tensor) -> Tensor:
        return (cosines_VNT / self.temperature).softmax(-1)
