"""The built-in model and what Retriever promises."""

import threading
from pathlib import Path

import pytest
import torch

import clipreel
from clipreel.data.shapes_stills import ATTRIBUTES
from clipreel.errors import ClipreelError
from clipreel.heads import mean_pool, unit
from clipreel.retriever import BUILT_IN, Retriever, pick_device, pick_dtype
from clipreel.training.shapes_card import MOST_BYTES, MOST_PARAMETERS, attribute_accuracy
from clipreel.video.sampling import Sampling


@pytest.fixture(scope="module")
def model() -> Retriever:
    return clipreel.load("shapes-tiny", device="cpu")


def test_the_built_in_model_is_small_and_knows_its_world(model: Retriever) -> None:
    files = [p for p in BUILT_IN["shapes-tiny"].iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= MOST_BYTES
    assert sum(p.numel() for p in model.clip.parameters()) <= MOST_PARAMETERS
    for attribute in ATTRIBUTES:
        assert attribute_accuracy(model, attribute, count=300, seed=7) >= 95, attribute


def test_vectors_are_unit_float32(model: Retriever) -> None:
    frames = torch.randn(2, 5, 3, 64, 64)
    for z in (model.encode_video(frames), model.encode_frames(frames), model.encode_text(["a red circle", ""])):
        assert z.dtype == torch.float32
        torch.testing.assert_close(z.norm(dim=-1), torch.ones(z.shape[:-1]))
    assert model.encode_text([]).shape == (0, 128)
    torch.testing.assert_close(unit(model.encode_text(["x"], normalize=False)), model.encode_text(["x"]))


def test_padded_frames_change_nothing_even_as_nan(model: Retriever) -> None:
    frames = torch.randn(2, 5, 3, 64, 64)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    frames[:, 3:] = torch.nan
    torch.testing.assert_close(model.encode_video(frames, mask), model.encode_video(frames[:, :3]))


def test_how_many_frames_go_at_once_changes_nothing(model: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.randn(2, 5, 3, 64, 64)
    sizes: list[int] = []
    encode = model.clip.encode_video
    monkeypatch.setattr(model.clip, "encode_video", lambda x, *a: sizes.append(x.shape[1]) or encode(x, *a))
    wanted = model.encode_frames(frames)
    monkeypatch.setattr("clipreel.retriever.CPU_TOKENS", 4 * 65 + 1)
    torch.testing.assert_close(model.encode_frames(frames), wanted)
    assert sizes == [10, 4, 4, 2]


def test_mean_pool_is_the_mean_of_unit_vectors() -> None:
    z = torch.tensor([[[3.0, 0.0], [0.0, 5.0]]])
    torch.testing.assert_close(mean_pool(z), torch.tensor([[0.5**0.5, 0.5**0.5]]))
    torch.testing.assert_close(mean_pool(z, normalize=False), torch.tensor([[0.5, 0.5]]))


def test_space_follows_weights_pixels_and_sampling(model: Retriever, tmp_path: Path) -> None:
    assert clipreel.load(BUILT_IN["shapes-tiny"], device="cpu").space == model.space
    assert clipreel.load("shapes-tiny", device="cpu", sampling=Sampling("uniform", 4)).space != model.space
    assert clipreel.load("shapes-tiny", device="cpu", image_size=48).space != model.space
    other = clipreel.load("shapes-tiny", device="cpu")
    with torch.no_grad():
        other.clip.text.head[0, 0] += 1e-3
    assert other.space != model.space


def test_other_image_size(model: Retriever) -> None:
    small = clipreel.load("shapes-tiny", device="cpu", image_size=48)
    assert small.preprocess.size == 48
    assert small.encode_video(torch.randn(1, 2, 3, 48, 48)).shape == (1, 128)


def test_threads_share_a_model(model: Retriever) -> None:
    texts = [[f"a {c} circle"] for c in ("red", "green", "blue", "white")]
    wanted = [model.encode_text(t) for t in texts]
    found: dict[int, torch.Tensor] = {}
    jobs = [threading.Thread(target=lambda i=i: found.update({i: model.encode_text(texts[i])})) for i in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert all(torch.equal(found[i], wanted[i]) for i in range(4))


def test_low_precision_is_close(model: Retriever) -> None:
    half = clipreel.load("shapes-tiny", device="cpu", dtype="bfloat16")
    frames = torch.randn(2, 3, 3, 64, 64)
    assert (half.encode_video(frames) * model.encode_video(frames)).sum(-1).min() > 0.99


def test_weights_without_vocabulary_take_ids_only(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((BUILT_IN["shapes-tiny"] / name).read_bytes())
    bare = clipreel.load(tmp_path, device="cpu")
    ids = torch.zeros(1, 32, dtype=torch.long)
    ids[0, 3] = bare.clip.config.vocab - 1
    assert bare.encode_text(ids).shape == (1, 128)
    with pytest.raises(ClipreelError, match="has no vocabulary"):
        bare.encode_text(["a red circle"])


def test_wrong_use(model: Retriever) -> None:
    with pytest.raises(ClipreelError, match="allowed are auto"):
        pick_dtype("float8", torch.device("cpu"))
    with pytest.raises(ClipreelError, match="cannot be used"):
        pick_device("gpu7")
    with pytest.raises(TypeError, match="in a list"):
        model.encode_text("a red circle")
    with pytest.raises(ValueError, match=r"\(B, T, 3, H, W\)"):
        model.encode_video(torch.zeros(3, 64, 64))
