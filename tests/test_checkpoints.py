"""Every naming there and back; one missing, one extra and one mis-shaped tensor each fail by name."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clipreel.checkpoints import load_weights, resize_positions, to_foreign, to_openai, translate, unwrap
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
        with pytest.raises(ClipreelError, match=f"missing: {re.escape(name)}"):
            translate({k: v for k, v in foreign.items() if k != name}, activation="gelu")


@pytest.mark.parametrize("naming", NAMINGS)
def test_extra_and_mis_shaped_tensors_are_named(state: dict[str, Tensor], naming: str) -> None:
    foreign = to_foreign(state, CONFIG, naming)
    extra = "vision_model.encoder.odd" if naming == "hf" else "visual.odd"
    with pytest.raises(ClipreelError, match=f"unexpected: {extra}"):
        translate({**foreign, extra: torch.zeros(1)}, activation="gelu")
    name = next(n for n in foreign if n.endswith(("ln_post.bias", "post_layernorm.bias")))
    with pytest.raises(ClipreelError, match=rf"mis-shaped: {name} is \(3,\) float32, not \(64,\)"):
        translate({**foreign, name: torch.zeros(3)}, activation="gelu")


@pytest.mark.parametrize("naming", NAMINGS)
def test_each_mis_shaped_tensor_is_named(state: dict[str, Tensor], naming: str) -> None:
    foreign = to_foreign(state, CONFIG, naming)
    for name, tensor in foreign.items():
        for wrong in (torch.zeros(3), torch.zeros(()), tensor[None], tensor.bool()):
            if name == "logit_scale" and wrong.is_floating_point() and wrong.numel() == 1:
                continue  # OpenCLIP stores the scale in a list of one
            with pytest.raises(ClipreelError, match=f"mis-shaped: .*{re.escape(name)} is"):
                translate({**foreign, name: wrong}, activation="gelu")


def test_a_gap_between_layers_is_named_and_endless_numbers_do_not_hang(state: dict[str, Tensor]) -> None:
    foreign = to_foreign(state, CONFIG, "openai")
    gap = {n: t for n, t in foreign.items() if not n.startswith("visual.transformer.resblocks.0.")}
    with pytest.raises(ClipreelError, match=r"missing: visual\.transformer\.resblocks\.0"):
        translate(gap, activation="gelu")
    far = f"transformer.resblocks.{'9' * 30}.ln_1.weight"
    with pytest.raises(ClipreelError, match=f"unexpected: {far}"):
        translate({**foreign, far: torch.zeros(64)}, activation="gelu")


def test_constants_are_dropped_and_other_activations_refused(state: dict[str, Tensor]) -> None:
    custom = to_foreign(state, CONFIG, "openclip-custom")
    assert not translate({**custom, "text.attn_mask": torch.zeros(12, 12)}, activation="gelu").extra
    hf = to_foreign(state, CONFIG, "hf")
    ids = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("vision", "text")}
    assert not translate({**hf, **ids}, activation="gelu").extra
    with pytest.raises(ClipreelError, match="activation 'relu': allowed are quick_gelu and gelu"):
        translate(hf, activation="relu")


def test_one_tower_alone_is_named(state: dict[str, Tensor]) -> None:
    hf = to_foreign(state, CONFIG, "hf")
    for tower, other in (("vision", "text"), ("text", "vision")):
        word = {"vision": "video", "text": "text"}[tower]
        alone = {n: t for n, t in hf.items() if not n.startswith(other) and not n.startswith("visual_projection")}
        alone.pop("logit_scale")
        with pytest.raises(ClipreelError, match=f"only a {word} tower"):
            translate(alone)
        # transformers 5 saves CLIPTextModel and CLIPVisionModel without the prefix
        with pytest.raises(ClipreelError, match=f"only a {word} tower"):
            translate(
                {n.removeprefix(f"{tower}_model."): t for n, t in alone.items() if n.startswith(f"{tower}_model")}
            )


def test_heads_that_no_tensor_tells_need_a_config() -> None:
    wide = ClipConfig(16, 8, TowerConfig(1, 1280, 16, 64), TowerConfig(1, 64, 1, 64), 12, 40, 24, "gelu")
    narrow = ClipConfig(16, 8, TowerConfig(1, 48, 3, 64), TowerConfig(1, 64, 1, 64), 12, 40, 24, "gelu")
    for config in (wide, narrow):
        foreign = to_openai(Clip(config).state_dict(), config)
        with pytest.raises(ClipreelError, match=r"do not tell the heads .* config\.json"):
            translate(foreign, activation="gelu")
        assert translate(foreign, activation="gelu", facts={"vision_heads": config.vision.heads}).config == config


def test_a_tensor_with_and_without_prefix_is_not_chosen_silently(state: dict[str, Tensor]) -> None:
    foreign = {"module." + n: t for n, t in to_openai(state, CONFIG).items()}
    with pytest.raises(ClipreelError, match="occur twice"):
        unwrap({**foreign, "logit_scale": torch.zeros(())})


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
        ("text.text_projection.bias", "a bias in its text projection"),
        ("text.transformer.embeddings.word_embeddings.weight", "a text tower of transformers"),
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


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("config.json", {"vision_config": None, "text_config": {}}, "not understood"),
        ("config.json", {"vision_config": {"hidden_act": "gelu_new"}, "text_config": {}}, "activation 'gelu_new'"),
        (
            "config.json",
            {"vision_config": {"hidden_act": "gelu"}, "text_config": {"hidden_act": "quick_gelu"}},
            "differ in hidden_act",
        ),
        ("config.json", {"vision_config": {"hidden_size": 1024}, "text_config": {}}, "has width 64, but .* say 1024"),
        ("config.json", {"vision_config": {"num_hidden_layers": 3}, "text_config": {}}, "has layers 2, but .* say 3"),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"head_width": 0}}}, "not understood"),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"pool_type": "avg"}}}, "pool_type = 'avg'"),
        ("open_clip_config.json", {"model_cfg": {"text_cfg": {"pool_type": "last"}}}, "pool_type 'last'"),
        ("open_clip_config.json", {"model_cfg": {"text_cfg": {"norm_kwargs": {"eps": 1e-6}}}}, "norm_kwargs = "),
        ("preprocessor_config.json", {"size": [3]}, "pixel settings are not understood"),
        ("config.json", "{", "not readable JSON"),
    ],
)
def test_settings_that_cannot_be_followed(
    state: dict[str, Tensor], tmp_path: Path, file: str, content: object, what: str
) -> None:
    folder = hf_folder(tmp_path / "a", state)
    (folder / "config.json").unlink()
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ClipreelError, match=what):
        load_weights(folder)


def test_the_end_token_of_an_openclip_config(state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "a", state)
    (folder / "config.json").unlink()
    for text, eos in (({}, None), ({"pool_type": "eos", "eos_id": 39}, 39), ({"pool_type": "eos"}, 2)):
        cfg = {"model_cfg": {"vision_cfg": {"width": 64}, "text_cfg": {"heads": 1, **text}, "quick_gelu": True}}
        (folder / "open_clip_config.json").write_text(json.dumps(cfg))
        config = load_weights(folder).config
        assert (config.eos_id, config.activation) == (eos, "quick_gelu")


def test_sharded_and_openclip_folders(state: dict[str, Tensor], tmp_path: Path) -> None:
    foreign = to_foreign(state, CONFIG, "hf")
    names = sorted(foreign)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({n: foreign[n] for n in own}, tmp_path / file)
    weight_map = {n: f for f, own in parts.items() for n in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load_weights(tmp_path).state["text.head"], state["text.head"])
    index = tmp_path / "elsewhere.index.json"
    for name in ("../model-1.safetensors", index.name):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ClipreelError, match="outside its folder, or itself"):
            load_weights(index)
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
