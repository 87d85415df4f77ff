"""CLIP4Clip: its four similarity headers and 3-D patches, optimiser, metrics and choice of frames."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.checkpoints import name_table
from clipreel.evaluation.ranks import rank_texts, rank_videos
from clipreel.evaluation.similarity import Dense
from clipreel.heads import PoolingHead, mean_pool, unit
from clipreel.official import load_official
from clipreel.official.heads import HEADERS, PATCH_3D, names
from clipreel.retriever import Retriever
from clipreel.training.config import GroupRule, OptimConfig, ScheduleConfig
from clipreel.training.optim import Updater
from clipreel.video.sampling import clip4clip, mv_adapter
from tests.parity.fixture import Fixture, load
from tests.parity.kinds.metrics import official


def check(path: Path) -> None:
    if path.suffix == ".json":
        check_frames(path)
    elif path.name.startswith("bertadam_"):
        check_optimiser(load(path))
    elif path.name.startswith("metrics_"):
        check_metrics(load(path))
    else:
        check_model(load(path))


def check_frames(path: Path) -> None:
    data = json.loads(path.read_text("utf-8"))
    assert data["rows"]
    for row in data["rows"]:
        assert set(row) == {"n", "max_frames", "clip4clip", "mv_adapter"}
        assert clip4clip(row["n"], row["max_frames"]).tolist() == row["clip4clip"]
        assert mv_adapter(row["n"], row["max_frames"]).tolist() == row["mv_adapter"]


def check_metrics(fixture: Fixture) -> None:
    sims = fixture.inputs["sim"]
    several = "label" in fixture.inputs
    assert set(fixture.inputs) - {"label"} == {"sim"}
    assert not fixture.outputs
    truth = fixture.inputs["label"] if several else torch.arange(len(sims))
    matrix = Dense(sims)
    ranks = {
        "t2v": rank_texts(matrix, truth),
        "v2t": rank_videos(matrix, truth),
        "v2t_video_level": rank_videos(matrix, truth, "video"),
    }
    for way, figures in json.loads(fixture.meta["expected"]).items():
        columns = figures.pop("cols", None)  # the 0-based rank of each query
        if columns is not None:
            ours = ranks["v2t_video_level" if way == "v2t" else way].expected() - 1
            assert ours.tolist() == columns, f"{fixture.path.name}: ranks {way}"
        code = f"clip4clip_{'multi_' if several else ''}{way}"
        official(f"{fixture.path.name}: {way}", code, figures, ranks)


def loaded(fixture: Fixture) -> Retriever:
    """The fixture's weights read as a checkpoint, ready for gradients."""
    c = fixture.config
    told = {"vision_heads", "text_heads", "cross_heads", "sim_header"}
    model = load_official("clip4clip", fixture.weights, {k: c[k] for k in told if k in c}, device="cpu")
    model.clip.requires_grad_(True)
    model.tuner.requires_grad_(True)
    assert model.head is not None
    model.head.requires_grad_(True)
    return model


def check_model(fixture: Fixture) -> None:
    model, c = loaded(fixture), fixture.config
    head = model.head
    # sizes that the official code is told, and that we see in the tensors
    assert head.name == HEADERS[c["sim_header"]]
    assert c.get("head_layernorm_eps", 1e-12) == 1e-12
    assert head.options.get("layers", c["cross_layers"]) == c["cross_layers"]
    assert (c["linear_patch"] == "3d") == ("vision.patch.weight" in model.tuner.overrides)
    mask = fixture.inputs["video_mask"].bool()
    # the official tower does not know the mask: what padded frames hold reaches their neighbours in 3-D patches
    frames = model.clip.encode_video(fixture.inputs["video"], model.tuner)
    texts = model.clip.encode_text(fixture.inputs["input_ids"], model.tuner)
    scores = head(texts, frames, mask)
    sim = scores * model.clip.scale(model.tuner) if head.cosine else scores
    truth = torch.arange(len(sim))
    t2v, v2t = F.cross_entropy(sim, truth), F.cross_entropy(sim.T, truth)
    loss = (t2v + v2t) / 2
    ours = {"frame_emb": frames, "text_emb": texts, "sim": sim, "loss_t2v": t2v, "loss_v2t": v2t, "loss": loss}
    if isinstance(head, PoolingHead):
        seen = head.context(frames, mask)
        ours["frames_after_head_norm"] = unit(seen)
        ours["video_emb_pooled"] = mean_pool(seen, mask, normalize=False)
        ours["video_emb_norm"] = head.pool(frames, mask)
    compare(fixture, ours)
    torch.testing.assert_close(head.score(texts, frames, mask, largest=1), scores, atol=1e-5, rtol=1e-5)
    loss.backward()
    check_grads(fixture, model)


def compare(fixture: Fixture, ours: dict[str, Tensor]) -> None:
    assert set(fixture.outputs) == set(ours), f"not the outputs that are compared: {set(fixture.outputs) ^ set(ours)}"
    for name, value in ours.items():
        fixture.check(name, value)


def check_grads(fixture: Fixture, model: Retriever) -> None:
    """Gradients of both towers, the patches and the head under their official names."""
    config = model.clip.config
    parts = model.clip.get_parameter
    naming = "hf" if any("vision_model." in n for n in fixture.weights) else "openai"
    found: dict[str, Tensor | None] = {}
    for ours, theirs, how in name_table(naming, config.vision.layers, config.text.layers):
        grad = parts(ours).grad
        if grad is None:
            continue  # a fixture that has one then misses its name
        pieces = grad.chunk(3) if how == "joined" else (grad.T if how == "transposed" else grad,)
        found |= {"clip." + name: piece for name, piece in zip(theirs, pieces, strict=True)}
    for ours, theirs in names(model.head.name, fixture.weights).items():
        found[theirs] = model.head.get_parameter(ours).grad
    if "vision.patch.weight" in model.tuner.overrides:
        found["clip." + PATCH_3D] = model.tuner.overrides["vision.patch.weight"].grad
    assert fixture.grads
    for name in fixture.grads:
        fixture.check_grad(name, found.get(name))


def check_optimiser(fixture: Fixture) -> None:
    c = fixture.config
    assert (c["max_grad_norm"], c["dtype"]) == (1.0, "torch.float32")
    rules = tuple(GroupRule(f"^({'|'.join(g['params'])})$", g["lr"], g["weight_decay"]) for g in c["groups"])
    members = [name for group in c["groups"] for name in group["params"]]
    params = {name: nn.Parameter(fixture.inputs[name].clone()) for name in members}
    optim = OptimConfig("bert_adam", 1.0, 0.0, (c["b1"], c["b2"]), c["eps"], clip_norm=None, groups=rules)
    schedule = ScheduleConfig(c["schedule"].replace("warmup_", "bertadam_"), c["warmup"])
    updater = Updater(params, optim, schedule, c["t_total"])
    compared = set()
    for step in range(c["steps"]):
        for i, p in enumerate(params.values()):
            p.grad = fixture.inputs[f"g{i}_{step}"].clone()
        updater.update(step)
        # the official figure is the rate of the coming update, one for every tensor
        rates = dict(zip([g.names for g in updater.groups], updater.rates(step + 1), strict=True))
        ours = [next(lr for group, lr in rates.items() if name in group) for name in members]
        torch.testing.assert_close(ours, c["get_lr_after_step"][step], atol=1e-12, rtol=1e-9)
        for name, p in params.items():
            fixture.check(f"{name}_{step}", p, atol=1e-6)
            compared.add(f"{name}_{step}")
    assert compared == set(fixture.outputs)
