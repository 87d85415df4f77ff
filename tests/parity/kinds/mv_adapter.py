"""MV-Adapter: every variant of the released code, its two modules alone, parameter groups and metrics."""

import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel import load_official
from clipreel.checkpoints import name_table
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.evaluation.ranks import rank_texts, rank_videos
from clipreel.evaluation.similarity import Dense
from clipreel.heads import mean_pool, unit
from clipreel.official.mv_adapter import mv_name
from clipreel.patterns import Layout
from clipreel.training.cells import cells
from clipreel.training.optim import by_rules
from clipreel.tuners import build, options
from clipreel.tuners.mv_adapter import Bottleneck, MvAdapterConfig, TextBottleneck, VideoBottleneck
from tests.parity.fixture import Fixture, load
from tests.parity.kinds.metrics import official

CONFIGS = Path(__file__).parents[3] / "configs" / "mv_adapter"
DATASETS = {"anet": "activitynet"}
ADAPTER = "transformer.resblocks.0.mlp.adapter."


def check(path: Path) -> None:
    if path.suffix == ".json":
        check_groups(json.loads(path.read_text("utf-8")))
        return
    fixture = load(path)
    if path.name.startswith("metrics_"):
        check_metrics(fixture)
    elif "kind" in fixture.config:
        check_module(fixture)
    else:
        check_model(fixture)


def check_model(fixture: Fixture) -> None:
    c = fixture.config
    branches = [c["adapter"][tower]["mlp"] for tower in ("visual", "text") if tower in c["adapter"]]
    stated = {k: c[k] for k in ("vision_heads", "text_heads")}
    for branch in branches:
        known = {k: branch[k] for k in ("forward", "n_head", "scale", "attn_type", "no_cc") if k in branch}
        assert all(stated.get(k, v) == v for k, v in known.items()), f"{fixture.path.name}: towers that differ"
        stated |= known
    if branches and "modal_dynamic" in c["adapter"]:
        stated["position"] = c["adapter"]["modal_dynamic"]["position"]
    model = load_official("mv-adapter", fixture.weights, stated, device="cpu")
    for folded in (True, False):
        model.tuner.train(not folded)
        model.clip.requires_grad_(not folded)
        ours = run(fixture, model.clip, model.tuner)
        unknown = set(fixture.outputs) - set(ours)
        assert not unknown, f"outputs that are not compared: {unknown}"
        for name in fixture.outputs:
            fixture.check(name, ours[name])
    ours["loss"].backward()
    aliases = json.loads(fixture.meta["recipe"]).get("aliases", {})
    for name in fixture.grads:
        check_grad(fixture, name, aliases.get(name, name), model.clip, model.tuner)


def run(fixture: Fixture, clip: Clip, tuner: nn.Module) -> dict[str, Tensor]:
    x = fixture.inputs
    assert set(x) == {"video", "video_mask", "input_ids", "attention_mask"}
    ends = x["input_ids"].argmax(1, keepdim=True)
    assert torch.equal(x["attention_mask"].bool(), torch.arange(x["input_ids"].shape[1]) <= ends)
    mask = x["video_mask"].bool()
    frames, texts = clip.encode_video(x["video"], tuner, mask), clip.encode_text(x["input_ids"], tuner)
    logits = clip.scale(tuner) * unit(texts) @ mean_pool(frames, mask).T
    truth = torch.arange(len(logits))
    losses = F.cross_entropy(logits, truth), F.cross_entropy(logits.T, truth)
    return {
        "frame_emb": frames,
        "text_emb": texts,
        "text_emb_norm": unit(texts),
        "video_emb_pooled": mean_pool(frames, mask, normalize=False),
        "video_emb_norm": mean_pool(frames, mask),
        "t2v_logits": logits,
        "v2t_logits": logits.T,
        "loss_t2v": losses[0],
        "loss_v2t": losses[1],
        "loss": (losses[0] + losses[1]) / 2,
    }


def check_grad(fixture: Fixture, name: str, theirs: str, clip: Clip, tuner: nn.Module) -> None:
    theirs = theirs.removeprefix("clip.")
    if ours := mv_name(theirs):
        parameter = dict(tuner.named_parameters()).get(ours)
        if parameter is None or parameter.grad is None:  # what the released code has and never uses
            assert not fixture.grads[name].any(), f"{fixture.path.name}: no gradient reached {name}"
            return
        fixture.check_grad(name, parameter.grad)
        return
    plain = theirs.replace(".attn.ln.", ".ln_1.").replace(".mlp.ln.", ".ln_2.")
    part = re.fullmatch(r"(.+\.attn\.)([qkv])_proj\.(weight|bias)", plain)
    plain = f"{part[1]}in_proj_{part[3]}" if part else plain
    table = name_table("openai", clip.config.vision.layers, clip.config.text.layers)
    grad = clip.get_parameter({foreign[0]: own for own, foreign, _ in table}[plain]).grad
    fixture.check_grad(name, grad.chunk(3)["qkv".index(part[2])] if part else grad)


