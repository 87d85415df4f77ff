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

from clipreel.clip import Clip
from clipreel.data.shapes_stills import ATTRIBUTES, questions
from clipreel.evaluation.runs import evaluate_samples, shapes_bound, shapes_samples
from clipreel.export import write_folder
from clipreel.retriever import Retriever, load
from clipreel.tokenizer import Tokenizer
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

MOST_BYTES, MOST_PARAMETERS = 6_000_000, 3_000_000
ASKED = 1000


def attribute_accuracy(model: Retriever, attribute: str, count: int = ASKED, seed: int = 100) -> float:
    """Per cent of new stills whose true caption beats those with another value of the attribute."""
    asked = questions(attribute, count, seed, model.preprocess.size)
    pixels = model.preprocess(torch.from_numpy(np.stack([q.image for q in asked])))
    images = torch.cat([model.encode_video(p[:, None]) for p in pixels.split(250)])
    texts = model.encode_text([c for q in asked for c in q.captions]).view(count, -1, images.shape[1])
    return 100 * ((images[:, None] * texts).sum(-1).argmax(1) == 0).double().mean().item()


def ship(out: Path, clip: Clip, tokenizer: Mapping[str, Any], minutes: float, recipe: Mapping[str, Any]) -> None:
    """Write the folder and measure what is in it."""
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    write_folder(
        Retriever(
            clip,
            tokenizer=Tokenizer.from_files(out),
            preprocess=Preprocess(clip.config.image_size),
            sampling=Sampling("uniform", 8),
            name=out.name,
        ),
        out,
    )
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
