"""AdaptFormer: bottlenecks beside a branch of every block (arXiv 2205.13535), parallel or sequential.

A(x) = s (W_up ReLU(W_down x + b) + b'), from the residual before its LayerNorm (parallel) or from the branch's output
(sequential), added to the branch; checked against ShoufaChen/AdaptFormer on parity fixtures. VoP's Adapter-ATTN and
Adapter-FFN are its parallel form; MV-Adapter's comparison puts the sequential one into text towers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.block import normalise
from clipreel.clip import Clip
from clipreel.noise import dropout
from clipreel.patterns import Layout
from clipreel.sites import NOTHING, LayerTuner
from clipreel.tuners.checking import Options
from clipreel.tuners.overriding import WithBiases

BRANCHES = ("attn", "ffn")
FORMS = ("parallel", "sequential")
NORMS = ("none", "in", "out")


@dataclass(frozen=True)
class AdaptFormerConfig(Options):
    """`branch` attn or ffn, `width` of the bottleneck, `form` parallel or sequential; `scale` fixed, or None: learned,
    starting at one. `norm` puts a LayerNorm on what goes in, on what comes out, or none. `dropout` behind the ReLU
    while training. `biases` trains every bias of the base too."""

    branch: str = "ffn"
    width: int = 64
    scale: float | None = 0.1
    dropout: float = 0.1
    form: str = "parallel"
    norm: str = "none"
    biases: bool = False

    def check(self) -> None:
        self.one_of(branch=BRANCHES, form=FORMS, norm=NORMS)
        self.at_least(1, "width")
        self.a_share("dropout")


class Bottleneck(LayerTuner):
    def __init__(self, c: AdaptFormerConfig, d: int) -> None:
        super().__init__()
        self.dropout, self.sequential, self.place = c.dropout, c.form == "sequential", c.norm
        self.scale = nn.Parameter(torch.ones(())) if c.scale is None else c.scale
        self.norm = None if c.norm == "none" else nn.LayerNorm(d)
        self.down, self.up = nn.Linear(d, c.width), nn.Linear(c.width, d)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        setattr(self, "beside_attn" if c.branch == "attn" else "beside_mlp", self.delta)

    def delta(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.added(y if self.sequential else x)

    def added(self, x: Tensor) -> Tensor:
        if self.norm is not None and self.place == "in":
            x = normalise(self.norm, x, NOTHING, "norm")
        inner = dropout(F.relu(self.down(x)), self.dropout, self.training)
        out = F.linear(inner, self.scale * self.up.weight, self.scale * self.up.bias)
        return normalise(self.norm, out, NOTHING, "norm") if self.norm is not None and self.place == "out" else out


class AdaptFormer(WithBiases):
    def __init__(self, clip: Clip, config: AdaptFormerConfig) -> None:
        super().__init__(clip, config.biases)
        self.config = config
        for name, tower in (("vision", clip.config.vision), ("text", clip.config.text)):
            for i in range(tower.layers):
                self.place(name, i, Bottleneck(config, tower.width))


class VisionAdapters(WithBiases):
    """What adapters of the video tower alone have in common: `text_width` above 0 puts sequential AdaptFormers of this
    width, with a LayerNorm in front, into the text tower, as MV-Adapter's comparison does."""

    def __init__(self, clip: Clip, text_width: int, biases: bool) -> None:
        super().__init__(clip, biases)
        for i in range(clip.config.text.layers if text_width else 0):
            text = AdaptFormerConfig(width=text_width, form="sequential", norm="in")
            self.place("text", i, Bottleneck(text, clip.config.text.width))
