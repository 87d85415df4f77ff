"""Released checkpoints of the published systems, loaded as they are and run as their code runs them.

`load_official("vop", "VoP_msrvtt9k.pth")`; quirks of released code are options of the tuners and are set here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipreel.adapter import digest, fill, trained
from clipreel.alpro import retriever as alpro
from clipreel.checkpoints import Loaded, load_weights, name_table, read_file, translate, unwrap
from clipreel.clip import Clip, ClipConfig
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever, assemble
from clipreel.tuners.mv_adapter import TIES, MvAdapter, MvAdapterConfig
from clipreel.tuners.vop import Vop, VopConfig
from clipreel.video.sampling import Sampling

CLIP_SYSTEMS = ("openai-clip", "hf-clip", "open-clip", "clip4clip", "x-pool")
SYSTEMS = (*CLIP_SYSTEMS, "vop", "mv-adapter", *alpro.SYSTEMS)
VOP_PROMPTS = ("visual_prompt_learner.visual_prompts", "text_prompt_learner.text_prompts")
# ours -> names of the released MV-Adapter inside one adapter
MV_NAMES = {
    "block.qkv.weight": "block.attn.in_proj_weight",
    "block.qkv.bias": "block.attn.in_proj_bias",
    "block.out.": "block.attn.out_proj.",
    "block.ln1.": "block.ln_1.",
    "block.ln2.": "block.ln_2.",
    "block.fc.": "block.mlp.c_fc.",
    "block.proj.": "block.mlp.c_proj.",
    "pos": "positional_embedding",
    "calibrate_c.": "conv_rf_c.",
    "calibrate_p.": "conv_rf_p.",
    "tie.proj.": "md_proj.",
}
MV_ADAPTER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.mlp\.adapter\.(.+)")
MV_FACTOR = re.compile(r"prompt\.(\d+)")
MV_OPTIONS = {"forward": "seq", "n_head": 2, "scale": 0.1, "attn_type": "uni", "position": None, "no_cc": None}


def vop_config(
    prompts: Mapping[str, Tensor],
    prefix: int,
    text_layers: Sequence[int] | None = None,
    vision_layers: Sequence[int] | None = None,
    frames: int = 12,
) -> VopConfig:
    """The VoP of modelscope's prompt tensors (vision (K, 1, P, D), text (K, prefix + suffix, D))."""
    vision, text = (prompts[n] for n in VOP_PROMPTS)
    return VopConfig(
        general=vision.shape[2],
        frames=frames,
        prefix=prefix,
        suffix=text.shape[1] - prefix,
        text_read="released",
        vision_layers=None if vision_layers is None else tuple(vision_layers),
        text_layers=None if text_layers is None else tuple(text_layers),
    )


def vop_tensors(prompts: Mapping[str, Tensor], config: VopConfig, base: ClipConfig) -> dict[str, Tensor]:
    """modelscope's prompt tensors under the names of our tuner."""
    vision, text = (prompts[n] for n in VOP_PROMPTS)
    depths = config.depth("vision", base.vision.layers), config.depth("text", base.text.layers)
    if (len(depths[0]), len(depths[1])) != (len(vision), len(text)):
        raise ClipreelError(
            f"prompts for {len(vision)} video and {len(text)} text layers, but {len(depths[0])} and {len(depths[1])} "
            "layers take them; give vpt_layers and tpt_layers in the config"
        )
    ours = {f"vision.{i}.general": row for i, row in zip(depths[0], vision.squeeze(1), strict=True)}
    return ours | {f"text.{i}.prompts": row for i, row in zip(depths[1], text, strict=True)}


def without_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """modelscope stores CLIP a second time under image_encoder.* and text_encoder.*: equal copies are dropped."""
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        first = name.replace("image_encoder.", "visual.").replace("text_encoder.", "")
        original = state.get(first, state.get("clip." + first))
        if first == name:
            kept[name] = tensor
        elif original is None or not torch.equal(tensor, original):
            raise ClipreelError(f"{name} should be a copy of {first} and is not; the file is damaged, fetch it again")
    return kept


def mv_name(theirs: str) -> str | None:
    """Our name of a tensor of the released MV-Adapter, None where it is none of the adapters'."""
    if found := MV_FACTOR.fullmatch(theirs):
        return f"factors.{found[1]}"
    if not (found := MV_ADAPTER.fullmatch(theirs)):
        return None
    tower, rest = "vision" if found[1] else "text", found[3]
    for ours, name in MV_NAMES.items():
        if rest.startswith(name):
            rest = ours + rest[len(name) :]
            break
    return f"{tower}.{found[2]}.{rest}"


