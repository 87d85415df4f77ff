"""MV-Adapter: bottlenecks behind every MLP, with a transformer over frames (video) or words (text) in the bottleneck's
width, calibrated per frame, and tied between the towers by small shared factors (arXiv 2301.07868 v2).

Checked against the released code (zhangbw17/MV-Adapter) on parity fixtures; where paper and code differ, the code is
followed (no Kronecker product; quick GELU behind the transformer; 1 + in the calibration). Differs in form: frames need
not be padded, because positions stand as if they were; the calibration multiplies tokens. Ours: more frames than the
table, principal patches without a random start, factors that start at one, adapters without CLIP's biases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.block import Block, TowerConfig, normalise, quick_gelu
from clipreel.clip import Clip, ClipConfig
from clipreel.errors import ClipreelError
from clipreel.patterns import Layout, causal, jointly
from clipreel.sites import NOTHING, LayerTuner
from clipreel.tuners.checking import Options
from clipreel.tuners.overriding import WithBiases

FORWARDS = ("seq", "par", "ln_par")
TIES = ("none", "down in", "down out", "up in", "up out", "down in cls", "down out cls")
POOLINGS = ("mean", "pca")
STARTS = ("released", "one")
TIED = 2  # layers of each tower, the last ones
CALIBRATED = 16  # hidden width of the calibration, whatever the bottleneck
SQUARINGS = 6  # of the power method: as good as 64 steps


@dataclass(frozen=True)
class MvAdapterConfig(Options):
    """The defaults are the paper's: bottlenecks of `width` 64 (text: `text_width`, None for the same), factors tied at
    "down in" of the last `tied` layers of both towers.

    `biases` trains every bias of the base too, as the released code does; without it, the adapters only. `frames` and
    `words` are the lengths of the position tables; a base with fewer text slots has fewer words. `forward` seq reads
    the MLP's output, par the residual, ln_par the MLP's input. `temporal` says whose tokens are calibrated: "c" (CLS),
    "p" (patches), both or none; `context` is the learned token that sees the whole video; `lnin` a LayerNorm in front;
    `transformer` False leaves the bare bottleneck. `causal` texts see backwards only; else all `words` slots, filled or
    not, are read, as released. `pooling` makes one token of a frame's patches: mean, or pca (their leading component).
    `tie` is one of the six positions or none; `vision_tied` and `text_tied` list the tied layers in pairs, in place of
    the last `tied`; where a tower has no adapter, nothing is. `tie_start` "released" starts the tied weights scaled by
    random factors (of size 0.1), "one" as they are. `vision_layers` and `text_layers` are the layers with an adapter
    (None: all, empty: none).
    """

    width: int = 64
    text_width: int | None = None
    heads: int = 2
    scale: float = 0.1
    frames: int = 12
    words: int = 32
    biases: bool = True
    forward: str = "seq"
    temporal: tuple[str, ...] = ("c",)
    context: bool = True
    lnin: bool = False
    transformer: bool = True
    causal: bool = True
    pooling: str = "mean"
    tie: str = "down in"
    tied: int = TIED
    vision_tied: tuple[int, ...] | None = None
    text_tied: tuple[int, ...] | None = None
    factor: int = 32
    tie_start: str = "released"
    vision_layers: tuple[int, ...] | None = None
    text_layers: tuple[int, ...] | None = None

    def check(self) -> None:
        self.one_of(forward=FORWARDS, tie=TIES, pooling=POOLINGS, tie_start=STARTS)
        self.at_least(1, "width", "text_width", "heads", "frames", "words", "factor")
        self.at_least(0, "tied")
        for width in (self.width, self.text_width or self.width):
            if width % self.heads:
                raise ClipreelError(f"a bottleneck of {width} cannot be cut into {self.heads} heads")
        if set(self.temporal) - {"c", "p"}:
            raise ClipreelError(f"temporal {', '.join(self.temporal)}: allowed are c, p, both or none")
        if self.temporal and not self.transformer:
            raise ClipreelError("without the transformer there is nothing to calibrate by; give temporal=[] too")
        stated = self.vision_tied if self.vision_tied is not None else self.text_tied
        if stated is None:
            return
        if stated and self.tie == "none":
            raise ClipreelError("tie 'none' with vision_tied or text_tied: say where they are tied, or leave them out")
        if self.tied not in (TIED, len(stated)):
            raise ClipreelError(f"tied {self.tied} beside vision_tied and text_tied: give the number or the layers")

    def places(self, tower: str, layers: int) -> tuple[int, ...]:
        chosen = self.vision_layers if tower == "vision" else self.text_layers
        found = tuple(range(layers)) if chosen is None else tuple(sorted(set(chosen)))
        if found and not 0 <= found[0] <= found[-1] < layers:
            raise ClipreelError(f"{tower}_layers {', '.join(map(str, found))}: this tower has layers 0 to {layers - 1}")
        return found

    def pairs(self, base: ClipConfig) -> list[tuple[int, int]]:
        """Which video layer and which text layer share a factor. Raises ClipreelError where they do not match."""
        vision, text = self.places("vision", base.vision.layers), self.places("text", base.text.layers)
        if self.tie == "none":
            return []
        if self.vision_tied is None and self.text_tied is None:
            most = min(len(vision), len(text))
            if most and self.tied > most:
                raise ClipreelError(
                    f"tied {self.tied}: {len(vision)} video and {len(text)} text layers have an adapter; give at most "
                    f"{most}, or tie=none"
                )
            count = min(self.tied, most)
            return list(zip(vision[len(vision) - count :], text[len(text) - count :], strict=True))
        ours, theirs = self.vision_tied or (), self.text_tied or ()
        stray = (set(ours) - set(vision)) | (set(theirs) - set(text))
        if stray or len(ours) != len(theirs) or len(set(ours)) + len(set(theirs)) != 2 * len(ours):
            raise ClipreelError(
                f"vision_tied {list(ours)} and text_tied {list(theirs)} are no pairs: list as many different layers "
                f"of both, out of {list(vision)} (video) and {list(text)} (text), the layers with an adapter"
            )
        return list(zip(ours, theirs, strict=True))


class Tie(nn.Module):
    """beta = M phi + c, elementwise factors of a weight's inputs ("in") or outputs ("out"); phi is shared."""

    def __init__(self, factor: nn.Parameter, size: int, start: str) -> None:
        super().__init__()
        self.factor, self.proj = factor, nn.Linear(len(factor), size)
        if start == "one":
            nn.init.ones_(self.proj.bias)

    def forward(self, weight: Tensor, end: str) -> Tensor:
        # sums and products, which autocast leaves in float32
        beta = (self.proj.weight * self.factor).sum(1) + self.proj.bias
        return weight * beta if end == "in" else weight * beta[:, None]


