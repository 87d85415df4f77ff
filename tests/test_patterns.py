"""Each fused pattern against a plain twin: softmax with a dense S x S mask written from its definition."""

import pytest
import torch
from torch import Tensor

from clipreel.patterns import Layout, by_frame, causal, divided, jointly, with_proxies

B, H, K = 2, 3, 8


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    scores = torch.einsum("bshk,brhk->bhsr", q, k) / K**0.5
    return torch.einsum("bhsr,brhk->bshk", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def tokens(layout: Layout) -> tuple[Tensor, Tensor]:
    """Per token: its frame (-1 for globals) and its place in the frame."""
    frame = torch.arange(layout.frames).repeat_interleave(layout.per_frame)
    place = torch.arange(layout.per_frame).repeat(layout.frames)
    g = torch.full((layout.globals,), -1)
    return torch.cat([g, frame]), torch.cat([g, place])


def qkv(layout: Layout) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(B, layout.length, H, K, requires_grad=True) for _ in range(3)]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("globals_", [1, 4])
def test_with_proxies_is_the_masked_softmax(globals_: int, frames: int) -> None:
    layout = Layout(globals_, frames, 6)
    frame, _ = tokens(layout)
    seen = (frame[:, None] == frame[None]) | (frame[:, None] < 0) | (frame[None] < 0)
    q, k, v = qkv(layout)
    ours, plain = with_proxies(q, k, v, layout), dense(q, k, v, seen)
    close(ours, plain)
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((plain * weight).sum(), (q, k, v)),
        strict=True,
    ):
        close(a, b)


def test_by_frame_causal_and_jointly() -> None:
    layout = Layout(0, 4, 5)
    frame, _ = tokens(layout)
    q, k, v = qkv(layout)
    close(by_frame(q, k, v, layout), dense(q, k, v, frame[:, None] == frame[None]))
    close(by_frame(q[:, ::5], k, v, layout), by_frame(q, k, v, layout)[:, ::5])
    close(causal(q, k, v, layout), dense(q, k, v, torch.ones(20, 20).tril().bool()))
    close(jointly(q, k, v, layout), dense(q, k, v, torch.ones(20, 20).bool()))


def test_by_frame_refuses_globals() -> None:
    layout = Layout(1, 2, 3)
    with pytest.raises(ValueError, match="belong to no frame"):
        by_frame(*qkv(layout), layout)


def test_over_time_sees_one_place_in_all_frames() -> None:
    layout = Layout(1, 4, 5)
    frame, place = tokens(layout)
    q, k, v = qkv(layout)
    ours = divided("time")(q, k, v, layout)
    close(ours[:, 1:], dense(q, k, v, (place[:, None] == place[None]))[:, 1:])
    assert frame[0] == -1
    close(ours[:, :1], v[:, :1])


def test_over_space_averages_what_the_global_token_saw() -> None:
    layout = Layout(1, 3, 4)
    q, k, v = qkv(layout)
    ours = divided("space")(q, k, v, layout)
    per_frame = []
    for t in range(3):
        at = [0, *range(1 + 4 * t, 5 + 4 * t)]
        per_frame.append(dense(q[:, at], k[:, at], v[:, at], torch.ones(5, 5).bool()))
        close(ours[:, 1 + 4 * t : 5 + 4 * t], per_frame[-1][:, 1:])
    close(ours[:, 0], torch.stack([o[:, 0] for o in per_frame]).mean(0))


def test_divided_names_its_halves() -> None:
    with pytest.raises(ValueError, match="'time' and 'space'"):
        divided("frames")


@pytest.mark.parametrize("pattern", [jointly, with_proxies, divided("time"), divided("space")])
def test_padded_frames_change_nothing(pattern) -> None:
    long, short = Layout(2, 5, 4, torch.tensor([[True] * 3 + [False] * 2] * B)), Layout(2, 3, 4)
    q, k, v = qkv(long)
    cut = slice(0, short.length)
    close(pattern(q, k, v, long)[:, cut], pattern(q[:, cut], k[:, cut], v[:, cut], short))


def test_split_and_join_are_inverse() -> None:
    layout = Layout(2, 3, 4)
    x = torch.randn(B, layout.length, 7)
    back, same = layout.join(*layout.split(x))
    assert torch.equal(back, x)
    assert same == layout