def mv_split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the adapters under our names, and those of CLIP under OpenAI's."""
    adapters: dict[str, Tensor] = {}
    clip: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    copies: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        name = mv_name(theirs.removeprefix("clip."))
        if name is not None and name.endswith(".shared_factor"):  # a second name of a factor, in whole state dicts
            copies[theirs] = tensor
        elif name is not None:
            adapters[name] = tensor
        else:
            plain = theirs.removeprefix("clip.").replace(".attn.ln.", ".ln_1.").replace(".mlp.ln.", ".ln_2.")
            if found := re.fullmatch(r"(.+\.attn\.)([qkv])_proj\.(weight|bias)", plain):
                thirds.setdefault(f"{found[1]}in_proj_{found[3]}", {})[found[2]] = tensor
            else:
                clip[plain] = tensor
    for name, parts in thirds.items():
        if set(parts) != set("qkv"):
            raise ClipreelError(f"{name}: only {', '.join(sorted(parts))} of q, k, v are in this MV-Adapter checkpoint")
        clip[name] = torch.cat([parts[p] for p in "qkv"])
    factors = [tensor for name, tensor in adapters.items() if name.startswith("factors.")]
    for name, tensor in copies.items():
        if not any(torch.equal(tensor, factor) for factor in factors):
            raise ClipreelError(f"{name} should be a copy of a factor and is not; the file is damaged, fetch it again")
    return adapters, clip


def mv_config(adapters: Mapping[str, Tensor], stated: Mapping[str, Any]) -> MvAdapterConfig:
    """The MV-Adapter of these tensors (our names). `stated` says what they do not tell, as `MV_OPTIONS` does."""
    unknown = set(stated) - set(MV_OPTIONS)
    if unknown:
        raise ClipreelError(f"{', '.join(sorted(unknown))} is no option here; there are {', '.join(MV_OPTIONS)}, clip")
    s = {**MV_OPTIONS, **stated}

    def layers(tower: str, end: str) -> tuple[int, ...]:
        found = (re.fullmatch(rf"{tower}\.(\d+)\.{re.escape(end)}", name) for name in adapters)
        return tuple(sorted(int(f[1]) for f in found if f))

    def shape(name: str) -> tuple[int, ...] | None:
        return next((tuple(t.shape) for n, t in adapters.items() if re.fullmatch(name, n)), None)

    vision, text = shape(r"vision\.\d+\.down\.weight"), shape(r"text\.\d+\.down\.weight")
    ties = {tower: layers(tower, "tie.proj.weight") for tower in ("vision", "text")}
    tie = s["position"] or ("none" if not ties["vision"] else _released_tie(adapters, ties["vision"][0], vision))
    if tie not in TIES:
        raise ClipreelError(f"position {tie!r}: allowed are {', '.join(TIES)}")
    frames, words = shape(r"vision\.\d+\.pos"), shape(r"text\.\d+\.pos")
    calibrated = any(".calibrate_" in n for n in adapters)
    both = (vision or text or (64, 0))[0]
    return MvAdapterConfig(
        width=both,
        text_width=None if text is None or text[0] == both else text[0],
        heads=s["n_head"],
        scale=s["scale"],
        frames=12 if frames is None else (frames[0] - 1) // 2,
        words=32 if words is None else words[0],
        biases=False,
        forward=s["forward"],
        temporal=tuple(c for c in "cp" if layers("vision", f"calibrate_{c}.b.weight")),
        context=not s["no_cc"] if s["no_cc"] is not None else not calibrated or any(".g.weight" in n for n in adapters),
        lnin=any(".ln_in." in n for n in adapters),
        causal=s["attn_type"] == "uni",
        tie=tie,
        vision_tied=ties["vision"],
        text_tied=ties["text"],
        factor=(shape(r"factors\.\d+") or (32,))[0],
        vision_layers=layers("vision", "down.weight"),
        text_layers=layers("text", "down.weight"),
    )


def _released_tie(adapters: Mapping[str, Tensor], layer: int, down: tuple[int, ...] | None) -> str:
    """Released checkpoints tie what goes into or comes out of the down-projection; the size of the factors tells."""
    size = len(adapters[f"vision.{layer}.tie.proj.weight"])
    return "down out" if down is not None and size == down[0] else "down in"


