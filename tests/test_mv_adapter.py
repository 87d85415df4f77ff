"""MV-Adapter beside a second writing of its formulas, its counts, padding, folding, starts, and the released layout."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from clipreel import load_official
from clipreel.adapter import save_adapter, trained, with_adapter
from clipreel.checkpoints import name_table, to_openai
from clipreel.clip import Clip, ClipConfig, TowerConfig, quick_gelu
from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.official import MV_NAMES
from clipreel.patterns import Layout
from clipreel.retriever import Retriever
from clipreel.training.cells import cells
from clipreel.tuners import build, options
from clipreel.tuners.mv_adapter import (
    TIES,
    MvAdapter,
    MvAdapterConfig,
    TextBottleneck,
    VideoBottleneck,
    principal,
    standing,
)
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

LAYERS, FRAMES, WORDS = 3, 4, 10
TIED = [t for t in TIES if t != "none"]
CONFIGS = Path(__file__).parent.parent / "configs"
# layers, widths, heads, patch, embed: the towers of OpenAI's models
SIZES = {"B/32": (12, 768, 512, 32, 512), "B/16": (12, 768, 512, 16, 512), "L/14": (24, 1024, 768, 14, 768)}


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    config = ClipConfig(16, 8, TowerConfig(LAYERS, 64, 1, 64), TowerConfig(LAYERS, 64, 1, 64), 24, 60, 16, "quick_gelu")
    return Clip(config).eval().requires_grad_(False)


def made(clip: Clip, moved: bool = True, **options: object) -> MvAdapter:
    torch.manual_seed(1)
    tuner = MvAdapter(clip, MvAdapterConfig(**{"width": 8, "frames": FRAMES, "words": WORDS, **options}))
    return shaken(tuner) if moved else tuner.eval()


def shaken(module: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return module.eval()


def video(frames: int = FRAMES) -> Tensor:
    return torch.randn(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def ids(slots: int = WORDS) -> Tensor:
    found = torch.zeros(3, slots, dtype=torch.long)
    for row, end in zip(found, (2, 5, 9), strict=True):
        row[:end], row[end] = torch.randint(1, 50, (end,), generator=torch.Generator().manual_seed(end)), 59
    return found


# ------------------------------------------------------------------ counts


def meta(size: str) -> Clip:
    layers, vision, text, patch, embed = SIZES[size]
    towers = TowerConfig(layers, vision, vision // 64, 4 * vision), TowerConfig(12, text, text // 64, 4 * text)
    with torch.device("meta"):
        return Clip(ClipConfig(224, patch, *towers, 77, 49408, embed, "quick_gelu"))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def bases() -> dict[str, Clip]:
    return {size: meta(size) for size in SIZES}


LONG = {"frames": 32, "words": 64}
# options -> trained parameters with biases, per cent of B/16 and of B/32, megabytes in float32, what the paper prints
TABLE = [
    ({"tie": "none"}, 3_488_192, 2.331, 2.306, 13.95, None),
    ({"tie": "down out"}, 3_496_704, 2.337, 2.311, 13.99, 2.39),
    ({}, 3_572_736, 2.388, 2.362, 14.29, 2.39),
    ({"tied": 3}, 3_615_008, 2.416, 2.390, 14.46, 2.42),
    ({"tie": "down out", **LONG}, 3_552_000, 2.374, 2.348, 14.21, 2.42),
    (LONG, 3_628_032, 2.425, 2.398, 14.51, 2.42),
    ({"tied": 1, "lnin": True, **LONG}, 3_616_480, 2.417, 2.391, 14.47, 2.40),
    ({"tied": 1, **LONG}, 3_585_760, 2.397, 2.370, 14.34, 2.40),
]


@pytest.mark.parametrize(("changes", "number", "b16", "b32", "megabytes", "paper"), TABLE)
def test_counts_of_the_specification(
    bases: dict[str, Clip],
    changes: dict,
    number: int,
    b16: float,
    b32: float,
    megabytes: float,
    paper: float | None,
) -> None:
    for size, share in (("B/16", b16), ("B/32", b32)):
        with torch.device("meta"):
            tuner = MvAdapter(bases[size], MvAdapterConfig(**changes))
        assert count(tuner) == number
        assert round(100 * number / count(bases[size]), 3) == share
    assert round(4 * number / 1e6, 2) == megabytes
    # the paper counts biases too, "down in" everywhere, and no LayerNorm in front
    if paper is not None and changes.get("tie") != "down out" and "lnin" not in changes:
        assert abs(b16 - paper) < 0.01


def test_counts_of_one_adapter_and_of_the_large_model(bases: dict[str, Clip]) -> None:
    assert (count(bases["B/16"]), count(bases["B/32"])) == (149_620_737, 151_277_313)
    with torch.device("meta"):
        plain = MvAdapterConfig(tie="none")
        assert count(VideoBottleneck(plain, 768, None)) == 158_160
        assert count(VideoBottleneck(MvAdapterConfig(tie="none", frames=32), 768, None)) == 160_720
        assert count(TextBottleneck(plain, 512, 32, None)) == 118_272
        assert count(TextBottleneck(plain, 512, 64, None)) == 120_320
        assert count(VideoBottleneck(MvAdapterConfig(tie="none", lnin=True), 768, None)) == 158_160 + 2 * 768
        large = [MvAdapter(bases["L/14"], MvAdapterConfig(128, tie="none", biases=b)) for b in (False, True)]
        base = bases["B/16"]
        tied = [count(MvAdapter(base, MvAdapterConfig(tie=t, tied=1))) for t in ("none", "down in", "down out")]
    assert [n - tied[0] for n in tied[1:]] == [42_272, 4_256]
    assert [round(count(t) / 1e6, 2) for t in large] == [16.51, 16.88]
    assert [round(100 * count(t) / count(bases["L/14"]), 2) for t in large] == [3.86, 3.95]


DATASETS = sorted(p.stem for p in (CONFIGS / "mv_adapter").glob("*.yaml"))
PRINTED = {"msrvtt": 2.39, "msvd": 2.39, "lsmdc": 2.42, "didemo": 2.42, "activitynet": 2.40}


@pytest.mark.parametrize("dataset", DATASETS)
def test_frozen_configs_build_what_the_paper_counts(bases: dict[str, Clip], dataset: str) -> None:
    found = cells(CONFIGS / "mv_adapter" / f"{dataset}.yaml")
    assert set(found) == {"released", "paper", "full"}
    for name in ("released", "paper"):
        c = found[name].config
        assert c.model == "openai/clip-vit-base-patch16"
        with torch.device("meta"):
            tuner = build(c.method, bases["B/16"], options(c.method, {**c.options, "frames": c.frames}))
        share = 100 * count(tuner) / count(bases["B/16"])
        assert name == "released" or abs(share - PRINTED[dataset]) < 0.01
        assert abs(share - PRINTED[dataset]) < 0.06


# ------------------------------------------------------------------ formulas, a second time


def reference(m: VideoBottleneck, c: MvAdapterConfig, f: Tensor, mask: Tensor) -> Tensor:
    """The specification's section 2.5 and 2.6 on f (B, T, L, D), with every weight made per frame."""
    B, T = f.shape[:2]
    down_cls = down = m.down.weight
    up_cls = up = m.up.weight
    if m.tie is not None:
        beta = m.tie.proj(m.tie.factor)
        factors = beta if " in" in c.tie else beta[:, None]
        down_cls = down * factors if c.tie.startswith("down") else down
        up_cls = up * factors if c.tie.startswith("up") else up
        down = down_cls if c.tie in ("down in", "down out") else down
    z_c, z_p = (quick_gelu(x @ w.T + m.down.bias) for x, w in ((f[:, :, 0], down_cls), (f[:, :, 1:], down)))
    s = torch.cat([m.cc.expand(B, 1, -1), z_c, z_p.mean(2)], 1) + m.pos[: 1 + 2 * T]
    s = F.layer_norm(s, s.shape[-1:], m.ln_pre.weight, m.ln_pre.bias)
    b = m.block
    q, k, v = (x.unflatten(-1, (c.heads, -1)).transpose(1, 2) for x in b.qkv(b.ln1(s)).chunk(3, -1))
    hidden = (1 - torch.cat([torch.ones(B, 1), mask.float(), mask.float()], 1))[:, None, None] * -1e6
    a = (q @ k.mT / q.shape[-1] ** 0.5 + hidden).softmax(-1) @ v
    s = s + b.out(a.transpose(1, 2).flatten(2))
    t = quick_gelu(s + b.proj(quick_gelu(b.fc(b.ln2(s)))))
    context, t_c, t_p = t[:, 0], t[:, 1 : T + 1], t[:, T + 1 :]

    def alpha(part: nn.Module) -> Tensor:
        e = torch.cat([t_c + t_p, part.g(context)[:, None].expand(-1, T, -1)], -1) * mask[..., None]
        return 1 + part.b(part.a(e).relu())

    a_c = alpha(m.calibrate_c) if m.calibrate_c is not None else torch.ones_like(t_c)
    a_p = alpha(m.calibrate_p) if m.calibrate_p is not None else torch.ones_like(t_c)
    cls = torch.einsum("bti,oi,bti->bto", a_c, up_cls, t_c) + m.up.bias
    patches = torch.einsum("bti,oi,btni->btno", a_p, up, z_p) + m.up.bias
    return c.scale * torch.cat([cls[:, :, None], patches], 2)


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("temporal", [(), ("c",), ("c", "p")])
def test_the_video_branch_is_that_of_the_specification(tie: str, temporal: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    c = MvAdapterConfig(width=8, frames=FRAMES, tie=tie, temporal=temporal)
    factor = None if tie == "none" else nn.Parameter(torch.zeros(c.factor))
    module = shaken(VideoBottleneck(c, 32, factor))
    f, mask = torch.randn(2, FRAMES, 5, 32), torch.tensor([[True] * 4, [True, True, False, False]])
    wanted = reference(module, c, f, mask)
    got = module.delta(f.flatten(1, 2), Layout(0, FRAMES, 5, mask)).view_as(wanted)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    module.fold()
    again = module.delta(f.flatten(1, 2), Layout(0, FRAMES, 5, mask)).view_as(got)
    torch.testing.assert_close(again, got, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tie", TIES)
def test_the_text_branch_is_tied_everywhere_or_not_at_all(tie: str) -> None:
    torch.manual_seed(0)
    c = MvAdapterConfig(width=8, tie=tie)
    factor = None if tie == "none" else nn.Parameter(torch.zeros(c.factor))
    module = shaken(TextBottleneck(c, 32, WORDS, factor))
    assert (module.tie is None) == (tie == "none" or "cls" in tie)
    plain = copy.deepcopy(module)
    plain.tie = None
    if module.tie is not None:
        side, end = tie.split()
        beta = module.tie.proj(module.tie.factor)
        with torch.no_grad():
            getattr(plain, side).weight.mul_(beta if end == "in" else beta[:, None])
    f = torch.randn(2, WORDS, 32)
    layout = Layout(0, 1, WORDS)
    torch.testing.assert_close(module.delta(f, layout), plain.delta(f, layout), atol=1e-6, rtol=1e-5)


def test_what_each_option_reads(clip: Clip) -> None:
    """par and ln_par read the residual and the MLP's input, seq its output; the bare bottleneck mixes no frames."""
    x, h, y = torch.randn(3, 1, 2 * 5, 64).unbind()
    layout = Layout(0, 2, 5)
    for forward, read in (("seq", y), ("par", x), ("ln_par", h)):
        layer = made(clip, forward=forward).layer("vision", 0)
        assert torch.equal(layer.beside_mlp(x, h, y, layout), layer.delta(read, layout))
    bare, changed = made(clip, transformer=False, temporal=()), video()
    changed[:, -1] += 1
    a, b = (clip.encode_video(v, bare) for v in (video(), changed))
    torch.testing.assert_close(a[:, :-1], b[:, :-1])
    full = made(clip)
    assert not torch.allclose(clip.encode_video(video(), full)[:, 0], clip.encode_video(changed, full)[:, 0], atol=1e-4)


def test_rare_options_compile_train_and_keep_padding_out(clip: Clip) -> None:
    """What the battery does for the defaults, with every other option that stands beside them."""
    rare = {"tie": "down out cls", "temporal": ("c", "p"), "context": False, "lnin": True, "pooling": "pca"}
    tuner = made(clip, **rare, causal=False, biases=False, text_width=4, tied=1)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda v, t: (clip.encode_video(v, tuner), clip.encode_text(t, tuner)), backend="aot_eager", fullgraph=True
    )
    eager = clip.encode_video(video(), tuner), clip.encode_text(ids(), tuner)
    for a, b in zip(compiled(video(), ids()), eager, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    sum(x.square().sum() for x in eager).backward()
    without = {n for n, p in tuner.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(n.startswith(f"vision.{LAYERS - 1}.calibrate_p") for n in without)  # those patches are never read
    mask, padded = torch.tensor([[True] * 3 + [False]] * 2), video()
    padded[:, 3:] = torch.nan
    real = clip.encode_video(padded, tuner, mask)[:, :3]
    torch.testing.assert_close(real, clip.encode_video(video()[:, :3], tuner), atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------ frames


@pytest.mark.parametrize("context", [True, False])
def test_fewer_frames_are_exactly_those_of_a_padded_video(clip: Clip, context: bool) -> None:
    tuner, mask = made(clip, context=context), torch.tensor([[True] * 2 + [False] * 2] * 2)
    alone = clip.encode_video(video()[:, :2], tuner)
    torch.testing.assert_close(alone, clip.encode_video(video(), tuner, mask)[:, :2], atol=1e-5, rtol=1e-5)
    padded = video()
    padded[:, 2:] = torch.nan
    torch.testing.assert_close(alone, clip.encode_video(padded, tuner, mask)[:, :2], atol=1e-5, rtol=1e-5)
    # the rows of averaged patches start behind all frame positions, not behind those at hand
    with torch.no_grad():
        for layer in tuner.vision.values():
            layer.pos[int(context) + 2 : int(context) + FRAMES] = torch.nan
    torch.testing.assert_close(alone, clip.encode_video(video()[:, :2], tuner))


def test_positions_of_other_frame_counts() -> None:
    table = torch.tensor([[0.0], [1.0], [2.0], [3.0]])

    def rows(T: int, mask: Tensor | None = None) -> list:
        return standing(table, Layout(0, T, 1, mask))[..., 0].tolist()

    assert rows(2) == [[0, 1]]
    assert rows(4) == [[0, 1, 2, 3]]
    assert rows(7) == [[0, 0.5, 1, 1.5, 2, 2.5, 3]]
    mask = torch.tensor([[True] * 2 + [False] * 5, [True] * 7])
    assert rows(7, mask) == [[0, 1, 2, 3, 3, 3, 3], [0, 0.5, 1, 1.5, 2, 2.5, 3]]
    assert standing(torch.tensor([[5.0]]), Layout(0, 3, 1)).flatten().tolist() == [5, 5, 5]


def test_principal_patches_are_those_of_the_decomposition() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 25, 8) + torch.linspace(3, -3, 25)[:, None] * torch.randn(8)
    matrix = x.mT  # (r, N); the released code takes away the mean over its rows
    v = torch.linalg.svd(matrix - matrix.mean(-2, keepdim=True)).Vh[..., :1, :]
    v = v * v.sum(-1, keepdim=True).sign()
    torch.testing.assert_close(principal(x), (matrix * v).sum(-1), atol=1e-4, rtol=1e-4)
    assert torch.equal(principal(x), principal(x))
    for empty in (torch.zeros(1, 1, 4, 8), torch.ones(1, 1, 4, 8), torch.randn(1, 1, 1, 8)):
        empty.requires_grad_()
        principal(empty).sum().backward()
        assert principal(empty).isfinite().all()
        assert empty.grad.isfinite().all()


# ------------------------------------------------------------------ the life of an adapter


def test_folded_factors_are_never_read(clip: Clip) -> None:
    tuner = made(clip)
    before = clip.encode_video(video(), tuner), clip.encode_text(ids(), tuner)
    names = set(trained(tuner))
    tuner.fold()
    with torch.no_grad():
        for factor in tuner.factors:
            factor.fill_(torch.nan)
    assert set(trained(tuner)) == names
    assert torch.equal(clip.encode_video(video(), tuner), before[0])
    assert torch.equal(clip.encode_text(ids(), tuner), before[1])
    tuner.train()
    assert clip.encode_video(video(), tuner).isnan().all()


def test_a_loaded_adapter_is_folded_and_whole(clip: Clip, tmp_path: Path) -> None:
    base = Retriever(clip, tokenizer=None, preprocess=Preprocess(16), sampling=Sampling("uniform", 3), name="tiny")
    tuner = made(clip)
    model = base.adapted(tuner, adapter="x")
    assert model.context == WORDS
    opts = options("mv_adapter", {"width": 8, "frames": FRAMES, "words": WORDS})
    again = with_adapter(base, save_adapter(tmp_path / "a", model, "mv_adapter", opts))
    last = again.tuner.layer("vision", LAYERS - 1)
    assert last.folded is not None
    assert torch.equal(again.encode_video(video()), model.encode_video(video()))
    with pytest.raises(ClipreelError, match="video 1 of 2 has no real frame"):
        again.encode_video(video(), torch.tensor([[True] * 4, [False] * 4]))


def test_how_it_starts() -> None:
    torch.manual_seed(0)
    factor = nn.Parameter(torch.zeros(32))
    c = MvAdapterConfig(tie_start="one")
    layer, text = VideoBottleneck(c, 256, factor), TextBottleneck(c, 256, 32, factor)
    assert torch.equal(layer.tied(), layer.down.weight)
    released = VideoBottleneck(MvAdapterConfig(), 256, factor)
    beta = released.tied() / released.down.weight
    assert 0.08 < beta.std() < 0.12  # uniform within 32 ** -0.5
    assert layer.down.weight.abs().max() <= 256**-0.5
    stds = {text.down: 512**-0.5, layer.block.qkv: 256**-0.5, layer.block.out: 512**-0.5, text.block.fc: 512**-0.5}
    for linear, std in stds.items():
        assert abs(linear.weight.std() / std - 1) < 0.05
    assert 0.009 < layer.pos.std() < 0.011
    assert not layer.up.weight.any()
    assert not layer.calibrate_c.b.weight.any()


def test_what_is_trained(clip: Clip) -> None:
    biases = {n for n, _ in clip.named_parameters() if n.endswith(".bias")}
    assert set(made(clip).overrides) == biases
    assert not made(clip, biases=False).overrides
    tuner = made(clip, vision_layers=(), tie="down in")
    assert not tuner.factors
    assert set(tuner.placed) == {("text", i) for i in range(LAYERS)}
    pairs = MvAdapterConfig(vision_tied=(0, 2), text_tied=(2, 1)).pairs(clip.config)
    assert pairs == [(0, 2), (2, 1)]
    assert MvAdapterConfig(tied=2).pairs(clip.config) == [(1, 1), (2, 2)]


def test_texts_read_both_ways_need_every_slot(clip: Clip) -> None:
    both = made(clip, causal=False)
    with torch.no_grad():
        whole = clip.encode_text(ids(), both)
        torch.testing.assert_close(clip.encode_text(ids()[:1], both), whole[:1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole, clip.encode_text(ids(), made(clip)), atol=1e-3)
    with pytest.raises(ClipreelError, match="have 10 slots, not 24"):
        clip.encode_text(ids(24), both)
    # read backwards only, unused slots behind the last word cost nothing
    causal = made(clip)
    torch.testing.assert_close(clip.encode_text(ids(24), causal), clip.encode_text(ids(), causal))
    long = torch.ones(1, 20, dtype=torch.long)
    long[0, -1] = 59
    with pytest.raises(ClipreelError, match="texts of 20 tokens, but this MV-Adapter has 10"):
        clip.encode_text(long, causal)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"forward": "x"}, "allowed are seq"),
        ({"tie": "up"}, "allowed are none, down in"),
        ({"pooling": "max"}, "allowed are mean"),
        ({"tie_start": "zero"}, "allowed are released"),
        ({"frames": 0}, "frames 0"),
        ({"width": 9}, "cannot be cut into 2 heads"),
        ({"temporal": ("x",)}, "allowed are c, p"),
        ({"transformer": False}, "nothing to calibrate by"),
        ({"tied": -1}, "give 0 or more"),
        ({"vision_layers": (3,)}, "this tower has layers 0 to 2"),
        ({"vision_layers": (), "text_layers": ()}, "needs a layer"),
        ({"vision_tied": (1,), "text_tied": (1, 2)}, "are no pairs"),
        ({"vision_tied": (0,), "text_tied": (0,), "text_layers": (1,)}, "are no pairs"),
    ],
)
def test_wrong_options(clip: Clip, wrong: dict, said: str) -> None:
    with pytest.raises(ClipreelError, match=said):
        made(clip, **wrong)


