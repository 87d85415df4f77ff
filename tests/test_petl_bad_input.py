"""What no adapter may answer with NaN or in silence: each odd input has an error that says what to do, or a rule."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import clipreel
from clipreel import load_official
from clipreel.checkpoints import to_openai
from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.heads import HEADS, head_of
from clipreel.retriever import Retriever
from clipreel.tuners import build, options
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess
from tests.test_mv_released import released
from tests.tiny_mv import FRAMES, WORDS, base, ids, made, video

METHODS = ("mv_adapter", "adapter_ffn", "adaptformer_seq", "convpass", "st_adapter", "st_adapter_24x", "cross_modal")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return base()


@pytest.fixture(params=METHODS)
def model(request: pytest.FixtureRequest, clip: Clip) -> Retriever:
    """Each method away from its start."""
    own = {"width": 8, "frames": FRAMES, "words": WORDS} if request.param == "mv_adapter" else {}
    torch.manual_seed(1)
    tuner = build(request.param, clip, options(request.param, own))
    with torch.no_grad():
        for p in tuner.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    plain = Retriever(clip, tokenizer=None, preprocess=Preprocess(16), sampling=Sampling("uniform", 4), name="tiny")
    return plain.adapted(tuner.eval(), adapter="x")


@pytest.mark.parametrize("frames", [1, FRAMES - 1, FRAMES + 1, 3 * FRAMES])
def test_any_number_of_frames_gives_the_vector_of_the_video_alone(model: Retriever, frames: int) -> None:
    """Fewer than the table stand as if padded to it, more are spread over it; padding behind them changes nothing."""
    given = video(frames)
    alone = model.encode_video(given)
    padded = torch.cat([given, given.new_full((2, 2, 3, 16, 16), torch.nan)], 1)
    mask = torch.arange(frames + 2).expand(2, -1) < frames
    assert alone.isfinite().all()
    torch.testing.assert_close(model.encode_video(padded, mask), alone, atol=1e-5, rtol=1e-4)


def test_a_video_without_a_real_frame(model: Retriever) -> None:
    mask = torch.tensor([[True] * FRAMES, [False] * FRAMES])
    for call in (model.encode_video, model.encode_frames):
        with pytest.raises(ClipreelError, match="video 1 of 2 has no real frame in its frame_mask; leave it out"):
            call(video(), mask)
    with pytest.raises(ValueError, match="with at least one frame"):
        model.encode_video(video()[:, :0])
    # below that check nothing turns into NaN either: what is padded is not read
    assert model.clip.encode_video(video(), model.tuner, mask)[0].isfinite().all()


@pytest.mark.parametrize("wrong", [torch.ones(2, FRAMES), torch.ones(2, FRAMES, dtype=torch.int64), torch.ones(2) > 0])
def test_a_mask_of_another_kind_or_shape(model: Retriever, wrong: Tensor) -> None:
    plain = Retriever(model.clip, tokenizer=None, preprocess=Preprocess(16), sampling=model.sampling, name="tiny")
    for call in (model.encode_video, model.encode_frames, plain.encode_video):
        with pytest.raises(ClipreelError, match=rf"frame_mask is \w+ .*: give bool \(2, {FRAMES}\), True for real"):
            call(video(), wrong)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_takes_no_video_without_a_real_frame(name: str) -> None:
    head = head_of(name, 8)
    mask = torch.tensor([[True] * 3, [False] * 3])
    for call in (head, head.score):
        with pytest.raises(ClipreelError, match="hides every frame of video 1 of 2"):
            call(torch.randn(2, 8), torch.randn(2, 3, 8), mask)


@pytest.mark.parametrize(("height", "width"), [(8, 32), (32, 8), (16, 24), (8, 8)])
def test_grids_that_are_not_the_square_of_the_model(model: Retriever, height: int, width: int) -> None:
    """Also one with as many patches: their positions are those of a square."""
    with pytest.raises(
        ValueError, match=rf"give {height // 8}x{width // 8} patches of 8, but the model has 4 patch positions"
    ):
        model.encode_video(torch.randn(1, 2, 3, height, width))


def test_texts_longer_than_the_table(clip: Clip) -> None:
    """Words are cut to the table by the tokenizer; ids that were made otherwise are refused."""
    tuner = made(clip)
    assert clip.config.context - tuner.text_slots == WORDS
    long = torch.ones(1, WORDS + 2, dtype=torch.long)
    long[0, -1] = 59
    with pytest.raises(ClipreelError, match=f"texts of {WORDS + 2} tokens, but this MV-Adapter has {WORDS} text"):
        clip.encode_text(long, tuner)
    shapes = clipreel.load("shapes-tiny", device="cpu")
    short = shapes.adapted(build("mv_adapter", shapes.clip, {"words": 6}).eval(), adapter="x")
    assert short.context == 6
    assert short.encode_text(["a small red circle moves from the left to the right and stays there"]).isfinite().all()


def altered(state: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    text = "clip.transformer.resblocks.2.mlp.adapter."
    if what == "a text layer without its factor":
        return {n: t for n, t in state.items() if not n.startswith(text + "md_proj")}
    if what == "a text layer without an adapter":
        return {n: t for n, t in state.items() if not n.startswith(text)}
    if what == "half a projection":
        return {n: t for n, t in state.items() if n != text + "md_proj.bias"}
    return {n: t for n, t in state.items() if n != "clip.prompt.1"}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a text layer without its factor", r"vision_tied \[1, 2\] and text_tied \[1\] are no pairs"),
        ("a text layer without an adapter", r"text_tied \[1\] are no pairs"),
        ("half a projection", r"1 missing, first text\.2\.tie\.proj\.bias"),
        ("a factor too few", r"1 missing, first factors\.1"),
    ],
)
def test_tied_layers_that_do_not_match(clip: Clip, tmp_path: Path, what: str, said: str) -> None:
    save_file(to_openai(clip.state_dict(), clip.config), tmp_path / "clip.safetensors", {"activation": "quick_gelu"})
    state = altered(released(made(clip, width=16), clip), what)
    with pytest.raises(ClipreelError, match=said):
        load_official("mv-adapter", state, {"clip": tmp_path / "clip.safetensors"}, device="cpu")


def test_a_base_without_biases_is_no_clip(clip: Clip, tmp_path: Path) -> None:
    """They are part of what MV-Adapter trains, so they are never made up."""
    state = to_openai(clip.state_dict(), clip.config)
    save_file({n: t for n, t in state.items() if not n.endswith("bias")}, tmp_path / "clip.safetensors")
    with pytest.raises(ClipreelError, match=r"not a whole CLIP; missing: ln_final\.bias"):
        clipreel.load(tmp_path / "clip.safetensors", activation="quick_gelu", device="cpu")
    biases = released(made(clip, width=16), clip)
    bare = {n: t for n, t in biases.items() if "adapter" in n or "prompt" in n}
    save_file(state, tmp_path / "whole.safetensors", {"activation": "quick_gelu"})
    with pytest.raises(ClipreelError, match=r"missing, first base\.tensors\.text/blocks/0/fc/bias"):
        load_official("mv-adapter", bare, {"clip": tmp_path / "whole.safetensors"}, device="cpu")


def test_a_text_without_words_is_read(model: Retriever) -> None:
    empty = torch.zeros(1, WORDS, dtype=torch.long)
    empty[0, 0] = 59
    assert model.encode_text(empty).isfinite().all()
    assert model.encode_text(ids()[:0]).shape == (0, 16)
