"""VoP's released checkpoints (modelscope): prompts beside the CLIP that they were trained on, and whole baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clipreel.adapter import fill, trained
from clipreel.checkpoints import translate
from clipreel.clip import Clip, ClipConfig
from clipreel.errors import ClipreelError
from clipreel.identity import digest
from clipreel.official.files import without_copies
from clipreel.retriever import Retriever, assemble
from clipreel.tuners.vop import Vop, VopConfig
from clipreel.video.sampling import Sampling

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


def vop(state: Mapping[str, Tensor], config: Mapping[str, Any], **where: Any) -> Retriever:
    """The released VoP, or one of modelscope's baselines (Bias, Partial, Proj), which are whole CLIPs."""
    state = without_copies({n.replace("module.", ""): t for n, t in state.items()})
    facts: dict[str, Any] = {k: config[k] for k in ("vision_heads", "text_heads") if k in config}
    own = {n.removeprefix("clip."): t for n, t in state.items() if n not in VOP_PROMPTS}
    loaded = translate(own, activation="quick_gelu", facts=facts)
    loaded.tokenizer_files = Path(config["tokenizer"]) if "tokenizer" in config else None
    loaded.sampling = Sampling("middles", config.get("num_frames", 12)).to_dict()
    prompts = {n: state[n].float() for n in VOP_PROMPTS if n in state}
    if not prompts:
        return assemble(loaded, name="vop", **where)
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

    model = assemble(loaded, name="vop", tuner=build, **where)
    model.adapter = digest(trained(model.tuner))  # two checkpoints on one base make two spaces
    return model
