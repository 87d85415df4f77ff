"""Checkpoints of CLIP4Clip and X-Pool with their heads: names, sizes and options, every tensor accounted for.

Checked on fixtures of ArrowLuo/CLIP4Clip (four similarity headers, 3-D patches) and layer6ai-labs/xpool (two namings).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clipreel.adapter import fill, trained
from clipreel.checkpoints import BLOCK, Loaded, read_file, translate, unwrap, weight_file
from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.heads import IN_PAPERS, Head, head_of
from clipreel.identity import digest
from clipreel.retriever import Retriever, assemble
from clipreel.sidecar import side_facts, side_preprocess
from clipreel.tokenizer import find_vocabulary
from clipreel.tuners.patch_3d import Patch3d, Patch3dConfig
from clipreel.video.sampling import Sampling

HEAD_SYSTEMS = ("clip4clip", "x-pool")
PATCH_3D = "visual.conv2.weight"
POSITIONS = "frame_position_embeddings.weight"
HEADERS = {theirs: ours for theirs, ours in IN_PAPERS.items() if ours != "x_pool"}
# how the names of tensors begin that are not CLIP's
PARTS: Mapping[str, tuple[str, ...]] = {
    "clip4clip": (PATCH_3D, POSITIONS, "transformerClip.", "lstm_visual.", "cross.", "similarity_dense."),
    "x-pool": ("pool_frames.",),
}


def names(head: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Our name of each tensor of a head -> the official one."""
    if head == "seq_transf":
        return {"over_time.positions": POSITIONS, **blocks("over_time.blocks", "transformerClip.resblocks", tensors)}
    if head == "seq_lstm":
        kinds = (f"{kind}_{gate}_l0" for kind in ("weight", "bias") for gate in ("ih", "hh"))
        return {f"over_time.{kind}": f"lstm_visual.{kind}" for kind in kinds}
    if head == "tight_transf":
        layers = {"ln": "cross.pooler.ln_pool", "dense": "cross.pooler.dense", "score_of": "similarity_dense"}
        found = {"joint.positions": "cross.embeddings.position_embeddings.weight", **both(layers)}
        return found | blocks("joint.blocks", "cross.transformer.resblocks", tensors)
    if head == "x_pool":
        layers = {p: f"pool_frames.cross_attn.{p}_proj" for p in ("q", "k", "v", "out")}
        layers |= {"linear": "pool_frames.linear_proj"} | {f"ln{i}": f"pool_frames.layer_norm{i}" for i in (1, 2, 3)}
        return both(layers)
    return {}


def both(layers: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in layers.items() for end in ("weight", "bias")}


def depth(theirs: str, tensors: Mapping[str, Tensor]) -> int:
    """How many blocks there are below this name."""
    start = theirs.count(".") + 1
    numbers = {n.split(".")[start] for n in tensors if n.startswith(theirs + ".")}
    return len(numbers)


