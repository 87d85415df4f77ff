"""Cross-Modal Adapter: bottlenecks behind both branches of both towers, part of whose up-projection is one tensor for
the video and the text layer of the same number (arXiv 2211.09623).

y + [W_own a + b, W_shared a + b'], a = act(W_down y + b); the shared rows are the last channels. Written from the
released code's description (LeapLabTHU/Cross-Modal-Adapter); there is no parity fixture. It does not start as the base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.block import normalise, quick_gelu
from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.patterns import Layout
from clipreel.sites import NOTHING, LayerTuner
from clipreel.tuners.checking import Options
from clipreel.tuners.overriding import WithBiases

BRANCHES = ("attn", "ffn")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


@dataclass(frozen=True)
class CrossModalConfig(Options):
    """`width` of the bottleneck, `shared` channels (the released command; its code's default is 32), `branches` of
    attn, ffn, `activation` gelu (the tanh form) or quick_gelu, `norm` a LayerNorm in front; `biases` trains every bias
    of the base too."""

    width: int = 8
    shared: int = 16
    branches: tuple[str, ...] = ("attn", "ffn")
    activation: str = "quick_gelu"
    norm: bool = False
    biases: bool = False

    def check(self) -> None:
        self.some_of(BRANCHES, "branches")
        self.one_of(activation=tuple(ACTIVATIONS))
        self.at_least(1, "width", "shared")


class HalfShared(nn.Module):
    def __init__(self, c: CrossModalConfig, d: int, shared: nn.Linear) -> None:
        super().__init__()
        self.activation, self.norm = ACTIVATIONS[c.activation], nn.LayerNorm(d) if c.norm else None
        self.down, self.own, self.shared = nn.Linear(d, c.width), nn.Linear(c.width, d - c.shared), shared
        for linear in (self.down, self.own, self.shared):
            nn.init.trunc_normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    def forward(self, y: Tensor) -> Tensor:
        y = y if self.norm is None else normalise(self.norm, y, NOTHING, "norm")
        a = self.activation(self.down(y))
        return torch.cat([self.own(a), self.shared(a)], -1)


class CrossModalLayer(LayerTuner):
    def __init__(self, c: CrossModalConfig, d: int, shared: Mapping[str, nn.Linear]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({branch: HalfShared(c, d, shared[branch]) for branch in c.branches})
        if "attn" in c.branches:
            self.beside_attn = self.attention
        if "ffn" in c.branches:
            self.beside_mlp = self.feed_forward

    def attention(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.parts["attn"](y)

    def feed_forward(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.parts["ffn"](y)


class CrossModal(WithBiases):
    def __init__(self, clip: Clip, config: CrossModalConfig) -> None:
        super().__init__(clip, config.biases)
        c, base = config, clip.config
        self.config = c
        least = min(base.vision.width, base.text.width)
        if c.shared >= least:
            raise ClipreelError(f"shared {c.shared}: give less than {least}, the width of the narrower tower")
        if base.vision.layers != base.text.layers:
            raise ClipreelError(
                f"the towers have {base.vision.layers} and {base.text.layers} layers, which cannot share pair by pair; "
                "use a base with as many of both"
            )
        shared = [{branch: nn.Linear(c.width, c.shared) for branch in c.branches} for _ in range(base.text.layers)]
        # registered before the layers that share them, so that each tensor bears one name
        self.shared = nn.ModuleList(nn.ModuleDict(part) for part in shared)
        for name, tower in (("vision", base.vision), ("text", base.text)):
            for i in range(tower.layers):
                self.place(name, i, CrossModalLayer(c, tower.width, shared[i]))
