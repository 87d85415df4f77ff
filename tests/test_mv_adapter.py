"""MV-Adapter beside a second writing of its formulas; its options, padding, folding and starts."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.adapter import save_adapter, trained, with_adapter
from clipreel.block import quick_gelu
from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.patterns import Layout
from clipreel.retriever import Retriever
from clipreel.tuners import options
from clipreel.tuners.mv_adapter import (
    TIES,
    MvAdapterConfig,
    TextBottleneck,
    VideoBottleneck,
    principal,
    standing,
)
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess
from tests.tiny_mv import FRAMES, LAYERS, WORDS, base, ids, made, shaken, video


@pytest.fixture(scope="module")
def clip() -> Clip:
    return base()


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
        ({"tied": -1}, "tied -1: give at least 0"),
        ({"tied": 9}, "tied 9: 3 video and 3 text layers have an adapter; give at most 3"),
        ({"tied": 1, "vision_tied": (1, 2), "text_tied": (1, 2)}, "tied 1 beside vision_tied and text_tied"),
        ({"tie": "none", "vision_tied": (1, 2), "text_tied": (1, 2)}, "tie 'none' with vision_tied"),
        ({"text_width": 0}, "text_width 0: give at least 1"),
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
