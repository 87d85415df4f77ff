"""VoP: prompts in every layer of both towers of a frozen CLIP, and its forms with a sense of time (arXiv 2211.12764).

Basic VoP is checked against modelscope's code on parity fixtures; P, C, F and their combinations have no public code
and are checked against an independent reference. Differs in form: a video prompt gives its layer a key and a value and
is computed no further, because its output is thrown away; text is cut behind the last slot that is read.
Not in the paper: P+C, F+P+C, other frame counts than trained, and a larger start of what carries frame position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clipreel.block import Block, TowerConfig
from clipreel.clip import Clip, TextTower, VideoTower
from clipreel.errors import ClipreelError
from clipreel.patterns import Layout, jointly
from clipreel.sites import Layered, LayerTuner
from clipreel.tuners.checking import Options

TEXT_READS = ("eos", "released")
CONTEXT_MODULES = ("bilstm", "lstm", "transformer")


@dataclass(frozen=True)
class VopConfig(Options):
    """Which prompts there are. VoP is (general 8), P (4, position 4), C (4, context 4), F (8, joint_layers None).

    `general`, `position`, `context` count prompts per frame and layer: the same for all frames, one set per frame
    position, or made from the frames' CLS tokens. The last `joint_layers` layers see all frames at once, with as many
    prompts per video; None takes a third of the layers, four at most, which are the paper's four of twelve. `frames` is
    how many positions are learned, others are interpolated. Text takes `prefix` prompts
    behind the start token and `suffix` before the last slot; `text_read` "released" reads the text `suffix` slots
    behind its end token, as the released checkpoint does, "eos" at the end token. `vision_layers` and `text_layers`
    limit the depth (None: all). `std` is the scale of new prompts; `position_std`, where given, that of everything
    that carries frame position (else `std` for prompts, zero for the frame embedding).
    """

    general: int = 8
    position: int = 0
    context: int = 0
    joint_layers: int | None = 0
    frames: int = 12
    context_module: str = "bilstm"
    prefix: int = 8
    suffix: int = 0
    text_read: str = "eos"
    vision_layers: tuple[int, ...] | None = None
    text_layers: tuple[int, ...] | None = None
    std: float = 0.02
    position_std: float | None = None

    @property
    def per_frame(self) -> int:
        return self.general + self.position + self.context

    def depth(self, tower: str, layers: int) -> tuple[int, ...]:
        """The layers that get prompts; the first must be one of them, because later ones overwrite its slots."""
        chosen = self.vision_layers if tower == "vision" else self.text_layers
        depth = tuple(range(layers)) if chosen is None else tuple(sorted(set(chosen)))
        if not depth or depth[0] != 0 or depth[-1] >= layers:
            raise ClipreelError(f"{tower}_layers {depth}: list layers from 0 to {layers - 1}, and 0 itself")
        return depth

    def joint_of(self, layers: int) -> int:
        """How many of so many layers see all frames at once."""
        return max(1, min(4, layers // 3)) if self.joint_layers is None else self.joint_layers

    def check(self) -> None:
        self.at_least(0, "general", "position", "context", "joint_layers", "prefix", "suffix", "std", "position_std")
        self.at_least(1, "frames")
        self.one_of(text_read=TEXT_READS, context_module=CONTEXT_MODULES)
        if self.vision_layers is not None and (self.joint_layers != 0 or self.position or self.context):
            raise ClipreelError(
                "vision_layers limits general prompts; leave it out with position, context, joint_layers"
            )
        if not self.per_frame + self.prefix + self.suffix and self.joint_layers == 0:
            raise ClipreelError("VoP without any prompt trains nothing; give general or prefix")


def context_rates(c: VopConfig) -> dict[str, float]:
    """BiLSTM and FC learn ten times slower than prompts (specification vop.md 5)."""
    return {"^context": 1e-4} if c.context else {}


def normal(std: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * std)


def places(layout: Layout, frames: int) -> Tensor | None:
    """Where each real frame stands on a table of `frames` positions: (B, T) float, or (1, T) without padded frames.

    First on first and last on last; None where the table fits as it is.
    """
    mask = layout.frame_mask
    if mask is None:
        if layout.frames == frames:
            return None
        return torch.arange(layout.frames).mul((frames - 1) / max(layout.frames - 1, 1))[None]
    step = (frames - 1) / (mask.sum(1, keepdim=True) - 1).clamp(min=1)
    return (torch.arange(layout.frames, device=mask.device) * step).clamp(max=frames - 1)


def nearest(table: Tensor, layout: Layout) -> Tensor:
    """Rows (B or 1, T, ...) of a table (F, ...) for the frames at hand: the nearest position."""
    at = places(layout, len(table))
    return table[None] if at is None else table[(at + 0.5).long().to(table.device)]


def interpolated(table: Tensor, layout: Layout) -> Tensor:
    """Rows (B or 1, T, D) of a table (F, D) for the frames at hand: linear between two positions."""
    at = places(layout, len(table))
    if at is None:
        return table[None]
    at = at.to(table.device)
    low = at.long().clamp(max=max(len(table) - 2, 0))
    high = (low + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[low], table[high], (at - low)[..., None].to(table.dtype))


def recur(steps: Tensor, weight: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """States h and c (T, R, B, D) and gates (T, R, B, 4 D) of an LSTM with R directions, from what the input gives to
    the gates (`steps`) and the weight (R, 4 D, D) of the state. `real` (T, R, B, 1): elsewhere the state stays."""
    h = c = steps.new_zeros(*steps.shape[1:3], weight.shape[-1])
    hs, cs, gates = [], [], []
    for t, step in enumerate(steps.unbind()):
        i, f, g, o = (step + torch.stack([F.linear(x, w) for x, w in zip(h, weight, strict=True)])).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_next = f * c + i * g
        h_next = o * c_next.tanh()
        if real is not None:
            c_next, h_next = torch.where(real[t], c_next, c), torch.where(real[t], h_next, h)
        c, h = c_next, h_next
        hs.append(h)
        cs.append(c)
        gates.append(torch.cat([i, f, g, o], -1))
    return torch.stack(hs), torch.stack(cs), torch.stack(gates)


class Recurrence(torch.autograd.Function):
    """`recur` with one product for the gradient of the weight, where autograd adds up one per frame: half the time."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, weight: Tensor, real: Tensor | None) -> Tensor:
        hs, cs, gates = recur(steps, weight, real)
        ctx.save_for_backward(hs, cs, gates, weight, real)
        return hs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hs: Tensor) -> tuple[Tensor, Tensor, None]:
        hs, cs, gates, weight, real = ctx.saved_tensors
        turned, zero = weight.to(hs.dtype), torch.zeros_like(hs[:1])
        before_h, before_c = torch.cat([zero, hs[:-1]]), torch.cat([zero, cs[:-1]])
        d_steps, d_h, d_c = torch.empty_like(gates), zero[0], zero[0]
        for t in reversed(range(len(hs))):
            d_h = d_h + d_hs[t]
            kept_h = kept_c = None
            if real is not None:
                kept_h, kept_c = d_h.masked_fill(real[t], 0), d_c.masked_fill(real[t], 0)
                d_h, d_c = d_h.masked_fill(~real[t], 0), d_c.masked_fill(~real[t], 0)
            i, f, g, o = gates[t].chunk(4, -1)
            bent = cs[t].tanh()
            d_c = d_c + d_h * o * (1 - bent * bent)
            inner = (d_c * g * i * (1 - i), d_c * before_c[t] * f * (1 - f), d_c * i * (1 - g * g))
            torch.cat([*inner, d_h * bent * o * (1 - o)], -1, out=d_steps[t])
            d_c = d_c * f
            d_h = torch.stack([d @ w for d, w in zip(d_steps[t], turned, strict=True)])
            if kept_h is not None:
                d_h, d_c = d_h + kept_h, d_c + kept_c
        per_direction = zip(d_steps.transpose(0, 1), before_h.transpose(0, 1), strict=True)
        d_weight = torch.stack([d.flatten(0, 1).t() @ h.flatten(0, 1) for d, h in per_direction])
        return d_steps, d_weight.to(weight.dtype), None