def mv_adapter(state: Mapping[str, Tensor], config: Mapping[str, Any], device: str, dtype: str) -> Retriever:
    """The released MV-Adapter: adapters and biases on the CLIP that `config["clip"]` names, or a whole model."""
    stated = {k: v for k, v in config.items() if k not in ("clip", "vision_heads", "text_heads", "tokenizer")}
    adapters, own = mv_split(state)
    found = mv_config(adapters, stated)
    for name in list(adapters):  # released code keeps two kinds of tensors that it never uses
        if (not found.context and name.endswith(".cc")) or ("cls" in found.tie and re.match(r"text\.\d+\.tie", name)):
            del adapters[name]
    if "visual.conv1.weight" in own:
        facts = {k: config[k] for k in ("vision_heads", "text_heads") if k in config}
        loaded = translate(own, activation="quick_gelu", facts=facts)
        if loaded.extra:
            raise ClipreelError(f"unexpected in an MV-Adapter model: {', '.join(sorted(loaded.extra)[:5])}")
        loaded.tokenizer_files = Path(config["tokenizer"]) if "tokenizer" in config else None
        if not adapters:  # a full fine-tuning with the same code
            return assemble(loaded, name="mv-adapter", device=device, dtype=dtype)
    elif "clip" not in config:
        raise ClipreelError(
            "this MV-Adapter checkpoint holds adapters and biases alone; name the CLIP below them in the config, "
            'as {"clip": "openai/clip-vit-base-patch16"}'
        )
    else:
        loaded = load_weights(config["clip"])
        found = replace(found, biases=True)
        adapters |= _biases(own, loaded)
    loaded.sampling = Sampling("mv_adapter", found.frames).to_dict()

    def build(clip: Clip) -> MvAdapter:
        tuner = MvAdapter(clip, found)
        fill(tuner, adapters, "the checkpoint")
        tuner.eval().fold()
        return tuner

    model = assemble(loaded, name="mv-adapter", device=device, dtype=dtype, tuner=build)
    model.adapter = digest(trained(model.tuner))
    return model


def _biases(own: Mapping[str, Tensor], loaded: Loaded) -> dict[str, Tensor]:
    """Trained biases of CLIP under the names of our overrides; what is no bias of it keeps its own name."""
    table = name_table("openai", loaded.config.vision.layers, loaded.config.text.layers)
    ours = {theirs[0]: name.replace(".", "/") for name, theirs, _ in table}
    return {f"base.tensors.{ours[n]}" if n in ours else n: t.float() for n, t in own.items()}


def load_official(
    system: str,
    source: str | Path | Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Retriever:
    """A retriever that computes what the official code computes with its released checkpoint.

    `source` is the file, or its state dict. `config` holds what tensors do not tell, under the names of the official
    configuration (vop: tp_prefix_token_num, num_frames, tpt_layers, vpt_layers, vision_heads, text_heads, tokenizer;
    mv-adapter: clip, the source of the base, and forward, n_head, scale, attn_type, position, no_cc; the alpro systems:
    see alpro/retriever.py).
    Raises ClipreelError that names the system or the tensor that does not fit.
    """
    if system not in SYSTEMS:
        raise ClipreelError(f"system {system!r}: allowed are {', '.join(SYSTEMS)}")
    if system in alpro.SYSTEMS:
        return alpro.load_official(system, source, config, device=device, dtype=dtype)
    config = dict(config or {})
    if system in CLIP_SYSTEMS and not isinstance(source, Mapping):
        loaded = load_weights(source)
        return assemble(loaded, name=str(source), device=device, dtype=dtype)
    state = source if isinstance(source, Mapping) else read_file(Path(source))[0]
    if system == "mv-adapter":
        return mv_adapter(unwrap(state), config, device, dtype)
    state = without_copies({n.replace("module.", ""): t for n, t in unwrap(state).items()})
    facts: dict[str, Any] = {k: config[k] for k in ("vision_heads", "text_heads") if k in config}
    own = {n.removeprefix("clip."): t for n, t in state.items() if n not in VOP_PROMPTS}
    loaded = translate(own, activation="quick_gelu", facts=facts)
    loaded.tokenizer_files = Path(config["tokenizer"]) if "tokenizer" in config else loaded.tokenizer_files
    if system in CLIP_SYSTEMS:
        return assemble(loaded, name=system, device=device, dtype=dtype)
    loaded.sampling = loaded.sampling or Sampling("middles", config.get("num_frames", 12)).to_dict()
    prompts = {n: state[n].float() for n in VOP_PROMPTS if n in state}
    if not prompts:  # the baselines of modelscope (Bias, Partial, Proj) are whole CLIPs
        return assemble(loaded, name=system, device=device, dtype=dtype)
    if len(prompts) < 2:
        raise ClipreelError(f"{(set(VOP_PROMPTS) - set(prompts)).pop()} is missing in this VoP checkpoint")
    found = vop_config(
        prompts,
        config.get("tp_prefix_token_num", prompts[VOP_PROMPTS[1]].shape[1] // 2),
        config.get("tpt_layers"),
        config.get("vpt_layers"),
        config.get("num_frames", 12),
    )

    def build(clip: Clip) -> Vop:
        tuner = Vop(clip, found)
        fill(tuner, vop_tensors(prompts, found, clip.config), "the checkpoint")
        return tuner

    model = assemble(loaded, name=system, device=device, dtype=dtype, tuner=build)
    model.adapter = digest(trained(model.tuner))  # two checkpoints on one base make two spaces
    return model
