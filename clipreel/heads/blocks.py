"""The transformer over frames that two heads of CLIP4Clip share: blocks of CLIP with a smaller epsilon."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.block import Block, TowerConfig
from clipreel.errors import ClipreelError
from clipreel.patterns import Layout, jointly

EPS = 1e-12  # of every LayerNorm in these heads; CLIP's own is 1e-5


class Blocks(nn.Module):
    """`layers` pre-norm blocks over sequences (B, S, E) with learned positions, all real tokens in sight of each other.

    `heads` 0 means heads of 64 channels. `start` copies the first blocks and positions of CLIP's text tower, as the
    official code does; without it weights are as torch makes them and positions have a deviation of 0.02.
    """

    def __init__(self, width: int, layers: int, heads: int, positions: int) -> None:
        super().__init__()
        if min(layers, positions) < 1 or heads < 0:
            raise ClipreelError(f"layers {layers}, heads {heads}, positions {positions}: give at least 1, heads 0 or 1")
        heads = heads or max(1, width // 64)
        if width % heads:
            raise ClipreelError(f"heads {heads}: must divide the width {width} of the vectors")
        self.positions = nn.Parameter(torch.randn(positions, width) * 0.02)
        blocks = [Block(TowerConfig(layers, width, heads, 4 * width), "quick_gelu") for _ in range(layers)]
        for block in blocks:
            block.ln1.eps = block.ln2.eps = EPS
        self.blocks = nn.ModuleList(blocks)

    def start(self, text_blocks: nn.ModuleList, text_positions: Tensor) -> None:
        own = self.positions.data
        if text_positions.shape[1] != own.shape[1]:
            return  # a text tower of another width has nothing to give
        for mine, theirs in zip(self.blocks[: len(text_blocks)], text_blocks[: len(self.blocks)], strict=True):
            mine.load_state_dict(theirs.state_dict())
        shared = min(len(own), len(text_positions))
        own[:shared] = text_positions[:shared]

    def forward(self, x_BSE: Tensor, mask_BS: Tensor | None, dropout: float = 0.0) -> Tensor:
        S = x_BSE.shape[1]
        if len(self.positions) < S:
            raise ClipreelError(
                f"{S} tokens, but this head has learned {len(self.positions)} positions; take fewer frames of a video"
            )
        x, layout = F.dropout(x_BSE + self.positions[:S], dropout), Layout(0, S, 1, mask_BS)
        for block in self.blocks:
            x, layout = block(x, layout, jointly, None)
        return x
