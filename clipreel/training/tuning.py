"""Tuning a base to pairs of videos and captions, from the files to an adapter with its before and after.

Three parts of the data never meet: pairs that are trained on, pairs that choose the weights, and held-out pairs that
the comparison is made on. All captions and all parts of one video stay on one side.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clipreel.adapter import digest, fill, load, save_adapter, trained, write
from clipreel.data.cache import FrameCache, prepare
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.bootstrap import Interval, gain, overall, recalls, verdict
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.runs import evaluate_vectors
from clipreel.retriever import Retriever
from clipreel.sites import Tuner
from clipreel.training.batches import Augment, Loader
from clipreel.training.checkpoint import read_whole
from clipreel.training.config import TrainConfig, as_dict, override, read, to_yaml
from clipreel.training.distributed import after_first, on_first, world
from clipreel.training.engine import Outcome, Snapshot, Validator, fit
from clipreel.training.order import Order
from clipreel.training.recipe import Recipe, RetrievalRecipe
from clipreel.tuners import build, method, options

SHAPES = "shapes"
BATCH = 16  # videos encoded at once while measuring
Frames = Mapping[str, np.ndarray]
Say = Callable[[str], None]


@dataclass(frozen=True)
class DataConfig:
    """Where pairs come from. `path` is "shapes" (the shapes world), or what `read_samples` reads.

    Splits are named (`train`, `validation`, `held_out`) where the file has a split column, else drawn by the shares
    `validation_share` and `held_out_share`. `general` is a second set that must not get worse.
    """

    path: str = ""
    videos: str | None = None
    train: str | None = None
    validation: str | None = None
    held_out: str | None = None
    validation_share: float = 0.1
    held_out_share: float = 0.2
    general: str | None = None


@dataclass(frozen=True)
class TuneConfig:
    """Everything that a tuned adapter depends on. `options` change the preset of the `method`; `lr` None takes the
    method's own; `order` says which captions meet in a batch; `random_frames` draws one frame of each part."""

    model: str = "openai/clip-vit-base-patch32"
    method: str = "vop_fc"
    options: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    frames: int = 12
    batch: int = 32
    order: Literal["distinct", "pairs", "opposites"] = "distinct"
    random_frames: bool = False
    augment: Augment = field(default_factory=Augment)
    lr: float | None = None
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Pairs:
    """The three parts of a data set; `opposite_of` names the order-opposite of training videos where it is known."""

    train: list[Sample]
    validation: list[Sample]
    held_out: list[Sample]
    opposite_of: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Compared:
    """A data set before and after: results, intervals of the recalls, the paired gains, and what follows."""

    before: Result
    after: Result
    intervals: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]
    overall: Interval
    helped: bool | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "intervals": {k: {n: asdict(i) for n, i in v.items()} for k, v in self.intervals.items()},
            "gains": {k: {n: asdict(i) for n, i in v.items()} for k, v in self.gains.items()},
            "overall_gain": asdict(self.overall),
            "helped": self.helped,
        }


@dataclass(frozen=True)
class Tuned:
    """What `tune` made: the adapter's folder, the models before and after, both measured on the held-out pairs.

    `last` is measured with the weights of the last step, `compared` with those that validation selected.
    """

    adapter: Path
    before: Retriever
    after: Retriever
    pairs: Pairs
    frames: Frames
    outcome: Outcome
    compared: Compared
    last: Result
    general: Compared | None
    facts: dict[str, Any]
    skipped: list[tuple[str, str]]


def shapes_pairs(folder: Path, seed: int = 0) -> Pairs:
    """The shapes world as video files below a folder."""
    made = ShapesWorld(seed)
    train, validation, held_out = (made.write_videos(folder / split, split) for split in ("train", "val", "test"))
    opposite = {i.id: i.opposite for i in made.videos("train") if i.opposite is not None}
    return Pairs(train, validation, held_out, opposite)


