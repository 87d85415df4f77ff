"""CLIP4Clip's sequential transformer (seqTransf, arXiv 2104.08860, section 3.3; specification mv_adapter.md 6.6).

g + Blocks(g + positions), then the mean of unit vectors. Checked against ArrowLuo/CLIP4Clip.
"""

from __future__ import annotations

from torch import Tensor, nn

from clipreel.heads.base import PoolingHead
from clipreel.heads.blocks import Blocks


class SeqTransf(PoolingHead):
    """Frames see each other in `layers` blocks; at most `positions` frames."""

    name = "seq_transf"

    def __init__(self, width: int, *, layers: int = 4, heads: int = 0, positions: int = 77) -> None:
        super().__init__(width)
        self.over_time = Blocks(width, layers, heads, positions)

    def start(self, text_blocks: nn.ModuleList, text_positions: Tensor) -> None:
        self.over_time.start(text_blocks, text_positions)

    def context(self, frames_VTE: Tensor, frame_mask: Tensor | None) -> Tensor:
        return frames_VTE + self.over_time(frames_VTE, frame_mask)
