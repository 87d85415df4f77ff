"""Adapters beside a branch of every block of both towers: Adapter-ATTN and Adapter-FFN of VoP's comparison.

A(x) = s (W_up ReLU(W_down x + b) + b'), from the residual before its LayerNorm, added to the branch: the parallel
form of AdaptFormer (arXiv 2205.13535), whose scale, dropout and start are taken. VoP gives only the width (64).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.patterns import Layout
from clipreel.sites import Layered, LayerTuner

BRANCHES = {"attn": "beside_attn", "ffn": "beside_mlp"}


@dataclass(frozen=True)
class ParallelConfig:
    """`branch` attn or ffn, `width` of the bottleneck, fixed `scale`, `dropout` behind its ReLU while training."""

    branch: str = "ffn"
    width: int = 64
    scale: float = 0.1
    dropout: float = 0.1


class Bottleneck(LayerTuner):
    def __init__(self, c: ParallelConfig, width: int) -> None:
        super().__init__()
        self.scale, self.dropout = c.scale, c.dropout
        self.down, self.up = nn.Linear(width, c.width), nn.Linear(c.width, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        setattr(self, BRANCHES[c.branch], self.delta)

    def delta(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        inner = F.dropout(F.relu(self.down(x)), self.dropout, self.training)
        return self.scale * self.up(inner)


class Parallel(Layered):
    def __init__(self, clip: Clip, config: ParallelConfig) -> None:
        super().__init__()
        if config.branch not in BRANCHES:
            raise ClipreelError(f"branch {config.branch!r}: allowed are {', '.join(BRANCHES)}")
        if config.width < 1:
            raise ClipreelError(f"width {config.width}: give at least 1")
        self.config = config
        for name, tower in (("vision", clip.config.vision), ("text", clip.config.text)):
            for i in range(tower.layers):
                self.place(name, i, Bottleneck(config, tower.width))
