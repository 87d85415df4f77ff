"""Heads on disk: saved and loaded equal, beside an adapter; checkpoints of CLIP4Clip and X-Pool with their heads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipreel.adapter import save_adapter, with_adapter
from clipreel.checkpoints import to_foreign
from clipreel.clip import project
from clipreel.errors import ClipreelError
from clipreel.head_files import CONFIG, WEIGHTS, WITHOUT_TENSORS, read_head, save_head, with_head
from clipreel.heads import HEADS, build_head
from clipreel.official import load_official
from clipreel.official.heads import HEADERS, PATCH_3D, names
from clipreel.retriever import Retriever
from clipreel.sites import PLAIN
from clipreel.tuners import build
from tests.search.tiny import tiny_model


def headed(name: str, options: dict[str, int] | None = None) -> Retriever:
    model = tiny_model()
    torch.manual_seed(3)
    return model.headed(build_head(name, model.clip, options))


def scores(model: Retriever) -> Tensor:
    g = torch.Generator().manual_seed(4)
    assert model.rerank is not None
    return model.rerank(torch.randn(3, 16, generator=g), torch.randn(2, 4, 16, generator=g))


@pytest.mark.parametrize("name", HEADS)
def test_saved_and_loaded_a_head_is_equal(name: str, tmp_path: Path) -> None:
    model = headed(name)
    again = with_head(tiny_model(), save_head(tmp_path / "h", model))
    assert torch.equal(scores(again), scores(model))
    assert again.space == model.space
    assert again.head.options == model.head.options
    assert (name in WITHOUT_TENSORS) == (not list(model.head.parameters()))


def test_a_head_lies_beside_its_adapter(tmp_path: Path) -> None:
    base = tiny_model()
    tuner = build("lora", base.clip, {"rank": 2})
    save_adapter(tmp_path, base.adapted(tuner, adapter="x"), "lora", {"rank": 2})
    model = with_adapter(base, tmp_path).headed(build_head("x_pool", base.clip))
    save_head(tmp_path, model, {"data": "shapes"})
    again = with_head(with_adapter(base, tmp_path), tmp_path)
    assert torch.equal(scores(again), scores(model))
    assert read_head(tmp_path)[1].trained_on == {"data": "shapes"}
    with pytest.raises(ClipreelError, match="trained on the adapter"):
        with_head(base, tmp_path)


def test_names_of_papers_are_known() -> None:
    assert with_head(tiny_model(), "meanP").head.name == "mean"
    for said, name in (("X-Pool", "x_pool"), ("x_pool", "x_pool"), ("seqTransf", "seq_transf")):
        with pytest.raises(ClipreelError, match=f"{name} must be trained: .* clipreel tune --head {name} wrote"):
            with_head(tiny_model(), said)


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    folder = save_head(tmp_path / "h", headed("seq_lstm"))
    with pytest.raises(ClipreelError, match="trained on the base"):
        with_head(tiny_model(1), folder)
    with pytest.raises(ClipreelError, match=r"no head: there is no head_config\.json in it; give .* soft_frames"):
        with_head(tiny_model(), tmp_path)
    with pytest.raises(ClipreelError, match="has no head to save"):
        save_head(tmp_path / "n", tiny_model())
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-4])
    with pytest.raises(ClipreelError, match="cannot be read"):
        read_head(folder)
    save_file({"more": torch.ones(2)}, folder / WEIGHTS)
    with pytest.raises(ClipreelError, match="another fingerprint"):
        read_head(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ClipreelError, match="half a head"):
        read_head(folder)
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ClipreelError, match="schema 2"):
        read_head(folder)
    (folder / CONFIG).write_text(text[:-10])
    with pytest.raises(ClipreelError, match="damaged"):
        read_head(folder)


TOLD = {"vision_heads": 2, "text_heads": 2, "cross_heads": 2, "num_mha_heads": 2}
STEMS = {"seq_transf": "transformerClip.resblocks", "tight_transf": "cross.transformer.resblocks"}
OFFICIAL = {**{ours: ("clip4clip", theirs) for theirs, ours in HEADERS.items()}, "x_pool": ("x-pool", None)}


def checkpoint(name: str) -> tuple[Retriever, dict[str, Tensor]]:
    """The tiny model with a head, and what the official code would have saved of it."""
    model = headed(name, {"heads": 2} if name in (*STEMS, "x_pool") else {})
    config = model.clip.config
    state = {"clip." + n: t for n, t in to_foreign(model.clip.state_dict(), config, "openai").items()}
    layers = {f"{STEMS[name]}.{i}.": torch.ones(1) for i in range(4)} if name in STEMS else {}
    ours = dict(model.head.named_parameters())
    table = names(name, layers)
    assert set(table) == set(ours)
    return model, state | {theirs: ours[mine].detach().clone() for mine, theirs in table.items()}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_checkpoints_load_with_their_heads(name: str, tmp_path: Path) -> None:
    model, state = checkpoint(name)
    system, header = OFFICIAL[name]
    save_file(state, tmp_path / "model.safetensors")
    wrapped = {"state_dict": {"module." + n: t for n, t in state.items()}}
    for source in (tmp_path / "model.safetensors", tmp_path, wrapped):
        again = load_official(system, source, TOLD | ({"sim_header": header} if header else {}), device="cpu")
        assert again.head.name == name
        assert torch.equal(scores(again), scores(model))
        assert torch.equal(again.clip.vision.head, model.clip.vision.head)
        assert not again.warnings
    # a head that is taken out of a checkpoint serves an index that was made with its base
    folder = save_head(tmp_path / "head", again)
    assert torch.equal(scores(with_head(again, folder)), scores(model))


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_tensor_of_a_checkpoint_is_accounted_for(name: str) -> None:
    _, state = checkpoint(name)
    system, _ = OFFICIAL[name]
    heads = [n for n in state if not n.startswith("clip.")]
    for gone in heads[-1:]:
        with pytest.raises(ClipreelError, match=f"1 tensors missing, first {gone}"):
            load_official(system, {n: t for n, t in state.items() if n != gone}, TOLD)
        with pytest.raises(ClipreelError, match="instead of"):
            load_official(system, {**state, gone: torch.ones(5, 5, 5)}, TOLD)
    with pytest.raises(ClipreelError, match=r"belong neither to CLIP nor to the head, first surplus\.weight"):
        load_official(system, {**state, "surplus.weight": torch.ones(1)}, TOLD)
    inside = "pool_frames.more" if system == "x-pool" else "similarity_dense.more"
    with pytest.raises(ClipreelError, match=r"tensors (unexpected|missing), first"):
        load_official(system, {**state, inside: torch.ones(1)}, TOLD)


def test_headers_and_patches_of_clip4clip() -> None:
    model, state = checkpoint("seq_lstm")
    with pytest.raises(ClipreelError, match=r"sim_header 'seqTransf' does not fit: .* seq_lstm"):
        load_official("clip4clip", state, {**TOLD, "sim_header": "seqTransf"})
    # the official class saves a table of positions with its LSTM, which it never reads
    more = {**state, "frame_position_embeddings.weight": torch.ones(77, 16)}
    assert torch.equal(scores(load_official("clip4clip", more, TOLD, device="cpu")), scores(model))
    weight = torch.randn(32, 3, 3, 8, 8)
    flat = load_official("clip4clip", state, TOLD, device="cpu")
    deep = load_official("clip4clip", {**state, "clip." + PATCH_3D: weight}, TOLD, device="cpu")
    assert flat.tuner is PLAIN
    assert torch.equal(deep.tuner.overrides["vision.patch.weight"], weight)
    other = load_official("clip4clip", {**state, "clip." + PATCH_3D: weight + 1}, TOLD, device="cpu")
    assert len({flat.space, deep.space, other.space}) == 3


def test_patches_over_three_frames_are_a_convolution() -> None:
    clip = tiny_model().clip
    tuner = build("patch_3d", clip).requires_grad_(False)
    tuner.weight.normal_()
    frames = torch.randn(2, 4, 3, 16, 16)
    wanted = torch.nn.functional.conv3d(frames.transpose(1, 2), tuner.weight, stride=(1, 8, 8), padding=(1, 0, 0))
    patches = frames.unflatten(-1, (2, 8)).unflatten(-3, (2, 8)).permute(0, 1, 3, 5, 2, 4, 6).reshape(2, 4, 4, -1)
    ours = project(patches, tuner.weight, None)
    torch.testing.assert_close(ours, wanted.permute(0, 2, 3, 4, 1).flatten(2, 3), atol=1e-4, rtol=1e-4)
