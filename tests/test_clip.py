"""The backbone and its sites, with small throw-away tuners standing for the methods to come."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clipreel.block import Block, TowerConfig
from clipreel.clip import Clip, ClipConfig
from clipreel.patterns import Layout, by_frame, jointly, with_proxies
from clipreel.sites import PLAIN, Chain, LayerTuner, Overrides, Tuner

CONFIG = ClipConfig(32, 8, TowerConfig(3, 64, 2, 128), TowerConfig(2, 48, 3, 96), 16, 60, 40, "quick_gelu")
D, LAYERS = CONFIG.vision.width, CONFIG.vision.layers


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(CONFIG).eval()


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    ids = torch.randint(0, 50, (5, 16), generator=torch.Generator().manual_seed(2))
    for row, end in enumerate((3, 9, 1, 6, 8)):
        ids[row, end] = 59
        ids[row, end + 1 :] = 0
    return ids


class PromptLayer(LayerTuner):
    """Tokens after CLS in every frame, dropped behind the block (VoP)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(k, D) * 0.02)

    def before(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        g, f = layout.split(x)
        p = self.prompts.expand(*f.shape[:2], -1, -1)
        return layout.join(g, torch.cat([f[:, :, :1], p, f[:, :, 1:]], 2))

    def after(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        g, f = layout.split(x)
        return layout.join(g, torch.cat([f[:, :, :1], f[:, :, 1 + len(self.prompts) :]], 2))


class SeenLayer(LayerTuner):
    """The same prompts as `PromptLayer`, or those of `JointLayer`, as tokens that are only seen."""

    def __init__(self, prompts: nn.Parameter, joint: bool = False) -> None:
        super().__init__()
        self.prompts, self.attend = prompts, jointly if joint else None

    def before(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        return x, layout._replace(seen=(self.prompts[None] if self.attend else self.prompts[None, None],))


class JointLayer(LayerTuner):
    """Video-level prompts as globals, all frames attend to each other (VoP-F)."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(5, D) * 0.02)
        self.attend = jointly

    def before(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        _, f = layout.split(x)
        return layout.join(self.prompts.expand(len(x), -1, -1), f)

    def after(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        _, f = layout.split(x)
        return layout.join(x[:, :0], f)


class Bottleneck(LayerTuner):
    """A side MLP at a given site, zero at the start (adapters)."""

    def __init__(self, site: str, width: int = D) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 6), nn.Linear(6, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        setattr(self, site, self.delta)

    def delta(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.up(F.relu(self.down(h)))


class Lora(LayerTuner):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, D) * 0.1)
        self.b = nn.Parameter(torch.randn(3 * D, 4) * 0.1)

    def linear(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        return y + x @ self.a.T @ self.b.T if name == "qkv" else y


class Layers(Tuner):
    def __init__(self, *layers: LayerTuner) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        return self.layers[index] if tower == "vision" else None


def late(layers: int) -> Layers:
    """No method, but a site behind the last block, which needs every token to the end."""
    tuner = Layers(*(LayerTuner() for _ in range(layers)))
    tuner.layers[-1].after = lambda x, layout: (x, layout)
    return tuner


class Proxies(Tuner):
    """Global tokens that see everything; the first one is read (CLIP-ViP)."""

    def __init__(self, extra: int = 2) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.randn(extra, D))
        self.sites = LayerTuner()
        self.sites.attend = with_proxies

    def layer(self, tower: str, index: int) -> LayerTuner | None:
        return self.sites if tower == "vision" else None

    def embed_video(self, x: Tensor, layout: Layout, tower: nn.Module) -> tuple[Tensor, Layout]:
        _, f = layout.split(x)
        extra = (self.extra + tower.pos[0]).expand(len(x), -1, -1)
        return layout.join(torch.cat([f[:, 0, :1], extra], 1), f[:, :, 1:])

    def read_video(self, x: Tensor, layout: Layout) -> Tensor:
        return x[:, :1]


class Replaced(Tuner):
    def __init__(self, clip: Clip, choose) -> None:
        super().__init__()
        self.own = Overrides(clip, choose)

    @property
    def overrides(self) -> dict[str, Tensor]:
        return self.own.by_name


def tuners() -> dict[str, Tuner]:
    torch.manual_seed(3)
    return {
        "prompts": Layers(*[PromptLayer(3) for _ in range(LAYERS)]),
        "joint": Layers(PromptLayer(3), JointLayer(), JointLayer()),
        "proxies": Proxies(),
        "beside_attn": Layers(*[Bottleneck("beside_attn") for _ in range(LAYERS)]),
        "beside_mlp": Layers(*[Bottleneck("beside_mlp") for _ in range(LAYERS)]),
        "lora": Layers(*[Lora() for _ in range(LAYERS)]),
    }


NAMES = list(tuners())


def equal(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_batch_of_two_is_two_batches_of_one(clip: Clip, frames: Tensor, name: str) -> None:
    t = tuners()[name]
    both = clip.encode_video(frames, t)
    assert both.shape == (2, 1 if name == "proxies" else 4, CONFIG.embed)
    equal(both, torch.cat([clip.encode_video(frames[i : i + 1], t) for i in range(2)]))


@pytest.mark.parametrize("name", NAMES)
def test_one_frame_works_and_gradients_reach_every_parameter(clip: Clip, frames: Tensor, name: str) -> None:
    t = tuners()[name]
    clip.requires_grad_(False)
    clip.encode_video(frames[:, :1], t).square().sum().backward()
    zero_start = {"beside_attn": "down", "beside_mlp": "down"}.get(name, "-")
    for label, p in t.named_parameters():
        assert p.grad is not None, label
        assert zero_start in label or p.grad.abs().max() > 0, label
    assert all(p.grad is None for p in clip.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_full_graph_compile_equals_eager(clip: Clip, frames: Tensor, name: str) -> None:
    t = tuners()[name]
    torch._dynamo.reset()
    compiled = torch.compile(clip.encode_video, fullgraph=True, backend="eager")
    equal(compiled(frames, t), clip.encode_video(frames, t))


def test_block_wise_compile_serves_several_tuners(clip: Clip, frames: Tensor) -> None:
    torch._dynamo.reset()
    other = copy.deepcopy(clip).compile_blocks(fullgraph=True, backend="eager")
    for t in (PLAIN, *tuners().values(), PLAIN):
        equal(other.encode_video(frames, t), clip.encode_video(frames, t))


def test_text_full_graph_compile_equals_eager(clip: Clip, ids: Tensor) -> None:
    torch._dynamo.reset()
    equal(torch.compile(clip.encode_text, fullgraph=True, backend="eager")(ids), clip.encode_text(ids))


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_gradient(clip: Clip, frames: Tensor, name: str) -> None:
    t, again = tuners()[name], copy.deepcopy(clip)
    again.vision.checkpointing = True
    wanted = torch.autograd.grad(clip.encode_video(frames, t).square().sum(), list(t.parameters()))
    got = torch.autograd.grad(again.encode_video(frames, t).square().sum(), list(t.parameters()))
    for a, b in zip(wanted, got, strict=True):
        equal(a, b)


@pytest.mark.parametrize("name", ["prompts", "joint"])
@pytest.mark.parametrize("mask", [None, torch.tensor([[True] * 4, [True, True, False, False]])])
def test_prompts_that_are_only_seen_are_prompts(clip: Clip, frames: Tensor, name: str, mask: Tensor | None) -> None:
    t = tuners()[name]
    seen = Layers(*(SeenLayer(x.prompts, isinstance(x, JointLayer)) for x in t.layers))
    wanted, got = clip.encode_video(frames, t, mask), clip.encode_video(frames, seen, mask)
    real = slice(None) if mask is None else mask
    equal(got[real], wanted[real])
    params = list(t.parameters())
    for a, b in zip(*(torch.autograd.grad(x[real].square().sum(), params) for x in (wanted, got)), strict=True):
        equal(a, b)


def test_tokens_that_nobody_reads_cost_no_work(clip: Clip, frames: Tensor) -> None:
    work = []
    for t in (PLAIN, late(LAYERS)):
        with FlopCounterMode(display=False) as counter:
            clip.encode_video(frames, t)
        work.append(counter.get_total_flops())
    # saved: the projection and the MLP of all tokens but CLS, for 2 x 4 frames of 16 patches
    assert work[1] - work[0] >= 2 * 8 * 16 * (D * D + 2 * D * CONFIG.vision.mlp)


def kept_bytes(module: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes of the storages that autograd holds for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = run()
    out.sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize("trained", [False, True])
def test_a_block_keeps_its_input_qkv_and_what_is_activated(trained: bool) -> None:
    torch.manual_seed(0)
    block = Block(TowerConfig(1, 64, 2, 256), "quick_gelu").requires_grad_(trained)
    x = torch.randn(2, 10, 64, requires_grad=True)
    kept = kept_bytes(block, lambda: block(x, Layout(0, 2, 5), by_frame, None)[0])
    assert kept <= 1.05 * 8 * x.numel() * x.element_size()  # and two numbers of each norm


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeping_less_changes_no_gradient(
    clip: Clip, frames: Tensor, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    t, base = tuners()[name], copy.deepcopy(clip).requires_grad_(True)
    unused = {id(base.logit_scale), *map(id, base.text.parameters())}
    params = [p for p in (*t.parameters(), *base.parameters()) if id(p) not in unused]

    def gradients() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return torch.autograd.grad(base.encode_video(frames, t).float().square().sum(), params)

    got = gradients()
    monkeypatch.setattr("clipreel.block.sparingly", lambda make, *kept, random: make(*kept))
    assert all(torch.equal(a, b) for a, b in zip(got, gradients(), strict=True))


def test_keeping_less_draws_the_same_dropout_again(clip: Clip, frames: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    t = Layers(*(Bottleneck("beside_attn") for _ in range(LAYERS)))
    for layer in t.layers:
        nn.init.normal_(layer.up.weight)
        layer.beside_attn = lambda x, h, y, layout, f=layer.delta: F.dropout(f(x, h, y, layout), 0.5)

    def gradients() -> tuple[Tensor, ...]:
        torch.manual_seed(7)
        loss = clip.encode_video(frames, t).square().sum()
        torch.manual_seed(8)
        return torch.autograd.grad(loss, list(t.parameters()))

    got = gradients()
    monkeypatch.setattr("clipreel.block.sparingly", lambda make, *kept, random: make(*kept))
    assert all(torch.equal(a, b) for a, b in zip(got, gradients(), strict=True))


@pytest.mark.parametrize("name", ["beside_attn", "beside_mlp"])
def test_zero_bottleneck_is_the_backbone(clip: Clip, frames: Tensor, name: str) -> None:
    equal(clip.encode_video(frames, tuners()[name]), clip.encode_video(frames))


def test_swap_leaves_nothing_behind(clip: Clip, frames: Tensor) -> None:
    before, t = clip.encode_video(frames), tuners()
    for tuner in t.values():
        clip.encode_video(frames, tuner)
    assert torch.equal(clip.encode_video(frames), before)


def test_frames_are_images_without_a_method(clip: Clip, frames: Tensor) -> None:
    one_by_one = torch.stack([clip.encode_video(frames[:, t : t + 1])[:, 0] for t in range(4)], 1)
    equal(clip.encode_video(frames), one_by_one)


@pytest.mark.parametrize("name", ["joint", "proxies"])
def test_padded_frames_change_nothing(clip: Clip, frames: Tensor, name: str) -> None:
    t = tuners()[name]
    mask = torch.tensor([[True, True, True, False]] * 2)
    padded = clip.encode_video(frames, t, mask)
    junk = frames.clone()
    junk[:, 3] = 50.0
    real = slice(0, 1 if name == "proxies" else 3)
    equal(padded[:, real], clip.encode_video(frames[:, :3], t)[:, real])
    equal(padded[:, real], clip.encode_video(junk, t, mask)[:, real])


def test_joint_layers_and_proxies_see_other_frames_and_prompts_do_not(clip: Clip, frames: Tensor) -> None:
    changed = frames.clone()
    changed[:, 3] += 1.0
    for name, sees in {"prompts": False, "lora": False, "joint": True, "proxies": True}.items():
        t = tuners()[name]
        difference = (clip.encode_video(changed, t)[:, 0] - clip.encode_video(frames, t)[:, 0]).abs().max()
        assert (difference > 1e-4) == sees, name


def test_overrides_train_copies_and_keep_the_base(clip: Clip, frames: Tensor, ids: Tensor) -> None:
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    t = Replaced(clip, lambda name: True)
    assert set(t.overrides) == set(dict(clip.named_parameters()))
    equal(clip.encode_video(frames, t), clip.encode_video(frames))
    equal(clip.encode_text(ids, t), clip.encode_text(ids))
    loss = clip.encode_video(frames, t).square().sum() + clip.encode_text(ids, t).square().sum() * clip.scale(t)
    loss.backward()
    silent = [n for n, p in t.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent
    with torch.no_grad():
        for p in t.parameters():
            p += 0.01
    assert (clip.encode_video(frames, t) - clip.encode_video(frames)).abs().max() > 1e-3
    assert all(torch.equal(v, before[k]) for k, v in clip.state_dict().items())


def test_overrides_equal_a_model_with_those_weights(clip: Clip, frames: Tensor) -> None:
    t = Replaced(clip, lambda name: name.endswith("bias") and name.startswith("vision."))
    with torch.no_grad():
        for p in t.parameters():
            p.normal_(std=0.1)
    written = copy.deepcopy(clip)
    written.load_state_dict({**clip.state_dict(), **t.overrides})
    equal(clip.encode_video(frames, t), written.encode_video(frames))


def test_no_override_chosen_is_an_error(clip: Clip) -> None:
    with pytest.raises(ValueError, match="no tensor"):
        Overrides(clip, lambda name: name.endswith("biass"))


def test_chain_of_prompts_and_a_bottleneck(clip: Clip, frames: Tensor) -> None:
    prompts, side = tuners()["prompts"], tuners()["beside_mlp"]
    equal(clip.encode_video(frames, Chain(prompts, side)), clip.encode_video(frames, prompts))
    with torch.no_grad():
        for layer in side.layers:
            layer.up.weight.normal_(std=0.2)
    chained = clip.encode_video(frames, Chain(prompts, side))
    assert (chained - clip.encode_video(frames, prompts)).abs().max() > 1e-3
    assert len(list(Chain(prompts, side).parameters())) == len([*prompts.parameters(), *side.parameters()])


def test_chain_takes_tokens_out_in_reverse(clip: Clip, frames: Tensor) -> None:
    a, b = tuners()["prompts"], Layers(*[PromptLayer(2) for _ in range(LAYERS)])
    assert clip.encode_video(frames, Chain(a, b)).shape == (2, 4, CONFIG.embed)


def test_chain_refuses_two_patterns(clip: Clip, frames: Tensor) -> None:
    with pytest.raises(ValueError, match="both set the attention pattern"):
        clip.encode_video(frames, Chain(Layers(*[JointLayer() for _ in range(LAYERS)]), Proxies()))
    with pytest.raises(ValueError, match="both define read_video"):
        Chain(Proxies(), Proxies())
    with pytest.raises(ValueError, match="both tuners replace logit_scale"):
        Chain(*[Replaced(clip, lambda name: name == "logit_scale") for _ in range(2)])


def test_text_is_cut_behind_the_last_end_token(clip: Clip, ids: Tensor) -> None:
    seen = []
    handle = clip.text.blocks[0].register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    cut = clip.encode_text(ids)
    handle.remove()
    assert seen == [10]
    everything = clip.text
    x = F.embedding(ids, everything.tokens) + everything.pos[:16]
    x, _ = everything.run(x, Layout(0, 1, 16), __import__("clipreel.patterns", fromlist=["causal"]).causal, PLAIN)
    x = everything.ln_final(x)[torch.arange(5), ids.argmax(1)] @ everything.head
    equal(cut, x)


def test_eos_rule_reads_the_first_end(clip: Clip, ids: Tensor) -> None:
    ruled = Clip(ClipConfig(**{**vars(CONFIG), "eos_id": 59})).eval()
    ruled.load_state_dict(clip.state_dict())
    assert torch.equal(ruled.encode_text(ids), clip.encode_text(ids))
    with_59_behind = ids.clone()
    with_59_behind[:, 12] = 59
    equal(ruled.encode_text(with_59_behind), clip.encode_text(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_norms_stay_float32(clip: Clip, frames: Tensor, dtype: torch.dtype) -> None:
    seen = []
    with torch.autocast("cpu", dtype):
        half = clip.encode_video(frames)
        from clipreel.block import normalise

        big = torch.full((1, 2, D), 300.0)
        big[..., ::2] = -300.0
        seen.append(normalise(clip.vision.ln_pre, big.to(dtype), {}, "ln_pre"))
    full = clip.encode_video(frames)
    assert F.cosine_similarity(half.float(), full, dim=-1).min() > 0.995
    assert seen[0].dtype == dtype
    assert seen[0].isfinite().all()


def test_wrong_sizes_say_what_to_do(clip: Clip) -> None:
    with pytest.raises(ValueError, match=r"48x32 pixels give 6x4 patches.*another image_size"):
        clip.encode_video(torch.zeros(1, 1, 3, 48, 32))
    long = torch.zeros(1, 17, dtype=torch.long)
    long[0, 16] = 59
    with pytest.raises(ValueError, match=r"17 tokens.*16 text positions"):
        clip.encode_text(long)
    with pytest.raises(ValueError, match="'quick_gelu' and 'gelu'"):
        Clip(ClipConfig(**{**vars(CONFIG), "activation": "relu"}))
    with pytest.raises(ValueError, match="not a multiple of 3 heads"):
        Clip(ClipConfig(**{**vars(CONFIG), "vision": TowerConfig(1, 64, 3, 64)}))


def test_the_last_block_computes_only_what_is_read(frames: Tensor) -> None:
    """Equal to the whole block in value and gradient, also with one frame and one block."""
    for config in (CONFIG, replace(CONFIG, vision=TowerConfig(1, 64, 2, 128))):
        model = Clip(config).eval()
        for x in (frames, frames[:, :1]):
            grads = []
            for tuner in (PLAIN, late(config.vision.layers)):
                z = model.encode_video(x, tuner)
                assert z.shape == (2, x.shape[1], 40)
                grads.append((z, *torch.autograd.grad(z.square().sum(), list(model.vision.parameters()))))
            for found, wanted in zip(*grads, strict=True):
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
