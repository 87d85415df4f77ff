"""Baselines that train tensors of the base itself: everything, all biases, the projections, or the last blocks.

Definitions: VoP's table of tuning strategies (arXiv 2211.12764), whose Bias, Partial and Proj files are whole CLIPs.
The base in memory stays as it is; the trained tensors replace its own while this tuner is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.sites import NOTHING, Layered, Overrides, Tuner
from clipreel.tuners.checking import Options


@dataclass(frozen=True)
class OverridingConfig(Options):
    """`what`: full (every tensor, the logit scale too), bias (names that end in bias), proj (both projections), partial
    (the last `blocks` blocks of both towers; final LayerNorms and projections stay)."""

    what: str = "full"
    blocks: int = 1

    def check(self) -> None:
        self.one_of(what=("full", "bias", "proj", "partial"))
        self.at_least(1, "blocks")


def is_bias(name: str) -> bool:
    return name.endswith(".bias")


def chosen(c: OverridingConfig, clip: Clip) -> Callable[[str], bool]:
    layers = {"vision": clip.config.vision.layers, "text": clip.config.text.layers}
    if c.what == "partial" and c.blocks > min(layers.values()):
        raise ClipreelError(f"blocks {c.blocks}: give 1 to {min(layers.values())}")

    def late(name: str) -> bool:
        tower, *rest = name.split(".")
        return bool(rest) and rest[0] == "blocks" and int(rest[1]) >= layers[tower] - c.blocks

    rules: dict[str, Callable[[str], bool]] = {
        "full": lambda name: True,
        "bias": is_bias,
        "proj": lambda name: name in ("vision.head", "text.head"),
        "partial": late,
    }
    return rules[c.what]


class Overriding(Tuner):
    def __init__(self, clip: Clip, config: OverridingConfig) -> None:
        super().__init__()
        self.config = config
        self.base = Overrides(clip, chosen(config, clip))

    @property
    def overrides(self) -> Mapping[str, Tensor]:
        return self.base.by_name

    def merged(self, clip: Clip) -> dict[str, Tensor]:
        """Base tensors that, put into the base, make this tuner superfluous."""
        return {name: tensor.detach() for name, tensor in self.overrides.items()}


class WithBiases(Layered):
    """Layers beside which every bias of the base is trained too, as MV-Adapter's released code does for all methods."""

    def __init__(self, clip: Clip, biases: bool) -> None:
        super().__init__()
        self.base = Overrides(clip, is_bias) if biases else None

    @property
    def overrides(self) -> Mapping[str, Tensor]:
        return NOTHING if self.base is None else self.base.by_name
