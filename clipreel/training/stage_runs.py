"""A stage run with one seed for `clipreel reproduce`: trained, and measured as its figures were printed.

ALPRO's retrieval: every pair judged by the matching head, and beside it the cosines alone; its pre-training: the same
on 1k-A without fine-tuning; its answers: accuracy for each kind of question. CLIP-ViP's post-pretraining: retrieval
without fine-tuning, plain and after dual softmax. Each way has its own stamp.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipreel.adapter import write
from clipreel.alpro.retriever import AlproRetriever
from clipreel.data.questions import accuracies
from clipreel.data.sample import Sample
from clipreel.data.sets import open_set
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import Features, save_features
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.protocol import Stamp
from clipreel.evaluation.report import protocol, stated
from clipreel.evaluation.reranking import evaluate_reranked
from clipreel.evaluation.runs import encode_videos, features_of, shapes_samples, stamp_of
from clipreel.retriever import Retriever
from clipreel.training.alpro_stages import (
    ENCODED,
    Frames,
    StageConfig,
    Trained,
    answered,
    decoded,
    encode_cached,
    run_stage,
    shown,
    together,
)
from clipreel.training.cells import Figures
from clipreel.training.config import as_dict
from clipreel.training.distributed import on_first
from clipreel.training.engine import Outcome
from clipreel.training.measuring import Say
from clipreel.training.pairs import SHAPES
from clipreel.training.post_pretraining import PostPretrainConfig, post_pretrain
from clipreel.training.stage_data import captions_in, folder_of, label_in, labels_in, mode_in, published, questions_in

MEASURED = "measured.json"
MEASURES = ("R@1", "R@5", "R@10", "MdR", "MnR")


@dataclass
class Judged:
    """What a run reached: way -> measure -> value, the stamp of each way, its protocol in words, what it cost, and how
    the parts of its data that it was trained and selected on are named."""

    ours: Figures = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    protocols: dict[str, str] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    features: Features | None = None

    def add(self, way: str, result: Result, side: str = "t2v", name: str = "{}") -> None:
        row = getattr(result, side)
        self.ours[way] = {name.format(m): row[m] for m in MEASURES}
        self.stamps[way], self.protocols[way] = result.stamp, protocol(result)

    def both(self, result: Result) -> None:
        self.add("t2v", result)
        self.add("v2t", result, "v2t")

    def to_dict(self, config: Any) -> dict[str, Any]:
        stamps = {way: stamp.to_dict() for way, stamp in self.stamps.items()}
        facts = {"ours": self.ours, "stamps": stamps, "protocols": self.protocols, "costs": self.costs}
        return {"schema": 1, "config": as_dict(config), **facts, "parts": self.parts}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Judged:
        stamps = {way: Stamp.from_dict(s) for way, s in data["stamps"].items()}
        return cls(data["ours"], stamps, data["protocols"], data["costs"], data.get("parts", {}))


def finished(folder: Path, config: Any) -> Judged | None:
    """What was measured here with this very config; None where that is not done."""
    try:
        data = json.loads((folder / MEASURED).read_text("utf-8"))
        return Judged.from_dict(data) if data["config"] == json.loads(json.dumps(as_dict(config))) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ClipreelError(f"{folder / MEASURED} is not what a stage measured ({e}); remove it and run again") from e


def run_judged(
    config: StageConfig | PostPretrainConfig,
    folder: Path,
    *,
    base: Retriever | None = None,
    data: Path | None = None,
    cache: Path | None = None,
    device: str = "auto",
    download: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, extra: None,
    say: Say = lambda text: None,
) -> None:
    """Train, measure, and write `folder`/measured.json. The same call goes on where it was killed."""
    if isinstance(config, StageConfig):
        made = run_stage(config, folder, download=download, device=device, progress=progress, say=say)

        def judge() -> None:
            judged = judged_stage(config, made, folder, say)
            judged.costs = spent(made.outcome, made.skipped)
            judged.parts = labels_in(config)
            if made.skipped:
                judged.parts["unread"] = f"partial: {len(made.skipped)} videos could not be read"
            put(folder, judged, config)

        on_first(judge)
        return
    place = cache or folder.parent
    vip = post_pretrain(config, folder, scratch=place, base=base, progress=progress, say=say)

    def judge_vectors() -> None:
        judged = judged_vectors(config, vip.model, folder, data, place)
        judged.costs = spent(vip.outcome, vip.skipped)
        put(folder, judged, config)

    on_first(judge_vectors)


def put(folder: Path, judged: Judged, config: Any) -> None:
    write(folder / MEASURED, (json.dumps(judged.to_dict(config), indent=1) + "\n").encode())


def spent(outcome: Outcome, skipped: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"step": outcome.selected.step, "seconds": round(outcome.seconds, 1), "skipped": len(skipped)}


# ---------------------------------------------------------------------- ALPRO


def judged_stage(config: StageConfig, made: Trained, folder: Path, say: Say) -> Judged:
    """The test of a stage; nothing where it has none, or where pre-training's is not here."""
    judged, test = Judged(), config.test_data
    if not test:
        return judged
    if config.stage in ("prompter", "pretrain"):
        try:
            published(config, test)
            label = label_in(config, test)
        except ClipreelError as e:
            say(f"not measured without fine-tuning: {e}")
            return judged
        name = "zero-shot MSR-VTT {}"
    else:
        label, name = label_in(config, test), "{}"
    how = made.outcome.selected.selection
    if config.stage == "qa":
        return judged_answers(config, made.model, folder, label, how, say)
    samples = captions_in(config, test)
    frames, _ = decoded(made.model, samples, folder / "frames-test", config, say)
    vectors = encode_cached(made.model, samples, frames, config.frames)
    features = features_of(made.model, samples, vectors, label, config.frames)
    features = features.having(caption_mode=mode_in(config, test))
    stamp = features.stamp.having(selection=how)
    tokens = tokens_of(made.model, samples, frames, config.frames)
    matched = evaluate_reranked(made.model, samples, tokens, stamp, form="released")
    plain = features.result()
    plain.stamp = plain.stamp.having(selection=how)
    if config.stage == "retrieval":
        judged.both(matched)
        judged.add("cosine", plain)
    else:
        judged.add(config.stage, matched, name=name)
    return judged


