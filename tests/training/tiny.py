"""A tiny random model, a tiny method, and a loader in memory: everything that the engine needs, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.noise import dropout
from clipreel.patterns import Layout
from clipreel.sites import LayerTuner, Tuner
from clipreel.training.config import OptimConfig, TrainConfig
from clipreel.training.distributed import world
from clipreel.training.recipe import RetrievalRecipe
from clipreel.tuners import build
from clipreel.video.transforms import Preprocess

CONFIG = ClipConfig(16, 8, TowerConfig(2, 32, 2, 64), TowerConfig(2, 32, 2, 64), 8, 40, 24, "quick_gelu")
FRAMES, ROWS = 2, 7


@dataclass(frozen=True)
class Rows:
    """What a batch is to the engine."""

    frames: Tensor
    ids: Tensor
    groups: Tensor
    names: tuple[str, ...]
    frame_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, start: int, stop: int) -> Rows:
        return Rows(*(x[start:stop] for x in (self.frames, self.ids, self.groups, self.names)))

    def to(self, device: torch.device) -> Rows:
        return replace(self, frames=self.frames.to(device), ids=self.ids.to(device), groups=self.groups.to(device))


class Memory:
    """Batches of `sizes[step % len(sizes)]` rows as a function of the step alone, split evenly over the processes. With
    `misses`, the last third of the rows are videos that were judged wrong for the texts of the first."""

    def __init__(
        self, sizes: tuple[int, ...] = (ROWS,), hook: Callable[[int], Any] = lambda step: None, misses: bool = False
    ) -> None:
        self.sizes, self.steps_per_epoch, self.hook, self.misses = sizes, len(sizes), hook, misses

    def told(self) -> list[str]:
        return []

    def batch_rows(self, step: int) -> int:
        return self.sizes[step % len(self.sizes)]

    def batch(self, step: int) -> Rows:
        self.hook(step)
        n, g = self.batch_rows(step), torch.Generator().manual_seed(step)
        frames = torch.randint(0, 256, (n, FRAMES, 3, 16, 16), generator=g, dtype=torch.uint8)
        ids = torch.randint(1, 38, (n, 8), generator=g)
        ids[torch.arange(n), torch.randint(2, 8, (n,), generator=g)] = 39
        groups = torch.arange(n).clamp(min=1)  # the first two rows are one video
        wrong = n // 3 if self.misses else 0
        ids[n - wrong :], groups[n - wrong :] = ids[:wrong], -1
        whole = Rows(frames, ids, groups, tuple(f"s{step}r{i}" for i in range(n)))
        here = world()
        share = -(-n // here.size)
        return whole.rows(here.rank * share, min((here.rank + 1) * share, n))

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, Rows, float]]:
        for step in range(start, stop):
            began = time.perf_counter()
            batch = self.batch(step)
            yield step, batch, time.perf_counter() - began


class Side(LayerTuner):
    """A bottleneck beside the MLP, with dropout where asked."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.down, self.up, self.dropout = nn.Linear(32, 4), nn.Linear(4, 32), dropout
        self.beside_mlp = self.delta

    def delta(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.up(dropout(torch.relu(self.down(h)), self.dropout, self.training))


class Sides(Tuner):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.sides = nn.ModuleDict({f"{t}{i}": Side(dropout) for t in ("vision", "text") for i in range(2)})

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        return self.sides[f"{tower}{index}"]


def tiny_recipe(dropout: float = 0.0, method: str = "", **options: Any) -> RetrievalRecipe:
    """Of the tiny method, or of one from the registry."""
    torch.manual_seed(0)
    clip, tuner = Clip(CONFIG), Tuner() if options.get("train_base") else Sides(dropout)
    if method:
        tuner = build(method, clip, {"dropout": dropout})
    return RetrievalRecipe(clip, tuner, Preprocess(size=16), **{"train_scale": True, **options})


def tiny_config(**changes: Any) -> TrainConfig:
    optim = changes.pop("optim", OptimConfig(lr=1e-2))
    return TrainConfig(**{"steps": 6, "log_every": 1, "checkpoint_every": 2, "optim": optim, **changes})


def weights(recipe: RetrievalRecipe) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in recipe.trained().items()}
