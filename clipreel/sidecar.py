"""What the JSON files beside a model's weights say: heads, activation, end token, pixels.

Files: config.json and preprocessor_config.json of transformers, open_clip_config.json of OpenCLIP (specification
core.md 1.6). A setting that this project's CLIP cannot follow is an error, because the weights would load and be wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipreel.errors import ClipreelError

# settings of OpenCLIP towers that change what the tensors mean, with the only value that is supported
OPENCLIP_VISION = {"attentional_pool": False, "no_ln_pre": False, "pos_embed_type": "learnable", "pool_type": "tok"}
OPENCLIP_TEXT = {"no_causal_mask": False, "embed_cls": False, "hf_model_name": None}
OPENCLIP_BOTH = {"final_ln_after_pool": False, "ls_init_value": None, "norm_kwargs": None, "act_kwargs": None}
OPENCLIP_EOS = 2  # OpenCLIP's own default where the text is read at "eos"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise ClipreelError(f"{path} is not readable JSON ({e}); fetch it again") from e
    return data if isinstance(data, dict) else {}


def side_facts(folder: Path) -> dict[str, Any]:
    """What tensors do not tell (heads of each tower, activation, eos_id) and what they must agree with (width, layers).

    Raises ClipreelError for settings that are not supported or not understood.
    """
    hf = read_json(folder / "config.json")
    openclip = read_json(folder / "open_clip_config.json")
    facts: dict[str, Any] = {}
    try:
        if "vision_config" in hf and "text_config" in hf:
            facts |= transformers_facts(hf["vision_config"], hf["text_config"])
        if "model_cfg" in openclip:
            facts |= openclip_facts(openclip["model_cfg"])
    except ClipreelError as e:
        raise ClipreelError(f"{folder}: {e}") from e
    except (AttributeError, TypeError, ArithmeticError) as e:
        raise ClipreelError(f"{folder}: the model's settings are not understood ({e}); fetch its .json again") from e
    return {k: v for k, v in facts.items() if v is not None or k == "eos_id"}


def transformers_facts(vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    for tower in (vision, text):
        if tower.get("layer_norm_eps", 1e-5) != 1e-5:
            raise ClipreelError(f"config.json: layer_norm_eps {tower['layer_norm_eps']} is not supported, only 1e-5")
    activations = {tower["hidden_act"] for tower in (vision, text) if "hidden_act" in tower} or {"quick_gelu"}
    if len(activations) > 1:
        raise ClipreelError(f"config.json: the towers differ in hidden_act ({', '.join(sorted(activations))})")
    eos = text.get("eos_token_id", 49407)
    return {
        "vision_heads": vision.get("num_attention_heads", 12),
        "text_heads": text.get("num_attention_heads", 8),
        "vision_width": vision.get("hidden_size"),
        "text_width": text.get("hidden_size"),
        "vision_layers": vision.get("num_hidden_layers"),
        "text_layers": text.get("num_hidden_layers"),
        "activation": activations.pop(),
        "eos_id": None if eos == 2 else eos,  # 2 is what old configs say; transformers then takes the largest id
    }


def openclip_facts(model: dict[str, Any]) -> dict[str, Any]:
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    for name, tower, only in (("vision_cfg", vision, OPENCLIP_VISION), ("text_cfg", text, OPENCLIP_TEXT)):
        for key, value in {**only, **OPENCLIP_BOTH}.items():
            if tower.get(key, value) not in (value, {}):
                raise ClipreelError(f"open_clip_config.json: {name} {key} = {tower[key]!r} is not supported")
    pool = text.get("pool_type", "argmax")
    if pool not in ("argmax", "eos"):
        raise ClipreelError(f"open_clip_config.json: text pool_type {pool!r} is not supported, only argmax and eos")
    return {
        "vision_heads": vision.get("width", 768) // vision.get("head_width", 64),
        "text_heads": text.get("heads", 8),
        "vision_width": vision.get("width"),
        "text_width": text.get("width"),
        "vision_layers": vision.get("layers"),
        "text_layers": text.get("layers"),
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "eos_id": text.get("eos_id", OPENCLIP_EOS) if pool == "eos" else None,
    }


def side_preprocess(folder: Path) -> dict[str, Any] | None:
    """Size, mean, standard deviation and geometry, as far as the files say; None where they say nothing."""
    hf = read_json(folder / "preprocessor_config.json")
    cfg = read_json(folder / "open_clip_config.json").get("preprocess_cfg", {})
    try:
        if hf:
            crop = hf.get("crop_size", hf.get("size", {}))
            size = crop if isinstance(crop, int) else crop.get("height", crop.get("shortest_edge"))
            found = {"size": size, "mean": hf.get("image_mean"), "std": hf.get("image_std")}
        else:
            size = cfg.get("size")
            geometry = "squash" if cfg.get("resize_mode") == "squash" else None
            found = {"size": size, "mean": cfg.get("mean"), "std": cfg.get("std"), "geometry": geometry}
            if isinstance(size, list):
                found["size"] = size[0]
    except (AttributeError, IndexError) as e:
        raise ClipreelError(f"{folder}: the pixel settings are not understood ({e}); fetch its .json again") from e
    found |= own_facts(folder).get("preprocess", {})
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if v is not None}
    return kept or None


def side_sampling(folder: Path) -> dict[str, Any] | None:
    """How frames are chosen, where the model was written by this project."""
    return own_facts(folder).get("sampling")


def own_facts(folder: Path) -> dict[str, Any]:
    """What config.json of a model that this project wrote says under "clipreel"."""
    own = read_json(folder / "config.json").get("clipreel")
    return own if isinstance(own, dict) else {}
