"""Weights of CLIP from any of the known namings into ours, and back: every tensor is accounted for.

Specification core.md 1.6-1.9; checked on fixtures in OpenAI, transformers and OpenCLIP (both layouts) naming. Tensors
of heads and adapters are set aside and reported; whatever else is missing, unexpected or mis-shaped is an error.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipreel.archive import is_torchscript, read_torchscript
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.errors import ClipreelError
from clipreel.hub import HUB_ID, snapshot
from clipreel.sidecar import side_facts, side_preprocess, side_sampling
from clipreel.tokenizer import find_vocabulary

PREFIXES = ("module.", "clip.", "clipmodel.", "model.", "_orig_mod.")
ACTIVATIONS = ("quick_gelu", "gelu")
ARCHIVE_SCALARS = ("input_resolution", "context_length", "vocab_size")
# constants that some versions stored: counted positions, the causal mask, the scalars of OpenAI's archives
CONSTANT = re.compile(rf"(.*\.)?(position_ids|attn_mask)|{'|'.join(ARCHIVE_SCALARS)}")
# names of CLIP itself: what is left over of them is an error, other names are heads and adapters
OWN = re.compile(
    r"(visual|transformer|text|vision_model|text_model)\.(?!conv2\.)|"
    r"(token_embedding|positional_embedding|ln_final|text_projection|visual_projection|logit_scale)\b"
)
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
REFUSED = (
    (r"visual\.layer1\.0\.conv1\.weight$", "a ResNet CLIP"),
    (r"visual\.trunk\.", "an OpenCLIP model with a timm tower"),
    (r"logit_bias$", "a SigLIP model"),
    (r"visual\.attn_pool\.", "a CoCa model"),
    (r"\.ls_[12]\.gamma$", "an OpenCLIP model with LayerScale"),
    (r"^(text\.)?text_projection\.bias$", "an OpenCLIP model with a bias in its text projection"),
    (r"^text\.transformer\.(?!resblocks\.)", "an OpenCLIP model with a text tower of transformers"),
)
SIGNS = {"video": r"visual|vision_model|patch_embedding", "text": r"^text|^transformer\.|token_embedding|ln_final"}
BLOCK = {  # ours -> OpenAI, transformers
    "ln1": ("ln_1", "layer_norm1"),
    "out": ("attn.out_proj", "self_attn.out_proj"),
    "ln2": ("ln_2", "layer_norm2"),
    "fc": ("mlp.c_fc", "mlp.fc1"),
    "proj": ("mlp.c_proj", "mlp.fc2"),
}


@dataclass
class Loaded:
    """Weights under our names (float32), what they are, and what came with them."""

    config: ClipConfig
    state: dict[str, Tensor]
    naming: str
    tokenizer_files: Path | None = None
    preprocess: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


# ------------------------------------------------------------------ names


def name_table(naming: str, vision_layers: int, text_layers: int) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(our name, foreign names, how): how is same, transposed, or joined (the rows of q, k, v one after the other)."""
    hf = naming == "hf"
    t = "text." if naming == "openclip-custom" else ""
    plain = [
        ("vision.patch.weight", "visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("vision.cls", "visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("vision.pos", "visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("text.tokens", t + "token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("text.pos", t + "positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("logit_scale", "logit_scale", "logit_scale"),
    ]
    for end in (".weight", ".bias"):
        plain += [
            ("vision.ln_pre" + end, "visual.ln_pre" + end, "vision_model.pre_layrnorm" + end),
            ("vision.ln_post" + end, "visual.ln_post" + end, "vision_model.post_layernorm" + end),
            ("text.ln_final" + end, t + "ln_final" + end, "text_model.final_layer_norm" + end),
        ]
    for ours, openai, theirs in plain:
        yield ours, (theirs if hf else openai,), "same"
    yield "vision.head", ("visual_projection.weight" if hf else "visual.proj",), "transposed" if hf else "same"
    text_head = "text_projection.weight" if hf else t + "text_projection"
    yield "text.head", (text_head,), "transposed" if hf else "same"
    for tower, layers in (("vision", vision_layers), ("text", text_layers)):
        openai = ("visual." if tower == "vision" else t) + "transformer.resblocks"
        for i in range(layers):
            theirs = f"{tower}_model.encoder.layers.{i}." if hf else f"{openai}.{i}."
            for ours, both in BLOCK.items():
                for end in (".weight", ".bias"):
                    yield f"{tower}.blocks.{i}.{ours}{end}", (theirs + both[hf] + end,), "same"
            for end in ("weight", "bias"):
                ours = f"{tower}.blocks.{i}.qkv.{end}"
                if hf:
                    yield ours, tuple(f"{theirs}self_attn.{p}_proj.{end}" for p in "qkv"), "joined"
                else:
                    yield ours, (f"{theirs}attn.in_proj_{end}",), "same"


def detect(names: Mapping[str, Tensor]) -> str:
    """openai, openclip-custom or hf; ClipreelError for models that this project does not run."""
    for pattern, what in REFUSED:
        found = next((n for n in names if re.search(pattern, n)), None)
        if found is not None:
            raise ClipreelError(f"this is {what} ({found}), which is not supported; use a ViT CLIP")
    towers = [tower for tower, sign in SIGNS.items() if any(re.search(sign, n) for n in names)]
    if len(towers) == 1:
        raise ClipreelError(
            f"this is only a {towers[0]} tower ({min(names)}); both towers are needed, so save or fetch the whole model"
        )
    if any(n.startswith(("vision_model.", "text_model.")) for n in names):
        return "hf"
    if any(n.startswith("visual.") for n in names):
        return "openclip-custom" if any(n.startswith("text.") for n in names) else "openai"
    raise ClipreelError(
        "these tensors are no CLIP that is known here: neither visual.* with transformer.* nor vision_model.* with "
        f"text_model.* were found; the first names are {', '.join(sorted(names)[:4])}"
    )


def unwrap(data: Any) -> dict[str, Tensor]:
    """The state dict in what a file held, with wrapping prefixes taken off."""
    keys = ("state_dict", "model", "model_state_dict", "model_state")
    if isinstance(data, Mapping):
        inner = [k for k in keys if isinstance(data.get(k), Mapping)]
        if len(inner) == 1:
            data = data[inner[0]]
    state = {str(k): v for k, v in data.items() if isinstance(v, Tensor)} if isinstance(data, Mapping) else {}
    if not state:
        raise ClipreelError("the file holds no tensors by name")
    while True:
        counts = {p: sum(k.startswith(p) for k in state) for p in PREFIXES}
        prefix = max(counts, key=lambda p: counts[p])
        if counts[prefix] * 2 <= len(state):
            return state
        bare = {k.removeprefix(prefix): v for k, v in state.items()}
        if len(bare) < len(state):
            raise ClipreelError(f"some tensors occur twice, with and without the prefix {prefix!r}; keep one of each")
        state = bare


# ------------------------------------------------------------------ translation


def translate(
    state: Mapping[str, Tensor], *, activation: str | None = None, facts: Mapping[str, Any] | None = None
) -> Loaded:
    """Weights in any naming to ours. `facts` says what tensors do not: heads, activation, end token.

    Raises ClipreelError that names every missing, unexpected or mis-shaped tensor (the first five of each).
    """
    archive = all(n in state for n in ARCHIVE_SCALARS)
    naming, facts = detect(state), dict(facts or {})
    state = {n: t for n, t in state.items() if not CONSTANT.fullmatch(n)}
    warnings: list[str] = []
    activation = activation or facts.get("activation") or ("quick_gelu" if archive else None)
    if activation is None:
        activation = "quick_gelu"
        warnings.append(
            "nothing says which activation these weights were trained with; quick_gelu (all OpenAI weights) is "
            "assumed. Many OpenCLIP weights need activation='gelu'; the wrong one only costs accuracy, silently"
        )
    elif activation not in ACTIVATIONS:
        raise ClipreelError(f"activation {activation!r}: allowed are {' and '.join(ACTIVATIONS)}")
    config = architecture(state, naming, activation, facts)
    ours, problems = renamed(state, config, naming)
    if problems:
        raise ClipreelError(f"the {naming} weights are not a whole CLIP; {'; '.join(problems)}. Fetch the file again")
    if state:
        warnings.append(f"{len(state)} tensors are not CLIP's and were set aside: {', '.join(sorted(state)[:5])}")
    return Loaded(config, ours, naming, extra=state, warnings=warnings)


def renamed(state: dict[str, Tensor], config: ClipConfig, naming: str) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors in float32, taken out of `state`, and one line for each kind of problem."""
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in Clip(config).state_dict().items()}
    ours: dict[str, Tensor] = {}
    missing: list[str] = []
    crooked: list[str] = []
    for name, theirs, how in name_table(naming, config.vision.layers, config.text.layers):
        shape = shapes[name]
        wanted = (shape[0] // 3, *shape[1:]) if how == "joined" else shape[::-1] if how == "transposed" else shape
        missing += [n for n in theirs if n not in state]
        parts = {n: state.pop(n) for n in theirs if n in state}
        if not shape:  # some OpenCLIP versions store the scale as one number in a list
            parts = {n: t.reshape(()) if t.numel() == 1 else t for n, t in parts.items()}
        bad = {n: t for n, t in parts.items() if tuple(t.shape) != wanted or not t.is_floating_point()}
        crooked += [f"{n} is {tuple(t.shape)} {str(t.dtype)[6:]}, not {wanted}" for n, t in bad.items()]
        if not bad and len(parts) == len(theirs):
            tensors = list(parts.values())
            tensor = torch.cat(tensors) if how == "joined" else tensors[0].t() if how == "transposed" else tensors[0]
            ours[name] = tensor.float().contiguous()
    kinds = {"missing": missing, "unexpected": [n for n in state if OWN.match(n)], "mis-shaped": crooked}
    return ours, [
        f"{kind}: {', '.join(sorted(found)[:5])}{f' and {len(found) - 5} more' if len(found) > 5 else ''}"
        for kind, found in kinds.items()
        if found
    ]


def architecture(state: Mapping[str, Tensor], naming: str, activation: str, facts: Mapping[str, Any]) -> ClipConfig:
    """The sizes that the tensors show, completed by `facts`."""
    names = {ours: theirs[0] for ours, theirs, _ in name_table(naming, 1, 1)}

    def shape(ours: str, dimensions: int = 2) -> tuple[int, ...]:
        name = names[ours]
        if name not in state:
            raise ClipreelError(f"the {naming} weights are not a whole CLIP; missing: {name}. Fetch the file again")
        found = tuple(state[name].shape)
        if len(found) != dimensions or 0 in found:
            raise ClipreelError(
                f"mis-shaped: {name} is {found}, but needs {dimensions} dimensions. Fetch the file again"
            )
        return found

    def tower(name: str, width: int) -> TowerConfig:
        blocks = names[f"{name}.blocks.0.ln1.weight"].split(".0.")[0]
        matches = (re.match(re.escape(blocks) + r"\.(\d{1,4})\.", n) for n in state)
        numbers = {int(m[1]) for m in matches if m}
        layers = len(numbers)
        gap = next((i for i in range(layers) if i not in numbers), None)
        if gap is not None:
            raise ClipreelError(f"the {naming} weights are not a whole CLIP; missing: {blocks}.{gap}.*")
        for what, found in (("width", width), ("layers", layers)):
            if facts.get(f"{name}_{what}", found) != found:
                raise ClipreelError(
                    f"the {name} tower has {what} {found}, but the settings beside the weights say "
                    f"{facts[f'{name}_{what}']}; they belong to another model, or tensors are missing"
                )
        heads = facts.get(f"{name}_heads") or heads_of(name, width)
        if width % heads:
            raise ClipreelError(f"width {width} of the {name} tower cannot be cut into {heads} heads")
        return TowerConfig(layers, width, heads, shape(f"{name}.blocks.0.fc.weight")[0])

    patch, rows = shape("vision.patch.weight", 4), shape("vision.pos")[0]
    grid = math.isqrt(rows - 1)
    if grid < 1 or grid * grid + 1 != rows:
        raise ClipreelError(f"mis-shaped: {names['vision.pos']} has {rows} rows, not a square plus one")
    head = shape("vision.head")
    vocab, width = shape("text.tokens")
    return ClipConfig(
        image_size=grid * patch[-1],
        patch=patch[-1],
        vision=tower("vision", patch[0]),
        text=tower("text", width),
        context=shape("text.pos")[0],
        vocab=vocab,
        embed=head[0] if naming == "hf" else head[1],
        activation=activation,
        eos_id=facts.get("eos_id"),
    )


def heads_of(tower: str, width: int) -> int:
    """Heads of 64 channels, as all OpenAI models have; no tensor tells it, so other widths need a config."""
    if width % 64 or (tower == "vision" and width > 1024):  # OpenCLIP's H, g and G have heads of 80, 88 and 104
        raise ClipreelError(
            f"the tensors do not tell the heads of the {tower} tower of width {width}; put the model's config.json or "
            "open_clip_config.json beside the weights"
        )
    return width // 64


def to_foreign(state: Mapping[str, Tensor], config: ClipConfig, naming: str) -> dict[str, Tensor]:
    """Our weights under the names of "openai", "openclip-custom" or "hf"."""
    out: dict[str, Tensor] = {}
    for ours, theirs, how in name_table(naming, config.vision.layers, config.text.layers):
        tensor = state[ours]
        parts = tensor.chunk(3) if how == "joined" else (tensor.t() if how == "transposed" else tensor,)
        out.update(zip(theirs, (p.contiguous() for p in parts), strict=True))
    return out


def to_hf(state: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    return to_foreign(state, config, "hf")


def to_openai(state: Mapping[str, Tensor], config: ClipConfig) -> dict[str, Tensor]:
    return to_foreign(state, config, "openai")


def resize_positions(pos: Tensor, grid: tuple[int, int], mode: str = "openclip") -> Tensor:
    """Patch positions (1 + g*g, D) for another grid of rows x columns; the class row is kept.

    `mode` "openclip" is bicubic with antialiasing, "hf" without; the two differ also when enlarging.
    """
    if mode not in ("openclip", "hf"):
        raise ClipreelError(f"position resize {mode!r}: allowed are 'openclip' and 'hf'")
    side = math.isqrt(len(pos) - 1)
    table = pos[1:].float().t().reshape(1, -1, side, side)
    table = F.interpolate(table, grid, mode="bicubic", align_corners=False, antialias=mode == "openclip")
    return torch.cat([pos[:1].float(), table.flatten(2)[0].t()]).to(pos.dtype)


# ------------------------------------------------------------------ files


def load_weights(source: str | Path, *, activation: str | None = None, download: bool = True) -> Loaded:
    """Weights from a folder, a file, or a hub id. `download` False takes a hub id from the local cache only."""
    path = Path(source)
    if not path.exists():
        if isinstance(source, str) and HUB_ID.fullmatch(source) and not source.startswith("."):
            path = snapshot(source, download)
        else:
            raise ClipreelError(
                f"no model at {source}: expected a folder, a file, a hub id such as openai/clip-vit-base-patch32, "
                "or the built-in shapes-tiny"
            )
    folder, file = (path, weight_file(path)) if path.is_dir() else (path.parent, path)
    facts = side_facts(folder)
    state, metadata = read_file(file)
    try:
        loaded = translate(state, activation=activation, facts={**metadata, **facts})
    except ClipreelError as e:
        raise ClipreelError(f"{file}: {e}") from e
    loaded.tokenizer_files = find_vocabulary(folder)
    loaded.preprocess = side_preprocess(folder)
    loaded.sampling = side_sampling(folder)
    return loaded


def weight_file(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    rest = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".bin"))
    if len(rest) == 1:
        return rest[0]
    found = f"found {', '.join(p.name for p in rest)}; name one of them" if rest else "found no weights"
    raise ClipreelError(f"{folder}: expected one of {', '.join(WEIGHT_FILES)}; {found}")


def read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict and the facts of one weights file, which is never executed."""
    metadata: dict[str, Any] = {}
    try:
        if file.name.endswith(".index.json"):
            shards = sorted(set(json.loads(file.read_text("utf-8"))["weight_map"].values()))
            if any(Path(s).name != s or s.endswith(".json") for s in shards):
                raise ClipreelError(f"{file} names shards outside its folder, or itself; it was not read")
            merged: dict[str, Tensor] = {}
            for shard in shards:
                merged.update(read_file(file.parent / shard)[0])
            return unwrap(merged), metadata
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as f:
                metadata = {k: v for k, v in (f.metadata() or {}).items() if k == "activation"}
                return unwrap({k: f.get_tensor(k) for k in f.keys()}), metadata  # noqa: SIM118
        if is_torchscript(file):
            return unwrap(read_torchscript(file)), metadata
        return unwrap(torch.load(file, map_location="cpu", weights_only=True)), metadata
    except ClipreelError as e:
        raise e if str(file) in str(e) else ClipreelError(f"{file}: {e}") from e
    except pickle.UnpicklingError as e:
        raise ClipreelError(
            f"{file} asks for code to be run while it is read, which weights do not need; it was not read. "
            "Ask its owner for safetensors"
        ) from e
    except Exception as e:  # safetensors, torch and json each have their own types for a damaged file
        reason = str(e).strip().splitlines()[0][:160] if str(e).strip() else type(e).__name__
        raise ClipreelError(f"{file} is damaged or no weights file ({reason}); fetch it again") from e
