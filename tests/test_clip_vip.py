"""CLIP-ViP: what its proxies see, frame order, other frame counts, and released checkpoints."""

import pytest
import torch
from torch import Tensor

from clipreel import load_official
from clipreel.checkpoints import to_hf
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.errors import ClipreelError
from clipreel.heads import mean_pool
from clipreel.patterns import Layout, token_mask
from clipreel.sites import LayerTuner
from clipreel.tuners import build
from clipreel.tuners.clip_vip import ClipVip, ClipVipConfig, proxy_maps, resampled

T, L = 4, 4


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    config = ClipConfig(16, 8, TowerConfig(3, 64, 1, 64), TowerConfig(2, 64, 1, 64), 24, 60, 16, "quick_gelu")
    return Clip(config).eval().requires_grad_(False)


def vip(clip: Clip, moved: bool = True, **options: object) -> ClipVip:
    torch.manual_seed(1)
    tuner = ClipVip(clip, ClipVipConfig(**{"frames": T, "train_base": False, **options})).eval()
    if moved and tuner.temporal is not None:
        torch.nn.init.normal_(tuner.temporal)
    return tuner


def video(frames: int = T) -> Tensor:
    return torch.randn(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(5))


class Dense(ClipVip):
    """The twin: one softmax under an S x S mask that is written from the definition."""

    def __init__(self, clip: Clip, config: ClipVipConfig) -> None:
        super().__init__(clip, config)
        self.sites = LayerTuner()
        self.sites.attend = self.masked

    @staticmethod
    def masked(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        frame = torch.arange(layout.frames).repeat_interleave(layout.per_frame)
        frame = torch.cat([torch.full((layout.globals,), -1), frame])
        seen = (frame[:, None] == frame) | (frame[:, None] < 0) | (frame < 0)
        real = token_mask(layout)
        seen = seen if real is None else seen & real
        scores = torch.einsum("bshk,brhk->bhsr", q, k) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
        return torch.einsum("bhsr,brhk->bshk", weights, v)


@pytest.mark.parametrize("frames", [1, 2, 5, 64])
@pytest.mark.parametrize("proxies", [1, 4])
def test_two_fused_calls_are_the_masked_softmax(clip: Clip, proxies: int, frames: int) -> None:
    tuner = vip(clip, proxies=proxies, train_base=True)
    twin = Dense(clip, tuner.config)
    twin.load_state_dict(tuner.state_dict())
    ours, theirs = (clip.encode_video(video(frames), t) for t in (tuner, twin))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    named = dict(twin.named_parameters())
    for name, p in tuner.named_parameters():
        if p.grad is not None:
            grad = named[name].grad
            torch.testing.assert_close(p.grad, grad, atol=1e-4 * float(grad.abs().max()) + 1e-7, rtol=1e-3)


def test_padded_frames_are_left_out_as_in_the_twin(clip: Clip) -> None:
    tuner = vip(clip)
    twin = Dense(clip, tuner.config)
    twin.load_state_dict(tuner.state_dict())
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    ours, theirs = (clip.encode_video(video(), t, mask) for t in (tuner, twin))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_order_is_invisible_until_positions_move(clip: Clip) -> None:
    for tuner, visible in ((vip(clip, moved=False), False), (vip(clip, temporal=False), False), (vip(clip), True)):
        a, b = (clip.encode_video(x, tuner) for x in (video(), video().flip(1)))
        assert torch.allclose(a, b, atol=1e-5) != visible


def test_one_frame_takes_the_middle_of_the_positions(clip: Clip) -> None:
    table = torch.randn(12, 8)
    torch.testing.assert_close(resampled(table, 1)[0, 0], (table[5] + table[6]) / 2)


@pytest.mark.parametrize(("rows", "frames"), [(12, 32), (12, 6), (4, 7), (1, 5), (12, 12)])
def test_positions_are_resampled_as_torch_does(rows: int, frames: int) -> None:
    table = torch.randn(rows, 8)
    wanted = torch.nn.functional.interpolate(table.t()[None], frames, mode="linear", align_corners=False)[0].t()
    torch.testing.assert_close(resampled(table, frames)[0], wanted)
    mask = torch.arange(frames + 3)[None] < frames
    torch.testing.assert_close(resampled(table, frames + 3, mask)[0, :frames], wanted)


def test_joint_attention_with_one_frame_is_the_proxies(clip: Clip) -> None:
    a, b = (clip.encode_video(video(1), vip(clip, attention=x)) for x in ("joint", "proxies"))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    a, b = (clip.encode_video(video(3), vip(clip, attention=x)) for x in ("joint", "proxies"))
    assert not torch.allclose(a, b, atol=1e-4)


def test_maps_are_shares_of_what_the_proxies_see(clip: Clip) -> None:
    tuner = vip(clip)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    maps = proxy_maps(clip, tuner, video(), mask)
    assert maps.shape == (3, 2, 4, T, 2, 2)
    assert not maps[:, 0, :, 2:].any()
    assert maps[:, 0, :, :2].min() > 0
    shares = maps.flatten(3).sum(-1)
    assert (shares > 0).all()
    assert (shares < 1).all()
    # one head, first layer: the attention of the embedded tokens, computed by hand
    x, layout = clip.vision.embed(video(), tuner)
    h = clip.vision.blocks[0].ln1(clip.vision.ln_pre(x))
    q, k, _ = clip.vision.blocks[0].qkv(h).chunk(3, -1)
    by_hand = (q[:, :4] @ k.mT * 64**-0.5).softmax(-1)[..., 4:].unflatten(-1, (T, 2, 2))
    torch.testing.assert_close(proxy_maps(clip, tuner, video())[0], by_hand, atol=1e-5, rtol=1e-4)
    assert layout.globals == 4


def test_what_is_trained(clip: Clip) -> None:
    def names(**options: object) -> set[str]:
        return {n for n, _ in vip(clip, **options).named_parameters()}

    assert names() == {"proxies", "temporal"}
    assert names(proxies=1) == {"temporal"}
    every = names(train_base=True)
    assert len(every) == 2 + len(list(clip.parameters()))
    text = {n for n in every if n.startswith("base.tensors.text/")}
    assert every - names(train_base=True, text="frozen") == text
    assert every - names(train_base=True, text="projection") == text - {"base.tensors.text/head"}
    assert vip(clip, train_base=True).overrides["logit_scale"].item() == pytest.approx(4.6)
    kept = vip(clip, train_base=True, log_scale=None)
    assert kept.overrides["logit_scale"].item() == clip.logit_scale.item()


def test_new_tensors_at_vit_b_32() -> None:
    towers = TowerConfig(12, 768, 12, 3072), TowerConfig(12, 512, 8, 2048)
    with torch.device("meta"):
        clip = Clip(ClipConfig(224, 32, *towers, 77, 49408, 512, "quick_gelu"))
        alone = build("clip_vip", clip, {"train_base": False})
        whole = build("clip_vip", clip)
    assert sum(p.numel() for p in alone.parameters()) == 11_520
    assert sum(p.numel() for p in whole.parameters()) == 151_277_313 + 11_520


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"proxies": 0}, "proxies 0"),
        ({"frames": 0}, "frames 0"),
        ({"attention": "all"}, "allowed are proxies, joint"),
        ({"text": "no"}, "allowed are trained, projection, frozen"),
        ({"text_tokens": 25}, "give 3 to 24"),
    ],
)
def test_wrong_options(clip: Clip, wrong: dict, said: str) -> None:
    with pytest.raises(ClipreelError, match=said):
        build("clip_vip", clip, wrong)


