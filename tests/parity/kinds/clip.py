"""Both towers against the official code, in every naming, with intermediate states, gradients and other input sizes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from clipreel.archive import read_torchscript
from clipreel.checkpoints import Loaded, name_table, resize_positions, translate
from clipreel.clip import Clip
from clipreel.heads import unit
from clipreel.patterns import by_frame
from clipreel.sites import PLAIN
from tests.parity.fixture import Fixture, load


def check(path: Path) -> None:
    if path.name.endswith(".torchscript.pt"):
        check_archive(path)
        return
    if path.name.endswith(".torchscript.expected.safetensors"):
        assert path.with_name(path.name.replace(".expected.safetensors", ".pt")).is_file()
        return
    fixture = load(path)
    if "visual.conv1.weight" in fixture.weights and not any("ln_final" in n for n in fixture.weights):
        check_sizes(fixture)
    else:
        check_model(fixture)


def facts(fixture: Fixture) -> dict:
    config = fixture.config
    eos = {"eos_id": config["eos_id"]} if config.get("text_pool") == "eos" else {}
    return {"vision_heads": config["vision_heads"], "text_heads": config["text_heads"], **eos}


def build(loaded: Loaded) -> Clip:
    clip = Clip(loaded.config)
    clip.load_state_dict(loaded.state)
    return clip.eval()


def check_model(fixture: Fixture) -> None:
    config = fixture.config
    loaded = translate(fixture.weights, activation=config["activation"], facts=facts(fixture))
    assert loaded.config.image_size == config["image_resolution"]
    assert loaded.config.vision.layers == config["vision_layers"]
    clip = build(loaded)
    pixels, ids = fixture.inputs["pixel_values"], fixture.inputs["input_ids"]
    image, text = clip.encode_video(pixels[:, None])[:, 0], clip.encode_text(ids)
    logits = clip.scale() * unit(image) @ unit(text).T
    truth = torch.arange(len(ids))
    loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
    ours = {
        "image_embeds_raw": image,
        "text_embeds_raw": text,
        "image_embeds": unit(image),
        "text_embeds": unit(text),
        "logits_per_image": logits,
        "loss": loss,
        **states(clip, pixels, ids),
    }
    unknown = set(fixture.outputs) - set(ours)
    assert not unknown, f"outputs that are not compared: {unknown}"
    for name in fixture.outputs:
        fixture.check(name, ours[name], atol=1e-3 if name.startswith("logits") else 1e-4)
    padded = clip.encode_text(fixture.inputs["input_ids_padded_with_eos"])
    torch.testing.assert_close(padded, text, atol=1e-5, rtol=1e-4)
    check_grads(fixture, clip, loaded, loss)


def states(clip: Clip, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """Inner states as the official code has them: of the first two images, and of all text slots."""
    vision = clip.vision
    x, layout = vision.embed(pixels[:2, None], PLAIN)
    x = vision.ln_pre(x)
    after_block, _ = vision.blocks[0](x, layout, by_frame, None)

    class EverySlot(type(PLAIN)):
        def text_length(self, ends: Tensor, length: int) -> int:
            return length

    tokens, _ = clip.text.tokens_out(ids, EverySlot())
    return {"vision_after_ln_pre": x, "vision_after_block0": after_block, "text_after_ln_final": tokens}


def check_grads(fixture: Fixture, clip: Clip, loaded: Loaded, loss: Tensor) -> None:
    loss.backward()
    ours = dict(clip.named_parameters())
    foreign = {}
    for name, theirs, how in name_table(loaded.naming, loaded.config.vision.layers, loaded.config.text.layers):
        grad = ours[name].grad
        parts = grad.chunk(3) if how == "joined" else (grad.t() if how == "transposed" else grad,)
        foreign.update(zip(theirs, parts, strict=True))
    for name in fixture.grads:
        fixture.check_grad(name, foreign[name])


def check_sizes(fixture: Fixture) -> None:
    """Other input sizes through resized positions, in both manners; only the vision tower is in the file."""
    config = fixture.config
    d, e, c = config["transformer_width"], config["embed_dim"], config["context_length"]
    text = {
        "token_embedding.weight": torch.zeros(config["vocab_size"], d),
        "positional_embedding": torch.zeros(c, d),
        "ln_final.weight": torch.ones(d),
        "ln_final.bias": torch.zeros(d),
        "text_projection": torch.zeros(d, e),
        "logit_scale": torch.zeros(()),
    }
    block = "transformer.resblocks.{}."
    for i in range(config["transformer_layers"]):
        for name, shape in {
            "ln_1.weight": (d,),
            "ln_1.bias": (d,),
            "ln_2.weight": (d,),
            "ln_2.bias": (d,),
            "attn.in_proj_weight": (3 * d, d),
            "attn.in_proj_bias": (3 * d,),
            "attn.out_proj.weight": (d, d),
            "attn.out_proj.bias": (d,),
            "mlp.c_fc.weight": (4 * d, d),
            "mlp.c_fc.bias": (4 * d,),
            "mlp.c_proj.weight": (d, 4 * d),
            "mlp.c_proj.bias": (d,),
        }.items():
            text[block.format(i) + name] = torch.zeros(shape)
    loaded = translate({**fixture.weights, **text}, activation=config["activation"], facts=facts(fixture))
    pos = loaded.state["vision.pos"]
    for name, wanted in fixture.outputs.items():
        mode = "hf" if name.startswith("hf_") else "openclip"
        height, width = map(int, name.rsplit("_", 1)[1].split("x"))
        grid = (height // loaded.config.patch, width // loaded.config.patch)
        resized = resize_positions(pos, grid, mode)
        if "pos_embed" in name:
            fixture.check(name, resized)
            continue
        clip = Clip(loaded.config)
        clip.vision.pos = torch.nn.Parameter(resized)
        clip.load_state_dict({**loaded.state, "vision.pos": resized})
        ours = clip.encode_video(fixture.inputs[f"pixel_values_{height}x{width}"][:, None])[:, 0]
        assert wanted.shape == ours.shape
        fixture.check(name, ours)


def check_archive(path: Path) -> None:
    """A TorchScript archive read without running it: names, types and values of the official state dict."""
    expected = load_expected(path.with_name(path.name.replace(".pt", ".expected.safetensors")))
    found = read_torchscript(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def load_expected(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name.removeprefix("weights/").removeprefix("outputs/"): t for name, t in load_file(path).items()}
