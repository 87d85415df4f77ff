"""VoP's properties (specification 3.5), its counts, its LSTM beside torch's, and the layout of the released file."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from clipreel import load_official
from clipreel.checkpoints import to_openai
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.official.vop import VOP_PROMPTS
from clipreel.patterns import Layout
from clipreel.tuners import TUNERS, build
from clipreel.tuners.vop import FrameLSTM, Vop, VopConfig, interpolated, nearest, recur

F, K = 4, 3


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    config = ClipConfig(16, 8, TowerConfig(K, 64, 1, 64), TowerConfig(K, 64, 1, 64), 24, 60, 16, "quick_gelu")
    return Clip(config).eval().requires_grad_(False)


def vop(clip: Clip, **options: object) -> Vop:
    torch.manual_seed(1)
    return Vop(clip, VopConfig(frames=F, **options)).eval()


def video(frames: int = F) -> Tensor:
    return torch.randn(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def run(clip: Clip, tuner: Vop, frames: Tensor | None = None) -> Tensor:
    return unit(clip.encode_video(video() if frames is None else frames, tuner))


def with_general(clip: Clip, rows: list[Tensor]) -> Vop:
    """Basic VoP with these eight prompts per layer."""
    tuner = vop(clip)
    with torch.no_grad():
        for layer, prompts in zip(tuner.vision.values(), rows, strict=True):
            layer.general.copy_(prompts)
    return tuner


def test_p_with_equal_rows_is_vop(clip: Clip) -> None:
    tuner = vop(clip, general=4, position=4)
    with torch.no_grad():
        for layer in tuner.vision.values():
            layer.position.copy_(layer.position[:1].expand_as(layer.position))
    plain = with_general(clip, [torch.cat([x.general, x.position[0]]) for x in tuner.vision.values()])
    torch.testing.assert_close(run(clip, tuner), run(clip, plain), atol=1e-6, rtol=0)


def test_p_sees_the_order_once_rows_differ(clip: Clip) -> None:
    tuner = vop(clip, general=4, position=4, position_std=1.0)
    assert not torch.allclose(run(clip, tuner).flip(1), run(clip, tuner, video().flip(1)), atol=1e-4)


@pytest.mark.parametrize("module", ["bilstm", "lstm", "transformer"])
def test_c_without_weights_is_vop_with_its_bias(clip: Clip, module: str) -> None:
    tuner = vop(clip, general=4, context=4, context_module=module)
    nn.init.zeros_(tuner.context.fc.weight)
    made = tuner.context.fc.bias.detach().view(4, -1)
    plain = with_general(clip, [torch.cat([x.general, made]) for x in tuner.vision.values()])
    torch.testing.assert_close(run(clip, tuner), run(clip, plain), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "looks"),
    [
        ({}, False),
        ({"general": 4, "position": 4}, False),
        ({"general": 4, "context": 4}, True),
        ({"general": 4, "context": 4, "context_module": "transformer"}, True),
        ({"joint_layers": 1}, True),
    ],
)
def test_who_looks_at_other_frames(clip: Clip, options: dict, looks: bool) -> None:
    tuner, changed = vop(clip, std=0.3, **options), video()
    changed[:, -1] += 1.0
    same = torch.allclose(run(clip, tuner)[:, 0], run(clip, tuner, changed)[:, 0], atol=1e-6)
    assert same != looks


def test_f_without_joint_layers_is_vop(clip: Clip) -> None:
    assert torch.equal(run(clip, vop(clip, joint_layers=0)), run(clip, vop(clip)))


def test_f_with_one_frame_is_vop(clip: Clip) -> None:
    tuner, frame = vop(clip, joint_layers=2), video(1)
    plain = vop(clip)
    with torch.no_grad():
        for own, other in zip(plain.vision.values(), tuner.vision.values(), strict=True):
            own.general.copy_(getattr(other, "general", getattr(other, "prompts", None)))
    torch.testing.assert_close(run(clip, tuner, frame), run(clip, plain, frame), atol=1e-6, rtol=0)


def test_f_starts_blind_to_order_and_need_not_stay_so(clip: Clip) -> None:
    tuner = vop(clip, joint_layers=2)
    turned = run(clip, tuner, video().flip(1)).flip(1)
    torch.testing.assert_close(turned, run(clip, tuner), atol=1e-6, rtol=0)
    seeing = vop(clip, joint_layers=2, position_std=1.0)
    assert not torch.allclose(run(clip, seeing, video().flip(1)).flip(1), run(clip, seeing), atol=1e-3)


def test_other_frame_counts_are_interpolated() -> None:
    table = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert nearest(table, Layout(0, 7, 1))[0, :, 0].tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert interpolated(table, Layout(0, 7, 1))[0, :, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    mask = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    assert interpolated(table, Layout(0, 3, 1, mask))[..., 0].tolist() == [[0, 3, 3], [0, 3, 3], [0, 1.5, 3]]
    assert nearest(table, Layout(0, 1, 1))[0, :, 0].tolist() == [0]
    assert interpolated(torch.tensor([[5.0]]), Layout(0, 3, 1))[0, :, 0].tolist() == [5, 5, 5]


@pytest.mark.parametrize("directions", [1, 2])
def test_the_lstm_is_the_one_of_torch(directions: int) -> None:
    torch.manual_seed(0)
    ours, theirs = FrameLSTM(6, directions), nn.LSTM(6, 6, batch_first=True, bidirectional=directions == 2)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            for d, end in enumerate(("", "_reverse")[:directions]):
                getattr(theirs, f"{name}_l0{end}").copy_(getattr(ours, name)[d])
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x)[0])
    lengths = torch.tensor([2, 5, 3])
    mask = torch.arange(5) < lengths[:, None]
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    wanted, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(x, mask)[mask], wanted[mask])


@pytest.mark.parametrize("mask", [None, torch.arange(5) < torch.tensor([[2], [5], [3]])])
def test_the_gradient_of_the_lstm_is_that_of_autograd(mask: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    lstm, x = FrameLSTM(6, 2), torch.randn(3, 5, 6, requires_grad=True)
    weight = torch.randn(3, 5, 12)

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad((lstm(x, mask) * weight).sum(), [x, *lstm.parameters()])

    got = gradients()
    monkeypatch.setattr("clipreel.tuners.vop.Recurrence.apply", lambda *args: recur(*args)[0])
    for a, b in zip(got, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def test_text_is_cut_only_where_that_is_exact(clip: Clip) -> None:
    """Short texts are cut behind the last slot that is read; in a batch with a long one nothing is cut, and the short
    ones do not change."""
    for options in ({"prefix": 4, "suffix": 4, "text_read": read} for read in ("released", "eos")):
        tuner = vop(clip, std=0.5, **options)
        ids = torch.zeros(4, 16, dtype=torch.long)
        for row, end in zip(ids, (2, 9, 11, 15), strict=True):
            row[:end], row[end] = torch.randint(1, 50, (end,)), 59
        with torch.no_grad():
            whole = clip.encode_text(ids, tuner)
            for k in range(4):
                torch.testing.assert_close(clip.encode_text(ids[k : k + 1], tuner)[0], whole[k], atol=1e-5, rtol=1e-4)
        released = options["text_read"] == "released"
        assert tuner.text_length(torch.tensor([2]), 16) == (7 if released else 3)
        assert tuner.text_length(torch.tensor([11]), 16) == (16 if released else 12)
        assert tuner.text_length(torch.tensor([15]), 16) == 16
    with pytest.raises(ValueError, match="texts of 16 slots, not 20"):
        clip.encode_text(torch.zeros(1, 20, dtype=torch.long), tuner)


# specification section 6: trainable numbers at ViT-B/32
COUNTS = {
    "vop": 122_880,
    "vop_p": 528_384,
    "vop_c": 14_257_152,
    "vop_f": 132_096,
    "vop_fp": 402_432,
    "vop_fc": 14_278_656,
    "bias": 171_008,
    "proj": 655_360,
    "partial": 10_240_256,
    "adapter_attn": 1_982_976,
    "adapter_ffn": 1_982_976,
    "full": 151_277_313,
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_counts_of_the_paper(name: str) -> None:
    assert name in TUNERS
    towers = TowerConfig(12, 768, 12, 3072), TowerConfig(12, 512, 8, 2048)
    with torch.device("meta"):
        clip = Clip(ClipConfig(224, 32, *towers, 77, 49408, 512, "quick_gelu"))
        tuner = build(name, clip)
    assert sum(p.numel() for p in tuner.parameters()) == COUNTS[name]


def official_file(clip: Clip) -> dict[str, Tensor]:
    """A state dict in exactly the layout of the released file: prefix, copies of both towers, prompts."""
    own = to_openai(clip.state_dict(), clip.config)
    state = {f"clip.{n}": t for n, t in own.items()}
    state |= {f"image_encoder.{n.removeprefix('visual.')}": t for n, t in own.items() if n.startswith("visual.")}
    state |= {f"text_encoder.{n}": t for n, t in own.items() if not n.startswith("visual.") and n != "logit_scale"}
    torch.manual_seed(9)
    state[VOP_PROMPTS[0]] = torch.randn(K, 1, 8, 64)
    state[VOP_PROMPTS[1]] = torch.randn(K, 8, 64)
    return {f"module.{n}": t for n, t in state.items()}


def test_the_released_layout_loads(clip: Clip) -> None:
    state = official_file(clip)
    model = load_official("vop", state, {"num_frames": F}, device="cpu")
    assert (model.context, model.sampling.frames, model.tuner.config.text_read) == (16, F, "released")
    tuner = vop(clip, prefix=4, suffix=4, text_read="released")
    with torch.no_grad():
        for i in range(K):
            tuner.vision[str(i)].general.copy_(state["module." + VOP_PROMPTS[0]][i, 0])
            tuner.text[str(i)].prompts.copy_(state["module." + VOP_PROMPTS[1]][i])
    torch.testing.assert_close(model.encode_frames(video()), run(clip, tuner))
    plain = load_official("vop", {n: t for n, t in state.items() if "prompt" not in n}, device="cpu")
    torch.testing.assert_close(plain.encode_frames(video()), unit(clip.encode_video(video())))


def test_released_files_that_do_not_fit(clip: Clip) -> None:
    state = official_file(clip)
    for drop, message in ((VOP_PROMPTS[1], "is missing in this VoP"), ("clip.visual.proj", "should be a copy")):
        with pytest.raises(ClipreelError, match=message):
            load_official("vop", {n: t for n, t in state.items() if n != "module." + drop}, device="cpu")
    broken = {**state, "module.image_encoder.proj": torch.zeros(64, 16)}
    with pytest.raises(ClipreelError, match="should be a copy"):
        load_official("vop", broken, device="cpu")
    short = {**state, "module." + VOP_PROMPTS[0]: torch.randn(2, 1, 8, 64)}
    with pytest.raises(ClipreelError, match="prompts for 2 video"):
        load_official("vop", short, device="cpu")
    with pytest.raises(ClipreelError, match="allowed are"):
        load_official("vap", state, device="cpu")


def test_presets_are_those_of_the_specification() -> None:
    wanted = {"vop": (8, 0, 0, 0), "vop_p": (4, 4, 0, 0), "vop_c": (4, 0, 4, 0), "vop_f": (8, 0, 0, None)}
    wanted |= {"vop_fp": (4, 4, 0, None), "vop_fc": (4, 0, 4, None), "vop_pc": (4, 2, 2, 0)}
    wanted["vop_fpc"] = (4, 2, 2, None)
    for name, counts in wanted.items():
        c = replace(VopConfig(), **TUNERS[name].preset)
        assert (c.general, c.position, c.context, c.joint_layers) == counts
        assert counts[3] == 0 or [c.joint_of(layers) for layers in (24, 12, 6, 4, 2)] == [4, 4, 2, 1, 1]


@pytest.mark.parametrize("name", ["vop_fp", "vop_fc", "vop_fpc"])
def test_shallow_towers_keep_layers_that_see_frame_by_frame(clip: Clip, name: str) -> None:
    """Four joint layers of four would leave P and C without a place, and their parameters unmade."""
    tuner = build(name, clip)
    kinds = [type(layer).__name__ for layer in tuner.vision.values()]
    assert kinds == ["FramePrompts"] * (K - 1) + ["VideoPrompts"]
    assert any("context" in n or "position" in n for n, _ in tuner.named_parameters() if "frame_position" not in n)
    with pytest.raises(ClipreelError, match=f"joint_layers {K} leaves no layer of {K} that sees frame by frame"):
        build(name, clip, {"joint_layers": K})
    assert build("vop_f", clip, {"joint_layers": K}).vision
