"""Trainable numbers of a method, counted in full and as the tables of VoP's paper count them (specification vop.md 6).

That count takes only what belongs to a leaf module, so it skips the joined projections of attention, the class and
position embeddings, both output projections and the scale; of the base, not of what a method adds, whose frame
positions are the only tensors that it skips. In full is what this project states everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.errors import ClipreelError
from clipreel.sites import Overrides, Tuner
from clipreel.tuners import TUNERS, build, options

TEXT_B, TEXT_L = TowerConfig(12, 512, 8, 2048), TowerConfig(12, 768, 12, 3072)
ARCHITECTURES = {
    "ViT-B/32": ClipConfig(224, 32, TowerConfig(12, 768, 12, 3072), TEXT_B, 77, 49408, 512, "quick_gelu"),
    "ViT-B/16": ClipConfig(224, 16, TowerConfig(12, 768, 12, 3072), TEXT_B, 77, 49408, 512, "quick_gelu"),
    "ViT-L/14": ClipConfig(224, 14, TowerConfig(24, 1024, 16, 4096), TEXT_L, 77, 49408, 768, "quick_gelu"),
}
LONG = {"frames": 32, "words": 64}
# settings of MV-Adapter, and what the paper prints for them (per cent of ViT-B/16, biases counted): its tables were
# made with "down in" and without the LayerNorm in front, whatever the released configs say
MV_ADAPTER: Mapping[str, tuple[dict[str, Any], float | None]] = {
    "no tying": ({"tie": "none"}, None),
    "MSR-VTT released": ({"tie": "down out"}, 2.39),
    "MSR-VTT, MSVD": ({}, 2.39),
    "LSMDC": ({"tied": 3}, 2.42),
    "DiDeMo released": ({"tie": "down out", **LONG}, 2.42),
    "DiDeMo": (LONG, 2.42),
    "ActivityNet released": ({"tied": 1, "lnin": True, **LONG}, 2.40),
    "ActivityNet": ({"tied": 1, **LONG}, 2.40),
}
WIDTH_L = {"width": 128}  # the paper's bottleneck at ViT-L/14
TASKS = 5


@dataclass(frozen=True)
class Stored:
    """One setting on one base. `adapters` are the numbers without CLIP's biases, `trained` with them; shares are per
    cent of the base, `tasks` that of five adapters and one base; megabytes (10^6) of the tensors in float32, and in
    half precision where the released code keeps it (all but LayerNorms, tables and factors). `width` is that of the
    bottlenecks; `paper` the printed share, None for all but ViT-B/16."""

    width: int
    adapters: int
    trained: int
    adapters_share: float
    share: float
    megabytes: float
    half_megabytes: float
    tasks: float
    paper: float | None


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
    """Every method with its preset on a CLIP of this architecture, if it can be there; no weights are made."""
    with torch.device("meta"):
        clip = Clip(config)
        found = {}
        base, paper_base = sum(p.numel() for p in clip.parameters()), whole_by_paper(clip)
        for name in TUNERS:
            try:
                tuner = build(name, clip)
            except ClipreelError:  # Cross-Modal Adapter shares layer by layer, and L/14 has 24 and 12
                continue
            n = sum(p.numel() for p in tuner.parameters())
            p = paper_base if name == "full" else by_paper(tuner, clip)
            found[name] = Count(n, 100 * n / base, p, 100 * p / paper_base)
    return found


def half(name: str) -> bool:
    """Whether the released code of MV-Adapter keeps this tensor in half precision."""
    *_, part, kind = name.replace("/", ".").split(".")
    return not part.startswith("ln") and kind not in ("pos", "cc") and not name.startswith("factors.")


def mv_adapter_storage(config: ClipConfig) -> dict[str, Stored]:
    """Every setting of the specification's table on a CLIP of this architecture; no weights are made."""
    wide = WIDTH_L if config.vision.width > 768 else {}
    printed = config == ARCHITECTURES["ViT-B/16"]
    with torch.device("meta"):
        clip = Clip(config)
        base = sum(p.numel() for p in clip.parameters())
        found = {}
        for setting, (changes, paper) in MV_ADAPTER.items():
            chosen = {**wide, **changes}
            sizes = {n: p.numel() for n, p in build("mv_adapter", clip, chosen).named_parameters()}
            trained = sum(sizes.values())
            adapters = trained - sum(n for name, n in sizes.items() if name.startswith("base."))
            mixed = sum(n * (2 if half(name) else 4) for name, n in sizes.items())
            share = 100 * trained / base
            found[setting] = Stored(
                options("mv_adapter", chosen)["width"],
                adapters,
                trained,
                100 * adapters / base,
                share,
                4 * trained / 1e6,
                mixed / 1e6,
                100 + TASKS * share,
                paper if printed else None,
            )
    return found
