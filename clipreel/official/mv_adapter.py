"""MV-Adapter's released checkpoints: 733 tensors of adapters and CLIP's biases beside a CLIP, or a whole model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipreel.adapter import fill, trained
from clipreel.checkpoints import Loaded, load_weights, name_table, translate
from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.identity import digest
from clipreel.retriever import Retriever, assemble
from clipreel.tuners.mv_adapter import TIES, MvAdapter, MvAdapterConfig
from clipreel.video.sampling import Sampling

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
# what the sizes of factors leave open
ALIKE = {"down in": "'up out' or 'down in cls'", "down out": "'up in' or 'down out cls'"}
MV_OPTIONS = {"forward": "seq", "n_head": 2, "scale": 0.1, "attn_type": "uni", "position": None, "no_cc": None}


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


def mv_adapter(state: Mapping[str, Tensor], config: Mapping[str, Any], **where: Any) -> Retriever:
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
            return assemble(loaded, name="mv-adapter", **where)
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
    if found.tie != "none" and not stated.get("position"):
        loaded.warnings.append(
            f"where the factors act is not in the file: {found.tie!r} is taken, as in the released configs; if it was "
            f"tied at {ALIKE[found.tie]}, whose sizes are the same, say so in the config, as position"
        )

    def build(clip: Clip) -> MvAdapter:
        tuner = MvAdapter(clip, found)
        fill(tuner, adapters, "the checkpoint")
        tuner.eval().fold()
        return tuner

    model = assemble(loaded, name="mv-adapter", tuner=build, **where)
    model.adapter = digest(trained(model.tuner))
    return model


def _biases(own: Mapping[str, Tensor], loaded: Loaded) -> dict[str, Tensor]:
    """Trained biases of CLIP under the names of our overrides; what is no bias of it keeps its own name."""
    table = name_table("openai", loaded.config.vision.layers, loaded.config.text.layers)
    ours = {theirs[0]: name.replace(".", "/") for name, theirs, _ in table}
    return {f"base.tensors.{ours[n]}" if n in ours else n: t.float() for n, t in own.items()}
