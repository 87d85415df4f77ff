"""What every head must satisfy: one battery over the registry, and the bound on memory while scoring."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipreel.cli import main
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.errors import ClipreelError
from clipreel.heads import HEADS, Head, PoolingHead, build_head, head_of, head_options, mean_pool, unit
from clipreel.heads.base import LARGEST
from clipreel.retriever import Retriever
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

WIDTH, FRAMES = 16, 5
IN_ORDER = {"seq_lstm", "seq_transf", "tight_transf"}  # frames in another order give other scores


@pytest.fixture(params=list(HEADS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def made(name: str, **options: object) -> Head:
    """A head in eval mode, away from its start, so that nothing is an identity by chance."""
    torch.manual_seed(1)
    head = head_of(name, WIDTH, options).eval()
    with torch.no_grad():
        for p in head.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return head


def vectors(texts: int = 3, videos: int = 4, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return 3 * torch.randn(texts, WIDTH, generator=g), 3 * torch.randn(videos, frames, WIDTH, generator=g)


def test_pieces_give_what_all_at_once_gives(name: str) -> None:
    head, (texts, frames) = made(name), vectors(7, 6)
    mask = torch.arange(FRAMES) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
    whole = head(texts, frames, mask)
    assert whole.shape == (7, 6)
    for largest in (1, 2000, 10**6):
        torch.testing.assert_close(head.score(texts, frames, mask, largest), whole, atol=1e-5, rtol=1e-5)


def test_padded_frames_change_nothing_whatever_they_hold(name: str) -> None:
    head, (texts, frames) = made(name), vectors()
    mask = torch.ones(4, FRAMES, dtype=torch.bool)
    mask[1, 3:] = False
    alone = head(texts, frames[1:2, :3])
    for held in (0.0, 1e4, torch.nan):
        padded = frames.clone()
        padded[1, 3:] = held
        scores = head(texts, padded, mask)
        torch.testing.assert_close(scores[:, 1:2], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores[:, 2:], head(texts, frames[2:]), atol=1e-5, rtol=1e-5)


def test_padding_leaves_gradients_finite(name: str) -> None:
    head, (texts, frames) = made(name).train(), vectors()
    frames[0, 2:] = 0.0
    frames.requires_grad_()
    mask = torch.ones(4, FRAMES, dtype=torch.bool)
    mask[0, 2:] = False
    head(texts.requires_grad_(), frames, mask).square().sum().backward()
    assert frames.grad.isfinite().all()
    assert not frames.grad[0, 2:].any()
    assert texts.grad.isfinite().all()
    # the bias of keys shifts all frames alike, which a softmax does not see
    still = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    still += [n for n, p in head.named_parameters() if n != "k.bias" and not p.grad.any()]
    assert not still


def test_a_video_without_frames_is_named(name: str) -> None:
    head, (texts, frames) = made(name), vectors()
    mask = torch.ones(4, FRAMES, dtype=torch.bool)
    mask[2] = False
    with pytest.raises(ClipreelError, match="every frame of video 2 of 4"):
        head(texts, frames, mask)
    with pytest.raises(ClipreelError, match="every frame of video"):
        head.score(texts, frames, mask)


def test_a_broken_video_spoils_no_other(name: str) -> None:
    head, (texts, frames) = made(name), vectors()
    broken = frames.clone()
    broken[1] = torch.nan
    scores = head.score(texts, broken)
    assert scores[:, 1].isnan().all()
    others = [0, 2, 3]
    torch.testing.assert_close(scores[:, others], head.score(texts, frames)[:, others], atol=1e-5, rtol=1e-5)


def test_order_of_frames(name: str) -> None:
    head, (texts, frames) = made(name), vectors()
    same = torch.allclose(head(texts, frames), head(texts, frames.flip(1)), atol=1e-5)
    assert same == (name not in IN_ORDER)


def test_one_frame(name: str) -> None:
    head, (texts, frames) = made(name), vectors(frames=1)
    assert head(texts, frames).isfinite().all()
    if name in ("mean", "top_frames", "soft_frames"):
        torch.testing.assert_close(head(texts, frames), unit(texts) @ unit(frames[:, 0]).T)


def test_cosines_stay_between_minus_one_and_one(name: str) -> None:
    head, (texts, frames) = made(name), vectors(20, 20)
    assert head.cosine == (name != "tight_transf")
    if head.cosine:
        assert head(texts, frames).abs().max() <= 1 + 1e-5


def test_poolings_by_hand() -> None:
    texts = torch.tensor([[1.0, 0.0]])
    frames = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]]])  # cosines 1, 0 and 0.6
    two = head_of("top_frames", 2, {"k": 2})
    pooled = two.pooled(texts, two.videos(frames, None))
    torch.testing.assert_close(pooled, torch.tensor([[[1.6, 0.8]]]))
    torch.testing.assert_close(two(texts, frames), torch.tensor([[1.6 / (1.6**2 + 0.8**2) ** 0.5]]))
    hot = head_of("soft_frames", 2, {"temperature": 1e-3})
    torch.testing.assert_close(hot(texts, frames), torch.ones(1, 1))
    many = head_of("top_frames", 2, {"k": 9})
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(many(texts, frames, mask), torch.tensor([[2**-0.5]]))


def test_x_pool_starts_as_a_plain_attention() -> None:
    """All projections begin as the identity, and cosines see no scale."""
    head, (texts, frames) = head_of("x_pool", WIDTH).eval(), vectors()
    norm = torch.nn.functional.layer_norm
    h, q = norm(frames, [WIDTH]), norm(texts, [WIDTH])
    seen = (q @ h.transpose(1, 2) * WIDTH**-0.5).softmax(-1) @ h
    wanted = torch.einsum("ne,vne->nv", unit(texts), unit(norm(seen, [WIDTH])))
    torch.testing.assert_close(head(texts, frames), wanted, atol=1e-4, rtol=1e-4)


def test_the_page_states_what_the_code_counts() -> None:
    text = (Path(__file__).parent.parent / "docs" / "methods" / "heads.md").read_text("utf-8")
    stated = {n: int(p.replace(",", "")) for n, p in re.findall(r"^\| (\w+) \| ([\d,]+) \|$", text, re.M)}
    counted = {n: sum(p.numel() for p in head_of(n, 512).parameters()) for n in HEADS}
    assert stated == {n: p for n, p in counted.items() if p}


def test_dropout_only_while_training() -> None:
    texts, frames = vectors()
    for name in ("x_pool", "tight_transf"):
        head = made(name, dropout=0.5)
        assert torch.equal(head(texts, frames), head(texts, frames))
        assert not torch.equal(head.train()(texts, frames), head(texts, frames))


def tiny_clip(width: int = WIDTH) -> Clip:
    torch.manual_seed(0)
    return Clip(ClipConfig(16, 8, TowerConfig(1, 32, 2, 64), TowerConfig(3, width, 2, 4 * width), 9, 60, WIDTH, "gelu"))


def test_heads_with_blocks_start_as_the_text_tower() -> None:
    clip = tiny_clip()
    for name, part in (("seq_transf", "over_time"), ("tight_transf", "joint")):
        blocks = getattr(build_head(name, clip), part)
        for mine, theirs in zip(blocks.blocks[:3], clip.text.blocks[: len(blocks.blocks)], strict=True):
            assert torch.equal(mine.qkv.weight, theirs.qkv.weight)
            assert mine.ln1.eps == 1e-12
        assert torch.equal(blocks.positions[:9], clip.text.pos)
        assert len(blocks.positions) == 77
    assert build_head("seq_transf", tiny_clip(32)).over_time.blocks[0].qkv.weight.shape == (3 * WIDTH, WIDTH)


def test_wrong_names_and_sizes() -> None:
    with pytest.raises(ClipreelError, match="did you mean seq_transf"):
        head_of("seqtransf", WIDTH)
    with pytest.raises(ClipreelError, match="no option 'layer' Options: layers, heads, positions"):
        head_of("seq_transf", WIDTH, {"layer": 3})
    for name, options in (
        ("x_pool", {"heads": 3}),
        ("seq_transf", {"heads": 3}),
        ("seq_transf", {"layers": 0}),
        ("top_frames", {"k": 0}),
        ("soft_frames", {"temperature": 0.0}),
    ):
        with pytest.raises(ClipreelError, match=str(next(iter(options)))):
            head_of(name, WIDTH, options)
    texts, frames = vectors()
    with pytest.raises(ClipreelError, match="5 tokens, but this head has learned 4 positions"):
        made("seq_transf", positions=4)(texts, frames)
    with pytest.raises(ClipreelError, match="put padding last"):
        made("seq_lstm")(texts, frames, torch.tensor([[True, False, True, True, True]]).expand(4, -1))


def test_sizes_that_do_not_fit_are_told(name: str) -> None:
    head, (texts, frames) = made(name), vectors()
    for call in (head, head.score):
        with pytest.raises(ClipreelError, match=rf"frames must be \(V, T, {WIDTH}\) with at least one frame"):
            call(texts, frames[:, :0])
        with pytest.raises(ClipreelError, match=rf"frames must be .* not \(4, {FRAMES}, 3\)"):
            call(texts, frames[..., :3])
        with pytest.raises(ClipreelError, match=rf"texts must be \(N, {WIDTH}\) for this head, not \(3, 3\)"):
            call(texts[:, :3], frames)
        for wrong, said in (
            (torch.ones(4, FRAMES), rf"frame_mask is float32 \(4, {FRAMES}\).*\.bool\(\) makes it"),
            (torch.ones(4, FRAMES + 1, dtype=torch.bool), rf"is bool \(4, {FRAMES + 1}\): give bool \(4, {FRAMES}\)"),
        ):
            with pytest.raises(ClipreelError, match=said):
                call(texts, frames, wrong)


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


def test_no_tensor_passes_the_bound_while_scoring(name: str) -> None:
    head, (texts, frames) = made(name), vectors(60, 50)
    bound = 6000  # more than the inputs (4000), the result (3000) and the least that one pair needs
    with Largest() as seen:
        head.score(texts, frames, largest=bound)
    assert seen.numbers <= bound
    with Largest() as seen:
        head(texts, frames)
    assert seen.numbers > bound or isinstance(head, PoolingHead)


def test_msvd_fits_into_memory() -> None:
    """670 videos of 12 frames and 27,763 captions, by shapes alone, with a bound 16 times the usual (256 MB)."""
    assert LARGEST == 2**22
    with torch.device("meta"), Largest() as seen:
        head = head_of("x_pool", 512).eval()
        scores = head.score(torch.empty(27_763, 512), torch.empty(670, 12, 512), largest=2**26)
    assert scores.shape == (27_763, 670)
    assert seen.numbers <= 2**26


def test_a_pooling_head_makes_the_vectors_of_videos() -> None:
    clip = tiny_clip()
    plain = Retriever(clip, tokenizer=None, preprocess=Preprocess(16), sampling=Sampling("uniform", 3), name="tiny")
    frames = torch.randn(2, 4, 3, 16, 16)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    with pytest.raises(ClipreelError, match="video 1 of 2"):
        plain.encode_video(frames, mask & torch.tensor([[True], [False]]))
    headed = plain.headed(made("seq_transf"))
    raw = plain.encode_frames(frames, normalize=False)
    torch.testing.assert_close(headed.encode_video(frames, mask), headed.head.pool(raw, mask))
    assert headed.space != plain.space
    assert not headed.pools_frames
    by_text = plain.headed(made("x_pool"))
    torch.testing.assert_close(by_text.encode_video(frames, mask), mean_pool(raw, mask))
    assert by_text.space == plain.space
    assert by_text.rerank(torch.randn(3, WIDTH), raw, mask).shape == (3, 2)
    assert plain.rerank is None


@pytest.mark.parametrize(
    ("name", "option", "value", "said"),
    [
        ("x_pool", "dropout", "much", "dropout 'much': give a finite number"),
        ("x_pool", "dropout", 1.5, "dropout 1.5: give 0 up to 1"),
        ("x_pool", "heads", "1", "heads '1': give a whole number"),
        ("seq_transf", "layers", 2.0, "layers 2.0: give a whole number"),
        ("seq_transf", "layers", True, "layers True: give a whole number"),
        ("tight_transf", "positions", None, "positions None: give a whole number"),
        ("soft_frames", "temperature", [0.1], r"temperature \[0.1\]: give a finite number"),
        ("soft_frames", "temperature", float("nan"), "temperature nan: give a finite number"),
    ],
)
def test_options_of_another_type_are_told_in_one_line(name: str, option: str, value: object, said: str) -> None:
    for read in (head_options, lambda head, options: head_of(head, 32, options)):
        with pytest.raises(ClipreelError, match=f"^{said}") as told:
            read(name, {option: value})
        assert "\n" not in str(told.value)
    assert head_options("soft_frames", {"temperature": "1e-2"})["temperature"] == 0.01


def test_the_command_line_tells_of_them_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    for change, said in (
        ("head.options.dropout=much", "dropout 'much': give a finite number"),
        ("head.options.heads=one", "heads 'one': give a whole number"),
    ):
        assert main(["tune", "shapes", "--head", "x_pool", change, "--on", "no/where"]) == 2
        assert said in capsys.readouterr().err
