"""Released checkpoints of the published systems, loaded as they are and run as their code runs them.

`load_official("vop", "VoP_msrvtt9k.pth")`; quirks of released code are options of the tuners and are set here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipreel.adapter import fill
from clipreel.checkpoints import load_weights, read_file, translate, unwrap
from clipreel.clip import Clip, ClipConfig
from clipreel.errors import ClipreelError
from clipreel.official_heads import HEAD_SYSTEMS, load_with_head
from clipreel.retriever import Retriever, assemble
from clipreel.tuners.vop import Vop, VopConfig
from clipreel.video.sampling import Sampling

CLIP_SYSTEMS = ("openai-clip", "hf-clip", "open-clip")
SYSTEMS = (*CLIP_SYSTEMS, *HEAD_SYSTEMS, "vop")
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
    clip4clip, x-pool: see `load_with_head`).
    Raises ClipreelError that names the system or the tensor that does not fit.
    """
    if system not in SYSTEMS:
        raise ClipreelError(f"system {system!r}: allowed are {', '.join(SYSTEMS)}")
    config = dict(config or {})
    if system in HEAD_SYSTEMS:
        return load_with_head(system, source, config, device=device, dtype=dtype)
    if system in CLIP_SYSTEMS and not isinstance(source, Mapping):
        loaded = load_weights(source)
        return assemble(loaded, name=str(source), device=device, dtype=dtype)
    state = source if isinstance(source, Mapping) else read_file(Path(source))[0]
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

    return assemble(loaded, name=system, device=device, dtype=dtype, tuner=build)