def read_pairs(config: DataConfig, scratch: Path) -> Pairs:
    """The three parts. Raises ClipreelError where one of them would be empty."""
    if not config.path:
        raise ClipreelError("there is no data to tune on; give a file of videos and captions, or shapes")
    if config.path == SHAPES:
        return shapes_pairs(scratch / "shapes")
    rows = partial(read_samples, config.path, config.videos)
    names = [name for name in (config.train, config.validation, config.held_out) if name]
    if names:
        if len(names) < 3:
            raise ClipreelError("name all of data.train, data.validation and data.held_out, or none of them")
        train, validation, held_out = (rows(split=name) for name in names)
        return Pairs(train, validation, held_out)
    parts: tuple[list[Sample], list[Sample], list[Sample]] = ([], [], [])
    for sample in rows():
        # by the video's name, so that a set that grows keeps its sides, and all parts of a video stay together
        draw = int.from_bytes(hashlib.blake2b(os.fsencode(sample.video.name), digest_size=4).digest(), "big") / 2**32
        held = draw < config.held_out_share
        parts[2 if held else 1 if draw < config.held_out_share + config.validation_share else 0].append(sample)
    for part, what in zip(parts, ("trained on", "used for validation", "held out"), strict=True):
        if len({s.video for s in part}) < 2:
            raise ClipreelError(
                f"{config.path} holds {sum(map(len, parts))} videos, and {len(part)} of them would be {what}: give "
                "more videos, or other shares (data.held_out_share, data.validation_share)"
            )
    return Pairs(*parts)


def cached(
    model: Retriever, samples: Sequence[Sample], folder: Path, keep: int, say: Say
) -> tuple[FrameCache, list[tuple[str, str]]]:
    """The frames of all samples, decoded once; and the videos that could not be read."""
    sampling = replace(model.sampling, frames=keep)

    def forecast(f: Any) -> None:
        if f.videos:
            say(f"decoding {f.videos} videos into {folder} ({f.bytes / 2**20:.0f} MiB)")

    made = prepare(samples, folder, preprocess=model.preprocess, sampling=sampling, forecast=forecast)
    return FrameCache(folder), made.skipped


@torch.no_grad()
def encode_cached(model: Retriever, samples: Sequence[Sample], frames: Frames, count: int) -> torch.Tensor:
    """Vectors (V, E) of cached videos; NaN rows for those that are missing, which count as missed."""
    found = torch.full((len(samples), model.embed_dim), torch.nan)
    here = [i for i, s in enumerate(samples) if s.id in frames]
    for start in range(0, len(here), BATCH):
        rows = here[start : start + BATCH]
        stacks = [torch.from_numpy(np.array(taken(frames[samples[i].id], count))) for i in rows]
        longest = max(len(s) for s in stacks)
        mask = torch.tensor([[t < len(s) for t in range(longest)] for s in stacks])
        padded = torch.stack([torch.cat([s, s[-1:].expand(longest - len(s), -1, -1, -1)]) for s in stacks])
        pixels = model.preprocess.normalise(padded.to(model.device))
        found[rows] = model.encode_video(pixels, None if mask.all() else mask).cpu()
    return found