def tokens_of(model: AlproRetriever, samples: Sequence[Sample], frames: Frames, count: int) -> torch.Tensor:
    """Video tokens (V, 1 + N, D); NaN for videos that are missing, which count as missed."""
    here = [i for i, s in enumerate(samples) if s.id in frames]
    parts = [
        model.video_tokens(shown(model, [frames[samples[i].id] for i in here[at : at + ENCODED]], count)).cpu()
        for at in range(0, len(here), ENCODED)
    ]
    if not parts:
        raise ClipreelError("none of the videos to test on can be read; see what clipreel doctor finds")
    found = torch.full((len(samples), *parts[0].shape[1:]), torch.nan)
    found[here] = torch.cat(parts).float()
    return found


def judged_answers(config: StageConfig, model: AlproRetriever, folder: Path, label: str, how: str, say: Say) -> Judged:
    questions = questions_in(config, config.test_data)
    films = together(
        [Sample(q.video_id, q.video, (q.question,)) for q in {q.video_id: q for q in questions}.values()], []
    )
    frames, _ = decoded(model, films, folder / "frames-test", config, say)
    heard = {q.id: frames[q.video_id] for q in questions if q.video_id in frames}
    stamp = stamp_of(model, films, label, config.frames).having(selection=how, caption_mode="questions")
    ours = {"qa": accuracies(questions, answered(model, questions, heard, config.frames))}
    said = stated(stamp, [f"{len(questions)} questions about {len(films)} videos"])
    return Judged(ours, {"qa": stamp}, {"qa": said})


# ---------------------------------------------------------------------- CLIP-ViP


def judged_vectors(
    config: PostPretrainConfig, model: Retriever, folder: Path, data: Path | None, place: Path
) -> Judged:
    """Retrieval without fine-tuning: on the test of the shapes world where that was trained on, else on 1k-A if it is
    here."""
    judged = Judged()
    if any(source.path == SHAPES for source in config.sources.values()):
        samples, label = shapes_samples(place / "shapes" / "test"), "shapes test"
    else:
        place = folder_of("msrvtt1ka", data, own=False)
        if not place.is_dir():
            return judged
        part = open_set("msrvtt1ka", place).part("test")
        samples, label = part.samples, part.label
    vectors, failed = encode_videos(model, samples, config.frames)
    features = features_of(model, samples, vectors, label, config.frames, failed=failed)
    save_features(folder / "features", features)
    judged.both(features.result())
    judged.add("dual_softmax", features.result(dual_softmax="product"))
    return judged
