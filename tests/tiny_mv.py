"""A tiny CLIP, MV-Adapters on it whose tensors are all away from zero, and something to encode."""

import torch
from torch import Tensor, nn

from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.tuners.mv_adapter import MvAdapter, MvAdapterConfig

LAYERS, FRAMES, WORDS = 3, 4, 10
CONFIG = ClipConfig(16, 8, TowerConfig(LAYERS, 64, 1, 64), TowerConfig(LAYERS, 64, 1, 64), 24, 60, 16, "quick_gelu")


def base() -> Clip:
    torch.manual_seed(0)
    return Clip(CONFIG).eval().requires_grad_(False)


def made(clip: Clip, moved: bool = True, **options: object) -> MvAdapter:
    torch.manual_seed(1)
    tuner = MvAdapter(clip, MvAdapterConfig(**{"width": 8, "frames": FRAMES, "words": WORDS, **options}))
    return shaken(tuner) if moved else tuner.eval()


def shaken(module: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return module.eval()


def video(frames: int = FRAMES) -> Tensor:
    return torch.randn(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def ids(slots: int = WORDS) -> Tensor:
    found = torch.zeros(3, slots, dtype=torch.long)
    for row, end in zip(found, (2, 5, 9), strict=True):
        row[:end], row[end] = torch.randint(1, 50, (end,), generator=torch.Generator().manual_seed(end)), 59
    return found
