"""Random numbers of a row are its own: no split of a batch, cut of a text or place of the others changes them."""

import pytest
import torch

from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.noise import bits, dropout, from_row, uniform
from clipreel.sites import Chain
from clipreel.tuners import build
from tests.training.tiny import CONFIG, Memory

CPU = torch.device("cpu")
DROPPING = ("adapter_ffn", "adapter_attn", "adaptformer_seq", "convpass", "lora")


def drawn(first: int, *shape: int) -> torch.Tensor:
    torch.manual_seed(7)
    with from_row(first):
        return bits(shape, CPU)


def test_a_row_keeps_its_numbers_in_every_split() -> None:
    whole = drawn(0, 7, 3, 5)
    assert torch.equal(torch.cat([drawn(0, 2, 3, 5), drawn(2, 4, 3, 5), drawn(6, 1, 3, 5)]), whole)
    assert torch.equal(drawn(0, 7, 2, 5), whole[:, :2])  # a shorter text, here with an odd number of entries before it
    assert drawn(3, 0, 3, 5).shape == (0, 3, 5)
    assert not torch.equal(whole[0], whole[1])


def test_a_context_ends_also_with_an_error() -> None:
    with pytest.raises(KeyError), from_row(4):
        raise KeyError
    assert torch.equal(drawn(0, 3), torch.cat([drawn(0, 1), drawn(1, 2)]))


def test_another_draw_and_another_seed_are_other_numbers() -> None:
    torch.manual_seed(7)
    first, second = bits((5, 40), CPU), bits((5, 40), CPU)
    torch.manual_seed(8)
    third = bits((5, 40), CPU)
    assert len(torch.cat([first, second, third]).unique()) > 3 * 200 - 2


@pytest.mark.parametrize("shape", [(64, 4000), (4000, 64), (256000, 1)])
def test_numbers_are_even_and_independent(shape: tuple[int, int]) -> None:
    """Mean, variance and neighbours within five standard deviations, a histogram within the range of chi squared."""
    torch.manual_seed(0)
    u = uniform(shape, CPU)
    assert u.min() >= 0
    assert u.max() < 1
    z, n = (u.double() - 0.5) * 12**0.5, u.numel()
    assert abs(z.mean()) * n**0.5 < 5
    assert abs(z.square().mean() - 1) * (n / 0.8) ** 0.5 < 5
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1])):
        assert abs((a * b).sum()) / max(a.numel(), 1) ** 0.5 < 5
    for part in (u, (u * 2**16) % 1):  # the high and the low bits
        counts = torch.histc(part, 256, 0, 1)
        assert abs(((counts - n / 256).square() / (n / 256)).sum() - 255) < 5 * (2 * 255) ** 0.5


def test_dropout_keeps_the_mean_and_passes_gradients_where_it_kept() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 40, 10, requires_grad=True)
    y = dropout(x, 0.3, True)
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert abs((y == 0).float().mean() - 0.3) < 0.02
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert dropout(x, 0.3, False) is x
    assert dropout(x, 0.0, True) is x
    with pytest.raises(ClipreelError, match=r"dropout 1.0: give a share from 0 to below 1"):
        dropout(x, 1.0, True)


@pytest.mark.parametrize("method", [*DROPPING, "lora and vop"])
def test_a_row_by_itself_is_what_it_is_among_others(method: str) -> None:
    """VoP's prompts are shared by all videos, and LoRA drops some of their entries for each video."""
    torch.manual_seed(0)
    clip = Clip(CONFIG)
    tuner = build(method.split()[0], clip, {"dropout": 0.5})
    if method.endswith("vop"):
        tuner = Chain(tuner, build("vop", clip, {"prefix": 2}))
    with torch.no_grad():
        for p in tuner.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    batch = Memory().batch(0)
    pixels = batch.frames / 255

    def encode(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(5)
        with from_row(start):
            return clip.encode_video(pixels[start:stop], tuner), clip.encode_text(batch.ids[start:stop, :6], tuner)

    for whole, parts in zip(encode(0, 7), zip(*(encode(i, i + 1) for i in range(7)), strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-4)
    torch.manual_seed(6)
    assert not torch.allclose(clip.encode_video(pixels, tuner), encode(0, 7)[0], atol=1e-3)
