"""Convpass: bottlenecks with a 3x3 convolution over the patches of a frame, beside both branches (arXiv 2207.07039).

Delta(h) = s (W_up qg(conv(qg(W_down h))) + b), from the normalised input of the branch; CLS goes through the same
convolution as an image of one pixel, so only the middle of the kernel acts on it. Checked against JieShibo/PETL-ViT on
parity fixtures; other widths and grids than its fixed ones are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.block import quick_gelu
from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.noise import dropout
from clipreel.patterns import Layout
from clipreel.sites import LayerTuner
from clipreel.tuners.adaptformer import VisionAdapters
from clipreel.tuners.checking import Options

STARTS = ("xavier", "identity")


@dataclass(frozen=True)
class ConvpassConfig(Options):
    """`width` of the bottleneck, `scale` (the paper searches 0.01 to 100 per data set), `attn_only` leaves the MLP
    alone, `start` of the kernel: xavier or identity, `dropout` while training; `text_width` above 0 puts bottlenecks
    into the text tower too, `biases` trains every bias of the base."""

    width: int = 8
    scale: float = 0.1
    attn_only: bool = False
    start: str = "xavier"
    dropout: float = 0.1
    text_width: int = 0
    biases: bool = False

    def check(self) -> None:
        self.one_of(start=STARTS)
        self.at_least(1, "width")
        self.at_least(0, "text_width")
        self.a_share("dropout")


class Bypass(nn.Module):
    def __init__(self, c: ConvpassConfig, d: int) -> None:
        super().__init__()
        self.scale, self.dropout = c.scale, c.dropout
        self.down, self.up = nn.Linear(d, c.width), nn.Linear(c.width, d)
        self.conv = nn.Conv2d(c.width, c.width, 3, padding=1)
        nn.init.xavier_uniform_(self.down.weight)
        if c.start == "xavier":
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            nn.init.dirac_(self.conv.weight)
        for zero in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, h_BSD: Tensor, layout: Layout) -> Tensor:
        """What is added, (B, S, D)."""
        B, T, L = len(h_BSD), layout.frames, layout.per_frame
        grid = math.isqrt(L - 1)
        if layout.globals or grid * grid != L - 1:
            raise ClipreelError(
                f"Convpass needs one CLS token and a square of patches per frame, not {layout.globals} global tokens "
                f"and {L} per frame; give square frames, and do not chain it with prompts"
            )
        z = quick_gelu(self.down(h_BSD)).unflatten(1, (T, L))
        image = z[:, :, 1:].reshape(B * T, grid, grid, -1).permute(0, 3, 1, 2)
        patches = self.conv(image).permute(0, 2, 3, 1).reshape(B, T, grid * grid, -1)
        cls = F.linear(z[:, :, :1], self.conv.weight[:, :, 1, 1], self.conv.bias)
        z = dropout(quick_gelu(torch.cat([cls, patches], 2)), self.dropout, self.training)
        return F.linear(z, self.scale * self.up.weight, self.scale * self.up.bias).flatten(1, 2)


class ConvpassLayer(LayerTuner):
    def __init__(self, c: ConvpassConfig, d: int) -> None:
        super().__init__()
        self.attn = Bypass(c, d)
        self.beside_attn = self.attention
        if not c.attn_only:
            self.mlp = Bypass(c, d)
            self.beside_mlp = self.feed_forward

    def attention(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.attn(h, layout)

    def feed_forward(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.mlp(h, layout)


class Convpass(VisionAdapters):
    def __init__(self, clip: Clip, config: ConvpassConfig) -> None:
        super().__init__(clip, config.text_width, config.biases)
        self.config = config
        for i in range(clip.config.vision.layers):
            self.place("vision", i, ConvpassLayer(config, clip.config.vision.width))
