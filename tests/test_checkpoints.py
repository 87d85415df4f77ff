"""Every naming there and back; one missing, one extra and one mis-shaped tensor each fail by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clipreel.checkpoints import load_weights, resize_positions, to_foreign, translate, unwrap
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.errors import ClipreelError

CONFIG = ClipConfig(16, 8, TowerConfig(2, 64, 1, 128), TowerConfig(1, 64, 1, 96), 12, 40, 24, "quick_gelu")
NAMINGS = ("openai", "openclip-custom", "hf")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Clip(CONFIG).state_dict()


@pytest.mark.parametrize("naming", NAMINGS)
def test_there_and_back(state: dict[str, Tensor], naming: str) -> None:
    foreign = to_foreign(state, CONFIG, naming)
    found = translate(foreign, activation="quick_gelu")
    assert found.naming == naming
    assert found.config == CONFIG
    assert set(found.state) == set(state)
    assert all(torch.equal(found.state[n], state[n]) for n in state)


@pytest.mark.parametrize("naming", NAMINGS)
def test_each_missing_tensor_is_named(state: dict[str, Tensor], naming: str) -> None:
    foreign = to_foreign(state, CONFIG, naming)
    for name in foreign:
        with pytest.raises(ClipreelError) as e:
            translate({k: v for k, v in foreign.items() if k != name}, activation="gelu")
        # without the tensors that tell the naming the whole file is unknown
        assert name in str(e.value) or "no CLIP that is known" in str(e.value), name


@pytest.mark.parametrize("naming", NAMINGS)
def test_extra_and_mis_shaped_tensors_are_named(state: dict[str, Tensor], naming: str) -> None:
    foreign = to_foreign(state, CONFIG, naming)
    extra = "vision_model.encoder.odd" if naming == "hf" else "visual.odd"
    with pytest.raises(ClipreelError, match=f"unexpected: {extra}"):
        translate({**foreign, extra: torch.zeros(1)}, activation="gelu")
    name = next(n for n in foreign if n.endswith(("ln_post.bias", "post_layernorm.bias")))
    with pytest.raises(ClipreelError, match=r"mis-shaped: vision.ln_post.bias is \(3,\), not \(64,\)"):
        translate({**foreign, name: torch.zeros(3)}, activation="gelu")


def test_half_precision_becomes_float32_and_scalars_are_dropped(state: dict[str, Tensor]) -> None:
    foreign = {k: v.half() for k, v in to_foreign(state, CONFIG, "openai").items()}
    scalars = {n: torch.tensor(1) for n in ("input_resolution", "context_length", "vocab_size")}
    found = translate({**foreign, **scalars})
    assert all(t.dtype == torch.float32 for t in found.state.values())
    assert not found.warnings  # the three scalars say that it is an OpenAI archive, so QuickGELU is known


def test_unknown_activation_warns(state: dict[str, Tensor]) -> None:
    found = translate(to_foreign(state, CONFIG, "openai"))
    assert found.config.activation == "quick_gelu"
    assert "activation='gelu'" in found.warnings[0]


@pytest.mark.parametrize("prefix", ["module.", "clip.", "clipmodel.", "module.clip.", "_orig_mod.module."])
def test_prefixes_and_wrappers(state: dict[str, Tensor], prefix: str) -> None:
    foreign = to_foreign(state, CONFIG, "openai")
    head = {"similarity.weight": torch.zeros(2)}
    wrapped = {"state_dict": {**{prefix + k: v for k, v in foreign.items()}, **head}, "epoch": 3}
    found = translate(unwrap(wrapped), activation="gelu")
    assert set(found.extra) == set(head)
    assert "similarity.weight" in found.warnings[0]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("visual.layer1.0.conv1.weight", "ResNet"),
        ("visual.trunk.stem.weight", "timm"),
        ("logit_bias", "SigLIP"),
        ("visual.attn_pool.query", "CoCa"),
        ("visual.transformer.resblocks.0.ls_1.gamma", "LayerScale"),
    ],
)
def test_other_models_are_named_and_refused(state: dict[str, Tensor], name: str, what: str) -> None:
    with pytest.raises(ClipreelError, match=what):
        translate({**to_foreign(state, CONFIG, "openai"), name: torch.zeros(1)})


def hf_folder(folder: Path, state: dict[str, Tensor], **text: object) -> Path:
    folder.mkdir()
    save_file(to_foreign(state, CONFIG, "hf"), folder / "model.safetensors")
    config = {
        "vision_config": {"num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
        "text_config": {"num_attention_heads": 4, "eos_token_id": 39, **text},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_folder_with_config(state: dict[str, Tensor], tmp_path: Path) -> None:
    found = load_weights(hf_folder(tmp_path / "a", state))
    assert (found.config.vision.heads, found.config.text.heads) == (2, 4)
    assert (found.config.activation, found.config.eos_id) == ("gelu", 39)
    assert load_weights(hf_folder(tmp_path / "b", state, eos_token_id=2)).config.eos_id is None
    with pytest.raises(ClipreelError, match="layer_norm_eps 1e-06"):
        load_weights(hf_folder(tmp_path / "c", state, layer_norm_eps=1e-6))


def test_sharded_and_openclip_folders(state: dict[str, Tensor], tmp_path: Path) -> None:
    foreign = to_foreign(state, CONFIG, "hf")
    names = sorted(foreign)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({n: foreign[n] for n in own}, tmp_path / file)
    weight_map = {n: f for f, own in parts.items() for n in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load_weights(tmp_path).state["text.head"], state["text.head"])
    folder = tmp_path / "openclip"
    folder.mkdir()
    save_file(to_foreign(state, CONFIG, "openclip-custom"), folder / "open_clip_model.safetensors")
    cfg = {
        "model_cfg": {"vision_cfg": {"width": 64, "head_width": 32}, "text_cfg": {"heads": 2}},
        "preprocess_cfg": {"size": [16, 16], "mean": [0.5, 0.5, 0.5], "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(cfg))
    found = load_weights(folder)
    assert (found.config.vision.heads, found.config.text.heads, found.config.activation) == (2, 2, "gelu")
    assert found.preprocess == {"size": 16, "mean": (0.5, 0.5, 0.5), "geometry": "squash"}


def test_files_of_torch_and_of_openai(state: dict[str, Tensor], tmp_path: Path) -> None:
    foreign = to_foreign(state, CONFIG, "openai")
    torch.save({"state_dict": foreign}, tmp_path / "a.pth")
    assert torch.equal(load_weights(tmp_path / "a.pth").state["vision.pos"], state["vision.pos"])

    class Archive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    module = Archive()
    for name, tensor in foreign.items():
        owner: nn.Module = module
        for part in name.split(".")[:-1]:
            if not hasattr(owner, part):
                owner.add_module(part, Archive())
            owner = getattr(owner, part)
        owner.register_parameter(name.split(".")[-1], nn.Parameter(tensor.half()))
    for scalar in ("input_resolution", "context_length", "vocab_size"):
        module.register_buffer(scalar, torch.tensor(7))
    torch.jit.save(torch.jit.script(module), str(tmp_path / "ViT.pt"))
    found = load_weights(tmp_path / "ViT.pt")
    assert not found.warnings
    torch.testing.assert_close(found.state["text.pos"], state["text.pos"].half().float())


def test_wrong_places_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ClipreelError, match="found no weights"):
        load_weights(tmp_path)
    with pytest.raises(ClipreelError, match="built-in shapes-tiny"):
        load_weights("shapes-tinny")
    (tmp_path / "x.safetensors").write_bytes(b"garbage" * 10)
    with pytest.raises(ClipreelError, match="fetch it again"):
        load_weights(tmp_path)
    (tmp_path / "y.safetensors").write_bytes(b"")
    with pytest.raises(ClipreelError, match="name one of them"):
        load_weights(tmp_path)


def test_positions_keep_their_class_row_and_modes_differ() -> None:
    pos = torch.randn(17, 5, generator=torch.Generator().manual_seed(0))
    up, hf = resize_positions(pos, (6, 8)), resize_positions(pos, (6, 8), "hf")
    assert up.shape == (49, 5)
    assert torch.equal(up[0], pos[0])
    assert (up - hf).abs().max() > 1e-3
    torch.testing.assert_close(resize_positions(pos, (4, 4)), pos)
    with pytest.raises(ClipreelError, match="allowed are"):
        resize_positions(pos, (4, 4), "bilinear")
