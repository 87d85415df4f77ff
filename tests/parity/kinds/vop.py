"""VoP: modelscope's code on basic VoP, depth, plain CLIP, training steps, frames and tokens; an independent reference
on its forms with a sense of time, which have no public code."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreel.adapter import fill
from clipreel.checkpoints import Loaded, name_table, translate
from clipreel.clip import Clip
from clipreel.heads import mean_pool, unit
from clipreel.official.vop import VOP_PROMPTS, vop_config, vop_tensors
from clipreel.sites import PLAIN, Tuner
from clipreel.tokenizer import Tokenizer
from clipreel.training.batches import Batch
from clipreel.training.config import OptimConfig, ScheduleConfig
from clipreel.training.optim import Updater
from clipreel.training.recipe import RetrievalRecipe
from clipreel.tuners.vop import Vop, VopConfig
from clipreel.video.sampling import middles
from clipreel.video.transforms import Preprocess
from tests.parity.fixture import Fixture, load
from tests.parity.realdata import clip_vocabulary


def check(path: Path) -> None:
    fixture = load(path)
    kinds = {
        "frame_sampling": check_frames,
        "tokenizer": check_tokens,
        "se": check_model,
        "vop": check_model,
        "vop_variant": check_variant,
        "train_steps": check_training,
    }
    kinds[fixture.config["kind"]](fixture)


def check_frames(fixture: Fixture) -> None:
    wanted, decoded = fixture.outputs["frame_index"], fixture.outputs["decoded_index"]
    assert len(wanted)
    for i, (n, frames) in enumerate(zip(fixture.inputs["num_video_frames"], fixture.inputs["num_frames"], strict=True)):
        index = middles(int(n), int(frames))
        assert len(index) == fixture.outputs["num_decoded"][i]
        assert decoded[i, : len(index)].tolist() == index.tolist()
        shown = np.concatenate([index, np.full(int(frames) - len(index), index[-1])])
        assert wanted[i, : len(shown)].tolist() == shown.tolist()


def check_tokens(fixture: Fixture) -> None:
    config, tokenizer = fixture.config, Tokenizer.from_files(clip_vocabulary(fixture.path))
    length = config["context_length"] - (
        config["tp_prefix_token_num"] + config["tp_suffix_token_num"] if config["context_length"] == 77 else 0
    )
    fixture.check("input_ids", tokenizer(json.loads(fixture.meta["texts"]), length))


def backbone(fixture: Fixture) -> tuple[Clip, Loaded]:
    config = fixture.config
    facts = {"vision_heads": config["vision_heads"], "text_heads": config["text_heads"]}
    own = {n.removeprefix("clip."): t for n, t in fixture.weights.items() if n.startswith("clip.")}
    loaded = translate(own, activation=config.get("activation", "quick_gelu"), facts=facts)
    clip = Clip(loaded.config)
    clip.load_state_dict(loaded.state)
    return clip.eval(), loaded


def run(clip: Clip, tuner: Tuner, video: Tensor, ids: Tensor) -> dict[str, Tensor]:
    frames, texts = clip.encode_video(video, tuner), clip.encode_text(ids, tuner)
    pooled = mean_pool(frames, normalize=False)
    sim = unit(texts) @ unit(pooled).T
    logits, truth = clip.scale(tuner) * sim, torch.arange(len(ids))
    losses = F.cross_entropy(logits, truth), F.cross_entropy(logits.T, truth)
    return {
        "frame_raw": frames,
        "frame_emb": unit(frames),
        "text_raw": texts,
        "text_emb": unit(texts),
        "video_emb": pooled,
        "video_emb_l2": unit(pooled),
        "sim_pipeline": unit(texts) @ pooled.T,
        "sim_train": sim,
        "loss_t2v": losses[0],
        "loss_v2t": losses[1],
        "loss": (losses[0] + losses[1]) / 2,
    }


def compare(fixture: Fixture, ours: dict[str, Tensor]) -> None:
    unknown = set(fixture.outputs) - set(ours)
    assert not unknown, f"outputs that are not compared: {unknown}"
    for name, wanted in fixture.outputs.items():
        fixture.check(name, ours[name].reshape(wanted.shape) if name == "loss" else ours[name])


def clip_grads(fixture: Fixture, clip: Clip, loaded: Loaded) -> None:
    grads = {n: p.grad for n, p in clip.named_parameters()}
    table = name_table(loaded.naming, loaded.config.vision.layers, loaded.config.text.layers)
    foreign = {"clip." + theirs[0]: grads[name] for name, theirs, _ in table}
    for name in fixture.grads:
        if name in foreign:
            fixture.check_grad(name, foreign.pop(name))


def released(fixture: Fixture, clip: Clip) -> Vop:
    """The tuner of a case of the released code: its prompts are found and loaded as those of a checkpoint."""
    config = fixture.config
    prompts = {n: fixture.weights[n] for n in VOP_PROMPTS}
    found = vop_config(
        prompts, config["tp_prefix_token_num"], config["tpt_layers"], config["vpt_layers"], config["num_frames"]
    )
    tuner = Vop(clip, found)
    fill(tuner, vop_tensors(prompts, found, clip.config))
    return tuner.eval()


def check_model(fixture: Fixture) -> None:
    clip, loaded = backbone(fixture)
    tuner = released(fixture, clip) if fixture.config["kind"] == "vop" else PLAIN
    ours = run(clip, tuner, fixture.inputs["video"], fixture.inputs["input_ids"])
    compare(fixture, ours)
    ours["loss"].backward()
    clip_grads(fixture, clip, loaded)
    left = [n for n in fixture.grads if not n.startswith("clip.")]
    for name in left:
        tower, part = ("vision", "general") if name.startswith("visual") else ("text", "prompts")
        layers = [layer.get_parameter(part).grad for layer in getattr(tuner, tower).values()]
        fixture.check_grad(name, torch.stack(layers).reshape(fixture.grads[name].shape))
    assert left or fixture.config["kind"] == "se"


def check_variant(fixture: Fixture) -> None:
    c = fixture.config
    clip, _ = backbone(fixture)
    own = {n: t for n, t in fixture.weights.items() if not n.startswith("clip.")}
    specific = c["n_specific"]
    deep = c["vision_layers"] - c["k_s"]
    tuner = Vop(
        clip,
        VopConfig(
            general=own["general_prompts"].shape[1],
            position=specific if "position_prompts" in own else 0,
            context=specific if "context.fc.weight" in own else 0,
            joint_layers=deep,
            frames=c["num_frames"],
            context_module=c["context_module"] or "bilstm",
            prefix=c["n_prefix"],
            suffix=c["n_suffix"],
            text_read=c["text_read"],
        ),
    )
    names = variant_names(own, c["k_s"])
    fill(tuner, {ours: pick(own[theirs]) for ours, (theirs, pick) in stacked(names, own).items()})
    ours = run(clip.requires_grad_(False), tuner.eval(), fixture.inputs["video"], fixture.inputs["input_ids"])
    compare(fixture, ours)
    ours["loss"].backward()
    grads = {n: p.grad for n, p in tuner.named_parameters()}
    assert fixture.grads
    for theirs in fixture.grads:
        fixture.check_grad(theirs, torch.stack([grads[n][k] for n, k in names[theirs]]).reshape(own[theirs].shape))


Rows = list[tuple[str, object]]


def variant_names(own: dict[str, Tensor], k_s: int) -> dict[str, Rows]:
    """Name in the reference -> the parts of our tensors that make it up, in order."""
    names: dict[str, Rows] = {}
    for theirs, tensor in own.items():
        if theirs.startswith("context.lstm."):
            kind, direction = theirs.removeprefix("context.lstm.").split("_l0")
            names[theirs] = [(f"context.read.{kind}", 1 if direction else 0)]
        elif theirs.startswith("context."):
            names[theirs] = [(theirs, ...)]
        elif theirs == "frame_position":
            names[theirs] = [(f"vision.{k_s}.frame_position", ...)]
        else:
            part = {"general_prompts": "vision.{}.general", "position_prompts": "vision.{}.position"}.get(theirs)
            part = part or {"video_prompts": "vision.{}.prompts", "text_prompts": "text.{}.prompts"}[theirs]
            first = k_s if theirs == "video_prompts" else 0
            names[theirs] = [(part.format(i + first), ...) for i in range(len(tensor))]
    return names


def stacked(names: dict[str, Rows], own: dict[str, Tensor]):
    """Our name -> (reference name, how to take our tensor out of it)."""
    found, directions = {}, {}
    for theirs, rows in names.items():
        if theirs.startswith("context.lstm."):
            directions.setdefault(rows[0][0], []).append(theirs)
        elif len(rows) == 1 and theirs in ("context.fc.weight", "context.fc.bias", "frame_position"):
            found[rows[0][0]] = (theirs, lambda t: t)
        else:
            for i, (ours, _) in enumerate(rows):
                found[ours] = (theirs, lambda t, i=i: t[i])
    for ours, both in directions.items():
        both = sorted(both, key=len)  # the reverse direction has the longer name
        found[ours] = (both[0], lambda t, both=both: torch.stack([own[n] for n in both]))
    return found


def check_training(fixture: Fixture) -> None:
    """Some steps of prompt tuning with the optimiser, schedule and loss of the official training code."""
    t = fixture.config["train"]
    clip, _ = backbone(fixture)
    tuner = released(fixture, clip).train()
    with torch.no_grad():  # the fixture's scale is the official code's start, clamped like every later one
        clip.logit_scale.fill_(fixture.config["logit_scale"])
    recipe = Steps(clip, tuner, Preprocess(32), train_scale=t["train_logit_scale"], same_video="wrong")
    params = recipe.trained()
    optim = OptimConfig("adamw_hf", t["lr"], t["weight_decay"], eps=1e-6, clip_norm=t["clip_grad_norm"])
    warmup = t["warmup_steps"] / t["total_steps"]
    updater = Updater(params, optim, ScheduleConfig("hf_cosine", warmup), t["total_steps"])
    found: dict[str, list[float]] = {"lr": [], "grad_norm_before_clip": [], "logit_scale": [], "loss": []}
    for step in range(t["run_steps"]):
        frames, ids = fixture.inputs["video"][step], fixture.inputs["input_ids"][step]
        losses, _ = recipe(Batch(frames, ids, torch.arange(len(ids)), tuple(map(str, range(len(ids))))))
        loss = sum(losses.values())
        loss.backward()
        found["lr"].append(updater.rates(step)[0])
        found["grad_norm_before_clip"].append(updater.update(step).item())
        recipe.after_step()
        found["logit_scale"].append(recipe.log_scale.item())
        found["loss"].append(loss.item())
    for name, values in found.items():
        # similarities are multiplied by up to 100 here, and with them their roundings
        atol = 1e-5 * max(values) if name in ("grad_norm_before_clip", "loss") else 1e-6
        fixture.check(name, torch.tensor(values, dtype=torch.float64), atol)
    unknown = set(fixture.outputs) - {*found, *VOP_PROMPTS}
    assert not unknown, f"outputs that are not compared: {unknown}"
    for name, tower, part in ((VOP_PROMPTS[0], "vision", "general"), (VOP_PROMPTS[1], "text", "prompts")):
        ours = torch.stack([layer.get_parameter(part) for layer in getattr(tuner, tower).values()])
        fixture.check(name, ours.reshape(fixture.outputs[name].shape), atol=1e-5)


class Steps(RetrievalRecipe):
    """The fixture's frames are normalised already."""

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        frames, texts = self.clip.encode_video(batch.frames, self.tuner), self.clip.encode_text(batch.ids, self.tuner)
        return {"video": mean_pool(frames), "text": unit(texts)}
