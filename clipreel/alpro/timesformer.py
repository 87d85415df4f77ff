"""TimeSformer as ALPRO uses it: every block looks over time, then inside each frame, then runs an MLP.

Specification alpro.md 2.1 and 8; checked against salesforce/ALPRO on fixtures. Differs in form: tokens lie frame after
frame, the CLS token apart, and attention is fused. Parameters keep the published names. Drop path acts where the
released code has it: per patch over time, per frame in space, per video in the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipreel.errors import ClipreelError
from clipreel.noise import below
from clipreel.patterns import Layout, Pattern, by_frame, over_time

EPS = 1e-6  # of every LayerNorm; fixtures of low variance see another value


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the video encoder; `mlp` is the hidden width, `drop_path` the rate of the last block."""

    image_size: int = 224
    patch: int = 16
    frames: int = 4
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    drop_path: float = 0.1

    @property
    def grid(self) -> int:
        return self.image_size // self.patch


def dropped(y: Tensor, rate: float, training: bool, shared: tuple[int, ...]) -> Tensor:
    """Stochastic depth: zero with probability `rate`, one draw for all entries along the dimensions `shared`."""
    if not training or rate == 0.0:
        return y
    shape = [1 if d in shared else n for d, n in enumerate(y.shape)]
    return (y / (1 - rate)).masked_fill_(below(shape, rate, y.device), 0.0)


def mean_of_frames(x_BTLD: Tensor, frame_mask: Tensor | None) -> Tensor:
    """(B, L, D), the mean over the real frames."""
    if frame_mask is None:
        return x_BTLD.mean(1)
    weight = frame_mask.to(x_BTLD.dtype)[:, :, None, None]
    return (x_BTLD * weight).sum(1) / weight.sum(1).clamp(min=1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h_BTLD: Tensor, attend: Pattern, frame_mask: Tensor | None) -> Tensor:
        _, T, L, _ = h_BTLD.shape
        q, k, v = self.qkv(h_BTLD).flatten(1, 2).unflatten(-1, (3, self.heads, -1)).unbind(2)
        o = attend(q, k, v, Layout(0, T, L, frame_mask))
        return self.proj(o.flatten(-2)).unflatten(1, (T, L))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Time, space, MLP on the CLS token (B, 1, D) and the patches (B, T, N, D)."""

    def __init__(self, config: VisionConfig, rate: float) -> None:
        super().__init__()
        d = config.width
        self.rate = rate
        self.temporal_norm1, self.norm1, self.norm2 = (nn.LayerNorm(d, eps=EPS) for _ in range(3))
        self.temporal_attn, self.attn = Attention(d, config.heads), Attention(d, config.heads)
        self.temporal_fc = nn.Linear(d, d)
        self.mlp = Mlp(d, config.mlp)

    def forward(self, c: Tensor, x: Tensor, frame_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        def drop(y: Tensor, *shared: int) -> Tensor:
            return dropped(y, self.rate, self.training, shared)

        seen = drop(self.temporal_attn(self.temporal_norm1(x), over_time, frame_mask), 1, 3)
        x = x + self.temporal_fc(seen)
        s = torch.cat([c[:, None].expand(-1, x.shape[1], -1, -1), x], 2)
        o = drop(self.attn(self.norm1(s), by_frame, None), 2, 3)
        x, c = x + o[:, :, 1:], c + mean_of_frames(o[:, :, :1], frame_mask)
        z = torch.cat([c, x.flatten(1, 2)], 1)
        z = z + drop(self.mlp(self.norm2(z)), 1, 2)
        return z[:, :1], z[:, 1:].unflatten(1, x.shape[1:3])


class TimeSformer(nn.Module):
    """Videos to one token per patch. `checkpointing` recomputes each block in the backward pass.

    >>> TimeSformer(VisionConfig(32, 16, 4, 24, 1, 2, 48))(torch.zeros(2, 4, 3, 32, 32)).shape
    torch.Size([2, 5, 24])
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d = config.width
        if d % config.heads or config.image_size % config.patch:
            raise ClipreelError(
                f"width {d} must be a multiple of the {config.heads} heads, and {config.image_size} pixels of patches "
                f"of {config.patch}"
            )
        self.config, self.checkpointing = config, False
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, d, config.patch, config.patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, d))
        self.time_embed = nn.Parameter(torch.zeros(1, config.frames, d))
        rates = [config.drop_path * i / max(config.layers - 1, 1) for i in range(config.layers)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(d, eps=EPS)
        for name, p in self.named_parameters():
            # times and the last map of every look over time are zero, so that a start is a ViT of each frame
            if name.endswith(("bias", "time_embed", "temporal_fc.weight")):
                nn.init.zeros_(p)
            elif p.ndim > 1:
                nn.init.trunc_normal_(p, std=0.02)

    def embed(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """CLS (B, 1, D) and patches (B, T, N, D) of normalised pixels (B, T, 3, H, W), both with positions.

        Another grid or number of frames than the tables takes the nearest rows, two-dimensional for space.
        """
        B, T, _, H, W = video.shape
        p = self.config.patch
        if p > H or p > W or not T:
            raise ClipreelError(f"a video of {T} frames of {H} x {W} pixels: at least 1 of {p} x {p}")
        x = self.patch_embed["proj"](video.flatten(0, 1)).flatten(2).transpose(1, 2)
        pos, time = self.pos_embed[:, 1:], self.time_embed
        grid = (H // p, W // p)
        if grid != (self.config.grid, self.config.grid):
            square = pos.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))
            pos = F.interpolate(square, grid, mode="nearest").flatten(2).transpose(1, 2)
        x = x.unflatten(0, (B, T)) + pos[:, None] + resized_rows(time, T)[:, :, None]
        return (self.cls_token + self.pos_embed[:, :1]).expand(B, -1, -1), x

    def tokens(
        self, video: Tensor, frame_mask: Tensor | None = None, watch: Callable[[Tensor, Tensor], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """CLS (B, 1, D) and patches (B, T, N, D) after the last LayerNorm; `watch` sees both before every block and
        after the last one."""
        c, x = self.embed(video)
        for block in self.blocks:
            if watch is not None:
                watch(c, x)
            if self.checkpointing and torch.is_grad_enabled():
                c, x = checkpoint(block, c, x, frame_mask, use_reentrant=False)
            else:
                c, x = block(c, x, frame_mask)
        if watch is not None:
            watch(c, x)
        return self.norm(c), self.norm(x)

    def forward(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """(B, 1 + N, D): CLS, then the mean over the real frames of every patch, of normalised pixels (B, T, 3, H, W).

        `frame_mask` (B, T) is False on padded frames.
        """
        c, x = self.tokens(video, frame_mask)
        return torch.cat([c, mean_of_frames(x, frame_mask)], 1)


def resized_rows(table_1RD: Tensor, rows: int) -> Tensor:
    """The table with this many rows, each the nearest old one (4 to 8: 0, 0, 1, 1, 2, 2, 3, 3)."""
    if table_1RD.shape[1] == rows:
        return table_1RD
    return F.interpolate(table_1RD.transpose(1, 2), rows, mode="nearest").transpose(1, 2)


def resized_positions(table_1RD: Tensor, patches: int) -> Tensor:
    """What the released loader makes of a position table for another number of patches: the nearest row of the
    flattened list (not of the grid), the CLS row kept. Raises ClipreelError where that is no square grid."""
    if math.isqrt(patches) ** 2 != patches:
        raise ClipreelError(f"{patches} patches are no square grid; take an image size that is a multiple of the patch")
    return torch.cat([table_1RD[:, :1], resized_rows(table_1RD[:, 1:], patches)], 1)
