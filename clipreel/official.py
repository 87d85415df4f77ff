"""Released checkpoints of the published systems, loaded as they are and run as their code runs them.

`load_official("vop", "VoP_msrvtt9k.pth")`; quirks of released code are options of the tuners and are set here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipreel.adapter import fill, trained
from clipreel.checkpoints import load_weights, read_file, translate, unwrap
from clipreel.clip import Clip, ClipConfig
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever, assemble
from clipreel.tuners.clip_vip import ClipVip, ClipVipConfig, resampled
from clipreel.tuners.vop import Vop, VopConfig
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

CLIP_SYSTEMS = ("openai-clip", "hf-clip", "open-clip", "clip4clip", "x-pool")
SYSTEMS = (*CLIP_SYSTEMS, "vop", "clip-vip")
CLIP_VIP = {"proxies": "vision_model.embeddings.added_cls", "temporal": "vision_model.embeddings.temporal_embedding"}
VOP_PROMPTS = ("visual_prompt_learner.visual_prompts", "text_prompt_learner.text_prompts")


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


def clip_vip_tensors(
    state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[ClipVipConfig, dict[str, Tensor], dict[str, Tensor], list[str]]:
    """CLIP-ViP's own tensors under our names, with their options, the tensors of CLIP, and warnings.

    `config` is the released clip_vision_additional_config. It may ask for another temporal_size, to which the frame
    positions are resampled; an absent tensor must be stated there (add_cls_num 0, if_use_temporal_embed 0).
    """
    stated = {"proxies": config.get("add_cls_num"), "temporal": config.get("if_use_temporal_embed")}
    own = {ours: state[theirs].float() for ours, theirs in CLIP_VIP.items() if theirs in state}
    for ours, theirs in CLIP_VIP.items():
        if ours not in own and stated[ours] != 0:
            raise ClipreelError(
                f"{theirs} is missing in this CLIP-ViP checkpoint; fetch it again, or say add_cls_num: 0 or "
                "if_use_temporal_embed: 0 in the config where it was made without"
            )
    added = len(own["proxies"]) if "proxies" in own else 0
    if stated["proxies"] not in (None, added) or ("temporal" in own and stated["temporal"] == 0):
        raise ClipreelError(
            f"the checkpoint has {added} added proxies and {'a' if 'temporal' in own else 'no'} temporal embedding, "
            f"not add_cls_num {stated['proxies']} and if_use_temporal_embed {stated['temporal']}; leave them out"
        )
    warnings = []
    if not added:
        own.pop("proxies", None)
    if "temporal" in own:
        table = own["temporal"] = own["temporal"].squeeze(0)
        size = config.get("temporal_size", len(table))
        if size != len(table):
            own["temporal"] = resampled(table, size)[0]
            warnings.append(f"the positions of {len(table)} frames were resampled to temporal_size {size}")
    found = ClipVipConfig(added + 1, len(own.get("temporal", [0])), "temporal" in own, train_base=False)
    return found, own, {n: t for n, t in state.items() if n not in CLIP_VIP.values()}, warnings


def clip_vip(
    state: Mapping[str, Tensor], config: Mapping[str, Any], facts: Mapping[str, Any], **where: Any
) -> Retriever:
    """The retriever of a released CLIP-ViP, or of its MeanPool baseline (`type` other than ViP)."""
    config = {**config, **config.get("clip_vision_additional_config", {})}
    pools = config.get("type", "ViP") != "ViP"
    if pools and (extra := [n for n in CLIP_VIP.values() if n in state and state[n].numel()]):
        raise ClipreelError(f"type {config['type']!r} is CLIP frame by frame, but the checkpoint has {extra[0]}")
    absent = {"add_cls_num": 0, "if_use_temporal_embed": 0}
    found, own, rest, warnings = clip_vip_tensors(state, absent if pools else config)
    loaded = translate(rest, activation="quick_gelu", facts=facts)
    loaded.warnings += warnings
    loaded.tokenizer_files = Path(config["tokenizer"]) if "tokenizer" in config else None
    loaded.sampling = Sampling("clip_vip", config.get("test_num_frms", 12)).to_dict()
    pixels = Preprocess(loaded.config.image_size, resize="tensor", geometry="squash")
    found = replace(found, text_tokens=config.get("max_txt_len"))

    def build(clip: Clip) -> ClipVip:
        tuner = ClipVip(clip, found)
        fill(tuner, own, "the checkpoint")
        return tuner

    return assemble(loaded, name="clip-vip", preprocess=pixels, tuner=None if pools else build, **where)


def clip_vip_start(source: Path, tuner: ClipVip, base: ClipConfig) -> dict[str, Tensor]:
    """A released CLIP-ViP under the names of a tuner that trains its base too, frame positions resampled to its own.

    Raises ClipreelError where the checkpoint is of another size than the base, or the tuner trains less than it holds.
    """
    if not source.is_file():
        raise ClipreelError(f"there is no checkpoint at {source}; fetch it, or start from an adapter folder")
    state = unwrap(read_file(source)[0])
    _, own, rest, _ = clip_vip_tensors(state, {"temporal_size": tuner.config.frames})
    facts = {"vision_heads": base.vision.heads, "text_heads": base.text.heads, "eos_id": base.eos_id}
    loaded = translate(rest, activation=base.activation, facts=facts)
    if loaded.config != base:
        raise ClipreelError(f"{source} is a CLIP of another size: {loaded.config} instead of {base}")
    whole = {f"base.tensors.{name.replace('.', '/')}": tensor for name, tensor in loaded.state.items()}
    fixed = set(whole) - set(trained(tuner))
    if fixed:
        raise ClipreelError(
            f"{source} holds {len(fixed)} tensors of CLIP that this tuner keeps as they are in the base; set "
            "train_base: true and text: trained"
        )
    return whole | own


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
    configuration (vop: tp_prefix_token_num, num_frames, tpt_layers, vpt_layers; clip-vip: test_num_frms, max_txt_len,
    clip_vision_additional_config; both: vision_heads, text_heads, tokenizer).
    Raises ClipreelError that names the system or the tensor that does not fit.
    """
    if system not in SYSTEMS:
        raise ClipreelError(f"system {system!r}: allowed are {', '.join(SYSTEMS)}")
    config = dict(config or {})
    if system in CLIP_SYSTEMS and not isinstance(source, Mapping):
        loaded = load_weights(source)
        return assemble(loaded, name=str(source), device=device, dtype=dtype)
    state = source if isinstance(source, Mapping) else read_file(Path(source))[0]
    state = without_copies({n.replace("module.", ""): t for n, t in unwrap(state).items()})
    facts: dict[str, Any] = {k: config[k] for k in ("vision_heads", "text_heads") if k in config}
    if system == "clip-vip":
        return clip_vip(state, config, facts, device=device, dtype=dtype)
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

    return assemble(loaded, name=system, device=device, dtype=dtype, tuner=build)
