"""AdaptFormer, ST-Adapter and Convpass: the official modules alone, and inside a transformer block."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from clipreel.clip import Block, TowerConfig
from clipreel.patterns import Layout, by_frame
from clipreel.sites import LayerTuner
from clipreel.tuners.adaptformer import AdaptFormerConfig, Bottleneck
from clipreel.tuners.convpass import Bypass, ConvpassConfig, ConvpassLayer
from clipreel.tuners.st_adapter import StAdapterConfig, StLayer, TimeConv
from tests.parity.fixture import Fixture, load

# official name -> ours, of what stands in a block in the three repositories
BLOCK = {
    "norm1.": "ln1.",
    "ln_1.": "ln1.",
    "norm2.": "ln2.",
    "ln_2.": "ln2.",
    "attn.mha.in_proj_": "qkv.",
    "attn.in_proj_": "qkv.",
    "attn.mha.out_proj.": "out.",
    "attn.out_proj.": "out.",
    "attn.proj.": "out.",
    "fc1.": "fc.",
    "mlp.c_fc.": "fc.",
    "mlp.0.": "fc.",
    "fc2.": "proj.",
    "mlp.c_proj.": "proj.",
    "mlp.2.": "proj.",
}
ADAPTFORMER = {"down_proj.": "down.", "up_proj.": "up.", "adapter_layer_norm_before.": "norm.", "scale": "scale"}
CONVPASS = {"adapter_down.": "down.", "adapter_up.": "up.", "adapter_conv.": "conv."}
ST = {"fc1.": "down.", "fc2.": "up.", "conv.weight": "kernel", "conv.bias": "bias"}


def check(path: Path) -> None:
    fixture = load(path)
    kinds: dict[str, Callable[[Fixture], None]] = {
        "adaptformer_adapter": check_adaptformer,
        "adaptformer_block": check_adaptformer_block,
        "convpass": check_convpass,
        "convpass_block": check_convpass_block,
        "st_adapter": check_st,
        "st_adapter_block": check_st_block,
    }
    kinds[fixture.config["kind"]](fixture)


def renamed(weights: dict[str, Tensor], names: dict[str, str], prefix: str = "") -> dict[str, Tensor]:
    """Tensors whose name starts with the prefix, under our names; an unknown one is an error."""
    found = {}
    for name, tensor in weights.items():
        if name.startswith(prefix):
            found[our_name(name.removeprefix(prefix), names)] = tensor
    return found


def our_name(name: str, names: dict[str, str]) -> str:
    theirs = next(t for t in names if name.startswith(t))
    return names[theirs] + name.removeprefix(theirs)


def compare(fixture: Fixture, tokens: Tensor, out: Tensor, ours: Callable[[str], Tensor | None]) -> None:
    """Output, loss and gradients; `ours(name)` is our gradient of an official parameter, in its shape."""
    assert set(fixture.outputs) == {"tokens", "loss"}
    assert set(fixture.inputs) == {"tokens", "grad_weight"}
    loss = (out * fixture.inputs["grad_weight"]).mean()
    fixture.check("tokens", out)
    fixture.check("loss", loss)
    loss.backward()
    for name in fixture.grads:
        fixture.check_grad(name, tokens.grad if name == "inputs.tokens" else ours(name))


def adaptformer(c: dict, d: int, weights: dict[str, Tensor], form: str) -> Bottleneck:
    learned = c["scalar"] == "learnable_scalar"
    config = AdaptFormerConfig(
        width=c["bottleneck"], scale=None if learned else float(c["scalar"]), form=form, norm=c["layernorm_option"]
    )
    layer = Bottleneck(config, d).eval()
    layer.load_state_dict({n: t.reshape(layer.state_dict()[n].shape) for n, t in weights.items()})
    return layer


def check_adaptformer(fixture: Fixture) -> None:
    c, tokens = fixture.config, fixture.inputs["tokens"].requires_grad_()
    assert c["activation"] == "relu"
    layer = adaptformer(c, c["d_model"], renamed(fixture.weights, ADAPTFORMER), "parallel")
    out = layer.added(tokens)
    out = out + tokens if c["add_residual"] else out
    compare(fixture, tokens, out, lambda name: layer.get_parameter(our_name(name, ADAPTFORMER)).grad)


def block_of(fixture: Fixture, activation: str, own: tuple[str, ...]) -> Block:
    d, heads = fixture.config["d"], fixture.config["heads"]
    weights = {n: t for n, t in fixture.weights.items() if not n.startswith(own)}
    for end in ("weight", "bias"):
        parts = [weights.pop(f"attn.{p}_proj.{end}") for p in "qkv" if f"attn.{p}_proj.{end}" in weights]
        if parts:
            weights[f"attn.in_proj_{end}"] = torch.cat(parts)
    block = Block(TowerConfig(1, d, heads, 4 * d), activation)
    block.load_state_dict(renamed(weights, BLOCK))
    return block


def through(block: Block, layer: LayerTuner, tokens: Tensor, layout: Layout) -> Tensor:
    return block(tokens, layout, by_frame, layer)[0]


def check_adaptformer_block(fixture: Fixture) -> None:
    c, tokens = fixture.config, fixture.inputs["tokens"].requires_grad_()
    assert c["mlp_act"] == "gelu_exact"
    layer = adaptformer(c, c["d"], renamed(fixture.weights, ADAPTFORMER, "adaptmlp."), c["option"])
    block = block_of(fixture, "gelu", ("adaptmlp.",))
    out = through(block, layer, tokens, Layout(0, 1, tokens.shape[1]))
    names = ADAPTFORMER

    def grad(name: str) -> Tensor | None:
        if name.startswith("adaptmlp."):
            return layer.get_parameter(our_name(name.removeprefix("adaptmlp."), names)).grad
        return block.get_parameter(our_name(name, BLOCK)).grad

    compare(fixture, tokens, out, grad)


def check_convpass(fixture: Fixture) -> None:
    c, tokens = fixture.config, fixture.inputs["tokens"].requires_grad_()
    assert c["activation"] == "quick_gelu"
    module = Bypass(ConvpassConfig(width=c["dim"], scale=1.0), c["d"]).eval()
    module.load_state_dict(renamed(fixture.weights, CONVPASS))
    out = module(tokens, Layout(0, 1, tokens.shape[1]))
    compare(fixture, tokens, out, lambda name: module.get_parameter(our_name(name, CONVPASS)).grad)


def parts_grad(layer: nn.Module, block: Block, prefixes: dict[str, str], names: dict[str, str]) -> Callable:
    """The gradient of an official parameter of a block whose adapters stand under `prefixes` (official -> ours)."""

    def grad(name: str) -> Tensor | None:
        for theirs, ours in prefixes.items():
            if name.startswith(theirs):
                return layer.get_parameter(ours + our_name(name.removeprefix(theirs), names)).grad
        return block.get_parameter(our_name(name, BLOCK)).grad

    return grad


def check_convpass_block(fixture: Fixture) -> None:
    c, tokens = fixture.config, fixture.inputs["tokens"].requires_grad_()
    assert (c["mlp_act"], c["norm_eps"]) == ("gelu_exact", 1e-5)
    layer = ConvpassLayer(ConvpassConfig(width=c["dim"], scale=c["s"], attn_only=c["attn_only"]), c["d"]).eval()
    prefixes = {"adapter_attn.": "attn."} | ({} if c["attn_only"] else {"adapter_mlp.": "mlp."})
    state = {}
    for theirs, ours in prefixes.items():
        state |= {ours + n: t for n, t in renamed(fixture.weights, CONVPASS, theirs).items()}
    layer.load_state_dict(state)
    block = block_of(fixture, "gelu", tuple(prefixes))
    out = through(block, layer, tokens, Layout(0, 1, tokens.shape[1]))
    compare(fixture, tokens, out, parts_grad(layer, block, prefixes, CONVPASS))


def st_weights(weights: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    found = renamed(weights, ST, prefix)
    return found | {"kernel": found["kernel"].flatten(1).t()}


def st_config(c: dict, places: tuple[str, ...] = ("mlp",)) -> StAdapterConfig:
    assert c["kernel"][1:] == [1, 1]
    return StAdapterConfig(c["adapter_channels"], places, c["kernel"][0], hide_padding=False)


def st_grad(of: Callable[[str], Tensor | None]) -> Callable[[str], Tensor | None]:
    """Kernels lie here as (frames, channels) and there as (channels, 1, frames, 1, 1)."""

    def grad(name: str) -> Tensor | None:
        found = of(name)
        return found.t()[:, None, :, None, None] if found is not None and name.endswith("conv.weight") else found

    return grad


def check_st(fixture: Fixture) -> None:
    c, tokens = fixture.config, fixture.inputs["tokens"].requires_grad_()
    module = TimeConv(st_config(c), c["d"])
    module.load_state_dict(st_weights(fixture.weights))
    x = tokens.unflatten(0, (c["batch"], c["frames"])).flatten(1, 2)
    out = x + module(x, Layout(0, c["frames"], 1 + c["grid"] ** 2))
    of = st_grad(lambda name: module.get_parameter(our_name(name, ST)).grad)
    compare(fixture, tokens, out.view_as(tokens), of)


def check_st_block(fixture: Fixture) -> None:
    c, tokens = fixture.config, fixture.inputs["tokens"].requires_grad_()
    prefixes = {f"adapter_pre_{p}.": f"{p}." for p in ("attn", "mlp") if c[f"pre_{p}"]}
    layer = StLayer(st_config(c, tuple(p.removesuffix(".") for p in prefixes.values())), c["d"])
    state = {}
    for theirs, ours in prefixes.items():
        state |= {ours + n: t for n, t in st_weights(fixture.weights, theirs).items()}
    layer.load_state_dict(state)
    block = block_of(fixture, "quick_gelu", tuple(prefixes))
    x = tokens.unflatten(0, (c["batch"], c["frames"])).flatten(1, 2)
    out = through(block, layer, x, Layout(0, c["frames"], 1 + c["grid"] ** 2))
    compare(fixture, tokens, out.view_as(tokens), st_grad(parts_grad(layer, block, prefixes, ST)))