def blocks(ours: str, theirs: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    def one(i: int) -> Iterator[tuple[str, str]]:
        for mine, (openai, _) in BLOCK.items():
            for end in ("weight", "bias"):
                yield f"{ours}.{i}.{mine}.{end}", f"{theirs}.{i}.{openai}.{end}"
        for end in ("weight", "bias"):
            yield f"{ours}.{i}.qkv.{end}", f"{theirs}.{i}.attn.in_proj_{end}"

    return {mine: their for i in range(max(1, depth(theirs, tensors))) for mine, their in one(i)}


def clip4clip_head(tensors: Mapping[str, Tensor], width: int, config: Mapping[str, Any]) -> Head:
    """The similarity header whose tensors these are; without any it is meanP."""
    if any(n.startswith(("cross.", "similarity_dense.")) for n in tensors):
        table = tensors.get("cross.embeddings.position_embeddings.weight")
        rest = {"layers": depth("cross.transformer.resblocks", tensors), "heads": config.get("cross_heads", 0)}
        return made("tight_transf", tensors, width, positions_of(table, rest))
    if any(n.startswith("lstm_visual.") for n in tensors):
        unused = {POSITIONS}  # the official class makes this table and does not read it
        return made("seq_lstm", {n: t for n, t in tensors.items() if n not in unused}, width, {})
    if any(n.startswith("transformerClip.") for n in tensors):
        rest = {"layers": depth("transformerClip.resblocks", tensors), "heads": config.get("text_heads", 0)}
        return made("seq_transf", tensors, width, positions_of(tensors.get(POSITIONS), rest))
    return made("mean", tensors, width, {})


def positions_of(table: Tensor | None, options: dict[str, int]) -> dict[str, int]:
    return {**options, "layers": max(1, options["layers"]), "positions": 1 if table is None else len(table)}


def made(name: str, tensors: Mapping[str, Tensor], width: int, options: Mapping[str, Any]) -> Head:
    """A head with exactly these tensors. Raises ClipreelError that names, as the file does, what does not fit."""
    known = names(name, tensors)
    missing, more = sorted(set(known.values()) - set(tensors)), sorted(set(tensors) - set(known.values()))
    for what, wrong in (("missing", missing), ("unexpected", more)):
        if wrong:
            raise ClipreelError(
                f"this is not the head {name}: {len(wrong)} tensors {what}, first {', '.join(wrong[:3])}; "
                "fetch the file again"
            )
    head = head_of(name, width, options)
    fill(head, {ours: tensors[theirs].float() for ours, theirs in known.items()}, "the checkpoint")
    return head


def load_with_head(
    system: str,
    source: str | Path | Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> Retriever:
    """CLIP4Clip or X-Pool as released, its head in `Retriever.head`.

    `config` holds what tensors do not tell. Both: vision_heads, text_heads, tokenizer. CLIP4Clip: cross_heads (tight),
    sim_header (only checked). X-Pool: num_mha_heads, transformer_dropout, num_frames.
    """
    folder: Path | None = None
    if isinstance(source, Mapping):
        state = unwrap(source)
    else:
        path = Path(source)
        file = weight_file(path) if path.is_dir() else path
        state, folder = read_file(file)[0], file.parent
    state = {n.removeprefix("module.").removeprefix("clip."): t for n, t in state.items()}
    own = {n: state.pop(n) for n in list(state) if n.startswith(PARTS[system])}
    loaded = backbone(state, folder, config)
    width = loaded.config.embed
    patch = own.pop(PATCH_3D, None)
    if system == "clip4clip":
        head = clip4clip_head(own, width, config)
        said = config.get("sim_header")
        if said is not None and HEADERS.get(said) != head.name:
            raise ClipreelError(f"sim_header {said!r} does not fit: these are the tensors of the head {head.name}")
    else:
        options = {"heads": config.get("num_mha_heads", 1), "dropout": config.get("transformer_dropout", 0.3)}
        head = made("x_pool", own, width, options)
        loaded.sampling = Sampling("middles", config.get("num_frames", 12)).to_dict()

    def with_patch(clip: Clip) -> Patch3d:
        tuner = Patch3d(clip, Patch3dConfig())
        fill(tuner, {"weight": patch.float()} if patch is not None else {}, "the checkpoint")
        return tuner

    name = system if folder is None else str(source)
    model = assemble(loaded, name=name, device=device, dtype=dtype, tuner=None if patch is None else with_patch)
    if patch is not None:
        model = model.adapted(model.tuner, adapter=digest(trained(model.tuner)))
    return model.headed(head)


def backbone(state: Mapping[str, Tensor], folder: Path | None, config: Mapping[str, Any]) -> Loaded:
    """The CLIP of a checkpoint without its head, completed by what lies beside it and by `config`."""
    facts: dict[str, Any] = {"activation": "quick_gelu"} | (side_facts(folder) if folder else {})
    facts |= {k: config[k] for k in ("vision_heads", "text_heads") if k in config}
    loaded = translate(state, facts=facts)
    if loaded.extra:
        raise ClipreelError(
            f"{len(loaded.extra)} tensors belong neither to CLIP nor to the head, first "
            f"{', '.join(sorted(loaded.extra)[:3])}; is this a checkpoint of another system?"
        )
    if folder is not None:
        loaded.tokenizer_files, loaded.preprocess = find_vocabulary(folder), side_preprocess(folder)
    if "tokenizer" in config:
        loaded.tokenizer_files = Path(config["tokenizer"])
    return loaded
