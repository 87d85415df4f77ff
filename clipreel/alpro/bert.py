"""BERT in two halves: the lower layers read text, the upper ones text and video tokens together.

Specification alpro.md 2.2; checked against salesforce/ALPRO on fixtures. Fusion is self-attention over the text tokens
followed by the video tokens as they are. Differs in form: q, k, v are one product, attention is fused, and padded keys
are left out instead of pushed down by 10000.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipreel.errors import ClipreelError
from clipreel.noise import dropout
from clipreel.patterns import attention

EPS = 1e-12
PAD = 0


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text and fusion encoder: `text_layers` of the `layers` read text alone."""

    vocab: int = 30522
    context: int = 512
    width: int = 768
    layers: int = 12
    text_layers: int = 6
    heads: int = 12
    mlp: int = 3072
    dropout: float = 0.1


class Layer(nn.Module):
    """One post-norm transformer layer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        d = config.width
        self.heads, self.rate = config.heads, config.dropout
        self.qkv, self.out, self.ln1 = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.LayerNorm(d, eps=EPS)
        self.fc, self.proj, self.ln2 = nn.Linear(d, config.mlp), nn.Linear(config.mlp, d), nn.LayerNorm(d, eps=EPS)

    def forward(self, x: Tensor, seen: Tensor, first: bool = False) -> Tensor:
        """x (B, S, D) -> the same, or (B, 1, D) with `first`, when only the first token is read; `seen` (B, 1, 1, S)
        is False on keys that nobody looks at."""
        if first:
            d, w, b = x.shape[-1], self.qkv.weight, self.qkv.bias
            k, v = F.linear(x, w[d:], b[d:]).unflatten(-1, (2, self.heads, -1)).unbind(2)
            x = x[:, :1]
            q = F.linear(x, w[:d], b[:d]).unflatten(-1, (self.heads, -1))
        else:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        look = self.forgetful if self.training and self.rate else attention
        x = self.ln1(x + dropout(self.out(look(q, k, v, seen).flatten(-2)), self.rate, self.training))
        y = self.proj(F.gelu(self.fc(x)))
        return self.ln2(x + dropout(y, self.rate, self.training))

    def forgetful(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """Attention with dropout on its weights, in full, because a fused one draws masks that depend on the split."""
        logits = torch.einsum("bqhk,bshk->bhqs", q, k) * q.shape[-1] ** -0.5
        weights = dropout(logits.masked_fill(~seen, -torch.inf).softmax(-1), self.rate, True)
        return torch.einsum("bhqs,bshk->bqhk", weights.to(v.dtype), v)


class Bert(nn.Module):
    """Text to tokens (`read`), text and video tokens to fused tokens (`fuse`)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        d = config.width
        if d % config.heads or not 0 < config.text_layers <= config.layers:
            raise ClipreelError(
                f"width {d} must be a multiple of the {config.heads} heads, and text_layers {config.text_layers} lie "
                f"from 1 to {config.layers}"
            )
        self.config, self.checkpointing = config, False
        self.words = nn.Embedding(config.vocab, d, padding_idx=PAD)
        self.positions, self.types = nn.Embedding(config.context, d), nn.Embedding(2, d)
        self.ln = nn.LayerNorm(d, eps=EPS)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def embed(self, ids: Tensor) -> Tensor:
        """(B, L, D) of token ids (B, L). Raises ClipreelError for more tokens than positions."""
        if ids.shape[1] > self.config.context:
            raise ClipreelError(f"{ids.shape[1]} tokens: this model reads at most {self.config.context}")
        x = self.words(ids) + self.types.weight[0] + self.positions.weight[: ids.shape[1]]
        return dropout(self.ln(x), self.config.dropout, self.training)

    def run(self, x: Tensor, mask: Tensor, layers: range, first: bool = False) -> Tensor:
        seen = mask.bool()[:, None, None]
        for i in layers:
            only = first and i == layers[-1]
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.layers[i], x, seen, only, use_reentrant=False)
            else:
                x = self.layers[i](x, seen, only)
        return x

    def upper(self) -> nn.ModuleList:
        """The layers that fuse."""
        return self.layers[self.config.text_layers :]

    def read(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Text tokens (B, L, D) after the lower half; `mask` (B, L) is 0 on padding (default: where ids are 0)."""
        return self.run(self.embed(ids), ids != PAD if mask is None else mask, range(self.config.text_layers))

    def fuse(self, text_BLD: Tensor, mask_BL: Tensor, video_BSD: Tensor, first: bool = False) -> Tensor:
        """Fused tokens (B, L + S, D), the text first, or with `first` only the first of them (B, 1, D), for less work.
        Every video token is seen."""
        both = torch.cat([text_BLD, video_BSD], 1)
        mask = F.pad(mask_BL.bool(), (0, video_BSD.shape[1]), value=True)
        x = self.run(both, mask, range(self.config.text_layers, self.config.layers), first)
        return x[:, :1] if first else x


class MaskedWords(nn.Module):
    """The masked-language head; its decoder is the table of word embeddings, which it is given."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.dense, self.ln = nn.Linear(width, width), nn.LayerNorm(width, eps=EPS)
        self.bias = nn.Parameter(torch.zeros(vocab))

    def forward(self, x: Tensor, words: nn.Embedding) -> Tensor:
        """Logits (..., vocab) of fused tokens (..., D)."""
        return F.linear(self.ln(F.gelu(self.dense(x))), words.weight, self.bias)