class FrameLSTM(nn.Module):
    """An LSTM over frames from zero states, one or both directions at once: (B, T, D) -> (B, T, directions * D).

    The mathematics and gate order of `nn.LSTM`, which cannot be traced into one graph; padded frames leave the state
    alone.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor

    def __init__(self, width: int, directions: int) -> None:
        super().__init__()
        reach = width**-0.5
        for name, shape in {
            "weight_ih": (directions, 4 * width, width),
            "weight_hh": (directions, 4 * width, width),
            "bias_ih": (directions, 4 * width),
            "bias_hh": (directions, 4 * width),
        }.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-reach, reach)))

    def forward(self, x_BTD: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        both = self.weight_ih.shape[0] == 2
        gates = F.linear(x_BTD, self.weight_ih.flatten(0, 1), (self.bias_ih + self.bias_hh).flatten())
        steps = gates.unflatten(-1, (-1, 4 * x_BTD.shape[-1])).permute(1, 2, 0, 3)  # T, directions, B, 4 D
        real = None if frame_mask is None else frame_mask.t()[:, None, :, None].expand(-1, steps.shape[1], -1, -1)
        if both:
            steps = torch.stack([steps[:, 0], steps[:, 1].flip(0)], 1)
            real = None if real is None else torch.stack([real[:, 0], real[:, 1].flip(0)], 1)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            seen = Recurrence.apply(steps, self.weight_hh, real)
        else:
            seen = recur(steps, self.weight_hh, real)[0]
        if both:
            seen = torch.stack([seen[:, 0], seen[:, 1].flip(0)], 1)
        return seen.permute(2, 0, 1, 3).flatten(2)


class FrameTransformer(nn.Module):
    """Four CLIP blocks over the frames with learned frame positions: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, frames: int, std: float, activation: str) -> None:
        super().__init__()
        self.positions = normal(std, frames, width)
        self.blocks = nn.ModuleList(Block(TowerConfig(4, width, heads, 4 * width), activation) for _ in range(4))

    def forward(self, x_BTD: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        layout = Layout(0, x_BTD.shape[1], 1, frame_mask)
        x = x_BTD + interpolated(self.positions, layout).to(x_BTD.dtype)
        for block in self.blocks:
            x, _ = block(x, layout, jointly, None)
        return x


class Context(nn.Module):
    """Prompts for every frame from the CLS tokens of all frames: (B, T, D) -> (B, T, n, D). Shared by all layers."""

    def __init__(self, c: VopConfig, tower: TowerConfig, activation: str) -> None:
        super().__init__()
        d, self.count = tower.width, c.context
        if c.context_module == "transformer":
            std = c.std if c.position_std is None else c.position_std
            self.read: nn.Module = FrameTransformer(d, tower.heads, c.frames, std, activation)
        else:
            self.read = FrameLSTM(d, 2 if c.context_module == "bilstm" else 1)
        self.fc = nn.Linear(2 * d if c.context_module == "bilstm" else d, c.context * d)
        nn.init.normal_(self.fc.weight, std=c.std)
        nn.init.normal_(self.fc.bias, std=c.std)

    def forward(self, cls_BTD: Tensor, frame_mask: Tensor | None) -> Tensor:
        if frame_mask is not None:  # what a padded frame holds must not reach the products
            cls_BTD = cls_BTD.masked_fill(~frame_mask[..., None], 0.0)
        return self.fc(self.read(cls_BTD, frame_mask)).unflatten(-1, (self.count, -1))


class FramePrompts(LayerTuner):
    """Prompts of one layer that sees frame by frame. They end there, unless they `stay` as tokens behind each frame's
    own, because the next layer brings none; the first layer that does takes the `replaced` ones out."""

    def __init__(self, c: VopConfig, width: int, replaced: int, stay: bool, context: Context | None) -> None:
        super().__init__()
        self.replaced, self.stay, self.context = replaced, stay, context
        self.general = normal(c.std, c.general, width) if c.general else None
        std = c.std if c.position_std is None else c.position_std
        self.position = normal(std, c.frames, c.position, width) if c.position else None

    def before(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        globals_BMD, frames = layout.split(x)
        B, T, L, _ = frames.shape
        frames = frames[:, :, : L - self.replaced]
        parts = []
        if self.general is not None:
            parts.append(self.general[None, None])
        if self.position is not None:
            parts.append(nearest(self.position, layout))
        if self.context is not None:
            parts.append(self.context(frames[:, :, 0], layout.frame_mask))
        prompts = tuple(p.to(x.dtype) for p in parts)
        if self.stay:
            return layout.join(globals_BMD, torch.cat([frames, *(p.expand(B, T, -1, -1) for p in prompts)], 2))
        x, layout = layout.join(globals_BMD, frames) if self.replaced else (x, layout)
        return x, layout._replace(seen=prompts)


class VideoPrompts(LayerTuner):
    """Prompts of one layer that sees the whole video; the first such layer adds the frame embedding."""

    def __init__(self, c: VopConfig, width: int, first: bool) -> None:
        super().__init__()
        self.prompts = normal(c.std, c.per_frame, width) if c.per_frame else None
        self.frame_position = normal(c.position_std or 0.0, c.frames, width) if first else None
        self.attend = jointly

    def before(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        if self.frame_position is not None:
            x = (layout.split(x)[1] + interpolated(self.frame_position, layout)[:, :, None].to(x.dtype)).flatten(1, 2)
        return x, layout if self.prompts is None else layout._replace(seen=(self.prompts[None].to(x.dtype),))


class TextPrompts(LayerTuner):
    """Prompts of one layer of the text tower: prefix behind the start token, suffix before the last of all slots."""

    def __init__(self, c: VopConfig, width: int, slots: int) -> None:
        super().__init__()
        self.slots, self.counts = slots, (c.prefix, c.suffix)
        self.prompts = normal(c.std, c.prefix + c.suffix, width)

    def put(self, x: Tensor, whole: bool, replaced: bool) -> Tensor:
        """`whole`: no slot was cut off, so that there is room for the suffix. `replaced`: prompts are there already."""
        prompts = self.prompts.to(x.dtype).expand(len(x), -1, -1)
        prefix, suffix = prompts.split(self.counts, 1)
        start, end = (self.counts[0] if replaced else 0), x.shape[1]
        if not (whole and self.counts[1]):
            return torch.cat([x[:, :1], prefix, x[:, 1 + start :]], 1)
        words = x[:, 1 + start : end - 1 - (self.counts[1] if replaced else 0)]
        return torch.cat([x[:, :1], prefix, words, suffix, x[:, -1:]], 1)

    def before(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        return self.put(x, x.shape[1] == self.slots, replaced=True), layout


class Vop(Layered):
    """VoP and its forms on one CLIP; see `VopConfig`."""

    def __init__(self, clip: Clip, config: VopConfig) -> None:
        super().__init__()
        c, base = config, clip.config
        self.config = c
        self.text_slots, self.slots = c.prefix + c.suffix, base.context
        layers = base.vision.layers
        joint = c.joint_of(layers)
        frame_layers = layers - joint
        if frame_layers < 0:
            raise ClipreelError(f"joint_layers {joint}: the video tower has {layers} layers")
        if not frame_layers and (c.position or c.context):
            raise ClipreelError(
                f"joint_layers {joint} leaves no layer of {layers} that sees frame by frame, so position and context "
                "prompts have no place; give fewer, or none of these prompts, as vop_f"
            )
        if self.slots - self.text_slots < 3:
            raise ClipreelError(f"{self.text_slots} text prompts leave no room for words in {self.slots} text slots")
        # registered before the layers that share it, so that its tensors bear its name
        self.context = Context(c, base.vision, base.activation) if c.context else None
        width = base.vision.width
        depth, stay = c.depth("vision", layers) if c.per_frame or joint else (), False
        for i in depth:
            if i < frame_layers:
                replaced, stay = c.per_frame if stay else 0, i + 1 < layers and i + 1 not in depth
                self.place("vision", i, FramePrompts(c, width, replaced, stay, self.context))
            else:
                self.place("vision", i, VideoPrompts(c, width, i == frame_layers))
        for i in c.depth("text", base.text.layers) if self.text_slots else ():
            self.place("text", i, TextPrompts(c, base.text.width, self.slots))

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        layer = super().layer(tower, index)
        # prompts of the first layer are put in while embedding
        return layer if index or isinstance(layer, VideoPrompts) else None

    def embed_video(self, x: Tensor, layout: Layout, tower: VideoTower) -> tuple[Tensor, Layout]:
        first = self.placed.get(("vision", 0))
        return first.before(x, layout) if isinstance(first, FramePrompts) else (x, layout)

    def embed_text(self, x: Tensor, ends: Tensor, tower: TextTower) -> Tensor:
        first = self.placed.get(("text", 0))
        if not isinstance(first, TextPrompts):
            return x
        return first.put(x, x.shape[1] == self.slots - self.text_slots, replaced=False)

    def text_length(self, ends: Tensor, length: int) -> int:
        if not self.text_slots:
            return super().text_length(ends, length)
        if length != self.slots - self.text_slots:
            raise ValueError(f"VoP reads texts of {self.slots - self.text_slots} slots, not {length}: tokenise to that")
        last = int(ends.max()) + (self.config.suffix if self.config.text_read == "released" else 0)
        # a text that reads the suffix or the last slot needs every slot in its place
        return last + 1 if last <= length - 2 else length

    def read_text(self, ends: Tensor, length: int) -> Tensor:
        prefix, suffix = self.config.prefix, self.config.suffix
        if self.config.text_read == "released":
            return ends + prefix + suffix
        return ends + prefix + suffix * (ends == self.slots - self.text_slots - 1)
