"""CLIP-ViP: videos, images and texts with gradients, its losses, its evaluation, and its training rules."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clipreel import load_official
from clipreel.checkpoints import name_table
from clipreel.clip import Clip, normalise
from clipreel.evaluation.metrics import measures
from clipreel.evaluation.ranks import rank_texts, rank_videos
from clipreel.evaluation.similarity import Dense, DualSoftmax
from clipreel.heads import mean_pool, unit
from clipreel.losses import FOUR, RELEASED, TWO, four_named, hard_negatives, mil_nce, pairs, triplet, two_named
from clipreel.official.clip_vip import CLIP_VIP
from clipreel.patterns import by_frame
from clipreel.sites import Tuner
from clipreel.training.config import GroupRule, OptimConfig, ScheduleConfig
from clipreel.training.optim import Updater, by_rules
from clipreel.training.schedule import rate
from clipreel.video.sampling import clip_vip
from tests.parity.fixture import Fixture, load

NO_DECAY = GroupRule(r"bias|LayerNorm\.bias|LayerNorm\.weight|logit_scale", decay=0.0)


class NumpyGlobal:
    """NumPy's old global generator as the official code draws from it, in the form that our samplers take."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def integers(self, low: int, high: int) -> int:
        return int(self.state.randint(low, high))


def check(path: Path) -> None:
    kinds = {"forward": check_forward, "loss": check_losses, "eval": check_evaluation, "train": check_training_rules}
    kinds[path.name.split("_")[0]](load(path))


def check_training_rules(fixture: Fixture) -> None:
    compared = check_schedules(fixture) | check_adamw(fixture) | check_sampling(fixture)
    check_groups(fixture)
    everything_compared(fixture, compared)


def everything_compared(fixture: Fixture, compared: set[str]) -> None:
    assert compared == set(fixture.outputs), f"{fixture.path.name}: not compared: {set(fixture.outputs) ^ compared}"


# ------------------------------------------------------------------ the model


def check_forward(fixture: Fixture) -> None:
    """The checkpoint goes through `load_official`, as a released one would; gradients reach its tensors."""
    c = fixture.config
    heads = {f"{tower}_heads": c[f"{tower}_config"]["num_attention_heads"] for tower in ("vision", "text")}
    official = {"clip_vision_additional_config": c["vision_additional_config"], **heads}
    model = load_official("clip-vip", fixture.weights, official, device="cpu")
    clip, tuner = model.clip.requires_grad_(True), model.tuner.requires_grad_(True)
    ours = features(fixture, clip, tuner) | debug(fixture, clip, tuner)
    scale = clip.scale(tuner)
    for name in c["losses"]:
        ours[f"loss.{name}"] = named_loss(
            name, *(ours.get(f"{n}_features") for n in ("vis", "text", "img", "cap")), scale
        )
    ours["total_loss"] = ours[f"loss.{c['total_loss']}"]
    for name in fixture.outputs:
        fixture.check(name, ours[name])
    everything_compared(fixture, set(ours) & set(fixture.outputs))
    ours["total_loss"].backward()
    check_grads(fixture, clip, tuner)


def features(fixture: Fixture, clip: Clip, tuner: Tuner) -> dict[str, Tensor]:
    """Texts ignore the attention mask: attention is causal, and padding stands behind the end token that is read."""
    inputs, config = fixture.inputs, fixture.config
    assert set(inputs) <= {"video", "image", "input_ids", "attention_mask", "caption_ids", "caption_attention_mask"}
    frames = clip.encode_video(inputs["video"], tuner)
    found = {"text_features_unnormalized": clip.encode_text(inputs["input_ids"], tuner)}
    if config["vision_additional_config"]["type"] == "ViP":
        found["vis_features_unnormalized"] = frames[:, 0]
    else:
        found["frame_features_unnormalized"] = frames
    found |= {"vis_features": mean_pool(frames), "text_features": unit(found["text_features_unnormalized"])}
    if config["img_num"]:
        stills = inputs["image"].flatten(0, 1)[:, None]
        found["img_features_unnormalized"] = clip.encode_video(stills, tuner)[:, 0]
        found["img_features"] = unit(found["img_features_unnormalized"])
        found["cap_features"] = unit(clip.encode_text(inputs["caption_ids"].flatten(0, 1), tuner))
    return found | {"sim_video_text": found["vis_features"] @ found["text_features"].T}


