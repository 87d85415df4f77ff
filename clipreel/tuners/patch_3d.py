"""Patches over three frames: CLIP4Clip's 3-D patch embedding (arXiv 2104.08860, section 3.1; mv_adapter.md 6.6).

A convolution of 3 frames x patch x patch, one frame apart, replaces the patch weight; its middle begins as CLIP's own
and the rest as zero. Checked against ArrowLuo/CLIP4Clip, where padded frames are zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipreel.clip import Clip
from clipreel.sites import Tuner
from clipreel.tuners.checking import Options


@dataclass(frozen=True)
class Patch3dConfig(Options):
    """It has no options."""


class Patch3d(Tuner):
    """`weight` (D, 3, 3, p, p): channels out, channels in, frames before, now and after, rows, columns."""

    def __init__(self, clip: Clip, config: Patch3dConfig) -> None:
        super().__init__()
        own = clip.vision.patch.weight.detach()
        self.weight = nn.Parameter(torch.stack([torch.zeros_like(own), own, torch.zeros_like(own)], 2))

    @property
    def overrides(self) -> Mapping[str, Tensor]:
        return {"vision.patch.weight": self.weight}