def test_global_tokens_are_refused() -> None:
    layer = VideoBottleneck(MvAdapterConfig(tie="none"), 32, None)
    with pytest.raises(ClipreelError, match="4 tokens belong to none"):
        layer.delta(torch.zeros(1, 14, 32), Layout(4, 2, 5))


# ------------------------------------------------------------------ released checkpoints


def released(tuner: MvAdapter, clip: Clip) -> dict[str, Tensor]:
    """What the released code saves: parameters that are trained, under its names."""
    table = {own.replace(".", "/"): theirs[0] for own, theirs, _ in name_table("openai", *layers(clip))}
    out: dict[str, Tensor] = {}
    for name, p in trained(tuner).items():
        if name.startswith("factors."):
            out[f"clip.prompt.{name.removeprefix('factors.')}"] = p
        elif name.startswith("base.tensors."):
            out |= split(f"clip.{table[name.removeprefix('base.tensors.')]}", p)
        else:
            tower, i, rest = name.split(".", 2)
            for ours, theirs in MV_NAMES.items():
                if rest.startswith(ours):
                    rest = theirs + rest[len(ours) :]
                    break
            where = "visual." if tower == "vision" else ""
            out[f"clip.{where}transformer.resblocks.{i}.mlp.adapter.{rest}"] = p
    return out


