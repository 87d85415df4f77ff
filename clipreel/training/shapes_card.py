"""Writes shapes-tiny as a model in HF layout, measures the files that were written, and says so in a model card."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from clipreel.checkpoints import to_hf
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.data.shapes_stills import ATTRIBUTES, questions
from clipreel.evaluation.runs import evaluate_samples, shapes_bound, shapes_samples
from clipreel.retriever import Retriever, load

MOST_BYTES, MOST_PARAMETERS = 6_000_000, 3_000_000
ASKED = 1000


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
    """config.json as transformers' CLIPModel reads it; the sampling is ours and ignored there."""
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
            "eos_token_id": c.vocab - 1,
            "pad_token_id": 0,
        },
        "vision_config": {
            **tower(c.vision, c.activation),
            "image_size": c.image_size,
            "patch_size": c.patch,
            "projection_dim": c.embed,
        },
        "clipreel": {"sampling": {"kind": "uniform", "frames": 8}},
    }


def attribute_accuracy(model: Retriever, attribute: str, count: int = ASKED, seed: int = 100) -> float:
    """Per cent of new stills whose true caption beats those with another value of the attribute."""
    asked = questions(attribute, count, seed, model.preprocess.size)
    pixels = model.preprocess(torch.from_numpy(np.stack([q.image for q in asked])))
    images = torch.cat([model.encode_video(p[:, None]) for p in pixels.split(250)])
    texts = model.encode_text([c for q in asked for c in q.captions]).view(count, -1, images.shape[1])
    return 100 * ((images[:, None] * texts).sum(-1).argmax(1) == 0).double().mean().item()


def ship(out: Path, clip: Clip, tokenizer: Mapping[str, Any], minutes: float, recipe: Mapping[str, Any]) -> None:
    """Write the folder and measure what is in it."""
    state = to_hf(clip.state_dict(), clip.config)
    save_file(state, out / "model.safetensors", metadata={"format": "pt", "activation": clip.config.activation})
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (out / "config.json").write_text(json.dumps(hf_config(clip.config), indent=1) + "\n")
    pixels = {
        "crop_size": clip.config.image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": {"shortest_edge": clip.config.image_size},
    }
    (out / "preprocessor_config.json").write_text(json.dumps(pixels, indent=1) + "\n")
    measured = measure(load(out, device="cpu"))
    parameters = sum(p.numel() for p in clip.parameters())
    measured |= {"parameters": parameters, "minutes": round(minutes, 1), "threads": torch.get_num_threads()}
    measured["machine"] = platform.machine()
    measured |= {"recipe": dict(recipe)}
    (out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    (out / "README.md").write_text(model_card(measured))
    size = sum((out / n).stat().st_size for n in ("model.safetensors", "tokenizer.json", "config.json"))
    if size > MOST_BYTES or parameters > MOST_PARAMETERS:
        raise SystemExit(f"{size} bytes and {parameters} parameters are more than was allowed")


def measure(model: Retriever) -> dict[str, Any]:
    found: dict[str, Any] = {"accuracy": {a: round(attribute_accuracy(model, a), 1) for a in ATTRIBUTES}}
    with tempfile.TemporaryDirectory() as scratch:
        result, _ = evaluate_samples(model, shapes_samples(Path(scratch)), "shapes test")
    bound = shapes_bound()
    keys = ("R@1", "R@5", "R@10", "MdR", "MnR")
    found["zero_shot"] = {
        "t2v": {k: round(result.t2v[k], 2) for k in keys},
        "v2t": {k: round(result.v2t[k], 2) for k in keys},
    }
    found["order_blind_bound"] = {"t2v": {k: round(bound[0][k], 2) for k in keys}}
    return found


def model_card(m: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {a} | {m['accuracy'][a]:.1f} |" for a in ATTRIBUTES)
    recipe = ", ".join(f"{k} {v}" for k, v in m["recipe"].items())
    recalls = ", ".join(f"{k} {m['zero_shot']['t2v'][k]}" for k in ("R@1", "R@5", "R@10"))
    bound = m["order_blind_bound"]["t2v"]
    return f"""---
license: apache-2.0
---
# shapes-tiny

A CLIP of {m["parameters"]:,} parameters for the shapes world of clipreel, for studies and demonstrations that need no
download. It knows nothing of real images.

- Data: stills of the shapes world (seed 0), made while training; no film is ever seen.
- Command: `python -m clipreel.training.shapes_tiny --out FOLDER` ({m["minutes"]:g} minutes,
  threads: {m["threads"]}, {m["machine"]}).
- Recipe: {recipe}.

Measured by that command on the files in this folder (also in `measured.json`). Accuracy in per cent: {ASKED} new
stills each, the true caption against captions with every other value of the attribute.

| attribute | accuracy |
|---|---|
{rows}

Text to video on the films of the test split, mean of 8 frames: {recalls}.
The best model that cannot see order reaches R@1 {bound["R@1"]}.
"""
