"""Attention patterns: who attends to whom in one sequence of global tokens and frames.

Every pattern is `(q, k, v, layout) -> o` on `(B, S, H, K)` tensors (K = head width) and calls fused
`scaled_dot_product_attention`; none builds an S x S mask. Sources: CLIP (by_frame, causal), VoP joint layers
(jointly), CLIP-ViP section 2.2 (with_proxies), TimeSformer as in ALPRO section 2.1 (divided).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layout(NamedTuple):
    """How a sequence of S = globals + frames * per_frame tokens is laid out: globals first, then frame after frame.

    An image is (0, 1, L), a text (0, 1, 77), CLIP-ViP (4, T, L), a VoP block (0, T, L + k), its joint layers (8, T, L).
    `frame_mask` (B, T) bool is False on padded frames; None means that every frame is real. `seen` are more tokens of
    the next block, which it only sees: they give keys and values, see nothing, and end there, so that nothing else is
    computed of them. Those of shape (1 or B, 1 or T, k, D) stand in each frame, those of (1 or B, k, D) in the video.
    """

    globals: int
    frames: int
    per_frame: int
    frame_mask: Tensor | None = None
    seen: tuple[Tensor, ...] = ()

    @property
    def length(self) -> int:
        return self.globals + self.frames * self.per_frame

    def split(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """The global tokens (B, M, D) and the frames (B, T, L, D) of a sequence, as views."""
        return x_BSD[:, : self.globals], x_BSD[:, self.globals :].unflatten(1, (self.frames, self.per_frame))

    def join(self, globals_BMD: Tensor, frames_BTLD: Tensor) -> tuple[Tensor, Layout]:
        """The sequence of these global tokens and frames, with its layout (the frame mask is kept)."""
        M, (T, L) = globals_BMD.shape[1], frames_BTLD.shape[1:3]
        layout = self._replace(globals=M, frames=T, per_frame=L)
        frames = frames_BTLD.flatten(1, 2)
        return (torch.cat([globals_BMD, frames], 1) if layout.globals else frames), layout

    def with_seen(self, x_BSHK: Tensor, seen: Sequence[Tensor]) -> Tensor:
        """Keys or values of the sequence and of the tokens that are only seen, which stand behind the others."""
        if not seen:
            return x_BSHK
        if seen[0].ndim == 4:
            return torch.cat([x_BSHK, *(s.expand(len(x_BSHK), -1, -1, -1) for s in seen)], 1)
        shape = len(x_BSHK), self.frames, -1, *x_BSHK.shape[2:]
        return torch.cat([x_BSHK.view(shape), *(s.expand(shape) for s in seen)], 2).flatten(1, 2)


Pattern = Callable[[Tensor, Tensor, Tensor, Layout], Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Softmax attention of queries (N, S, H, K) over keys (N, R, H, K) -> (N, S, H, K).

    `mask` is True where a key may be seen, broadcastable to (N, H, S, R).
    """
    o = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=causal
    )
    return o.transpose(1, 2)