def taken(stored: np.ndarray, count: int) -> np.ndarray:
    """The middles of `count` equal parts of the stored frames, or all where there are no more."""
    if len(stored) <= count:
        return stored
    return stored[(np.arange(count) * 2 + 1) * len(stored) // (2 * count)]


def measured(model: Retriever, samples: Sequence[Sample], frames: Frames, count: int, split: str) -> Result:
    return evaluate_vectors(model, samples, encode_cached(model, samples, frames, count), split, count)


def compare(before: Result, after: Result, samples: Sequence[Sample]) -> Compared:
    """Two results on the same pairs. Raises ClipreelError where they were not made in the same way."""
    before.stamp.require_equal(after.stamp)
    assert before.ranks is not None
    assert after.ranks is not None
    owners = [i for i, s in enumerate(samples) for _ in s.captions]
    sides = {"t2v": (0, owners), "v2t": (1, list(range(len(samples))))}
    intervals = {
        f"{when} {name}": recalls(r.ranks[i], o)
        for when, r in (("before", before), ("after", after))
        for name, (i, o) in sides.items()
        if r.ranks is not None
    }
    gains = {name: gain(before.ranks[i], after.ranks[i], o) for name, (i, o) in sides.items()}
    total = overall(before.ranks, after.ranks, owners)
    return Compared(before, after, intervals, gains, total, verdict(total))


def tuner_with(base: Retriever, config: TuneConfig, snapshot: Snapshot) -> Tuner:
    """The method with the weights of a snapshot, ready for use."""
    tuner = build(config.method, base.clip, resolved(config))
    tensors = {n: t for n, t in read_whole(snapshot.weights)[0].items() if n in trained(tuner)}
    fill(tuner, tensors, str(snapshot.weights))
    return tuner.requires_grad_(False).to(base.device).eval()


def read_config(
    path: Path | None, changes: Sequence[str] = (), *, method: str | None = None, model: str | None = None
) -> TuneConfig:
    """A config from a YAML file (the defaults without one), then method and model, then changes such as "lr=1e-3".

    Changes may name every option of the method, as options.joint_layers=2.
    """
    config = read(TuneConfig, path)
    first = [c for c in changes if c.startswith("method=")]
    for change in first:
        config = override(config, change)
    config = replace(config, method=method or config.method, model=model or config.model)
    every = options(config.method, config.options)
    if "frames" not in config.options:  # follows the frames of the config
        every.pop("frames", None)
    config = replace(config, options=every)
    for change in changes:
        if change not in first:
            config = override(config, change)
    resolved(config)  # a wrong value is told here
    return config


def resolved(config: TuneConfig) -> dict[str, Any]:
    """All options of the method; those that learn frame positions learn as many as there are frames."""
    stated = dict(config.options)
    if "frames" in options(config.method, {}) and "frames" not in stated:
        stated["frames"] = config.frames
    return options(config.method, stated)


def tune(
    config: TuneConfig,
    folder: Path,
    *,
    scratch: Path | None = None,
    base: Retriever | None = None,
    device: str = "auto",
    download: bool = True,
    progress: Callable[[int, int, str], None] = lambda done, total, extra: None,
    say: Say = lambda text: None,
) -> Tuned:
    """Train, select on validation, compare on held-out pairs, and write the adapter into `folder`/adapter.

    `scratch` holds decoded frames (default: `folder`), which runs may share. The same call goes on where a killed run
    stopped. Under torchrun, processes share the batch, and the first one writes. Raises ClipreelError for data, options
    or a base that do not fit, before anything is decoded.
    """
    folder, scratch = Path(folder), Path(scratch or folder)
    rate, chosen = method(config.method).rate, resolved(config)
    base = base or load(config.model, device=device, download=download)
    pairs = after_first(lambda: read_pairs(config.data, scratch))
    torch.manual_seed(config.train.seed)
    tuner = build(config.method, base.clip, chosen).to(base.device)
    recipe = RetrievalRecipe(base.clip, tuner, base.preprocess)
    keep = config.frames * (3 if config.random_frames else 1)
    everything = [*pairs.train, *pairs.validation, *pairs.held_out]
    place = scratch / f"frames-{base.preprocess.fingerprint()[:6]}-{keep}"
    frames, skipped = after_first(lambda: cached(base, everything, place, keep, say))
    train = replace(config.train, optim=replace(config.train.optim, lr=config.lr or rate))
    loader = loader_of(base, tuner, [s for s in pairs.train if s.id in frames], pairs, frames, config)
    validation = [s for s in pairs.validation if s.id in frames]

    def measure(_: Recipe) -> dict[str, float]:
        now = measured(adapted(base, tuner, config), validation, frames, config.frames, "validation")
        return {f"{way} {k}": d[k] for way, d in (("t2v", now.t2v), ("v2t", now.v2t)) for k in ("R@1", "R@5", "R@10")}

    outcome = fit(
        recipe,
        loader,
        train,
        folder / "run",
        validator=Validator("validation", measure),
        facts=facts_of(config, base, pairs),
        progress=progress,
        say=say,
    )
    last = adapted(base, tuner_with(base, config, outcome.last), config)
    after = adapted(base, tuner_with(base, config, outcome.selected), config)
    split = f"{config.data.path} held out"
    count = config.frames
    results = [measured(r, pairs.held_out, frames, count, split) for r in (plain(base, config), last, after)]
    how = outcome.selected.selection
    stamped = [at(r, s) for r, s in zip(results, (how, outcome.last.selection, how), strict=True)]
    compared = compare(stamped[0], stamped[2], pairs.held_out)
    general = after_first(lambda: general_check(config, base, after, scratch, say)) if config.data.general else None
    adapter = folder / "adapter"
    on_first(
        lambda: str(
            save_adapter(
                adapter,
                after,
                config.method,
                chosen,
                trained_on={"config": as_dict(config), "pairs": len(pairs.train), "step": outcome.selected.step},
                metrics=compared.to_dict() | ({"general": general.to_dict()} if general else {}),
                helped=compared.helped,
                licence={"base": base.name, "data": config.data.path},
            )
        )
    )
    facts = costs(tuner, adapter, outcome)
    if world().first:
        made = {"config": as_dict(config), "costs": facts, "compared": compared.to_dict(), "last": stamped[1].to_dict()}
        write(folder / "report.json", (json.dumps(made, indent=1, default=str) + "\n").encode())
        write(folder / "config.yaml", to_yaml(config).encode())
    before = plain(base, config)
    return Tuned(adapter, before, after, pairs, frames, outcome, compared, stamped[1], general, facts, skipped)


def at(result: Result, selection: str) -> Result:
    return replace(result, stamp=result.stamp.having(selection=selection))


def plain(base: Retriever, config: TuneConfig) -> Retriever:
    """The base with as many frames and text slots as after, so that the two can be compared."""
    return base.adapted(base.tuner, adapter="none", sampling=replace(base.sampling, frames=config.frames))


def adapted(base: Retriever, tuner: Tuner, config: TuneConfig) -> Retriever:
    sampling = replace(base.sampling, frames=config.frames)
    return base.adapted(tuner, adapter=digest(trained(tuner)), sampling=sampling)


def loader_of(
    base: Retriever, tuner: Tuner, samples: list[Sample], pairs: Pairs, frames: FrameCache, config: TuneConfig
) -> Loader:
    order = Order(samples, config.order, batch=config.batch, seed=config.train.seed, opposite_of=pairs.opposite_of)
    tokenizer, slots = base.tokenizer, base.clip.config.context - tuner.text_slots
    if tokenizer is None:
        raise ClipreelError(f"{base.name} has no vocabulary, so captions cannot be read: put tokenizer.json beside it")
    return Loader(
        order,
        frames,
        lambda texts: tokenizer(texts, slots),
        sampling=frames.pick(config.frames, config.random_frames),
        augment=config.augment,
        size=base.preprocess.size,
        rank=world().rank,
        world=world().size,
    )


def facts_of(config: TuneConfig, base: Retriever, pairs: Pairs) -> dict[str, Any]:
    """What a resumed run must share with its beginning, besides the training config."""
    known = as_dict(replace(config, train=TrainConfig()))
    names = "\n".join(f"{s.id}\t{c}" for s in pairs.train for c in s.captions)
    return {"base": base.fingerprint, "pairs": hashlib.sha256(names.encode()).hexdigest()[:16], "config": known}


def general_check(config: TuneConfig, base: Retriever, after: Retriever, scratch: Path, say: Say) -> Compared:
    """The second data set, whole, before and after."""
    samples = read_samples(str(config.data.general))
    frames, _ = cached(base, samples, scratch / "frames-general", config.frames, say)
    first, then = (measured(r, samples, frames, config.frames, "general") for r in (plain(base, config), after))
    return compare(first, then, samples)


def costs(tuner: Tuner, adapter: Path, outcome: Outcome) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    size = sum(p.stat().st_size for p in adapter.iterdir() if p.suffix == ".safetensors")
    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "trainable": sum(p.numel() for p in tuner.parameters()),
        "adapter_bytes": size,
        "seconds": round(outcome.seconds, 1),
        "data_wait": round(outcome.data_wait, 4),
        "peak_memory_bytes": cuda or peak,
        "step": outcome.selected.step,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