def debug(fixture: Fixture, clip: Clip, tuner: Tuner) -> dict[str, Tensor]:
    """The tokens before and after the encoder."""
    if "debug.embedded_tokens" not in fixture.outputs:
        return {}
    x, layout = clip.vision.embed(fixture.inputs["video"], tuner)
    assert [layout.globals, layout.frames, layout.per_frame] == fixture.config["debug_M_N_L"]
    out, _ = clip.vision.run(normalise(clip.vision.ln_pre, x, {}, "ln_pre"), layout, by_frame, tuner)
    return {"debug.embedded_tokens": x, "debug.encoder_tokens": out}


def named_loss(name: str, vis: Tensor, text: Tensor, img: Tensor, cap: Tensor, scale: Tensor) -> Tensor:
    if RELEASED[name] in TWO:
        return TWO[two_named(name)](vis, text, scale)
    return sum(FOUR[term](vis, text, img, cap, scale) for term in four_named(name))


def check_grads(fixture: Fixture, clip: Clip, tuner: Tuner) -> None:
    towers = clip.config.vision.layers, clip.config.text.layers
    grads = {n: p.grad for n, p in clip.named_parameters()}
    ours = {"clipmodel." + n: t for n, t in to_hf_grads(grads, *towers).items()}
    own = {n: p.grad for n, p in tuner.named_parameters()}
    ours |= {f"clipmodel.{CLIP_VIP[n]}": g[None] if n == "temporal" else g for n, g in own.items()}
    assert fixture.grads
    for name in fixture.grads:
        fixture.check_grad(name, ours[name])


