"""From frame vectors to one video vector."""

from __future__ import annotations

from torch import Tensor


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