# ------------------------------------------------------------------ released checkpoints

ADDED, TEMPORAL = (f"clipmodel.vision_model.embeddings.{n}" for n in ("added_cls", "temporal_embedding"))


def released(clip: Clip, tuner: ClipVip) -> dict[str, Tensor]:
    """A state dict in the released layout, the counted positions too."""
    state = {f"clipmodel.{n}": t.clone() for n, t in to_hf(clip.state_dict(), clip.config).items()}
    for tower, count in (("text", 24), ("vision", 1 + L)):
        state[f"clipmodel.{tower}_model.embeddings.position_ids"] = torch.arange(count)[None]
    return state | {ADDED: tuner.proxies.detach().clone(), TEMPORAL: tuner.temporal.detach()[None].clone()}


def test_the_released_layout_loads(clip: Clip) -> None:
    tuner = vip(clip)
    model = load_official("clip-vip", released(clip, tuner), {"max_txt_len": 10}, device="cpu")
    assert model.sampling.to_dict() | {"kind": "clip_vip", "frames": 12} == model.sampling.to_dict()
    assert (model.preprocess.geometry, model.preprocess.resize, model.context) == ("squash", "tensor", 10)
    torch.testing.assert_close(model.encode_video(video()), mean_pool(clip.encode_video(video(), tuner)).detach())


