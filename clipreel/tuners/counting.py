"""Trainable numbers of a method, counted in full and as the tables of VoP's paper count them (specification vop.md 6).

That count takes only what belongs to a leaf module, so it skips the joined projections of attention, the class and
position embeddings, both output projections and the scale; of the base, not of what a method adds, whose frame
positions are the only tensors that it skips. In full is what this project states everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.sites import Overrides, Tuner
from clipreel.tuners import TUNERS, build

TEXT_B, TEXT_L = TowerConfig(12, 512, 8, 2048), TowerConfig(12, 768, 12, 3072)
ARCHITECTURES = {
    "ViT-B/32": ClipConfig(224, 32, TowerConfig(12, 768, 12, 3072), TEXT_B, 77, 49408, 512, "quick_gelu"),
    "ViT-B/16": ClipConfig(224, 16, TowerConfig(12, 768, 12, 3072), TEXT_B, 77, 49408, 512, "quick_gelu"),
    "ViT-L/14": ClipConfig(224, 14, TowerConfig(24, 1024, 16, 4096), TEXT_L, 77, 49408, 768, "quick_gelu"),
}


@dataclass(frozen=True)
class Count:
    """Numbers in full and by the paper's rule, and what part of the base they are (per cent)."""

    trainable: int
    share: float
    paper: int
    paper_share: float


def skipped_by_paper(name: str) -> bool:
    """Whether a tensor of the base belongs to no leaf module. `name` as in a Clip."""
    return ".qkv." in name or name == "logit_scale" or name.endswith((".cls", ".pos"))


def whole_by_paper(clip: Clip) -> int:
    """All parameters of a CLIP by the paper's rule: 119,826,432 for ViT-B/32."""
    heads = ("vision.head", "text.head")
    return sum(p.numel() for n, p in clip.named_parameters() if not skipped_by_paper(n) and n not in heads)


def by_paper(tuner: Tuner, clip: Clip) -> int:
    own = {n: p.numel() for n, p in tuner.named_parameters()}
    for prefix, part in tuner.named_modules():
        if isinstance(part, Overrides):
            for n in part.by_name:
                if skipped_by_paper(n):
                    own.pop(f"{prefix}.tensors.{n.replace('.', '/')}")
    return sum(n for name, n in own.items() if not name.endswith("frame_position"))


def counts(config: ClipConfig) -> dict[str, Count]:
    """Every method with its preset on a CLIP of this architecture; no weights are made."""
    with torch.device("meta"):
        clip = Clip(config)
        found = {}
        base, paper_base = sum(p.numel() for p in clip.parameters()), whole_by_paper(clip)
        for name in TUNERS:
            tuner = build(name, clip)
            n = sum(p.numel() for p in tuner.parameters())
            p = paper_base if name == "full" else by_paper(tuner, clip)
            found[name] = Count(n, 100 * n / base, p, 100 * p / paper_base)
    return found
