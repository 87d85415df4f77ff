"""CLIP-ViP: a few video proxies that every frame sees, so that CLIP's own attention reads a video (arXiv 2209.06430).

Sections 2.1-2.4 of the specification, checked against microsoft/XPretrain on parity fixtures. Differs in form: the
attention is two fused calls without repeated scores, and each video resamples the frame positions to its real frames.
Not in the paper: other frame counts per video, attention maps. Its MeanPool baseline is the method `full`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipreel.clip import Clip, VideoTower
from clipreel.errors import ClipreelError
from clipreel.patterns import Layout, jointly, read_at_proxies
from clipreel.sites import NOTHING, LayerTuner, Overrides, Tuner
from clipreel.tuners.checking import Options

ATTENTION = {"proxies": read_at_proxies, "joint": jointly}
TEXT = ("trained", "projection", "frozen")


@dataclass(frozen=True)
class ClipVipConfig(Options):
    """`proxies` per video: the first is CLIP's CLS token, the others start normal with `std`. `temporal` learns
    positions of `frames` frames, resampled to other counts. `attention` "joint" lets every token see every token.

    `train_base` trains CLIP too, its logarithmic scale filled with `log_scale` first (None leaves it); `text` says how
    much of the text side: trained, projection (its tower is frozen) or frozen. Texts are cut to `text_tokens`.
    Released names: proxies is add_cls_num + 1, frames temporal_size, temporal if_use_temporal_embed, log_scale
    logit_scale_init_value, text_tokens max_txt_len, text freeze_text_model and freeze_text_proj.
    """

    proxies: int = 4
    frames: int = 12
    temporal: bool = True
    attention: str = "proxies"
    train_base: bool = True
    text: str = "trained"
    log_scale: float | None = 4.6
    text_tokens: int | None = None
    std: float = 1.0

    def check(self) -> None:
        self.at_least(1, "proxies", "frames")
        self.at_least(0, "std")
        self.one_of(attention=tuple(ATTENTION), text=TEXT)

    def trains(self, name: str) -> bool:
        """Whether a base tensor is trained."""
        return (
            not name.startswith("text.") or self.text == "trained" or (self.text, name) == ("projection", "text.head")
        )


def resampled(table_FD: Tensor, frames: int, frame_mask: Tensor | None = None) -> Tensor:
    """A table over frames (F, D) for the real ones of `frames`, (B or 1, T, D): linear, half-pixel centres."""
    rows = len(table_FD)
    if frame_mask is None and frames == rows:
        return table_FD[None]
    real = frames if frame_mask is None else frame_mask.sum(1, keepdim=True).clamp(min=1)
    centres = torch.arange(frames, device=table_FD.device)[None] + 0.5
    at = (centres * rows / real - 0.5).clamp(0, rows - 1)
    low = at.long()
    high = (low + 1).clamp(max=rows - 1)
    return torch.lerp(table_FD[low], table_FD[high], (at - low)[..., None].to(table_FD.dtype))


class ClipVip(Tuner):
    """CLIP-ViP on one CLIP; see `ClipVipConfig`. Videos are read at their first proxy; an image is one frame."""

    def __init__(self, clip: Clip, config: ClipVipConfig) -> None:
        super().__init__()
        c, width, context = config, clip.config.vision.width, clip.config.context
        if c.text_tokens is not None and not 3 <= c.text_tokens <= context:
            raise ClipreelError(f"text_tokens {c.text_tokens}: give 3 to {context}, the text positions of the base")
        self.config = c
        self.text_slots = 0 if c.text_tokens is None else context - c.text_tokens
        self.proxies = nn.Parameter(torch.randn(c.proxies - 1, width) * c.std) if c.proxies > 1 else None
        self.temporal = nn.Parameter(torch.zeros(c.frames, width)) if c.temporal else None
        self.base = Overrides(clip, c.trains) if c.train_base else None
        if self.base is not None and c.log_scale is not None:
            nn.init.constant_(self.base.tensors["logit_scale"], c.log_scale)
        self.sites = LayerTuner()
        self.sites.attend = ATTENTION[c.attention]

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        return self.sites if tower == "vision" else None

    @property
    def overrides(self) -> Mapping[str, Tensor]:
        return NOTHING if self.base is None else self.base.by_name

    def embed_video(self, x: Tensor, layout: Layout, tower: VideoTower) -> tuple[Tensor, Layout]:
        _, frames = layout.split(x)
        proxies = frames[:, 0, :1]  # the CLS token of any frame: equal in all, its position added
        if self.proxies is not None:
            more = self.proxies + tower.tensor("pos", self)[0]
            proxies = torch.cat([proxies, more.to(x.dtype).expand(len(x), -1, -1)], 1)
        patches = frames[:, :, 1:]
        if self.temporal is not None:
            patches = patches + resampled(self.temporal, layout.frames, layout.frame_mask)[:, :, None].to(x.dtype)
        return layout.join(proxies, patches)

    def read_video(self, x: Tensor, layout: Layout) -> Tensor:
        return x[:, :1]


class Watched(Tuner):
    """A CLIP-ViP that computes the same and keeps what its proxies look at, one (B, M, S) per layer in `seen`."""

    def __init__(self, vip: ClipVip) -> None:
        super().__init__()
        self.vip, self.seen = vip, list[Tensor]()
        self.sites = LayerTuner()
        self.sites.attend = self.watch

    @property
    def overrides(self) -> Mapping[str, Tensor]:
        return self.vip.overrides

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        return self.sites if tower == "vision" else None

    def embed_video(self, x: Tensor, layout: Layout, tower: VideoTower) -> tuple[Tensor, Layout]:
        return self.vip.embed_video(x, layout, tower)

    def read_video(self, x: Tensor, layout: Layout) -> Tensor:
        return self.vip.read_video(x, layout)

    def watch(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        scores = torch.einsum("bmhk,bshk->bhms", q[:, : layout.globals], k).float() * q.shape[-1] ** -0.5
        if layout.frame_mask is not None:
            real = layout.frame_mask.repeat_interleave(layout.per_frame, 1)[:, None, None]
            scores[..., layout.globals :].masked_fill_(~real, -torch.inf)
        self.seen.append(scores.softmax(-1).mean(1))
        return ATTENTION[self.vip.config.attention](q, k, v, layout)


@torch.no_grad()
def proxy_maps(clip: Clip, vip: ClipVip, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
    """What the proxies look at in normalised pixels (B, T, 3, H, W): (layers, B, M, T, rows, columns), a share of 1.

    The mean over heads; what is missing to 1 goes to the proxies. Padded frames get zero.
    """
    watched = Watched(vip)
    clip.encode_video(frames, watched, frame_mask)
    side = clip.config.image_size // clip.config.patch
    patches = torch.stack(watched.seen)[..., vip.config.proxies :]
    return patches.unflatten(-1, (frames.shape[1], side, side))
