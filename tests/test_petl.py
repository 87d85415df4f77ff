"""Counts, frozen configs and properties of AdaptFormer, Convpass, ST-Adapter and the Cross-Modal Adapter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.errors import ClipreelError
from clipreel.patterns import Layout
from clipreel.sites import Tuner
from clipreel.training.cells import cells
from clipreel.tuners import build
from clipreel.tuners.adaptformer import AdaptFormerConfig, Bottleneck
from clipreel.tuners.convpass import Bypass, ConvpassConfig

CONFIGS = Path(__file__).parent.parent / "configs" / "petl"
DATASETS = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
B16 = ClipConfig(224, 16, TowerConfig(12, 768, 12, 3072), TowerConfig(12, 512, 8, 2048), 77, 49408, 512, "quick_gelu")
TINY = ClipConfig(16, 8, TowerConfig(3, 32, 2, 64), TowerConfig(3, 32, 2, 64), 24, 60, 16, "quick_gelu")


@pytest.fixture(scope="module")
def large() -> Clip:
    with torch.device("meta"):
        return Clip(B16)


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(TINY).eval().requires_grad_(False)


def made(clip: Clip, name: str, **changes: object) -> Tuner:
    torch.manual_seed(1)
    tuner = build(name, clip, changes).eval()
    with torch.no_grad():
        for p in tuner.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return tuner


def video(frames: int = 4) -> Tensor:
    return torch.randn(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# method, options -> parameters at ViT-B/16; the shares of 149,620,737 that the papers print stand behind
COUNTS = [
    ("adapter_ffn", {"width": 128, "norm": "in", "biases": True}, 4_152_320),  # 2.78
    ("adaptformer_seq", {"width": 128, "norm": "in", "biases": True}, 4_152_320),  # 2.78
    ("st_adapter", {"places": ("attn",), "text_width": 128, "biases": True}, 8_873_984),  # 5.93
    ("cross_modal", {"branches": ("ffn",), "width": 128, "norm": True, "biases": True}, 4_127_552),  # 2.76
    ("cross_modal", {}, 519_168),  # 0.35
    ("cross_modal", {"shared": 32}, 515_712),
    ("st_adapter", {}, 12 * (2 * 768 * 384 + 768 + 2 * 384 + 3 * 384)),
    ("st_adapter_24x", {}, 24 * (2 * 768 * 384 + 768 + 2 * 384 + 3 * 384)),
    ("convpass", {}, 24 * (2 * 768 * 8 + 768 + 8 + 9 * 64 + 8)),
    ("convpass", {"attn_only": True}, 12 * (2 * 768 * 8 + 768 + 8 + 9 * 64 + 8)),
    ("bias", {}, 171_008),
]


@pytest.mark.parametrize(("name", "changes", "number"), COUNTS)
def test_counts(large: Clip, name: str, changes: dict, number: int) -> None:
    with torch.device("meta"):
        assert count(build(name, large, changes)) == number


PRINTED = {"adapt_par": 2.78, "adapt_seq": 2.78, "st_adapter": 5.93, "cross_modal": 2.76}


@pytest.mark.parametrize("dataset", DATASETS)
def test_frozen_configs_build_what_the_paper_counts(large: Clip, dataset: str) -> None:
    found = cells(CONFIGS / f"{dataset}.yaml")
    assert set(found) == {*PRINTED, "convpass"}
    for name, cell in found.items():
        with torch.device("meta"):
            share = 100 * count(build(cell.config.method, large, cell.config.options)) / count(large)
        assert name == "convpass" or round(share, 2) == PRINTED[name]


@pytest.mark.parametrize("name", ["convpass", "st_adapter", "st_adapter_24x"])
def test_the_text_tower_is_left_alone_or_gets_bottlenecks(clip: Clip, name: str) -> None:
    assert {tower for tower, _ in made(clip, name).placed} == {"vision"}
    both = made(clip, name, text_width=4)
    layer = both.layer("text", 1)
    assert isinstance(layer, Bottleneck)
    x, h, y = torch.randn(3, 1, 6, 32).unbind()
    assert torch.equal(layer.beside_mlp(x, h, y, Layout(0, 1, 6)), layer.added(y))


def test_adaptformer_forms() -> None:
    torch.manual_seed(0)
    x, h, y = torch.randn(3, 1, 6, 32).unbind()
    layout = Layout(0, 1, 6)
    c = AdaptFormerConfig(width=8)

    def layer(**changes: object) -> Bottleneck:
        torch.manual_seed(3)
        found = Bottleneck(replace(c, **changes), 32).eval()
        with torch.no_grad():
            nn.init.normal_(found.up.weight)
        return found

    assert torch.equal(layer().delta(x, h, y, layout), layer().added(x))
    assert torch.equal(layer(form="sequential").delta(x, h, y, layout), layer().added(y))
    learned = layer(scale=None)
    assert learned.scale.item() == 1
    torch.testing.assert_close(learned.added(x), 10 * layer().added(x))
    # a LayerNorm behind the scale takes it away
    torch.testing.assert_close(layer(norm="out", scale=5.0).added(x), layer(norm="out").added(x), atol=0.1, rtol=0.02)
    assert layer().train().added(x).ne(layer().added(x)).any()  # dropout


def test_convpass_looks_at_neighbours_and_takes_any_square() -> None:
    torch.manual_seed(0)
    module = Bypass(ConvpassConfig(width=4), 32).eval()
    nn.init.normal_(module.up.weight)
    for grid in (1, 3, 7):
        x, layout = torch.randn(2, 2 * (1 + grid * grid), 32), Layout(0, 2, 1 + grid * grid)
        out, changed = module(x, layout), x.clone()
        changed[:, 1] += 1  # the first patch of the first frame
        moved = (module(changed, layout) - out).abs().amax((0, 2)) > 1e-6
        near = [1 + row * grid + column for row in range(min(2, grid)) for column in range(min(2, grid))]
        assert moved.nonzero().flatten().tolist() == near
    with pytest.raises(ClipreelError, match="a square of patches"):
        module(torch.randn(1, 7, 32), Layout(0, 1, 7))
    with pytest.raises(ClipreelError, match="3 global tokens"):
        module(torch.randn(1, 8, 32), Layout(3, 1, 5))
    identity = Bypass(ConvpassConfig(width=4, start="identity"), 32)
    z = torch.randn(1, 4, 3, 3)
    assert torch.equal(identity.conv(z), z)


def test_st_adapter_hides_padding_unless_told_not_to(clip: Clip) -> None:
    mask = torch.tensor([[True, True, False, False]] * 2)
    alone = clip.encode_video(video()[:, :2], made(clip, "st_adapter_24x"))
    for hide in (True, False):
        tuner = made(clip, "st_adapter_24x", hide_padding=hide)
        padded = clip.encode_video(video(), tuner, mask)[:, :2]
        assert torch.allclose(padded, alone, atol=1e-5) == hide


@pytest.mark.parametrize("name", ["st_adapter", "st_adapter_24x"])
def test_what_st_adapter_leaves_out_changes_nothing(clip: Clip, name: str) -> None:
    tuner = made(clip, name)
    ours, last = clip.encode_video(video(), tuner), tuner.layer("vision", 2)
    last.beside_attn = last.before_mlp
    assert torch.allclose(clip.encode_video(video(), tuner), ours, atol=1e-6)
    assert not torch.allclose(ours, clip.encode_video(video()), atol=1e-3)
    last.beside_attn = None
    nn.init.constant_(last.mlp.up.bias, torch.nan)
    assert torch.equal(clip.encode_video(video(), tuner), ours)


def test_cross_modal_shares_its_last_channels(clip: Clip) -> None:
    tuner = made(clip, "cross_modal", shared=16)
    for i in range(3):
        for branch in ("attn", "ffn"):
            a, b = (tuner.layer(tower, i).parts[branch] for tower in ("vision", "text"))
            assert a.shared.weight is b.shared.weight
            assert a.own.weight is not b.own.weight
    y = torch.randn(1, 6, 32)
    part = tuner.layer("vision", 0).parts["ffn"]
    torch.testing.assert_close(part(y)[..., 16:], part.shared(part.activation(part.down(y))))
    with torch.no_grad():
        fresh = build("cross_modal", clip)
    assert fresh.shared[0]["ffn"].weight.abs().max() < 0.06
    uneven = Clip(replace(TINY, text=replace(TINY.text, layers=2)))
    with pytest.raises(ClipreelError, match="have 3 and 2 layers"):
        build("cross_modal", uneven)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("adapter_ffn", {"form": "x"}),
        ("adapter_ffn", {"norm": "both"}),
        ("adapter_ffn", {"branch": "mlp"}),
        ("adapter_ffn", {"width": 0}),
        ("convpass", {"start": "zero"}),
        ("convpass", {"width": 0}),
        ("convpass", {"text_width": -1}),
        ("st_adapter", {"places": ()}),
        ("st_adapter", {"places": ("head",)}),
        ("st_adapter", {"kernel": 2}),
        ("cross_modal", {"branches": ("mlp",)}),
        ("cross_modal", {"activation": "relu"}),
        ("cross_modal", {"shared": 32}),
    ],
)
def test_wrong_options(clip: Clip, name: str, wrong: dict) -> None:
    with pytest.raises(ClipreelError, match=r"allowed|give"):
        build(name, clip, wrong)