def by_frame(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Every frame by itself, as in CLIP; global tokens have no frame and are refused."""
    if layout.globals:
        raise ValueError(f"by_frame: {layout.globals} global tokens belong to no frame; use with_proxies or jointly")
    if layout.frames == 1:
        return attention(q, k, v)
    fold = (q.shape[0] * layout.frames, -1, *q.shape[2:])
    return attention(q.reshape(fold), k.reshape(fold), v.reshape(fold)).reshape(q.shape)


def causal(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Each token sees itself and what stands before it."""
    return attention(q, k, v, causal=True)


def attended(attend: Pattern, layout: Layout, q: Tensor, k: Tensor, v: Tensor, *seen: Tensor) -> Tensor:
    """What a pattern gives, heads joined (B, R, D); `seen` are key, value, key, value of the tokens only seen."""
    return attend(q, layout.with_seen(k, seen[::2]), layout.with_seen(v, seen[1::2]), layout).flatten(-2)


def token_mask(layout: Layout) -> Tensor | None:
    """(B, 1, 1, S), False on the tokens of padded frames; None when no frame is padded."""
    if layout.frame_mask is None:
        return None
    seen = layout.frame_mask.repeat_interleave(layout.per_frame, 1)
    return F.pad(seen, (layout.globals, 0), value=True)[:, None, None]


def jointly(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Every token sees every token of the video, except those of padded frames."""
    mask = token_mask(layout)
    return attention(q, k, v, mask if mask is None else F.pad(mask, (0, k.shape[1] - layout.length), value=True))


def with_proxies(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Global tokens see everything; a patch sees the global tokens and its own frame.

    Two fused calls, cost M * S + T * L * (M + L): linear in the number of frames.
    """
    if not layout.globals:
        return by_frame(q, k, v, layout)
    proxies = attention(q[:, : layout.globals], k, v, token_mask(layout))
    _, q_BTLHK = layout.split(q)
    fold = (-1, layout.per_frame, *q.shape[2:])

    def with_globals(x: Tensor) -> Tensor:
        globals_BMHK, frames_BTLHK = layout.split(x)
        shared = globals_BMHK[:, None].expand(-1, layout.frames, -1, -1, -1)
        return torch.cat([shared, frames_BTLHK], 2).flatten(0, 1)

    patches = attention(q_BTLHK.reshape(fold), with_globals(k), with_globals(v))
    return torch.cat([proxies, patches.reshape(q.shape[0], -1, *q.shape[2:])], 1)


def read_at_proxies(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """`with_proxies` for a method that reads global tokens alone, which may then be the only queries."""
    return (with_proxies if q.shape[1] == layout.length else jointly)(q, k, v, layout)


# what a method reads may be the only queries of these (from each frame as many), and keys may stand behind the sequence
FREE_QUERIES: tuple[Pattern, ...] = (by_frame, jointly, read_at_proxies)


def over_time(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """The time half of divided attention: a patch sees the same place in all real frames; global tokens see only
    themselves (TimeSformer leaves the CLS token out of this half, so its output there is ignored by the caller)."""
    q_BTLHK, k_BTLHK, v_BTLHK = (layout.split(x)[1] for x in (q, k, v))

    def fold(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)

    mask = None
    if layout.frame_mask is not None:
        mask = layout.frame_mask.repeat_interleave(layout.per_frame, 0)[:, None, None]
    o = attention(fold(q_BTLHK), fold(k_BTLHK), fold(v_BTLHK), mask)
    o = o.unflatten(0, (-1, layout.per_frame)).transpose(1, 2).flatten(1, 2)
    return torch.cat([v[:, : layout.globals], o], 1) if layout.globals else o


def over_space(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """The space half of divided attention: each frame sees itself and the global tokens; a global token looks at each
    frame in turn and takes the mean of what it saw over the real frames."""
    if not layout.globals:
        return by_frame(q, k, v, layout)
    M, T = layout.globals, layout.frames

    def with_globals(x: Tensor) -> Tensor:
        globals_BMHK, frames_BTLHK = layout.split(x)
        return torch.cat([globals_BMHK[:, None].expand(-1, T, -1, -1, -1), frames_BTLHK], 2).flatten(0, 1)

    o = attention(with_globals(q), with_globals(k), with_globals(v)).unflatten(0, (-1, T))
    seen = o[:, :, :M]
    if layout.frame_mask is None:
        globals_BMHK = seen.mean(1)
    else:
        weight = layout.frame_mask.to(o.dtype)[:, :, None, None, None]
        globals_BMHK = (seen * weight).sum(1) / weight.sum(1).clamp(min=1)
    return torch.cat([globals_BMHK, o[:, :, M:].flatten(1, 2)], 1)


def divided(axis: str) -> Pattern:
    """One half of TimeSformer's divided attention: `time` or `space`."""
    halves = {"time": over_time, "space": over_space}
    if axis not in halves:
        raise ValueError(f"divided attention has the halves 'time' and 'space', not {axis!r}")
    return halves[axis]
