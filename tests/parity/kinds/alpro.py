"""ALPRO: encoders alone, retrieval, prompter, pre-training step, VideoQA, crops, figures; frame indices, schedule and
AdamW."""

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.alpro import model as alpro
from clipreel.alpro import prompter
from clipreel.alpro.bert import Bert, MaskedWords, TextConfig
from clipreel.alpro.model import Alpro
from clipreel.alpro.timesformer import TimeSformer, VisionConfig, mean_of_frames, resized_positions, resized_rows
from clipreel.alpro.weights import TEXT, LoadedAlpro, foreign_name, translate_alpro
from clipreel.evaluation.metrics import measures
from clipreel.evaluation.ranks import rank_texts, rank_videos
from clipreel.evaluation.similarity import Dense
from clipreel.losses import contrastive
from clipreel.training.config import OptimConfig, ScheduleConfig
from clipreel.training.optim import Updater
from clipreel.training.schedule import rate
from clipreel.video import sampling
from tests.parity.fixture import Fixture, load

PEAK = 1e-4  # of the stored schedules (notes of the fixture)


def check(path: Path) -> None:
    fixture = load(path)
    kinds = {
        "frame_indices": check_frames,
        "timesformer_interp": check_resizing,
        "timesformer": check_timesformer,
        "text_encoder": check_text,
        "fusion_encoder": check_fusion,
        "retrieval_metrics": check_metrics,
        "retrieval": check_retrieval,
        "prompter": check_prompter,
        "pretrain_full": check_pretraining,
        "pem": check_pretraining,
        "qa": check_qa,
        "random_crop": check_crops,
    }
    found = next((k for k in kinds if path.name.startswith(k)), None)
    assert found is not None, f"no check for {path.name}; built are {', '.join(kinds)}"
    kinds[found](fixture)


def compare(fixture: Fixture, ours: dict[str, Tensor]) -> None:
    unknown = set(fixture.outputs) - set(ours)
    assert not unknown, f"outputs that are not compared: {unknown}"
    for name in fixture.outputs:
        fixture.check(name, ours[name])


def backward(fixture: Fixture, loss: Tensor, module: nn.Module, names: dict[str, tuple[str, ...]]) -> None:
    """Every stored gradient against ours; `names` says which foreign tensors make up one of ours."""
    loss.backward()
    grads: dict[str, Tensor | None] = {}
    for ours, p in module.named_parameters():
        n = len(names[ours])
        parts = [None] * n if p.grad is None else p.grad.chunk(n) if n > 1 else [p.grad]
        grads |= dict(zip(names[ours], parts, strict=True))
    assert fixture.grads
    for name in fixture.grads:
        fixture.check_grad(name, grads[name])


# ---------------------------------------------------------------------- encoders


def vision_config(c: dict) -> VisionConfig:
    hidden = int(c["vis_dim"] * c["vis_mlp_ratio"])
    return VisionConfig(c["image"], c["patch"], c["frames"], c["vis_dim"], c["vis_depth"], c["vis_heads"], hidden)


def timesformer(fixture: Fixture) -> TimeSformer:
    model = TimeSformer(vision_config(fixture.config))
    state = {n.removeprefix("model."): t for n, t in fixture.weights.items() if ".head." not in n}
    model.load_state_dict(state)
    return model.eval()


def patch_major(c: Tensor, x: Tensor) -> Tensor:
    """The released order of tokens: CLS, then every patch through time."""
    return torch.cat([c, x.transpose(1, 2).flatten(1, 2)], 1)


def check_timesformer(fixture: Fixture) -> None:
    model, video = timesformer(fixture), fixture.inputs["video"].transpose(1, 2)
    seen: list[Tensor] = []
    with torch.no_grad():
        c, x = model.tokens(video, watch=lambda c, x: seen.append(patch_major(c, x)))
    pooled = model(video)
    loss = 100 * (pooled * fixture.inputs["cotangent"]).mean()
    ours = {
        "tokens_after_embed": seen[0],
        **{f"tokens_after_block_{i}": x for i, x in enumerate(seen[1:])},
        "tokens_all": patch_major(c, x),
        "tokens_temporal_pool": pooled,
        "tokens_spatial_pool": torch.cat([c, x.mean(2)], 1),
        "tokens_no_pool": torch.cat([c[:, None].expand(-1, x.shape[1], -1, -1), x], 2),
        "cls": c[:, 0],
        "logits_head": F.linear(c[:, 0], fixture.weights["model.head.weight"], fixture.weights["model.head.bias"]),
        "probe_loss": loss,
    }
    torch.testing.assert_close(pooled.detach(), torch.cat([c, mean_of_frames(x, None)], 1))
    compare(fixture, ours)
    backward(fixture, loss, model, {n: (f"model.{n}",) for n in model.state_dict()})