class Bottleneck(LayerTuner):
    """What both branches share: down, position table, transformer, up, and the tied weight of one of the two."""

    folded: Tensor | None

    def __init__(self, c: MvAdapterConfig, d: int, width: int, slots: int, factor: nn.Parameter | None) -> None:
        super().__init__()
        self.scale, self.position = c.scale, c.tie.split()
        self.down, self.up = nn.Linear(d, width), nn.Linear(width, d)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.ln_in = nn.LayerNorm(d) if c.lnin else None
        self.block: Block | None = None
        if c.transformer:
            self.ln_pre, self.pos = nn.LayerNorm(width), nn.Parameter(torch.randn(slots, width) * 0.01)
            self.block = Block(TowerConfig(1, width, c.heads, 4 * width), "quick_gelu")
            # the width of CLIP, not of the bottleneck, sets the scale
            stds = {self.block.qkv: d**-0.5}
            stds |= dict.fromkeys((self.block.out, self.block.fc, self.block.proj), (2 * d) ** -0.5)
            for linear, std in stds.items():
                nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(self.block.qkv.bias)
            nn.init.zeros_(self.block.out.bias)
        wide = (c.tie.startswith("down") and "in" in self.position) or c.tie == "up out"
        self.tie = None if factor is None else Tie(factor, d if wide else width, c.tie_start)
        self.register_buffer("folded", None, persistent=False)
        self.reads = FORWARDS.index(c.forward)

    def beside_mlp(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.delta((y, x, h)[self.reads], layout)

    def delta(self, f: Tensor, layout: Layout) -> Tensor:
        """What the adapter adds, (B, S, D), from f of the same shape."""
        raise NotImplementedError

    def tied(self) -> Tensor | None:
        """The weight with its factors."""
        if self.tie is None or self.folded is not None:
            return self.folded
        return self.tie(getattr(self, self.position[0]).weight, self.position[1])

    def train(self, mode: bool = True) -> Bottleneck:
        if mode:
            self.folded = None
        return super().train(mode)

    def fold(self) -> None:
        """Keep the tied weight instead of making it in every call, until training goes on."""
        with torch.no_grad():
            self.folded = None
            self.folded = self.tied()


class TextBottleneck(Bottleneck):
    def __init__(self, c: MvAdapterConfig, d: int, words: int, factor: nn.Parameter | None) -> None:
        # the released text branch never applies the positions that are for CLS alone
        super().__init__(c, d, c.text_width or c.width, words, None if "cls" in c.tie else factor)
        nn.init.normal_(self.down.weight, std=(2 * d) ** -0.5)
        self.attend_words = causal if c.causal else jointly

    def delta(self, f_NLD: Tensor, layout: Layout) -> Tensor:
        f, tied = f_NLD if self.ln_in is None else normalise(self.ln_in, f_NLD, NOTHING, "ln_in"), self.tied()
        down, up = self.down.weight, self.up.weight
        if tied is not None:
            down, up = (tied, up) if self.position[0] == "down" else (down, tied)
        z = F.linear(f, down, self.down.bias)
        if self.block is not None:
            if z.shape[1] > len(self.pos):
                raise ClipreelError(
                    f"texts of {z.shape[1]} tokens, but this MV-Adapter has {len(self.pos)} text positions (words): "
                    "tokenise to that many, as Retriever.encode_text does"
                )
            z = normalise(self.ln_pre, z + self.pos[: z.shape[1]], NOTHING, "ln_pre")
            z, _ = self.block(z, layout, self.attend_words, None)
        return F.linear(quick_gelu(z), self.scale * up, self.scale * self.up.bias)


class Calibration(nn.Module):
    """Factors (B, T, r) around one for a frame's token, from its local context and that of the whole video."""

    def __init__(self, width: int, context: bool) -> None:
        super().__init__()
        self.g = nn.Linear(width, width) if context else None
        self.a, self.b = nn.Linear(width * (1 + context), CALIBRATED), nn.Linear(CALIBRATED, width, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, local_BTR: Tensor, context_BR: Tensor, frame_mask: Tensor | None) -> Tensor:
        e = local_BTR
        if self.g is not None:
            e = torch.cat([e, self.g(context_BR)[:, None].expand_as(e)], -1)
        if frame_mask is not None:
            e = e.masked_fill(~frame_mask[..., None], 0.0)
        return 1 + self.b(F.relu(self.a(e)))


class VideoBottleneck(Bottleneck):
    def __init__(self, c: MvAdapterConfig, d: int, factor: nn.Parameter | None) -> None:
        super().__init__(c, d, c.width, 2 * c.frames + 1, factor)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        self.pca, self.frames = c.pooling == "pca", c.frames
        # in the positions "down in" and "down out" the factors reach patches too, in all others CLS alone
        self.all_tied = c.tie in ("down in", "down out")
        self.cc = nn.Parameter(torch.randn(c.width) * c.width**-0.5) if c.context and c.transformer else None
        self.calibrate_c = Calibration(c.width, c.context) if "c" in c.temporal else None
        self.calibrate_p = Calibration(c.width, c.context) if "p" in c.temporal else None

    def delta(self, f_BSD: Tensor, layout: Layout) -> Tensor:
        if layout.globals:
            raise ClipreelError(f"MV-Adapter reads frames, and {layout.globals} tokens belong to none; do not chain it")
        f = f_BSD if self.ln_in is None else normalise(self.ln_in, f_BSD, NOTHING, "ln_in")
        tied, side = self.tied(), self.position[0]
        z = quick_gelu(self.linear_of(self.down, layout.split(f)[1], tied if side == "down" else None))
        cls, patches = z[:, :, 0], z[:, :, 1:]
        if self.block is not None:
            context, cls, local = self.over_time(cls, principal(patches) if self.pca else patches.mean(2), layout)
            local, mask = cls + local, layout.frame_mask
            if self.calibrate_p is not None:
                patches = patches * self.calibrate_p(local, context, mask)[:, :, None]
            if self.calibrate_c is not None:
                cls = cls * self.calibrate_c(local, context, mask)
        z = torch.cat([cls[:, :, None], patches.to(cls.dtype)], 2)
        return self.linear_of(self.up, z, tied if side == "up" else None, self.scale).flatten(1, 2)

    def linear_of(self, linear: nn.Linear, x_BTLD: Tensor, tied: Tensor | None, scale: float | None = None) -> Tensor:
        """`linear` on all tokens, with the tied weight on those that it is for, times `scale`."""
        weight: Tensor = linear.weight
        bias: Tensor = linear.bias
        weight, first = (tied, None) if tied is not None and self.all_tied else (weight, tied)
        if scale is not None:  # on the weights, which are smaller than the tokens
            weight, bias, first = weight * scale, bias * scale, None if first is None else first * scale
        if first is None:
            return F.linear(x_BTLD, weight, bias)
        return torch.cat([F.linear(x_BTLD[:, :, :1], first, bias), F.linear(x_BTLD[:, :, 1:], weight, bias)], 2)

    def over_time(self, cls_BTR: Tensor, patches_BTR: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """The transformer over [context, CLS tokens, patch tokens]: the context (B, r) and both kinds (B, T, r)."""
        assert self.block is not None
        first, T = 0 if self.cc is None else 1, layout.frames
        tables = self.pos[first : first + 2 * self.frames].split(self.frames)
        parts = [x + standing(table, layout) for x, table in zip((cls_BTR, patches_BTR), tables, strict=True)]
        if self.cc is not None:
            parts.insert(0, (self.cc + self.pos[0]).expand(len(cls_BTR), 1, -1))
        mask = layout.frame_mask
        inner = Layout(first, 2 * T, 1, None if mask is None else mask.repeat(1, 2))
        s, _ = self.block(normalise(self.ln_pre, torch.cat(parts, 1), NOTHING, "ln_pre"), inner, real_only, None)
        s = quick_gelu(s)
        return s[:, 0], s[:, first : first + T], s[:, first + T :]


def real_only(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Everything sees what is real; what padded frames hold, even if it is no number, is not multiplied."""
    if layout.frame_mask is not None:
        padded = F.pad(~layout.frame_mask, (layout.globals, 0), value=False)[..., None, None]
        k, v = k.masked_fill(padded, 0.0), v.masked_fill(padded, 0.0)
    return jointly(q, k, v, layout)


def standing(table_FR: Tensor, layout: Layout) -> Tensor:
    """Rows (B or 1, T, r) of a table of F frame positions for the frames at hand.

    Up to F frames stand on the first rows, exactly as if the video were padded to F, which is how the released code
    runs. More are spread evenly over the table, linear between two rows; padded frames count for nothing.
    """
    F_, T, mask = len(table_FR), layout.frames, layout.frame_mask
    if T <= F_:
        return table_FR[None, :T]
    real = torch.full((1, 1), T, device=table_FR.device) if mask is None else mask.sum(1, keepdim=True)
    step = ((F_ - 1) / (real - 1).clamp(min=1)).clamp(max=1)
    at = (torch.arange(T, device=table_FR.device) * step).clamp(max=F_ - 1)
    low = at.long().clamp(max=max(F_ - 2, 0))
    return torch.lerp(table_FR[low], table_FR[(low + 1).clamp(max=F_ - 1)], (at - low)[..., None].to(table_FR.dtype))


def principal(patches_BTNR: Tensor) -> Tensor:
    """The patches of each frame added up by the leading component of what they hold: (B, T, r).

    Weights are the leading right singular vector of the frame's (r, N) matrix without each patch's mean over channels,
    as in the released code, which finds it by a random projection and leaves the sign open. Here: the power method on
    the (r, r) products, which starts from nothing random, and weights that add up to at least zero.
    """
    with torch.autocast(patches_BTNR.device.type, enabled=False):
        x = patches_BTNR.float()
        centred = x - x.mean(-1, keepdim=True)
        products = centred.mT @ centred
        for _ in range(SQUARINGS):
            # the scale of a direction is no part of it, so it needs no gradient
            products = products / products.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1e-30)
            products = products @ products
        longest = products.square().sum(-2).argmax(-1)
        u = F.normalize(products.take_along_dim(longest[..., None, None], -1), dim=-2)
        weights = F.normalize(centred @ u, dim=-2)
        weights = torch.where(weights.sum(-2, keepdim=True) < 0, -weights, weights)
        return (weights * x).sum(-2)


class MvAdapter(WithBiases):
    """MV-Adapter on one CLIP; see `MvAdapterConfig`."""

    def __init__(self, clip: Clip, config: MvAdapterConfig) -> None:
        super().__init__(clip, config.biases)
        c, base = config, clip.config
        self.config, self.words = c, min(c.words, base.context)
        self.text_slots = base.context - self.words
        if not c.places("vision", base.vision.layers) + c.places("text", base.text.layers):
            raise ClipreelError("an MV-Adapter needs a layer; give vision_layers or text_layers")
        pairs = c.pairs(base)
        # registered before the layers that share them, so that each bears one name
        self.factors = nn.ParameterList(nn.Parameter(torch.zeros(c.factor)) for _ in pairs)
        vision = {i: factor for (i, _), factor in zip(pairs, self.factors, strict=True)}
        text = {i: factor for (_, i), factor in zip(pairs, self.factors, strict=True)}
        for i in c.places("vision", base.vision.layers):
            self.place("vision", i, VideoBottleneck(c, base.vision.width, vision.get(i)))
        for i in c.places("text", base.text.layers):
            self.place("text", i, TextBottleneck(c, base.text.width, self.words, text.get(i)))

    def text_length(self, ends: Tensor, length: int) -> int:
        if self.config.causal or not self.config.transformer:
            return super().text_length(ends, length)
        if length != self.words:
            raise ClipreelError(
                f"texts that are read both ways have {self.words} slots, not {length}: tokenise to that"
            )
        return length

    def fold(self) -> None:
        for layer in self.placed.values():
            assert isinstance(layer, Bottleneck)
            layer.fold()