def check_module(fixture: Fixture) -> None:
    c, x = fixture.config, fixture.inputs
    shared = {
        "width": c["mid"],
        "heads": c["heads"],
        "tie": c.get("position") or "none",
        "lnin": any(n.startswith("ln_in.") for n in fixture.weights),
    }
    factor = nn.Parameter(torch.zeros(c["factor_dim"])) if shared["tie"] != "none" else None
    tokens = x["tokens"].requires_grad_()
    if c["kind"] == "TextTransfAdapter":
        config = MvAdapterConfig(**shared, causal=c["attn_type"] == "uni")
        module: Bottleneck = TextBottleneck(config, c["d"], c["L"], factor)
        fill(module, fixture.weights)
        delta = module.delta(tokens.transpose(0, 1), Layout(0, 1, c["L"])).transpose(0, 1)
    else:
        assert c["kind"] == "VideoAdapter"
        context = not c.get("no_cc", False)
        config = MvAdapterConfig(**shared, frames=c["seq_len"], temporal=tuple(c["temporal"]), context=context)
        module = VideoBottleneck(config, c["d"], factor)
        fill(module, {n: t for n, t in fixture.weights.items() if context or n != "cc"})
        B, T, L = c["B"], c["F"], 1 + c["grid"] ** 2
        delta = module.delta(
            tokens.view(L, B, T, -1).permute(1, 2, 0, 3).flatten(1, 2), Layout(0, T, L, x["video_mask"].bool())
        )
        delta = delta.view(B, T, L, -1).permute(2, 0, 1, 3).flatten(1, 2)
    assert set(fixture.outputs) == {"delta"}
    fixture.check("delta", delta)
    (delta * x["grad_weight"]).mean().backward()
    for name in fixture.grads:
        fixture.check_grad(name, tokens.grad if name == "inputs.tokens" else module.get_parameter(ours(name)).grad)


def ours(name: str) -> str:
    """A parameter's name inside one adapter."""
    return "tie.factor" if name == "shared_factor" else str(mv_name(ADAPTER + name)).removeprefix("text.0.")


def fill(module: Bottleneck, weights: dict[str, Tensor]) -> None:
    module.load_state_dict({ours(n): t for n, t in weights.items()})


def check_metrics(fixture: Fixture) -> None:
    sims, truth = Dense(fixture.inputs["sim"]), fixture.inputs["label"]
    expected = json.loads(fixture.meta["expected"])
    ranks = {"t2v": rank_texts(sims, truth), "v2t_video_level": rank_videos(sims, truth, "video")}
    for way in ("t2v", "v2t"):
        figures = {name: value for name, value in expected.items() if name.startswith(way)}
        assert len(figures) == len(expected) // 2
        official(fixture.path.name, f"mv_adapter_{way}", figures, ranks)


def check_groups(data: dict) -> None:
    """The frozen released configs train the official tensors, with the official rates and decays."""
    towers = TowerConfig(12, 64, 1, 256), TowerConfig(12, 64, 1, 256)
    for dataset, groups in data["groups"].items():
        config = cells(CONFIGS / f"{DATASETS.get(dataset, dataset)}.yaml")["released"].config
        optim = config.train.optim
        with torch.device("meta"):
            clip = Clip(ClipConfig(32, 8, *towers, 77, 100, 64, "quick_gelu"))
            tuner = build(config.method, clip, options(config.method, {"frames": config.frames, **config.options}))
        names = [name for name, _ in tuner.named_parameters()]
        found = {(g.lr, g.decay): set(g.names) for g in by_rules(names, config.lr, optim.decay, optim.groups)}
        table = {theirs[0]: f"base.tensors.{own.replace('.', '/')}" for own, theirs, _ in name_table("openai", 12, 12)}
        wanted: dict[tuple[float, float], set[str]] = {}
        for group in groups:
            theirs = [one.removeprefix("clip.") for name in group["names"] for one in written_out(name)]
            assert len(theirs) == group["count"]
            own = {mv_name(n) or table[openai(n)] for n in theirs}
            if own:
                wanted[group["lr"], group["weight_decay"]] = own
        assert found == wanted, f"param_groups.json: {dataset}"


def openai(name: str) -> str:
    name = name.replace(".attn.ln.", ".ln_1.").replace(".mlp.ln.", ".ln_2.")
    return re.sub(r"\.attn\.[qkv]_proj\.", ".attn.in_proj_", name)


def written_out(name: str) -> list[str]:
    span = re.search(r"\{(\d+)-(\d+)\}", name)
    return [name] if span is None else [name.replace(span[0], str(i)) for i in range(int(span[1]), int(span[2]) + 1)]
