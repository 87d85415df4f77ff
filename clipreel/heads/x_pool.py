"""X-Pool: frames pooled by how a text looks at them (arXiv 2203.15086, section 4.2; specification core.md 8).

Queries from texts, keys and values from frames through one shared LayerNorm; a = LN2(attention), LN3(a + W a) is
compared with the text. Checked against layer6ai-labs/xpool. Differs in form: the output projection is applied to the
T frames instead of the N pairs (it is linear, and the weights of a softmax add up to one).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.errors import ClipreelError
from clipreel.heads.base import Head, unit

Known = tuple[Tensor, Tensor, "Tensor | None"]


class XPool(Head):
    """`heads` of attention from a text to the frames of a video; `dropout` on the last layer while training."""

    name = "x_pool"

    def __init__(self, width: int, *, heads: int = 1, dropout: float = 0.3) -> None:
        super().__init__(width)
        if heads < 1 or width % heads:
            raise ClipreelError(f"heads {heads}: must divide the width {width} of the vectors")
        self.heads, self.dropout = heads, dropout
        self.ln1, self.ln2, self.ln3 = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.out, self.linear = (nn.Linear(width, width) for _ in range(5))
        for layer in (self.q, self.k, self.v, self.out, self.linear):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def videos(self, frames_VTE: Tensor, frame_mask: Tensor | None) -> Known:
        """Keys (V, T, H, K), values after the output projection (V, T, H, E), and the mask."""
        h = self.ln1(frames_VTE)
        k, v = (layer(h).unflatten(-1, (self.heads, -1)) for layer in (self.k, self.v))
        out = self.out.weight.unflatten(1, (self.heads, -1))
        return k, torch.einsum("vthk,ehk->vthe", v, out), frame_mask

    def pooled(self, text_NE: Tensor, videos: Known) -> Tensor:
        """What each text makes of each video (V, N, E)."""
        k, values, mask = videos
        q = self.q(self.ln1(text_NE)).unflatten(-1, (self.heads, -1))
        logits = torch.einsum("nhk,vthk->vnht", q, k) * k.shape[-1] ** -0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
        # one product per video: (N, H T) weights with (H T, E) values
        seen = logits.softmax(-1).flatten(2) @ values.transpose(1, 2).flatten(1, 2)
        a = self.ln2(seen + self.out.bias)
        return self.ln3(a + F.dropout(self.linear(a), self.dropout, self.training))

    def pairs(self, text_NE: Tensor, videos: Known) -> Tensor:
        return torch.einsum("ne,vne->nv", unit(text_NE), unit(self.pooled(text_NE, videos)))

    def floats(self, frames: int) -> tuple[int, int]:
        return frames * self.heads * self.width, max(self.width, frames * self.heads)
