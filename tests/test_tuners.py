"""What every method must satisfy: one battery over the registry of tuners."""

import copy
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from clipreel.adapter import fill, read_config, save_adapter, trained, with_adapter
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.errors import ClipreelError
from clipreel.heads import mean_pool
from clipreel.retriever import Retriever
from clipreel.sites import PLAIN, Tuner
from clipreel.tuners import TUNERS, build, options
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

LAYERS, FRAMES = 5, 4  # so that a preset with four joint layers leaves one that sees frame by frame


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    config = ClipConfig(16, 8, TowerConfig(LAYERS, 32, 2, 64), TowerConfig(LAYERS, 32, 2, 64), 24, 60, 16, "quick_gelu")
    return Clip(config).eval().requires_grad_(False)


def small(name: str) -> dict:
    return {"frames": FRAMES} if "frames" in options(name, {}) else {}


# patches behind the last attention are never read, so what acts on them alone has no effect, as in the released code
DEAD = {"st_adapter": f"vision.{LAYERS - 1}.mlp.", "st_adapter_24x": f"vision.{LAYERS - 1}.mlp."}


def made(name: str, clip: Clip, moved: bool = True, **changes: object) -> Tuner:
    """A tuner in eval mode; `moved` away from its start, so that nothing is zero by chance."""
    torch.manual_seed(1)
    tuner = build(name, clip, {**small(name), **changes}).eval()
    if moved:
        with torch.no_grad():
            for p in tuner.parameters():
                p.add_(torch.randn_like(p) * 0.05)
    return tuner


def texts(tuner: Tuner, clip: Clip, n: int = 3) -> Tensor:
    torch.manual_seed(2)
    length = clip.config.context - tuner.text_slots
    ids = torch.zeros(n, length, dtype=torch.long)
    for row, words in zip(ids, range(1, n + 1), strict=True):
        row[0], row[words + 1] = 58, 59
        row[1 : words + 1] = torch.randint(1, 57, (words,))
    return ids


