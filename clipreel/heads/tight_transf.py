"""CLIP4Clip's tight transformer (tightTransf, arXiv 2104.08860, section 3.3; specification mv_adapter.md 6.6).

For every pair: [text, frames] + positions through blocks of CLIP, LayerNorm of the first token, a dense layer,
QuickGELU, one number. Checked against ArrowLuo/CLIP4Clip, whose type ids are built and never used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.heads.base import Head
from clipreel.heads.blocks import EPS, Blocks


class TightTransf(Head):
    """A score of its own scale (no cosine) from a transformer over the text and the frames: costs a pass per pair."""

    name = "tight_transf"
    cosine = False

    def __init__(
        self, width: int, *, layers: int = 4, heads: int = 0, positions: int = 77, dropout: float = 0.1
    ) -> None:
        super().__init__(width)
        self.joint = Blocks(width, layers, heads, positions)
        self.dropout = dropout
        self.ln, self.dense, self.score_of = nn.LayerNorm(width, EPS), nn.Linear(width, width), nn.Linear(width, 1)
        for layer in (self.dense, self.score_of):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def start(self, text_blocks: nn.ModuleList, text_positions: Tensor) -> None:
        self.joint.start(text_blocks, text_positions)

    def videos(self, frames_VTE: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return frames_VTE, frame_mask

    def pairs(self, text_NE: Tensor, videos: tuple[Tensor, Tensor | None]) -> Tensor:
        frames_VTE, mask = videos
        (V, T, E), N = frames_VTE.shape, len(text_NE)
        text = text_NE[:, None, None].expand(N, V, 1, E)
        x = torch.cat([text, frames_VTE.expand(N, V, T, E)], 2).flatten(0, 1)
        seen = None if mask is None else F.pad(mask, (1, 0), value=True).repeat(N, 1)
        first = self.ln(self.joint(x, seen, self.dropout if self.training else 0.0)[:, 0])
        z = self.dense(first)
        return self.score_of(z * torch.sigmoid(1.702 * z)).reshape(N, V)

    def floats(self, frames: int) -> tuple[int, int]:
        return frames * self.width, (1 + frames) * 4 * self.width