def test_two_checkpoints_on_one_base_are_two_spaces(clip: Clip) -> None:
    a, b = released(clip, vip(clip)), released(clip, vip(clip, moved=False))
    one, two, same = (load_official("clip-vip", s, device="cpu") for s in (a, b, a))
    assert one.fingerprint == two.fingerprint
    assert one.space == same.space != two.space


def test_another_number_of_frames_is_resampled_and_said(clip: Clip) -> None:
    tuner = vip(clip)
    config = {"clip_vision_additional_config": {"type": "ViP", "temporal_size": 8}}
    model = load_official("clip-vip", released(clip, tuner), config, device="cpu")
    assert any("4 frames were resampled to temporal_size 8" in w for w in model.warnings)
    wanted = torch.nn.functional.interpolate(tuner.temporal.t()[None], 8, mode="linear")[0].t()
    torch.testing.assert_close(model.tuner.temporal, wanted)


def test_without_proxies_or_positions_only_where_it_is_said(clip: Clip) -> None:
    state = released(clip, vip(clip))
    for name, key in ((ADDED, "add_cls_num"), (TEMPORAL, "if_use_temporal_embed")):
        short = {n: t for n, t in state.items() if n != name}
        with pytest.raises(ClipreelError, match=f"{name.removeprefix('clipmodel.')} is missing.*{key}: 0"):
            load_official("clip-vip", short, device="cpu")
        model = load_official("clip-vip", short, {key: 0}, device="cpu")
        assert len(list(model.tuner.parameters())) == 1


def test_files_that_do_not_fit(clip: Clip) -> None:
    state = released(clip, vip(clip))
    wrong = [
        ({"add_cls_num": 7}, state, "has 3 added proxies"),
        ({"if_use_temporal_embed": 0}, state, "a temporal embedding"),
        ({"clip_vision_additional_config": {"add_cls": 3}}, state, "add_cls is no option here"),
        ({"type": "CLIP"}, state, "frame by frame, but the checkpoint has vision_model.embeddings.added_cls"),
        (
            {},
            {n: t for n, t in state.items() if "post_layernorm.bias" not in n},
            "missing: vision_model.post_l",
        ),
        (
            {},
            state | {"clipmodel.vision_model.embeddings.more": torch.ones(1)},
            "unexpected: vision_model.embed",
        ),
        ({}, state | {ADDED: torch.ones(3, 32)}, r"proxies is \(3, 32\) instead of \(3, 64\)"),
    ]
    for config, tensors, said in wrong:
        with pytest.raises(ClipreelError, match=said):
            load_official("clip-vip", tensors, config, device="cpu")


def test_frame_by_frame_is_plain_clip(clip: Clip) -> None:
    state = {n: t for n, t in released(clip, vip(clip)).items() if n not in (ADDED, TEMPORAL)}
    model = load_official("clip-vip", state, {"clip_vision_additional_config": {"type": "CLIP"}}, device="cpu")
    assert model.pools_frames
    torch.testing.assert_close(model.encode_video(video()), mean_pool(clip.encode_video(video())))
