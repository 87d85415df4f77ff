"""ALPRO checkpoints of the released code and of LAVIS: names, sizes and position tables into ours, strictly.

Specification alpro.md 6 and 2.1; checked on fixtures. Every tensor is used, or is one of the constants and parts named
here that the released files carry and no computation needs; anything else is an error that names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from clipreel.alpro.bert import TextConfig
from clipreel.alpro.model import Alpro, AlproConfig
from clipreel.alpro.timesformer import VisionConfig, resized_positions, resized_rows
from clipreel.errors import ClipreelError

HEAD_WIDTH = 64  # of all released models; no tensor tells it
VIDEO, TEXT = "visual_encoder.model.", "text_encoder."
# counted positions; ImageNet's classes; prompt features, which are made again; the second name of tied tensors
UNUSED = re.compile(
    r"(.*\.)?position_ids|.*visual_encoder\.model\.head\.(weight|bias)|(video|image)_prompt_feat|"
    r"text_encoder\.cls\.predictions\.decoder\.(weight|bias)|text_encoder\.(bert\.)?pooler\.dense\.(weight|bias)"
)
LAYER = {
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "ln1",
    "intermediate.dense": "fc",
    "output.dense": "proj",
    "output.LayerNorm": "ln2",
}
EMBEDDINGS = {
    "words.weight": "word_embeddings.weight",
    "positions.weight": "position_embeddings.weight",
    "types.weight": "token_type_embeddings.weight",
    "ln.weight": "LayerNorm.weight",
    "ln.bias": "LayerNorm.bias",
}
WORDS = {
    "dense.weight": "transform.dense.weight",
    "dense.bias": "transform.dense.bias",
    "ln.weight": "transform.LayerNorm.weight",
    "ln.bias": "transform.LayerNorm.bias",
    "bias": "bias",
}


@dataclass
class LoadedAlpro:
    """Weights under our names (float32), what they are, and those of the prompter where the file holds one."""

    config: AlproConfig
    state: dict[str, Tensor]
    prompter: LoadedAlpro | None = None
    warnings: list[str] = field(default_factory=list)

    def build(self) -> Alpro:
        model = Alpro(self.config)
        model.load_state_dict(self.state)
        return model.eval()


def foreign_names(config: AlproConfig, bert: str = "bert.") -> dict[str, tuple[str, ...]]:
    """Our name -> the names it is made of (the three of q, k, v one after the other). `bert` is "bert." in the released
    retrieval and pre-training files, "" in those of VideoQA and of LAVIS."""
    with torch.device("meta"):
        names = list(Alpro(config).state_dict())
    return {name: foreign_name(name, bert) for name in names}


def foreign_name(name: str, bert: str) -> tuple[str, ...]:
    room, _, rest = name.partition(".")
    if room == "video":
        return (VIDEO + rest,)
    if room == "mlm":
        return (f"{TEXT}cls.predictions.{WORDS[rest]}",)
    if room != "text":
        return (name,)
    found = re.fullmatch(r"layers\.(\d+)\.(\w+)\.(weight|bias)", rest)
    if found is None:
        return (f"{TEXT}{bert}embeddings.{EMBEDDINGS[rest]}",)
    layer, part, kind = found.groups()
    at = f"{TEXT}{bert}encoder.layer.{layer}."
    if part == "qkv":
        return tuple(f"{at}attention.self.{p}.{kind}" for p in ("query", "key", "value"))
    theirs = next(k for k, ours in LAYER.items() if ours == part)
    return (f"{at}{theirs}.{kind}",)


def translate_alpro(state: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> LoadedAlpro:
    """An ALPRO in either naming. `facts`: vision_heads, text_heads, text_layers (the half that reads text alone), and
    image_size or frames where the position tables shall be resized as the released loader does.

    Raises ClipreelError that names the missing, unexpected or mis-shaped tensors (the first five of each).
    """
    facts = dict(facts or {})
    second = {n.removeprefix("prompter."): t for n, t in state.items() if n.startswith("prompter.")}
    own = {n: t for n, t in state.items() if not n.startswith("prompter.") and not UNUSED.fullmatch(n)}
    check_tied(state)
    bert = "bert." if any(n.startswith(TEXT + "bert.") for n in own) else ""
    config = architecture(own, bert, facts)
    ours, problems = renamed(own, config, bert)
    if problems:
        raise ClipreelError(f"these weights are not a whole ALPRO; {'; '.join(problems)}. Fetch the file again")
    loaded = resized(LoadedAlpro(config, ours), facts)
    if any(not n.endswith("_prompt_feat") for n in second):
        loaded.prompter = translate_alpro(second, facts)
    return loaded


def check_tied(state: Mapping[str, Tensor]) -> None:
    """The decoder of masked words must be the table of word embeddings, which is all that is kept of it."""
    at = TEXT + "cls.predictions."
    pairs = [(at + "decoder.bias", at + "bias")]
    pairs += [(at + "decoder.weight", f"{TEXT}{bert}embeddings.word_embeddings.weight") for bert in ("bert.", "")]
    for copy, original in pairs:
        if copy in state and original in state and not torch.equal(state[copy], state[original]):
            raise ClipreelError(
                f"{copy} should be a copy of {original} and is not; the file is damaged, fetch it again"
            )


def architecture(state: Mapping[str, Tensor], bert: str, facts: Mapping[str, Any]) -> AlproConfig:
    """The sizes that the tensors show, completed by `facts`."""

    def shape(name: str, dimensions: int = 2) -> tuple[int, ...]:
        if name not in state:
            raise ClipreelError(f"these weights are not a whole ALPRO; missing: {name}. Fetch the file again")
        if state[name].ndim != dimensions:
            raise ClipreelError(f"mis-shaped: {name} is {tuple(state[name].shape)}, not of {dimensions} dimensions")
        return tuple(state[name].shape)

    def count(prefix: str) -> int:
        return len({n[len(prefix) :].split(".")[0] for n in state if n.startswith(prefix)})

    width, _, patch, _ = shape(VIDEO + "patch_embed.proj.weight", 4)
    positions = shape(VIDEO + "pos_embed", 3)[1] - 1
    layers = count(f"{TEXT}{bert}encoder.layer.")
    vision = VisionConfig(
        image_size=math.isqrt(positions) * patch,
        patch=patch,
        frames=shape(VIDEO + "time_embed", 3)[1],
        width=width,
        layers=count(VIDEO + "blocks."),
        heads=facts.get("vision_heads") or heads_of(width),
        mlp=shape(VIDEO + "blocks.0.mlp.fc1.weight")[0],
    )
    vocab, text_width = shape(f"{TEXT}{bert}embeddings.word_embeddings.weight")
    text = TextConfig(
        vocab=vocab,
        context=shape(f"{TEXT}{bert}embeddings.position_embeddings.weight")[0],
        width=text_width,
        layers=layers,
        text_layers=facts.get("text_layers") or layers // 2,
        heads=facts.get("text_heads") or heads_of(text_width),
        mlp=shape(f"{TEXT}{bert}encoder.layer.0.intermediate.dense.weight")[0],
    )
    return AlproConfig(
        vision,
        text,
        embed=shape("vision_proj.weight")[0],
        words=f"{TEXT}cls.predictions.bias" in state,
        entities=len(state.get("mpm_head.2.bias", ())),
        answers=len(state.get("classifier.2.bias", ())),
    )


def heads_of(width: int) -> int:
    if width % HEAD_WIDTH:
        raise ClipreelError(
            f"width {width} is not in heads of {HEAD_WIDTH}; give vision_heads and text_heads in config"
        )
    return width // HEAD_WIDTH


def renamed(state: dict[str, Tensor], config: AlproConfig, bert: str) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors, taken out of `state`, and one line for each kind of problem."""
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in Alpro(config).state_dict().items()}
    ours: dict[str, Tensor] = {}
    missing: list[str] = []
    crooked: list[str] = []
    for name, theirs in foreign_names(config, bert).items():
        missing += [n for n in theirs if n not in state]
        parts = {n: state.pop(n) for n in theirs if n in state}
        shape = shapes[name]
        wanted = (shape[0] // len(theirs), *shape[1:]) if len(theirs) > 1 else shape
        bad = [n for n, t in parts.items() if tuple(t.shape) != wanted or not t.is_floating_point()]
        crooked += [f"{n} is {tuple(parts[n].shape)}, not {wanted}" for n in bad]
        if not bad and len(parts) == len(theirs):
            ours[name] = (torch.cat(list(parts.values())) if len(parts) > 1 else parts[theirs[0]]).float().contiguous()
    kinds = {"missing": missing, "unexpected": list(state), "mis-shaped": crooked}
    return ours, [
        f"{kind}: {', '.join(sorted(found)[:5])}{f' and {len(found) - 5} more' if len(found) > 5 else ''}"
        for kind, found in kinds.items()
        if found
    ]


def resized(loaded: LoadedAlpro, facts: Mapping[str, Any]) -> LoadedAlpro:
    """The position tables at the image size and number of frames that are asked for."""
    vision = loaded.config.vision
    wanted = replace(
        vision,
        image_size=facts.get("image_size") or vision.image_size,
        frames=facts.get("frames") or vision.frames,
    )
    state = dict(loaded.state)
    if wanted.grid != vision.grid:
        state["video.pos_embed"] = resized_positions(state["video.pos_embed"], wanted.grid**2)
    state["video.time_embed"] = resized_rows(state["video.time_embed"], wanted.frames)
    return LoadedAlpro(replace(loaded.config, vision=wanted), state, loaded.prompter, loaded.warnings)
