"""X-Pool in two namings: pooling by text, its loss, its three baselines, and its figures over all captions."""

import json
from pathlib import Path

import torch

from clipreel.evaluation.ranks import rank_texts, rank_videos
from clipreel.evaluation.similarity import Dense
from clipreel.heads import head_of, mean_pool
from clipreel.losses import paired
from clipreel.official import load_official
from tests.parity.fixture import Fixture, load
from tests.parity.kinds.clip4clip import check_grads, compare
from tests.parity.kinds.metrics import official


def check(path: Path) -> None:
    fixture = load(path)
    c = fixture.config
    told = ("vision_heads", "text_heads", "num_mha_heads", "transformer_dropout", "num_frames")
    model = load_official("x-pool", fixture.weights, {k: c[k] for k in told}, device="cpu")
    assert c["layer_norm_eps"] == 1e-5
    assert model.sampling.frames == c["num_frames"]
    head = model.head.requires_grad_(True)
    model.clip.requires_grad_(True)
    captions = model.clip.encode_text(fixture.inputs["input_ids"])
    # the batch of a training step is computed with the rest here; texts do not see each other
    texts = captions[fixture.inputs["train_text_index"]]
    frames = model.clip.encode_video(fixture.inputs["video"])
    known = head.videos(frames, None)
    sims = head(texts, frames)
    loss = paired(model.clip.scale() * sims)
    ours = {
        "text_features": texts,
        "all_text_features": captions,
        "video_features": frames,
        "video_features_pooled": head.pooled(texts, known),
        "all_pooled": head.pooled(captions, known),
        "sims_train": sims,
        "sims_all_captions": head.score(captions, frames),
        "loss": loss,
        "baseline_avg_pooled": mean_pool(frames, normalize=False),
        "baseline_avg_sims": head_of("mean", head.width)(texts, frames),
    }
    baselines = {"topk": ("top_frames", {"k": c["topk"]})}
    baselines["attention"] = ("soft_frames", {"temperature": c["attention_temperature"]})
    for theirs, (name, options) in baselines.items():
        plain = head_of(name, head.width, options)
        ours[f"baseline_{theirs}_pooled"] = plain.pooled(texts, plain.videos(frames, None))
        ours[f"baseline_{theirs}_sims"] = plain(texts, frames)
    compare(fixture, ours)
    figures(fixture, ours["sims_all_captions"])
    loss.backward()
    check_grads(fixture, model)


def figures(fixture: Fixture, sims: torch.Tensor) -> None:
    truth, matrix = fixture.inputs["text_to_video"], Dense(sims)
    ranks = {"t2v": rank_texts(matrix, truth), "v2t_video_level": rank_videos(matrix, truth, "video")}
    for way, wanted in json.loads(fixture.meta["metrics_all_captions"]).items():
        official(f"{fixture.path.name}: {way}", f"xpool_{way}", wanted, ranks)
