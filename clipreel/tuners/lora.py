"""LoRA: low-rank updates of the linear layers of every block (arXiv 2106.09685).

y + (alpha / rank) B A x, A Kaiming-uniform and B zero at the start. q, k and v are parts of one fused layer here, so
their B is kept per part. Merging for export is exact: W + (alpha / rank) B A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.block import Block
from clipreel.clip import Clip
from clipreel.noise import dropout
from clipreel.sites import Layered, LayerTuner
from clipreel.tuners.checking import Options

PARTS = ("q", "k", "v", "out", "fc", "proj")


@dataclass(frozen=True)
class LoraConfig(Options):
    """`targets` of q, k, v, out, fc, proj; `towers` of vision, text; `dropout` before A while training."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")
    towers: tuple[str, ...] = ("vision", "text")
    dropout: float = 0.0

    def check(self) -> None:
        self.some_of(PARTS, "targets")
        self.some_of(("vision", "text"), "towers")
        self.at_least(1, "rank")
        self.a_share("dropout")


class LowRank(LayerTuner):
    """The updates of one block; `rows[part]` are the outputs of its layer that a part makes."""

    def __init__(self, c: LoraConfig, block: Block) -> None:
        super().__init__()
        self.scale, self.dropout = c.alpha / c.rank, c.dropout
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for part in c.targets:
            weight = getattr(block, layer_of(part)).weight
            out = weight.shape[0] // 3 if part in "qkv" else weight.shape[0]
            self.down[part] = nn.Parameter(torch.empty(c.rank, weight.shape[1]))
            nn.init.kaiming_uniform_(self.down[part], a=math.sqrt(5))
            self.up[part] = nn.Parameter(torch.zeros(out, c.rank))

    def linear(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        parts = [p for p in self.down if layer_of(p) == name]
        if not parts:
            return y
        x = dropout(x, self.dropout, self.training)
        deltas = {p: F.linear(F.linear(x, self.down[p]), self.up[p]) * self.scale for p in parts}
        if name != "qkv":
            return y + deltas[name]
        zero = torch.zeros_like(next(iter(deltas.values())))
        return y + torch.cat([deltas.get(p, zero) for p in "qkv"], -1)

    def update(self, name: str, weight: Tensor) -> Tensor:
        """What merging adds to the weight of a layer."""
        total = torch.zeros_like(weight)
        third = len(weight) // 3
        for part in self.down:
            if layer_of(part) == name:
                rows = slice("qkv".index(part) * third, None) if part in "qkv" else slice(None)
                update = self.scale * self.up[part] @ self.down[part]
                total[rows][: len(update)] += update
        return total


def layer_of(part: str) -> str:
    return "qkv" if part in "qkv" else part


class Lora(Layered):
    def __init__(self, clip: Clip, config: LoraConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        for name in c.towers:
            for i, block in enumerate(getattr(clip, name).blocks):
                self.place(name, i, LowRank(c, block))

    @torch.no_grad()
    def merged(self, clip: Clip) -> dict[str, Tensor]:
        """Base tensors that, put into the base, make this tuner superfluous."""
        found: dict[str, Tensor] = {}
        for (tower, i), layer in self.placed.items():
            assert isinstance(layer, LowRank)
            for linear in dict.fromkeys(layer_of(p) for p in self.config.targets):
                name = f"{tower}.blocks.{i}.{linear}.weight"
                weight = clip.get_parameter(name)
                found[name] = weight + layer.update(linear, weight)
        return found
