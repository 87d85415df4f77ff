"""Where ALPRO's training starts: a ViT for each frame and BERT for text, or nothing at all.

Specification alpro.md 6: temporal attention and its norm copy the spatial ones; times and temporal outputs are zero, so
the start is the ViT of each frame. Weights come from local files or the hub, and are never executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from clipreel.alpro.model import Alpro, AlproConfig
from clipreel.alpro.timesformer import TimeSformer, resized_positions
from clipreel.alpro.weights import TEXT, foreign_name
from clipreel.checkpoints import read_file, weight_file
from clipreel.errors import ClipreelError
from clipreel.hub import HUB_ID, snapshot

VIT_EXTRA = re.compile(r"(head|pre_logits|fc_norm)\..*|head_dist\..*")
BERT_EXTRA = re.compile(r"pooler\..*|cls\.(seq_relationship\..*|predictions\.decoder\..*)|(.*\.)?position_ids")
OLD_NORM = {".gamma": ".weight", ".beta": ".bias"}  # of bert-base-uncased as it was first published


def weights_of(source: str | Path, download: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, a folder, or a hub id that is on this machine (or may be fetched)."""
    path = Path(source)
    if not path.exists():
        if not HUB_ID.fullmatch(str(source)):
            raise ClipreelError(f"no weights at {source}: expected a file, a folder or a hub id")
        path = snapshot(str(source), download)
    return read_file(weight_file(path) if path.is_dir() else path)[0]


def may_be(source: str | Path) -> bool:
    """Whether this is a path that is there, or can be a hub id."""
    return Path(source).exists() or HUB_ID.fullmatch(str(source)) is not None


def start(
    config: AlproConfig, vit: Mapping[str, Tensor] | None = None, bert: Mapping[str, Tensor] | None = None
) -> Alpro:
    """A new ALPRO with the weights of a ViT (timm's names) and of BERT where they are given, random ones elsewhere.

    Raises ClipreelError that names the tensors that do not fit.
    """
    model = Alpro(config)
    if vit is not None:
        take_vit(model.video, vit)
    if bert is not None:
        take_bert(model, bert)
    return model


@torch.no_grad()
def take_vit(video: TimeSformer, vit: Mapping[str, Tensor]) -> None:
    state = {n: t for n, t in vit.items() if not VIT_EXTRA.fullmatch(n)}
    if "pos_embed" in state and state["pos_embed"].shape != video.pos_embed.shape:
        state["pos_embed"] = resized_positions(state["pos_embed"], video.pos_embed.shape[1] - 1)
    for name in list(state):
        if ".attn." in name:
            state[name.replace(".attn.", ".temporal_attn.")] = state[name]
        if ".norm1." in name:
            state[name.replace(".norm1.", ".temporal_norm1.")] = state[name]
    own = {n for n in video.state_dict() if n != "time_embed" and ".temporal_fc." not in n}
    require(state, {n: video.state_dict()[n].shape for n in own}, "ViT")
    for name, p in video.named_parameters():
        if name in own:
            p.copy_(state[name])


@torch.no_grad()
def take_bert(model: Alpro, bert: Mapping[str, Tensor]) -> None:
    state = {}
    for name, tensor in bert.items():
        for old, new in OLD_NORM.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        state[name.removeprefix("bert.")] = tensor
    state = {n: t for n, t in state.items() if not BERT_EXTRA.fullmatch(n)}
    params = {n: p for n, p in model.named_parameters() if n.split(".")[0] in ("text", "mlm")}
    if not any(n.startswith("cls.") for n in state):  # an encoder alone has no head for masked words
        params = {n: p for n, p in params.items() if not n.startswith("mlm.")}
    names = {n: tuple(t.removeprefix(TEXT) for t in foreign_name(n, "")) for n in params}
    if model.mlm is None:
        state = {n: t for n, t in state.items() if not n.startswith("cls.")}
    shapes = {
        t: torch.Size([params[n].shape[0] // len(theirs), *params[n].shape[1:]])
        for n, theirs in names.items()
        for t in theirs
    }
    require(state, shapes, "BERT")
    for name, theirs in names.items():
        params[name].copy_(torch.cat([state[t] for t in theirs]) if len(theirs) > 1 else state[theirs[0]])


def require(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], what: str) -> None:
    """Raises ClipreelError for tensors that are missing, unexpected or mis-shaped."""
    kinds = {
        "missing": [n for n in shapes if n not in state],
        "unexpected": [n for n in state if n not in shapes],
        "mis-shaped": [
            f"{n} {tuple(state[n].shape)}, not {tuple(s)}"
            for n, s in shapes.items()
            if n in state and state[n].shape != s
        ],
    }
    for kind, found in kinds.items():
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise ClipreelError(f"not the {what} that fits here; {kind}: {', '.join(found[:5])}{more}")


def with_heads(model: Alpro, *, entities: int = 0, answers: int = 0) -> Alpro:
    """The same weights in a model with an entity head, an answer head, or both, which start at random."""
    grown = Alpro(replace(model.config, entities=entities, answers=answers))
    mine = grown.state_dict()
    kept = {n: t for n, t in model.state_dict().items() if n in mine and t.shape == mine[n].shape}
    grown.load_state_dict(mine | kept)
    return grown
