"""CLIP-ViP's released checkpoints: a transformers CLIP with proxies and frame positions in its video tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clipreel.adapter import fill, trained
from clipreel.checkpoints import translate
from clipreel.clip import Clip, ClipConfig
from clipreel.errors import ClipreelError
from clipreel.identity import digest
from clipreel.official.files import read_state, without_copies
from clipreel.retriever import Retriever, assemble
from clipreel.tuners.clip_vip import ClipVip, ClipVipConfig, resampled
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

OPTIONS = ("type", "add_cls_num", "temporal_size", "if_use_temporal_embed", "logit_scale_init_value")
CLIP_VIP = {"proxies": "vision_model.embeddings.added_cls", "temporal": "vision_model.embeddings.temporal_embedding"}


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


def clip_vip(state: Mapping[str, Tensor], config: Mapping[str, Any], **where: Any) -> Retriever:
    """The retriever of a released CLIP-ViP, or of its MeanPool baseline (`type` other than ViP)."""
    state = without_copies({n.replace("module.", ""): t for n, t in state.items()})
    facts: dict[str, Any] = {k: config[k] for k in ("vision_heads", "text_heads") if k in config}
    block = config.get("clip_vision_additional_config", {})
    if unknown := set(block) - set(OPTIONS):
        raise ClipreelError(f"{', '.join(sorted(unknown))} is no option here; there are {', '.join(OPTIONS)}")
    config = {**config, **block}
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

    model = assemble(loaded, name="clip-vip", preprocess=pixels, tuner=None if pools else build, **where)
    model.adapter = "none" if pools else digest(trained(model.tuner))
    return model


def clip_vip_start(source: Path, tuner: ClipVip, base: ClipConfig) -> dict[str, Tensor]:
    """A released CLIP-ViP under the names of a tuner that trains its base too, frame positions resampled to its own.

    Raises ClipreelError where the checkpoint is of another size than the base, or the tuner trains less than it holds.
    """
    if not source.is_file():
        raise ClipreelError(f"there is no checkpoint at {source}; fetch it, or start from an adapter folder")
    state = read_state(source)
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