def split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    name = name.replace(".ln_1.", ".attn.ln.").replace(".ln_2.", ".mlp.ln.")
    if "in_proj_" not in name:
        return {name: tensor}
    parts = zip("qkv", tensor.chunk(3), strict=True)
    return {name.replace("in_proj_", f"{p}_proj."): third.clone() for p, third in parts}


def layers(clip: Clip) -> tuple[int, int]:
    return clip.config.vision.layers, clip.config.text.layers


def test_the_released_layout_has_its_733_tensors(bases: dict[str, Clip]) -> None:
    with torch.device("meta"):
        tuner = MvAdapter(bases["B/16"], MvAdapterConfig(tie="down out"))
    assert len(released(tuner, bases["B/16"])) == 733


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie": "down out", "lnin": True, "temporal": ("c", "p")},
        {"tie": "down in cls"},
        {"context": False},
        {"tie": "none", "text_width": 4},
    ],
)
def test_released_checkpoints_load_on_their_base(clip: Clip, tmp_path: Path, changes: dict) -> None:
    save_file(to_openai(clip.state_dict(), clip.config), tmp_path / "clip.safetensors", {"activation": "quick_gelu"})
    tuner = made(clip, width=16, **changes)
    state = released(tuner, clip)
    if not tuner.config.context:  # kept by the released code, and never used
        state |= {f"clip.visual.transformer.resblocks.{i}.mlp.adapter.cc": torch.ones(16) for i in range(LAYERS)}
    if "cls" in tuner.config.tie:  # the same
        for i in (1, 2):
            where = f"clip.transformer.resblocks.{i}.mlp.adapter.md_proj"
            state |= {f"{where}.weight": torch.ones(64, 32), f"{where}.bias": torch.ones(64)}
    config = {"clip": tmp_path / "clip.safetensors"} | (
        {"position": tuner.config.tie} if "cls" in tuner.config.tie else {}
    )
    model = load_official("mv-adapter", state, config, device="cpu")
    assert (model.context, model.sampling) == (WORDS, Sampling("mv_adapter", FRAMES))
    assert model.tuner.config.biases
    torch.testing.assert_close(model.encode_frames(video()), unit(clip.encode_video(video(), tuner)))
    torch.testing.assert_close(model.encode_text(ids()), unit(clip.encode_text(ids(), tuner)))
    plain = load_official("openai-clip", tmp_path / "clip.safetensors", device="cpu")
    assert model.fingerprint == plain.fingerprint
    assert model.space != plain.space