def check_resizing(fixture: Fixture) -> None:
    c, model = fixture.config, timesformer(fixture)
    with torch.no_grad():
        tokens = patch_major(*model.tokens(fixture.inputs["video"].transpose(1, 2)))
    patches = (c["run_h"] // c["patch"]) * (c["run_w"] // c["patch"])
    positions = resized_positions(model.pos_embed, patches)
    times = resized_rows(model.time_embed, c["run_frames"])
    compare(fixture, {"tokens_all": tokens, "ckpt_resized_pos_embed": positions, "ckpt_resized_time_embed": times})


class TextHalf(nn.Module):
    """The text and fusion encoder with its head for masked words, under the names of the whole model."""

    def __init__(self, fixture: Fixture) -> None:
        super().__init__()
        c = fixture.config
        width, layers = c["text_hidden"], c["text_layers"]
        config = TextConfig(
            c["vocab"], c["max_position"], width, layers, c["fusion_layer"], c["text_heads"], c["text_intermediate"]
        )
        self.text, self.mlm = Bert(config), MaskedWords(width, c["vocab"])
        self.names = {n: tuple(t.removeprefix(TEXT) for t in foreign_name(n, "bert.")) for n in self.state_dict()}
        used = {n for theirs in self.names.values() for n in theirs}
        left = set(fixture.weights) - used - {"bert.embeddings.position_ids"}
        assert not left, f"weights that are not used: {left}"
        self.load_state_dict({n: torch.cat([fixture.weights[t] for t in theirs]) for n, theirs in self.names.items()})
        self.eval()

    def words(self, x: Tensor) -> Tensor:
        return self.mlm(x, self.text.words)


def check_text(fixture: Fixture) -> None:
    half = TextHalf(fixture)
    ids, mask, labels = (fixture.inputs[n] for n in ("input_ids", "attention_mask", "mlm_labels"))
    read = half.text.read(ids, mask)
    every = half.text.run(read, mask, range(half.text.config.text_layers, half.text.config.layers))
    hidden = labels != -100
    loss = alpro.word_losses(half.words(every[hidden]), labels).sum() / hidden.sum()
    ours = {
        "embeddings": half.text.embed(ids),
        "text_hidden": read,
        "all_layers_hidden": every,
        "mlm_logits": half.words(every),
        "mlm_loss_textonly": loss,
    }
    compare(fixture, ours)
    backward(fixture, loss, half, half.names)


def check_fusion(fixture: Fixture) -> None:
    half, mask = TextHalf(fixture), fixture.inputs["attention_mask"]
    read = half.text.read(fixture.inputs["input_ids"], mask)
    fused = half.text.fuse(read, mask, fixture.inputs["video_tokens"])
    loss = 100 * (fused * fixture.inputs["cotangent"]).mean()
    logits = half.words(fused[:, : mask.shape[1]])
    compare(fixture, {"text_hidden": read, "fused_hidden": fused, "mlm_logits": logits, "probe_loss": loss})
    backward(fixture, loss, half, half.names)


# ---------------------------------------------------------------------- whole models


def whole(fixture: Fixture, bert: str = "bert.") -> tuple[Alpro, dict[str, tuple[str, ...]], LoadedAlpro]:
    c = fixture.config
    facts = {"vision_heads": c["vis_heads"], "text_heads": c["text_heads"], "text_layers": c["fusion_layer"]}
    loaded = translate_alpro(fixture.weights, facts)
    assert loaded.config.vision == vision_config(c)
    model = loaded.build()
    return model, {n: foreign_name(n, bert) for n in model.state_dict()}, loaded


def encoded(model: Alpro, fixture: Fixture) -> tuple[Tensor, Tensor, Tensor]:
    mask = fixture.inputs["attention_mask"]
    assert torch.equal(mask.bool(), fixture.inputs["input_ids"] != 0)  # what the model takes for padding by itself
    return model.video(fixture.inputs["video"]), model.text.read(fixture.inputs["input_ids"], mask), mask


def pairs(fixture: Fixture) -> tuple[Tensor, Tensor]:
    return alpro.matching_rows(fixture.outputs["neg_video_for_text"], fixture.outputs["neg_text_for_video"])


def contrastive_and_matching(
    model: Alpro, video: Tensor, text: Tensor, mask: Tensor, fixture: Fixture
) -> dict[str, Tensor]:
    v, t = model.video_vectors(video), model.text_vectors(text)
    rows, columns = pairs(fixture)
    positive = model.match(text, mask, video)
    negative = model.match(text[rows], mask[rows], video[columns])
    return {
        "video_feat": v,
        "text_feat": t,
        "vtc_loss": contrastive(t, v, 1 / model.temp),
        "vtm_logits": torch.cat([positive, negative]),
        "vtm_loss": alpro.matching(positive, negative),
        "neg_video_for_text": columns[: len(v)],
        "neg_text_for_video": rows[len(v) :],
    }


def gathered(fixture: Fixture, what: str, own: Tensor) -> Tensor:
    """The features of all processes: ours at our place, those of the others as they are stored."""
    c, n = fixture.config, len(own)
    stored = [x for name, x in fixture.inputs.items() if what in name and x.ndim == 2 and x.shape[1] == own.shape[1]]
    assert len(stored) == 1, f"{fixture.path.name}: which inputs are the {what} features of all processes?"
    at = c["rank"] * n
    others = stored[0] if len(stored[0]) < c["world"] * n else torch.cat([stored[0][:at], stored[0][at + n :]])
    return torch.cat([others[:at], own, others[at:]])


def vtc_of_rank(fixture: Fixture, model: Alpro, v: Tensor, t: Tensor) -> Tensor:
    """The contrastive loss of the rows of one process over the features of all."""
    truth = fixture.config["rank"] * len(v) + torch.arange(len(v))
    to_texts, to_videos = v @ gathered(fixture, "text", t).T, t @ gathered(fixture, "video", v).T
    return (F.cross_entropy(to_texts / model.temp, truth) + F.cross_entropy(to_videos / model.temp, truth)) / 2


def check_retrieval(fixture: Fixture) -> None:
    model, names, _ = whole(fixture)
    video, text, mask = encoded(model, fixture)
    ours = contrastive_and_matching(model, video, text, mask, fixture)
    v, t = ours["video_feat"], ours["text_feat"]
    if fixture.config["world"] > 1:
        ours["vtc_loss"] = vtc_of_rank(fixture, model, v, t)
    loss = ours["vtc_loss"] + ours["vtm_loss"]
    scores = t @ v.T / model.temp
    with torch.no_grad():
        logits = torch.stack([model.match(text, mask, x.expand_as(video)) for x in video])
    found = logits.softmax(-1)[..., 1]
    ours |= {
        "total_loss": loss,
        "temp": model.temp,
        "text_embeds": text,
        "video_embeds": video,
        "text_proj_raw": model.text_proj(text[:, 0]),
        "video_proj_raw": model.vision_proj(video[:, 0]),
        "sim_t2v_local": scores,
        "sim_v2t_local": scores.T,
        "neg_probs_t2v": alpro.negative_probabilities(scores),
        "neg_probs_v2t": alpro.negative_probabilities(scores.T),
        "vtm_labels": torch.tensor([1] * len(v) + [0] * 2 * len(v)),
        "infer_itc_scores": scores.T,
        "infer_vtm_logits": logits,
        "infer_vtm_prob": found,
        "lavis_score_v2t": logits[..., 1] + v @ t.T,
    }
    compare(fixture, ours)
    backward(fixture, loss, model, names)


def check_qa(fixture: Fixture) -> None:
    model, names, _ = whole(fixture, "")
    logits = model.answer_logits(fixture.inputs["video"], fixture.inputs["input_ids"])
    video, text, _ = encoded(model, fixture)
    loss = F.cross_entropy(logits, fixture.inputs["labels"])
    ours = {"logits": logits, "pred": logits.argmax(1), "loss": loss, "text_embeds": text, "video_embeds": video}
    compare(fixture, ours)
    backward(fixture, loss, model, names)


def prompt_features(model: Alpro, fixture: Fixture, which: str) -> Tensor:
    ids, mask = (fixture.inputs[f"{which}_prompt_{n}"] for n in ("ids", "mask"))
    return prompter.ensembled(model.text_vectors(model.text.read(ids, mask)), fixture.config["num_entities"])


def check_prompter(fixture: Fixture) -> None:
    model, names, _ = whole(fixture)
    video, text, _ = encoded(model, fixture)
    v, t = model.video_vectors(video), model.text_vectors(text)
    scores = v @ t.T / model.temp
    loss = contrastive(t, v, 1 / model.temp)
    with torch.no_grad():
        crop = model.video_vectors(model.video(fixture.inputs["crop_video"]))
        sets = {which: prompt_features(model, fixture, which) for which in ("video", "image")}
        labels = {which: prompter.soft_labels(crop, f, model.temp) for which, f in sets.items()}
    best = labels[fixture.config["prompt_type"]]
    ours = {
        "video_prompt_feat": sets["video"],
        "image_prompt_feat": sets["image"],
        "crop_feat": crop,
        "sim": crop @ sets[fixture.config["prompt_type"]].T / model.temp,
        "soft_labels": best,
        "soft_labels_image_prompts": labels["image"],
        "argmax": best.argmax(1),
        "max_prob": best.max(1).values,
        "ignore_mask_official": ~alpro.kept(best, "released"),
        "ignore_mask_official_image_prompts": ~alpro.kept(labels["image"], "released"),
        "ignore_mask_paper": ~alpro.kept(best),
        "v2t_logprob": scores.log_softmax(1),
        "t2v_logprob": scores.T.log_softmax(1),
        "vtc_loss": loss,
    }
    compare(fixture, ours)
    backward(fixture, loss, model, names)


def labels_of(fixture: Fixture, loaded: LoadedAlpro) -> Tensor:
    """The soft labels of the crop: given, or those of the prompter that came with the weights."""
    if not fixture.config["prompter_included"]:
        return fixture.inputs["soft_labels"]
    assert loaded.prompter is not None
    frozen = loaded.prompter.build()
    c, crop = fixture.config, fixture.inputs["crop_video"]
    mean, std = np.array((0.48145466, 0.4578275, 0.40821073)), np.array((0.26862954, 0.26130258, 0.27577711))
    black = torch.tensor(-mean / std, dtype=torch.float32).view(3, 1, 1)
    ours = prompter.blackened(fixture.inputs["video"], fixture.inputs["mpm_mask"], c["patch"], black)
    torch.testing.assert_close(ours, crop, atol=1e-6, rtol=0)
    with torch.no_grad():
        features = {which: prompt_features(frozen, fixture, which) for which in ("video", "image")}
        seen = frozen.video_vectors(frozen.video(crop))
        return prompter.soft_labels(seen, features[c["prompt_type"]], frozen.temp)


def check_pretraining(fixture: Fixture) -> None:
    model, names, loaded = whole(fixture)
    c, hide = fixture.config, fixture.inputs["mpm_mask"]
    boxes = [prompter.Box(*row) for row in fixture.inputs["crop_top_left_h_w_patches"].tolist()]
    assert torch.equal(prompter.outside(boxes, c["image"] // c["patch"]), hide)
    video, text, mask = encoded(model, fixture)
    ours = contrastive_and_matching(model, video, text, mask, fixture)
    fused = model.text.fuse(text, mask, video)
    seen, labels = fixture.inputs["mlm_input_ids"], fixture.inputs["mlm_labels"]
    hidden = labels != -100
    words = model.text.fuse(model.text.read(seen, mask), mask, video)[:, : seen.shape[1]]
    logits = model.word_logits(words[hidden])
    soft = labels_of(fixture, loaded)
    pooled = alpro.pooled_crop(fused[:, seen.shape[1] :], hide)
    entities = model.entity_logits(pooled)
    ce, keep = alpro.entity_losses(entities, soft), alpro.kept(soft, "released")
    ours |= {
        "fused_positive": fused,
        "mlm_logits_masked": logits,
        "mlm_loss": alpro.word_losses(logits, labels).sum() / hidden.sum(),
        "soft_labels": soft,
        "ignore_mask_official": ~keep,
        "ignore_mask_paper": ~alpro.kept(soft),
        "pem_pooled": pooled,
        "pem_logits": entities,
        "pem_ce_per_sample": ce,
        "pem_loss": alpro.mean_of_kept(ce, keep),
    }
    if "ignore_mask" in fixture.inputs:
        assert torch.equal(fixture.inputs["ignore_mask"].bool(), ~keep)
    ours["total_loss"] = sum(ours[f"{n}_loss"] for n in ("mlm", "vtm", "vtc", "pem"))
    compare(fixture, ours)
    backward(fixture, ours["total_loss"], model, names)


# ---------------------------------------------------------------------- crops and figures


def check_crops(fixture: Fixture) -> None:
    c, raw = fixture.config, fixture.inputs["raw_video"]
    rng = np.random.RandomState(c["np_seed"])
    boxes = [prompter.crop_box(rng, c["image"], c["patch"]) for _ in range(c["batch"])]
    hide = prompter.outside(boxes, c["image"] // c["patch"])
    crop = prompter.blackened(raw, hide, c["patch"])
    context = prompter.blackened(raw, 1 - hide, c["patch"])
    step = c["patch"] // 2
    ours = {
        "top_left_h_w_patches": torch.tensor(boxes),
        "mpm_mask": hide,
        "crop_video_sub": crop[:, 0, 0, ::step, ::step],
        "context_video_sub": context[:, 0, 0, ::step, ::step],
        "crop_video_mean": crop.mean((-2, -1)),
    }
    compare(fixture, ours)


def check_metrics(fixture: Fixture) -> None:
    matrix = Dense(fixture.inputs["scores_text_by_video"])
    truth = torch.arange(fixture.config["n"])
    figures = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "medianR": "MdR", "meanR": "MnR"}
    found = {"text2video": measures(rank_texts(matrix, truth)), "video2text": measures(rank_videos(matrix, truth))}
    compare(
        fixture,
        {f"metrics/{way}_{k}": torch.tensor(m[v]) for way, m in found.items() for k, v in figures.items()},
    )


def check_frames(fixture: Fixture) -> None:
    compared = set()
    for name, wanted in fixture.outputs.items():
        if name.startswith("lr/"):
            compared.add(check_schedule(fixture, name))
        elif found := re.fullmatch(r"(nlvl_)?uniform/len(\d+)_frames(\d+)", name):
            n, frames = int(found[2]), int(found[3])
            # the ablation's rule divides the length into equal parts without rounding them first
            ours = torch.arange(frames) * n // frames if found[1] else torch.from_numpy(sampling.alpro(n, frames))
            assert torch.equal(ours, wanted.long()), f"{fixture.path.name}: {name}"
            compared.add(name)
    if "adamw/weights" in fixture.outputs:
        compared |= check_adamw(fixture)
    assert compared == set(fixture.outputs), f"not compared: {set(fixture.outputs) - compared}"


def check_schedule(fixture: Fixture, name: str) -> str:
    """Stored from 0 updates on; the rate of the first update is entry 1."""
    steps, warmup = re.fullmatch(r"lr/steps(\d+)_warm([\d.]+)", name).groups()
    wanted = fixture.outputs[name].double()
    ours = [rate("hero_linear", PEAK, k - 1, int(steps), float(warmup)) for k in range(len(wanted))]
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), wanted, atol=1e-15, rtol=1e-9)
    return name


def check_adamw(fixture: Fixture) -> set[str]:
    c, path = fixture.config, fixture.outputs["adamw/weights"]
    p = nn.Parameter(path[0].clone())
    optim = OptimConfig("adamw_hf", c["adamw_lr"], 0.0, tuple(c["betas"]), c["adamw_eps"], clip_norm=None)
    updater = Updater({"p": p}, optim, ScheduleConfig("constant"), len(path) - 1)
    for step, grad in enumerate(fixture.outputs["adamw/grads"]):
        p.grad = grad.clone()
        updater.update(step)
        torch.testing.assert_close(p.detach(), path[step + 1], atol=2e-7, rtol=0.0)
    return {"adamw/weights", "adamw/grads"}