def to_hf_grads(grads: dict[str, Tensor], vision_layers: int, text_layers: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, theirs, how in name_table("hf", vision_layers, text_layers):
        if grads[name] is not None:
            parts = (
                grads[name].chunk(3) if how == "joined" else [grads[name].t() if how == "transposed" else grads[name]]
            )
            found.update(zip(theirs, parts, strict=True))
    return found


# ------------------------------------------------------------------ losses and evaluation


def check_losses(fixture: Fixture) -> None:
    config, grads = fixture.config, set()
    for key, case in config["cases"].items():
        args = {n: fixture.inputs[n].clone().requires_grad_() for n in case["args"]}
        loss = case_loss(case, args, config)
        fixture.check(key, loss)
        loss.backward()
        for name in case["args"]:
            if name in case["unused"]:
                assert args[name].grad is None, f"{key} does not use {name}"
            else:
                fixture.check_grad(f"{key}/{name}", args[name].grad)
                grads.add(f"{key}/{name}")
    everything_compared(fixture, set(config["cases"]))
    assert grads == set(fixture.grads)


def case_loss(case: dict, args: dict[str, Tensor], config: dict) -> Tensor:
    name, cfg, vis = case["cls"], case["cfg"], args["vis"]
    if name == "NCEContrastiveLoss":
        return pairs(vis, args["text"], 1 / cfg["temp"])
    if name == "HardNegLoss":
        return hard_negatives(vis, args["text"], cfg["hard_negative_num"])
    if name == "MILNCEContrastiveLoss":
        return mil_nce(vis, args["mil_text"].unflatten(0, (-1, config["mil_captions"])), cfg["temp"])
    if name == "TripletContrastiveLoss":
        return triplet(vis, args["text"], cfg["margin"], cfg["measure"], cfg["max_violation"])
    return named_loss(name, vis, args["text"], args.get("img"), args.get("cap"), args["logit_scale"].exp())


def check_evaluation(fixture: Fixture) -> None:
    """Metrics of the stored matrices; its v2t after dual softmax ranks the matrix that was made for t2v."""
    assert fixture.config["dsl_temperature"] == 100
    assert fixture.config["metric_order"] == ["R1", "R5", "R10", "MedR", "MeanR"]
    inputs, sim = fixture.inputs, fixture.outputs["sim"]
    fixture.check("sim", inputs["text_features"] @ inputs["vis_features"].T)
    dual = DualSoftmax(Dense(sim), "product")
    fixture.check("sim_dsl", dual.block(slice(0, len(sim)), slice(0, len(sim))), atol=1e-6)
    truth, stored = torch.arange(len(sim)), Dense(fixture.outputs["sim_dsl"])
    ranked = {
        "simple.t2v": rank_texts(Dense(sim), truth),
        "simple.v2t": rank_videos(Dense(sim), truth),
        "dsl.t2v": rank_texts(stored, truth),
        "dsl.v2t": rank_videos(stored, truth),
        "multi": rank_texts(Dense(inputs["multi_sim"]), inputs["multi_labels"]),
    }
    for name, ranks in ranked.items():
        figures = measures(ranks)
        ours = [figures[f"R@{k}"] / 100 for k in (1, 5, 10)] + [figures["MdR"], figures["MnR"]]
        fixture.check(f"metrics.{name}", torch.tensor(ours, dtype=torch.float64), atol=1e-9)
    everything_compared(fixture, {"sim", "sim_dsl", *(f"metrics.{name}" for name in ranked)})


# ------------------------------------------------------------------ training rules


def check_schedules(fixture: Fixture) -> set[str]:
    for i, s in enumerate(fixture.config["sched"]):
        ours = [rate(f"hero_{s['decay']}", s["base_lr"], k, s["steps"], s["warmup_ratio"]) for k in range(s["steps"])]
        torch.testing.assert_close(
            torch.tensor(ours, dtype=torch.float64), fixture.outputs[f"lr.{i}"].double(), atol=1e-15, rtol=1e-9
        )
    return {f"lr.{i}" for i in range(len(fixture.config["sched"]))}


def check_adamw(fixture: Fixture) -> set[str]:
    c = fixture.config["adamw"]
    assert c["correct_bias"]
    names = [n.removeprefix("adamw.") for n in fixture.inputs if n.startswith("adamw.") and "grad" not in n]
    params = {name: nn.Parameter(fixture.inputs[f"adamw.{name}"].clone()) for name in names}
    # q, a vector, stands for the tensors that are not decayed
    rules = (GroupRule("^q$", decay=0.0),)
    optim = OptimConfig("adamw_hf", c["lr"], c["wd"], tuple(c["betas"]), c["eps"], clip_norm=None, groups=rules)
    updater = Updater(params, optim, ScheduleConfig("constant"), c["steps"])
    compared = set()
    for step in range(c["steps"]):
        for name, p in params.items():
            p.grad = fixture.inputs[f"adamw.grad_{name}.{step}"].clone()
        updater.update(step)
        for name, p in params.items():
            fixture.check(f"adamw.{name}.{step}", p, atol=1e-6)  # a few roundings; the steps are of size 1e-3
            compared.add(f"adamw.{name}.{step}")
    return compared


def check_groups(fixture: Fixture) -> None:
    """Four official groups, {prefix, rest} x {decayed, not}; a rate of null is the one that the schedule sets."""
    for prefix, groups in fixture.config["param_groups"].items():
        names = sorted(name for g in groups for name in g["params"])
        fast = [] if prefix == "none" else [GroupRule(prefix, lr=groups[0]["lr"])]
        ours = {(g.lr, g.decay): sorted(g.names) for g in by_rules(names, 1e-6, 0.2, [*fast, NO_DECAY])}
        wanted = {
            (1e-6 if g["lr"] is None else g["lr"], g["weight_decay"]): sorted(g["params"])
            for g in groups
            if g["params"]
        }
        assert ours == wanted, f"{fixture.path.name}: groups with prefix {prefix}"


def check_sampling(fixture: Fixture) -> set[str]:
    for i, s in enumerate(fixture.config["sampling"]):
        assert s["clips"] == 1
        rng = NumpyGlobal(s["np_seed"]) if s["mode"] == "train" and s["jitter"] else None
        fixture.check(f"sampling.{i}", torch.from_numpy(clip_vip(s["total_frames"], s["frames"], rng)))
    return {f"sampling.{i}" for i in range(len(fixture.config["sampling"]))}