def test_released_checkpoints_that_do_not_fit(clip: Clip, tmp_path: Path) -> None:
    save_file(to_openai(clip.state_dict(), clip.config), tmp_path / "clip.safetensors")
    config, state = {"clip": tmp_path / "clip.safetensors"}, released(made(clip, width=16), clip)
    with pytest.raises(ClipreelError, match="name the CLIP below them"):
        load_official("mv-adapter", state, device="cpu")
    bias = "clip.transformer.resblocks.0.mlp.c_fc.bias"
    down = "clip.visual.transformer.resblocks.1.mlp.adapter.down.bias"
    q = "clip.transformer.resblocks.0.attn.q_proj.bias"
    for drop, said in ((bias, "1 missing, first base.tensors.text/blocks/0/fc/bias"), (down, "vision.1.down.bias")):
        with pytest.raises(ClipreelError, match=said):
            load_official("mv-adapter", {n: t for n, t in state.items() if n != drop}, config, device="cpu")
    with pytest.raises(ClipreelError, match="only k, v of q, k, v"):
        load_official("mv-adapter", {n: t for n, t in state.items() if n != q}, config, device="cpu")
    for extra in ("clip.visual.proj", down.replace("down", "side"), "clip.prompt.2"):
        with pytest.raises(ClipreelError, match="1 unexpected"):
            load_official("mv-adapter", {**state, extra: torch.zeros(1)}, config, device="cpu")
    with pytest.raises(ClipreelError, match="scales is no option here"):
        load_official("mv-adapter", state, {**config, "scales": 1}, device="cpu")
    with pytest.raises(ClipreelError, match="position 'up': allowed"):
        load_official("mv-adapter", state, {**config, "position": "up"}, device="cpu")