def video(frames: int = FRAMES, n: int = 2) -> Tensor:
    return torch.randn(n, frames, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def both(clip: Clip, tuner: Tuner) -> tuple[Tensor, Tensor]:
    return clip.encode_video(video(), tuner), clip.encode_text(texts(tuner, clip), tuner)


@pytest.fixture(params=list(TUNERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_starts_as_the_base_where_it_says_so(name: str, clip: Clip) -> None:
    tuner = made(name, clip, moved=False)
    plain = clip.encode_video(video()), clip.encode_text(texts(tuner, clip))
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(both(clip, tuner), plain, strict=True)]
    assert all(same) == TUNERS[name].identity


def test_only_what_it_trains_gets_gradients(name: str, clip: Clip) -> None:
    before = copy.deepcopy(clip.state_dict())
    tuner = made(name, clip)
    v, t = both(clip, tuner)
    (v.square().sum() + t.square().sum() + clip.scale(tuner)).backward()
    assert all(p.grad is None for p in clip.parameters())
    without = [n for n, p in tuner.named_parameters() if p.grad is None or not p.grad.abs().any()]
    # position rows and the token table are used in part, but each tensor in some entry
    assert all(n.startswith(DEAD.get(name, "/")) for n in without), without
    assert all(torch.equal(a, b) for a, b in zip(before.values(), clip.state_dict().values(), strict=True))


def test_saved_tensors_are_the_trained_ones_each_once_and_load_equal(name: str, clip: Clip, tmp_path: Path) -> None:
    model = retriever(clip)
    tuner = made(name, clip)
    adapted = model.adapted(tuner, adapter="x", sampling=Sampling("uniform", FRAMES))
    assert adapted.space != model.space
    folder = save_adapter(tmp_path / "a", adapted, name, options(name, small(name)))
    saved = trained(tuner)
    assert {t.data_ptr() for t in saved.values()} == {p.data_ptr() for p in tuner.parameters()}
    again = with_adapter(model, folder)
    assert again.clip is clip
    assert again.sampling == Sampling("uniform", FRAMES)
    loaded = trained(again.tuner)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    tuner.requires_grad_(False)  # as what is loaded: some CPUs convolve otherwise where a weight may be trained
    for a, b in zip(both(clip, tuner), both(clip, again.tuner), strict=True):
        assert torch.equal(a, b)
    assert read_config(folder).method == name


def retriever(clip: Clip) -> Retriever:
    return Retriever(clip, tokenizer=None, preprocess=Preprocess(16), sampling=Sampling("uniform", 3), name="tiny")


def test_a_batch_of_two_is_two_batches_of_one(name: str, clip: Clip) -> None:
    tuner = made(name, clip)
    frames, ids = video(), texts(tuner, clip, 2)
    parts = torch.cat([clip.encode_video(frames[i : i + 1], tuner) for i in range(2)])
    torch.testing.assert_close(clip.encode_video(frames, tuner), parts, atol=1e-5, rtol=1e-4)
    parts = torch.cat([clip.encode_text(ids[i : i + 1], tuner) for i in range(2)])
    torch.testing.assert_close(clip.encode_text(ids, tuner), parts, atol=1e-5, rtol=1e-4)


def test_padded_frames_change_nothing(name: str, clip: Clip) -> None:
    tuner = made(name, clip)
    frames = video(6)
    mask = torch.tensor([[True] * 3 + [False] * 3, [True] * 6])
    frames[0, 3:] = 1e4
    padded = mean_pool(clip.encode_video(frames, tuner, mask), mask)
    alone = mean_pool(clip.encode_video(frames[:1, :3], tuner))
    torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded[1:], mean_pool(clip.encode_video(frames[1:], tuner)), atol=1e-5, rtol=1e-4)


def test_a_single_frame_works(name: str, clip: Clip) -> None:
    tuner = made(name, clip)
    assert clip.encode_video(video(1), tuner).isfinite().all()


def test_order_matters_only_to_methods_that_model_time(name: str, clip: Clip) -> None:
    tuner = made(name, clip)
    pooled = mean_pool(clip.encode_video(video(), tuner))
    turned = mean_pool(clip.encode_video(video().flip(1), tuner))
    assert torch.allclose(pooled, turned, atol=1e-5) != TUNERS[name].temporal


def test_compiled_as_one_graph_it_is_equal(name: str, clip: Clip) -> None:
    tuner = made(name, clip)
    torch._dynamo.reset()

    def run(frames: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return clip.encode_video(frames, tuner), clip.encode_text(ids, tuner)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for a, b in zip(compiled(video(), texts(tuner, clip)), run(video(), texts(tuner, clip)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_swapping_there_and_back_changes_nothing(name: str, clip: Clip) -> None:
    a, b = made(name, clip), made("lora", clip)
    first = both(clip, a)
    both(clip, b)
    both(clip, PLAIN)
    assert all(torch.equal(x, y) for x, y in zip(first, both(clip, a), strict=True))


def test_bf16_is_close(name: str, clip: Clip) -> None:
    tuner = made(name, clip)
    exact = both(clip, tuner)
    with torch.autocast("cpu", torch.bfloat16):
        rough = both(clip, tuner)
    for a, b in zip(exact, rough, strict=True):
        assert torch.nn.functional.cosine_similarity(a, b.float(), dim=-1).min() > 0.98


@pytest.mark.parametrize("name", [n for n, m in TUNERS.items() if hasattr(m.build, "merged")])
def test_merged_into_the_base_it_is_equal(name: str, clip: Clip) -> None:
    tuner = made(name, clip, **({"targets": ("q", "k", "v", "out", "fc", "proj")} if name == "lora" else {}))
    merged = copy.deepcopy(clip)
    merged.load_state_dict({**clip.state_dict(), **tuner.merged(clip)})
    for a, b in zip(both(clip, tuner), both(merged, PLAIN), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_adapters_that_do_not_fit(clip: Clip, tmp_path: Path) -> None:
    tuner = made("vop", clip)
    tensors = trained(tuner)
    with pytest.raises(ClipreelError, match=r"1 missing, first text\.0\.prompts"):
        fill(tuner, {n: t for n, t in tensors.items() if n != "text.0.prompts"})
    with pytest.raises(ClipreelError, match="1 unexpected, first more"):
        fill(tuner, {**tensors, "more": torch.ones(1)})
    with pytest.raises(ClipreelError, match=r"text\.0\.prompts is \(1,\) instead of \(8, 32\)"):
        fill(tuner, {**tensors, "text.0.prompts": torch.ones(1)})
    model = retriever(clip)
    folder = save_adapter(tmp_path / "a", model.adapted(tuner, adapter="x"), "vop", options("vop", small("vop")))
    other = copy.deepcopy(clip)
    with torch.no_grad():
        other.vision.cls.add_(1)
    with pytest.raises(ClipreelError, match="was tuned on tiny"):
        with_adapter(retriever(other), folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ClipreelError, match="cannot be read"):
        with_adapter(model, folder)
    weights.unlink()
    with pytest.raises(ClipreelError, match="half an adapter"):
        with_adapter(model, folder)
    with pytest.raises(ClipreelError, match="is no adapter"):
        with_adapter(model, tmp_path)


def test_options_and_methods_are_named(clip: Clip) -> None:
    with pytest.raises(ClipreelError, match="did you mean vop_f"):
        build("vopf", clip)
    with pytest.raises(ClipreelError, match="did you mean joint_layers"):
        build("vop", clip, {"joint_layer": 2})
    for wrong in (
        {"frames": 0},
        {"general": -1},
        {"text_read": "x"},
        {"context_module": "gru"},
        {"joint_layers": 9},
        {"vision_layers": (1, 2)},
        {"prefix": 22},
        {"general": 0, "prefix": 0},
    ):
        with pytest.raises(ClipreelError):
            build("vop", clip, wrong)
    for name, wrong in (("lora", {"targets": ("x",)}), ("lora", {"rank": 0}), ("partial", {"blocks": 9})):
        with pytest.raises(ClipreelError):
            build(name, clip, wrong)


def odd(hint: object) -> list[tuple[object, str]]:
    """Values that are not of a type, with what is said of them."""
    if hint is int:
        return [(2.5, "a whole number"), ("8", "a whole number"), (True, "a whole number")]
    if hint is float:
        return [(v, "a finite number") for v in (float("nan"), float("inf"), "x", True, 10**400, [0.1])]
    if hint is bool:
        return [(1, "true or false"), ("no", "true or false")]
    if hint is str:
        return [(3, "a text"), (None, "a text")]
    first, *_ = get_args(hint)
    if get_origin(hint) is tuple:
        return [("c", "a list"), *(([value], said) for value, said in odd(first))]
    return [(value, said) for value, said in odd(first) if value is not None]  # something or null


def test_options_of_every_method_are_of_their_type(name: str) -> None:
    """Each one with each wrong value: said in one line before anything is built, so that it never meets torch."""
    for key, hint in get_type_hints(TUNERS[name].config).items():
        for value, said in odd(hint):
            with pytest.raises(ClipreelError) as found:
                options(name, {key: value})
            assert str(found.value).startswith(f"{key} "), (key, value)
            assert said in str(found.value), (key, value)


def test_options_are_read_as_their_type() -> None:
    """YAML reads 1e-3 as a text, and JSON has no tuples."""
    assert options("lora", {"alpha": "1e-3", "targets": ["q"]})["alpha"] == 1e-3
    assert options("lora", {"targets": ["q"]})["targets"] == ("q",)
    assert options("adapter_ffn", {"scale": None})["scale"] is None


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("adapter_ffn", {"dropout": 1.0}, "dropout 1.0: give 0 up to 1"),
        ("adapter_ffn", {"form": "x"}, "allowed are parallel, sequential"),
        ("convpass", {"text_width": -2}, "text_width -2: give at least 0"),
        ("convpass", {"start": "x"}, "allowed are xavier, identity"),
        ("st_adapter", {"kernel": 2}, "kernel 2: give an odd number of frames"),
        ("st_adapter", {"places": ["x"]}, "places x: give some of attn, mlp"),
        ("st_adapter", {"text_width": -2}, "text_width -2: give at least 0"),
        ("cross_modal", {"shared": 0}, "shared 0: give at least 1"),
        ("cross_modal", {"branches": []}, "branches none: give some of attn, ffn"),
        ("lora", {"towers": ["audio"]}, "towers audio: give some of vision, text"),
        ("mv_adapter", {"text_width": -2}, "text_width -2: give at least 1"),
        ("mv_adapter", {"width": 9}, "cannot be cut into 2 heads"),
        ("vop", {"std": -1.0}, "std -1.0: give at least 0"),
        ("clip_vip", {"proxies": 0}, "proxies 0: give at least 1"),
        ("full", {"what": "x"}, "allowed are full, bias, proj, partial"),
    ],
)
def test_options_out_of_their_range_need_no_base(name: str, wrong: dict, said: str) -> None:
    with pytest.raises(ClipreelError, match=said):
        options(name, wrong)
