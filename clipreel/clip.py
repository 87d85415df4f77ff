"""The backbone: CLIP's video and text towers, and the six sites where a method may act. Knows no method.

Architecture: CLIP (arXiv 2103.00020), spec core.md 1.1-1.5, checked against openai/CLIP, transformers and open_clip on
parity fixtures. Differs in form: a video is one sequence with a `Layout`, attention is a `Pattern`, the patch
convolution is a matrix product, and text is cut behind the last end token (exact, because attention is causal).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipreel.block import Block, Read, TowerConfig, normalise
from clipreel.patterns import Layout, Pattern, by_frame, causal
from clipreel.sites import NOTHING, PLAIN, Tuner, scoped


@dataclass(frozen=True)
class ClipConfig:
    """Everything that the tensors of a CLIP do not tell by their shapes alone, and what they do.

    `activation` is "quick_gelu" or "gelu"; `eos_id` None reads the text at the largest id (OpenAI's rule).
    """

    image_size: int
    patch: int
    vision: TowerConfig
    text: TowerConfig
    context: int
    vocab: int
    embed: int
    activation: str
    eos_id: int | None = None


class Tower(nn.Module):
    """A stack of blocks; `checkpointing` recomputes each block in the backward pass instead of keeping activations."""

    name: str

    def __init__(self, config: TowerConfig, activation: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, activation) for _ in range(config.layers))
        self.checkpointing = False

    def run(self, x: Tensor, layout: Layout, attend: Pattern, tuner: Tuner, read: Read = None) -> tuple[Tensor, Layout]:
        over = tuner.overrides
        for i, block in enumerate(self.blocks):
            own = scoped(over, f"{self.name}.blocks.{i}.") if over else NOTHING
            args = (x, layout, attend, tuner.layer(self.name, i), own, read if i + 1 == len(self.blocks) else None)
            if self.checkpointing and torch.is_grad_enabled():
                x, layout = checkpoint(block, *args, use_reentrant=False)
            else:
                x, layout = block(*args)
        return x, layout

    def tensor(self, name: str, tuner: Tuner) -> Tensor:
        """A base tensor of this tower, or its replacement."""
        return tuner.overrides.get(f"{self.name}.{name}", self.get_parameter(name))


def project(x_BTLP: Tensor, weight: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Patches -> tokens. A replaced weight (D, 3, t, p, p) spans t frames, padded ones and those beyond the ends 0."""
    if weight.ndim == 4:
        return F.linear(x_BTLP, weight.flatten(1))
    if frame_mask is not None:
        x_BTLP = x_BTLP.masked_fill(~frame_mask[:, :, None, None], 0.0)
    T, span = x_BTLP.shape[1], weight.shape[2]
    x = F.pad(x_BTLP, (0, 0, 0, 0, span // 2, span // 2))
    return torch.stack([F.linear(x[:, i : i + T], weight[:, :, i].flatten(1)) for i in range(span)]).sum(0)


def drawn(*shape: int, std: float) -> nn.Parameter:
    return nn.Parameter(draw(torch.empty(shape), std))


def draw(x: Tensor, std: float) -> Tensor:
    """`x` with normal numbers; not on the meta device, where torch would load its compiler for them: a second."""
    return x if x.is_meta else nn.init.normal_(x, std=std)


class VideoTower(Tower):
    name = "vision"

    def __init__(self, c: ClipConfig) -> None:
        super().__init__(c.vision, c.activation)
        self.grid, d = c.image_size // c.patch, c.vision.width
        self.patch = nn.Conv2d(3, d, c.patch, c.patch, bias=False)
        self.cls = drawn(d, std=d**-0.5)
        self.pos = drawn(1 + self.grid * self.grid, d, std=d**-0.5)
        self.ln_pre, self.ln_post = nn.LayerNorm(d), nn.LayerNorm(d)
        self.head = drawn(d, c.embed, std=d**-0.5)

    def embed(self, frames_BTCHW: Tensor, tuner: Tuner, frame_mask: Tensor | None = None) -> tuple[Tensor, Layout]:
        """Pixels -> tokens before `ln_pre`, [CLS, patches row by row] for every frame."""
        B, T, _, H, W = frames_BTCHW.shape
        weight, pos = self.tensor("patch.weight", tuner), self.tensor("pos", tuner)
        p = weight.shape[-1]
        rows, columns = H // p, W // p  # as in a strided convolution, what does not fill a patch is left out
        # positions that were resized to another grid do not say which one, those of the model are a square
        square = pos.shape[0] - 1 == self.grid * self.grid
        if 1 + rows * columns != pos.shape[0] or (square and rows != columns):
            raise ValueError(
                f"frames of {H}x{W} pixels give {rows}x{columns} patches of {p}, but the model has {pos.shape[0] - 1} "
                f"patch positions{' in a square' if square else ''}; preprocess to the size of the model, or load it "
                "with another image_size"
            )
        x = frames_BTCHW[..., : rows * p, : columns * p].reshape(B * T, 3, rows, p, columns, p)
        x = project(x.permute(0, 2, 4, 1, 3, 5).reshape(B, T, rows * columns, -1), weight, frame_mask)
        cls = self.tensor("cls", tuner).to(x.dtype).expand(B, T, 1, -1)
        x = torch.cat([cls, x], 2) + pos.to(x.dtype)
        return tuner.embed_video(x.flatten(1, 2), Layout(0, T, 1 + rows * columns, frame_mask), self)

    def forward(self, frames_BTCHW: Tensor, tuner: Tuner, frame_mask: Tensor | None = None) -> Tensor:
        x, layout = self.embed(frames_BTCHW, tuner, frame_mask)
        own = scoped(tuner.overrides, "vision.")
        ln_pre, ln_post = (partial(normalise, getattr(self, n), over=own, name=n) for n in ("ln_pre", "ln_post"))
        layout = layout._replace(seen=tuple(ln_pre(s) for s in layout.seen))
        x, _ = self.run(ln_pre(x), layout, by_frame, tuner, tuner.read_video)
        return ln_post(x) @ self.tensor("head", tuner)


class TextTower(Tower):
    name = "text"

    def __init__(self, c: ClipConfig) -> None:
        super().__init__(c.text, c.activation)
        d = c.text.width
        self.tokens = drawn(c.vocab, d, std=0.02)
        self.pos = drawn(c.context, d, std=0.01)
        self.ln_final = nn.LayerNorm(d)
        self.head = drawn(d, c.embed, std=d**-0.5)
        self.eos_id = c.eos_id
        # the initialisation of CLIP's text tower (specification core 1.5); the vision tower keeps torch's own
        deep = d**-0.5 * (2 * c.text.layers) ** -0.5
        stds = {"qkv.weight": d**-0.5, "out.weight": deep, "fc.weight": (2 * d) ** -0.5, "proj.weight": deep}
        for block in self.blocks:
            for name, std in stds.items():
                draw(block.get_parameter(name), std)

    def ends(self, ids_NL: Tensor) -> Tensor:
        """The slot of each text's end token (N,)."""
        return ids_NL.argmax(1) if self.eos_id is None else (ids_NL == self.eos_id).int().argmax(1)

    def tokens_out(self, ids_NL: Tensor, tuner: Tuner) -> tuple[Tensor, Tensor]:
        """Tokens (N, S, D) after `ln_final` and the slot (N,) that holds each text's meaning."""
        ends = self.ends(ids_NL)
        # a traced graph cannot depend on the longest caption, so it keeps every slot: slower, and equal
        keep = ids_NL.shape[1] if torch.compiler.is_compiling() else tuner.text_length(ends, ids_NL.shape[1])
        x = tuner.embed_text(F.embedding(ids_NL[:, :keep], self.tensor("tokens", tuner)), ends, self)
        pos = self.tensor("pos", tuner)
        if x.shape[1] > pos.shape[0]:
            raise ValueError(f"texts of {x.shape[1]} tokens, but the model has {pos.shape[0]} text positions; cut them")
        x = x + pos[: x.shape[1]]
        x, _ = self.run(x, Layout(0, 1, x.shape[1]), causal, tuner)
        return normalise(self.ln_final, x, scoped(tuner.overrides, "text."), "ln_final"), tuner.read_text(ends, keep)

    def forward(self, ids_NL: Tensor, tuner: Tuner) -> Tensor:
        x, slots = self.tokens_out(ids_NL, tuner)
        return x[torch.arange(len(x), device=x.device), slots] @ self.tensor("head", tuner)


class Clip(nn.Module):
    """Both towers. `logit_scale` is the logarithm of the scale."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision, self.text = VideoTower(config), TextTower(config)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))

    def encode_video(self, frames: Tensor, tuner: Tuner = PLAIN, frame_mask: Tensor | None = None) -> Tensor:
        """Normalised pixels (B, T, 3, H, W) -> raw vectors (B, T, E), or (B, 1, E) where the method reads one token.

        `frame_mask` (B, T) is False on padded frames, which then change nothing in the real ones.
        """
        return self.vision(frames, tuner, frame_mask)

    def encode_text(self, ids: Tensor, tuner: Tuner = PLAIN) -> Tensor:
        """Token ids (N, L) int64 -> raw vectors (N, E)."""
        return self.text(ids, tuner)

    def scale(self, tuner: Tuner = PLAIN) -> Tensor:
        """exp(logit_scale), the factor of cosines in the loss."""
        return tuner.overrides.get("logit_scale", self.logit_scale).exp()

    def compile_blocks(self, **options: object) -> Clip:
        """Compile each block by itself (`torch.compile` options); short to compile, and any tuner may be given."""
        # all blocks share one code object, and each kind of tuner and layout adds a graph to it; torch gives up after 8
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for block in self.all_blocks():
            block.compile(**options)
        return self

    def all_blocks(self) -> Iterable[Block]:
        yield from (*self.vision.blocks, *self.text.blocks)
