"""One transformer block of CLIP with the six sites where a method may act, and what it keeps for the backward pass.

Kept per token of width D: the input, q, k, v, and the 4 D in front of the activation, frozen or trained alike: 8 D.
Autograd by itself keeps 10 D (frozen) or 16 D. Norms, attention, the projection behind it and the activation are
computed again from these, which is about 5 % of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipreel.patterns import FREE_QUERIES, Layout, Pattern, attended
from clipreel.sites import NO_SITES, NOTHING, LayerTuner

Named = Mapping[str, Tensor]
Read = Callable[[Tensor, Layout], Tensor] | None


@dataclass(frozen=True)
class TowerConfig:
    """Size of one transformer; `mlp` is the hidden width of its MLP."""

    layers: int
    width: int
    heads: int
    mlp: int


def normalise(norm: nn.LayerNorm, x: Tensor, over: Mapping[str, Tensor], name: str) -> Tensor:
    """LayerNorm with float32 statistics whatever the type of x; the result has the type of x."""
    w, b = over.get(name + ".weight", norm.weight), over.get(name + ".bias", norm.bias)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x.float(), norm.normalized_shape, w.float(), b.float(), norm.eps).to(x.dtype)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the activation of OpenAI's models."""
    return F.silu(1.702 * x) / 1.702


def quick_gelu_scaled(z: Tensor) -> Tensor:
    """x sigmoid(1.702 x) of z = 1.702 x, overwritten where no gradient is wanted."""
    return F.silu(z, inplace=not torch.is_grad_enabled()).div_(1.702)


def sparingly(make: Callable[..., Any], *kept: Tensor, random: bool) -> Any:
    """make(*kept); of all that it computes, only `kept` stays until the backward pass, which makes the rest again.

    torch stops that as soon as it has what the gradients need, so a matrix product at the end is not repeated: only its
    input is made. `random`: `make` may draw random numbers, the same ones again.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return make(*kept)
    return checkpoint(make, *kept, use_reentrant=False, preserve_rng_state=random)


class Block(nn.Module):
    """One pre-norm transformer block: x + attention, then x + MLP."""

    def __init__(self, config: TowerConfig, activation: str) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"width {config.width} is not a multiple of {config.heads} heads")
        if activation not in ("quick_gelu", "gelu"):
            raise ValueError(f"activation {activation!r}: allowed are 'quick_gelu' and 'gelu'")
        d = config.width
        self.heads, self.quick = config.heads, activation == "quick_gelu"
        self.ln1, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ln2, self.fc, self.proj = nn.LayerNorm(d), nn.Linear(d, config.mlp), nn.Linear(config.mlp, d)

    def forward(
        self, x: Tensor, layout: Layout, attend: Pattern, t: LayerTuner | None, over: Named = NOTHING, read: Read = None
    ) -> tuple[Tensor, Layout]:
        """x (B, S, D) with its layout -> the same, possibly with other tokens; `over` replaces own tensors by name.

        `read` picks the tokens that come out; where the sites allow, the others end as keys and values.
        """
        t = NO_SITES if t is None else t
        if t.before is not None:
            x, layout = t.before(x, layout)
        ln1, heads = partial(normalise, self.ln1, over=over, name="ln1"), (3, self.heads, -1)
        h, qkv = self._sparing("qkv", ln1, t, over, x)
        q, k, v = qkv.unflatten(-1, heads).unbind(-3)
        # a site gets a row for every row of the batch, because what it draws belongs to a row
        shown = layout.seen if t.linear is None else tuple(s.expand(len(x), *s.shape[1:]) for s in layout.seen)
        seen = [y for s in shown for y in self._linear("qkv", ln1(s), t, over).unflatten(-1, heads).unbind(-3)[1:]]
        attend = attend if t.attend is None else t.attend
        if read is not None and attend in FREE_QUERIES and t.beside_attn is t.beside_mlp is t.after is None:
            x, q, read = read(x, layout), read(q, layout), None
        # what is bound here stays until the backward pass, so h only where somebody reads it
        mix = partial(self._mix, attend, layout, t, over, h if t.beside_attn is not None else x[:0])
        x, h, z = self._sparing("fc", mix, t, over, x, q, k, v, *seen)
        # in place where it can be: of two more tensors of this width, the memory costs more than the sum
        act, z = (quick_gelu_scaled, z.mul_(1.702)) if self.quick else (F.gelu, z)
        _, y = self._sparing("proj", act, t, over, z)
        x = x + y if t.beside_mlp is None else x + (y + t.beside_mlp(x, h, y, layout))
        if t.after is not None:
            x, layout = t.after(x, layout)
        return x if read is None else read(x, layout), layout._replace(seen=())

    def _mix(
        self, attend: Pattern, layout: Layout, t: LayerTuner, over: Named, h: Tensor, x: Tensor, *qkv: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The residual behind attention, and its norm."""
        y = self._linear("out", attended(attend, layout, *qkv), t, over)
        x = x + y if t.beside_attn is None else x + (y + t.beside_attn(x, h, y, layout))
        return x, normalise(self.ln2, x, over, "ln2")

    def _linear(self, name: str, h: Tensor, t: LayerTuner, over: Named) -> Tensor:
        layer: nn.Linear = getattr(self, name)
        y = F.linear(h, over.get(name + ".weight", layer.weight), over.get(name + ".bias", layer.bias))
        return y if t.linear is None else t.linear(name, h, y)

    def _sparing(
        self, name: str, make: Callable[..., Any], t: LayerTuner, over: Named, *kept: Tensor
    ) -> tuple[Tensor, ...]:
        """What `make` makes of `kept`, and a linear layer of the last of it; less is kept for the backward pass."""

        def run(*kept: Tensor) -> tuple[Tensor, ...]:
            made = make(*kept)
            made = made if isinstance(made, tuple) else (made,)
            return *made, self._linear(name, made[-1], t, over)

        weight = over.get(name + ".weight", getattr(self, name).weight)
        if name == "fc" or weight.requires_grad or t.linear is not None:
            return sparingly(run, *kept, random=any(site is not None for site in (t.linear, t.beside_attn)))
        return run(*kept)
