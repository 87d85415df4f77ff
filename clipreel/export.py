"""A model as a folder in the layout of transformers, the adapter merged into the base where the method allows it.

The written folder is read back and compared with the model it came from before anything is called done.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from clipreel.checkpoints import to_hf
from clipreel.clip import ClipConfig, TowerConfig
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever, load
from clipreel.sites import PLAIN

TOLERANCE = 1e-5  # greatest difference of a unit vector's entry
WEIGHTS = "model.safetensors"


def tower(c: TowerConfig, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": c.width,
        "intermediate_size": c.mlp,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
    }


def hf_config(c: ClipConfig) -> dict[str, Any]:
    """config.json as transformers' CLIPModel reads it."""
    end = c.vocab - 1 if c.eos_id is None else c.eos_id
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": c.embed,
        "logit_scale_init_value": 2.6593,
        "text_config": {
            **tower(c.text, c.activation),
            "max_position_embeddings": c.context,
            "vocab_size": c.vocab,
            "projection_dim": c.embed,
            "bos_token_id": c.vocab - 2,
            "eos_token_id": end,
            "pad_token_id": 0,
        },
        "vision_config": {
            **tower(c.vision, c.activation),
            "image_size": c.image_size,
            "patch_size": c.patch,
            "projection_dim": c.embed,
        },
    }


def write_folder(model: Retriever, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """The base of a model in HF layout, with `state` in place of its weights where given; no adapter is merged."""
    c = model.clip.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_hf({n: t.detach().float().cpu() for n, t in (state or model.clip.state_dict()).items()}, c)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "activation": c.activation})
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    recipe = model.preprocess
    pixels = {
        "crop_size": recipe.size,
        "do_center_crop": recipe.geometry == "crop",
        "do_normalize": True,
        "do_resize": True,
        "image_mean": list(recipe.mean),
        "image_std": list(recipe.std),
        "resample": 3,
        "size": {"shortest_edge": recipe.size},
    }
    own = {"sampling": model.sampling.to_dict(), "preprocess": recipe.to_dict()}
    for name, data in (("preprocessor_config.json", pixels), ("config.json", {**hf_config(c), "clipreel": own})):
        (folder / name).write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def export(model: Retriever, folder: Path) -> float:
    """Write a model with its adapter merged; what comes out is the greatest difference to the model itself.

    Raises ClipreelError where the method computes something that no CLIP does, where the folder is in use, and where
    the written model differs by more than 1e-5.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ClipreelError(f"{folder} is there already; give a new folder to export to")
    state = dict(model.clip.state_dict())
    if model.dtype is not torch.float32:
        raise ClipreelError(f"{model.name} computes in {model.dtype}, too coarse for the check: load it as float32")
    if model.tuner is not PLAIN:
        merge = getattr(model.tuner, "merged", None)
        if merge is None:
            raise ClipreelError(
                f"{model.name} cannot be merged: its method computes what no CLIP does. Full, bias, proj, partial and "
                "LoRA adapters can be; the others are used as adapters"
            )
        state |= merge(model.clip)
    write_folder(model, folder, state)
    found = difference(model, load(folder, device=str(model.device), dtype="float32"))
    if not found <= TOLERANCE:
        raise ClipreelError(
            f"the model written to {folder} differs by {found:.1e} from the adapter on its base, more than "
            f"{TOLERANCE:g}: keep the adapter, and report this with the method and the base"
        )
    return found


def difference(model: Retriever, other: Retriever) -> float:
    """The greatest difference of an entry of unit vectors, over made videos and texts of several lengths."""
    c = model.clip.config
    made = torch.Generator().manual_seed(0)
    frames = torch.randn(4, 2, 3, c.image_size, c.image_size, generator=made)
    ids = torch.zeros(8, c.context, dtype=torch.long)
    for i, row in enumerate(ids, 1):
        words = i * (c.context - 2) // len(ids)
        row[0], row[words + 1] = c.vocab - 2, c.vocab - 1 if c.eos_id is None else c.eos_id
        row[1 : words + 1] = torch.randint(1, c.vocab - 2, (words,), generator=made)
    pairs = zip(*((m.encode_video(frames), m.encode_text(ids)) for m in (model, other)), strict=True)
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)
