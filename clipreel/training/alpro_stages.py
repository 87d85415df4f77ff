"""One stage of ALPRO from its data to a saved model: prompter, pretrain, retrieval or qa (specification alpro.md 4).

A stage is a config; the six published ones are in configs/alpro. It starts from a model of an earlier stage, or from
a ViT and BERT, trains on the one loop, and writes a folder that `clipreel.load` takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clipreel.alpro.model import AlproConfig
from clipreel.alpro.prompter import Prompter, read_entities
from clipreel.alpro.retriever import AlproRetriever, is_alpro, load_alpro, load_official, read_words, save_alpro
from clipreel.alpro.start import start, weights_of, with_heads
from clipreel.alpro.wordpiece import WordPiece
from clipreel.data.cache import FrameCache, prepare
from clipreel.data.questions import Question, accuracies, answer_vocabulary
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.runs import evaluate_vectors
from clipreel.retriever import pick_device
from clipreel.training.alpro import STAGES, AlproRecipe, QaRecipe
from clipreel.training.alpro_augment import LARGER, Which, augmentation
from clipreel.training.batches import Loader
from clipreel.training.config import TrainConfig, as_dict, within
from clipreel.training.distributed import after_first, on_first, world
from clipreel.training.engine import Outcome, Validator, fit, restore
from clipreel.training.log import read_log
from clipreel.training.mixed import Mixed
from clipreel.training.order import Order
from clipreel.training.pairs import LEAST, enough
from clipreel.training.recipe import Recipe
from clipreel.training.stage_data import captions_in, films, questions_in, refuse_overlap
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

ENCODED = 8  # videos that are encoded together while measuring
Frames = Mapping[str, np.ndarray]
Say = Callable[[str], None]


@dataclass(frozen=True)
class StageConfig:
    """Everything a stage depends on.

    `train_data`, `validation_data` and `test_data` (measured by `clipreel reproduce`) are files, or SET/SPLIT of a
    published set in its `form` below `root` (stage_data.py). `model` is the folder or released file it starts from;
    without it `vit` and `bert` are (a file, folder or hub id; empty: random). `keep_frames` of each video are decoded
    once, `frames` of them drawn by `sampling` in each step.
    `augment` says how the pixels of videos change (alpro_augment.py); with "video", `images` are changed as pictures.
    """

    stage: Literal["prompter", "pretrain", "retrieval", "qa"] = "retrieval"
    model: str = ""
    vit: str = ""
    bert: str = ""
    tokenizer: str = ""
    sizes: AlproConfig = field(default_factory=AlproConfig)
    prompter: str = ""
    entities: str = ""
    most_entities: int = 1000
    train_data: str = ""
    validation_data: str = ""
    test_data: str = ""
    form: str | None = None
    root: str | None = None
    images: str = ""
    videos: str | None = None
    answers: str = ""
    most_answers: int = 1500
    frames: int = 8
    keep_frames: int = 32
    sampling: str = "alpro_random"
    tokens: int = 40
    batch: int = 64
    augment: Which = "none"
    order: Literal["distinct", "pairs"] = "pairs"
    same_video: Literal["right", "wrong"] = "right"
    negatives_within: int | None = None
    keep: Literal["confidence", "released"] = "confidence"
    keep_least: float = 0.2
    frozen_attention: bool = False
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        within("keep_least", self.keep_least, 0.0, 1.0)
        for name in ("frames", "keep_frames", "most_entities", "most_answers"):
            within(name, getattr(self, name), 1)
        within("batch", self.batch, 1 if self.stage == "qa" else LEAST)  # a video alone is never told from another
        within("tokens", self.tokens, 3)  # a word between the tokens of start and end
        within("negatives_within", self.negatives_within, LEAST)


@dataclass(frozen=True)
class Trained:
    """What a stage made: the folder of the model, how the run went, what validation measured."""

    folder: Path
    model: AlproRetriever
    outcome: Outcome
    skipped: list[tuple[str, str]]


def run_stage(
    config: StageConfig,
    folder: Path,
    *,
    download: bool = False,
    device: str = "auto",
    progress: Callable[[int, int, str], None] = lambda done, total, extra: None,
    say: Say = lambda text: None,
) -> Trained:
    """Train a stage and write the selected weights into `folder`/model. The same call goes on where it was killed.

    Raises ClipreelError for data, sizes or a start that do not fit together.
    """
    folder = Path(folder)
    torch.manual_seed(config.train.seed)
    base = beginning(config, download, device)
    if config.stage == "qa":
        return answer_stage(config, base, folder, progress, say)
    train, validation = (captions_in(config, p) for p in (config.train_data, config.validation_data))
    images = read_samples(config.images) if config.images else []
    if not train:
        raise ClipreelError("there is no data to train on; set train_data")
    refuse_overlap(config, train, validation)
    prompter = prompter_of(config, device) if config.stage == "pretrain" else None
    # squares are cut from larger frames; those to measure on are whole
    larger = LARGER if config.augment == "video" else 1.0
    apart = larger > 1
    cached, skipped = decoded(
        base, together(train, [] if apart else validation), folder / "frames", config, say, larger
    )
    frames = cached
    if apart:
        frames, bad = decoded(base, together([], validation), folder / "frames-whole", config, say)
        skipped += bad
    loaders = [loader_of(base, [s for s in train if s.id in cached], cached, config, config.sampling)]
    if images:
        stills, bad = decoded(base, images, folder / "frames-images", config, say, larger)
        one = replace(config, augment="picture") if config.augment == "video" else config
        loaders.append(loader_of(base, [s for s in images if s.id in stills], stills, one, "alpro"))
        skipped += bad
    recipe = AlproRecipe(
        base.model,
        base.preprocess,
        words_of(base),
        STAGES[config.stage],
        prompter=prompter,
        keep=config.keep,
        keep_least=config.keep_least,
        same_video=config.same_video,
        negatives_within=config.negatives_within,
    )

    def measure(_: Recipe) -> dict[str, float]:
        vectors = encode_cached(base, validation, frames, config.frames)
        result = evaluate_vectors(base, validation, vectors, "validation", config.frames)
        return {f"t2v {k}": result.t2v[k] for k in ("R@1", "R@5", "R@10")}

    loader: Any = loaders[0] if len(loaders) == 1 else Mixed(loaders, config.train.seed)
    return finish(config, base, recipe, loader, measure if validation else None, folder, skipped, progress, say)


def answer_stage(
    config: StageConfig, base: AlproRetriever, folder: Path, progress: Callable[[int, int, str], None], say: Say
) -> Trained:
    questions, judged = (questions_in(config, p) for p in (config.train_data, config.validation_data))
    if not questions:
        raise ClipreelError("there are no questions to train on; set train_data")
    if config.answers and not Path(config.answers).is_file():
        raise ClipreelError(f"there is no file {config.answers}; give answers as a JSON list of words, or leave it out")
    answers = read_words(Path(config.answers)) if config.answers else answer_vocabulary(questions, config.most_answers)
    if not answers:
        raise ClipreelError(f"the answers in {config.answers} are empty; give a JSON list of words, or leave it out")
    number = {a: i for i, a in enumerate(answers)}
    labels = {q.id: number[q.answer] for q in questions if q.answer in number}
    if not labels:
        raise ClipreelError(
            f"none of the {len(questions)} questions has an answer of the vocabulary (the first is "
            f"{questions[0].answer!r}, the vocabulary begins with {answers[0]!r}); give their own, or leave answers out"
        )
    if len(labels) < len(questions):
        say(f"{len(questions) - len(labels)} of {len(questions)} questions have an answer outside the vocabulary")
    base = regrown(base, answers=answers)
    long = sum(len(words_of(base).encode(q.question)) > base.context - 2 for q in questions)
    if long:
        say(f"{long} of {len(questions)} questions are cut to the {base.context - 2} tokens that are read; see tokens")
    shown_in = films(questions), films(judged)
    refuse_overlap(config, *shown_in)
    frames, skipped = decoded(base, together(*shown_in), folder / "frames", config, say)
    seen, heard = ({q.id: frames[q.video_id] for q in part if q.video_id in frames} for part in (questions, judged))
    rows = [q.sample() for q in questions if q.id in seen and q.id in labels]
    loader = loader_of(base, rows, seen, config, config.sampling)
    recipe = QaRecipe(base.model, base.preprocess, labels, frozen_attention=config.frozen_attention)

    def measure(_: Recipe) -> dict[str, float]:
        return accuracies(judged, answered(base, judged, heard, config.frames))

    return finish(config, base, recipe, loader, measure if judged else None, folder, skipped, progress, say)


def finish(
    config: StageConfig,
    base: AlproRetriever,
    recipe: Recipe,
    loader: Any,
    measure: Callable[[Recipe], dict[str, float]] | None,
    folder: Path,
    skipped: list[tuple[str, str]],
    progress: Callable[[int, int, str], None],
    say: Say,
) -> Trained:
    """Train, put the selected weights in, save."""
    known = as_dict(replace(config, train=TrainConfig()))
    facts = {"config": hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]}
    split = Validator(config.train.select.split, measure) if measure else None
    outcome = fit(
        recipe, loader, config.train, folder / "run", validator=split, facts=facts, progress=progress, say=say
    )
    kept = [row["kept"] for row in read_log(folder / "run") if "kept" in row]
    if kept and not any(kept):
        say(f"the prompter was never as sure as keep_least: {config.keep_least}, so entities taught nothing; lower it")
    restore(recipe, outcome.selected.weights)
    base.__dict__.pop("fingerprint", None)
    base.__dict__.pop("space", None)
    on_first(lambda: str(save_alpro(base, folder / "model")))
    return Trained(folder / "model", base, outcome, skipped)


# ---------------------------------------------------------------------- parts


def beginning(config: StageConfig, download: bool, device: str = "auto") -> AlproRetriever:
    """The model that a stage starts from, at its number of frames and tokens."""
    if config.model and is_alpro(config.model):
        return view(load_alpro(config.model, device=device, dtype="float32"), config)
    words = config.tokenizer or config.bert
    if not words:
        raise ClipreelError("nothing says how text is read: set tokenizer (a folder or file with BERT's vocabulary)")
    if config.model:
        facts = {"tokenizer": words, "frames": config.frames, "context": config.tokens}
        return view(load_official("alpro-retrieval", config.model, facts, device=device, dtype="float32"), config)
    tokenizer = WordPiece.from_files(words)
    vision = replace(config.sizes.vision, frames=config.frames)
    text = replace(config.sizes.text, vocab=max(config.sizes.text.vocab, tokenizer.vocab_size))
    model = start(
        replace(config.sizes, vision=vision, text=text),
        weights_of(config.vit, download) if config.vit else None,
        weights_of(config.bert, download) if config.bert else None,
    )
    entities = read_entities(config.entities, config.most_entities) if config.stage == "pretrain" else ()
    return AlproRetriever(
        with_heads(model, entities=len(entities)).to(pick_device(device)),
        tokenizer=tokenizer,
        preprocess=Preprocess(vision.image_size, "uint8", "squash"),
        sampling=Sampling("uniform", config.frames),
        name="new ALPRO",
        context=config.tokens,
        entities=entities,
    )


def view(model: AlproRetriever, config: StageConfig) -> AlproRetriever:
    """The model with the tokens and frames of a stage."""
    return AlproRetriever(
        model.model,
        tokenizer=model.tokenizer,
        preprocess=model.preprocess,
        sampling=Sampling("uniform", config.frames),
        name=model.name,
        context=config.tokens,
        answers=model.answers,
        entities=model.entities,
    )


def regrown(base: AlproRetriever, answers: Sequence[str]) -> AlproRetriever:
    """The same weights with an answer head for these answers; one that fits already is kept."""
    if base.answers == tuple(answers):
        return base
    model = with_heads(base.model, answers=len(answers)).to(base.device)
    return AlproRetriever(
        model,
        tokenizer=base.tokenizer,
        preprocess=base.preprocess,
        sampling=base.sampling,
        name=base.name,
        context=base.context,
        answers=answers,
    )


def prompter_of(config: StageConfig, device: str) -> Prompter:
    if not config.prompter or not config.entities:
        raise ClipreelError("pre-training needs a prompter (a folder of that stage) and entities (a vocabulary file)")
    found = load_alpro(config.prompter, device=device, dtype="float32")
    return Prompter(found.model, words_of(found), read_entities(config.entities, config.most_entities))


def words_of(model: AlproRetriever) -> WordPiece:
    if model.tokenizer is None:
        raise ClipreelError(f"{model.name} has no vocabulary; set tokenizer")
    return model.tokenizer


def together(train: Sequence[Sample], validation: Sequence[Sample]) -> list[Sample]:
    """Every video once. Raises ClipreelError where an id means two videos."""
    found: dict[str, Sample] = {}
    for s in (*train, *validation):
        known = found.setdefault(s.id, s)
        if (known.video, known.start_s, known.end_s) != (s.video, s.start_s, s.end_s):
            raise ClipreelError(f"the id {s.id!r} means {known.video} and {s.video}; give each video its own id")
    return list(found.values())


def decoded(
    base: AlproRetriever, samples: Sequence[Sample], folder: Path, config: StageConfig, say: Say, larger: float = 1.0
) -> tuple[Frames, list[tuple[str, str]]]:
    """The frames of all videos, decoded once, by the factor `larger` than the model's; and the videos that could not
    be read."""
    if not samples:
        return {}, []

    def forecast(f: Any) -> None:
        if f.videos:
            say(f"decoding {f.videos} videos into {folder} ({f.bytes / 2**20:.0f} MiB)")

    sampling = Sampling("uniform", config.keep_frames)
    pixels = replace(base.preprocess, size=round(base.preprocess.size * larger))
    made = after_first(lambda: prepare(samples, folder, preprocess=pixels, sampling=sampling, forecast=forecast))
    return FrameCache(folder), made.skipped


def loader_of(
    base: AlproRetriever, samples: list[Sample], frames: Frames, config: StageConfig, sampling: str
) -> Loader:
    enough(len(samples), "the data to train on", 1 if config.stage == "qa" else LEAST)
    return Loader(
        Order(samples, config.order, batch=config.batch, seed=config.train.seed),
        frames,
        lambda texts: words_of(base)(texts, base.context),
        sampling=Sampling(sampling, config.frames),
        augment=augmentation(config.augment),
        size=base.preprocess.size,
        rank=world().rank,
        world=world().size,
    )


def shown(base: AlproRetriever, stored: Sequence[np.ndarray], count: int) -> torch.Tensor:
    """Normalised pixels of `count` evenly spread frames of each video."""
    picked = [s[(np.arange(count) * 2 + 1) * len(s) // (2 * count)] for s in stored]
    return base.preprocess.normalise(torch.from_numpy(np.stack(picked)).to(base.device))


@torch.no_grad()
def encode_cached(base: AlproRetriever, samples: Sequence[Sample], frames: Frames, count: int) -> torch.Tensor:
    """Vectors (V, E) of cached videos; NaN rows for those that are missing, which count as missed."""
    found = torch.full((len(samples), base.embed_dim), torch.nan)
    here = [i for i, s in enumerate(samples) if s.id in frames]
    for at in range(0, len(here), ENCODED):
        rows = here[at : at + ENCODED]
        found[rows] = base.encode_video(shown(base, [frames[samples[i].id] for i in rows], count)).cpu()
    return found


@torch.no_grad()
def answered(base: AlproRetriever, questions: Sequence[Question], frames: Frames, count: int) -> dict[str, str]:
    """The likeliest answer by question id; questions whose video is missing have none."""
    found: dict[str, str] = {}
    here = [q for q in questions if q.id in frames]
    for at in range(0, len(here), ENCODED):
        part = here[at : at + ENCODED]
        ids = base.ids([q.question for q in part]).to(base.device)
        logits = base.model.answer_logits(shown(base, [frames[q.id] for q in part], count), ids)
        best = logits[:, : len(base.answers)].argmax(1).tolist()
        found |= {q.id: base.answers[i] for q, i in zip(part, best, strict=True)}
    return found
