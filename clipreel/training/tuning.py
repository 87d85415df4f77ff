"""Tuning a base to pairs of videos and captions, from the files to an adapter with its before and after.

The weights are chosen on one part of the data and compared on another, neither of which is trained on (pairs.py).
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clipreel.adapter import fill, load, save_adapter, trained, write
from clipreel.checkpoints import digest
from clipreel.data.cache import FrameCache, prepare
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.bootstrap import Interval, gain, overall, recalls, verdict
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.runs import encode_stacks, evaluate_vectors
from clipreel.retriever import Retriever
from clipreel.sites import Tuner
from clipreel.training.batches import Augment, Loader
from clipreel.training.checkpoint import read_whole
from clipreel.training.config import TrainConfig, as_dict, override, read, to_yaml
from clipreel.training.distributed import after_first, on_first, world
from clipreel.training.engine import Outcome, Snapshot, Validator, fit
from clipreel.training.order import Order
from clipreel.training.pairs import DataConfig, Pairs, read_pairs
from clipreel.training.recipe import Recipe, RetrievalRecipe
from clipreel.training.starting import start_from
from clipreel.tuners import build, method, options

Frames = Mapping[str, np.ndarray]
Say = Callable[[str], None]


@dataclass(frozen=True)
class TuneConfig:
    """Everything that a tuned adapter depends on. `options` change the preset of the `method`; `lr` None takes the
    method's own; `order` says which captions meet in a batch; `random_frames` draws one frame of each part; `loss` is
    a name in losses.TWO, its scale never above `max_scale`; `pixels` changes the pixel recipe of the base; `start` is
    an adapter of the method, or a released checkpoint of it, to go on from."""

    model: str = "openai/clip-vit-base-patch32"
    method: str = "vop_fc"
    options: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    frames: int = 12
    batch: int = 32
    order: Literal["distinct", "pairs", "opposites"] = "distinct"
    random_frames: bool = False
    augment: Augment = field(default_factory=Augment)
    loss: str = "contrastive"
    max_scale: float = 100.0
    pixels: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    lr: float | None = None
    train: TrainConfig = field(default_factory=TrainConfig)


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
class Looked:
    """A model, its vectors (V, E) of the held-out videos, and its result on them."""

    model: Retriever
    videos: torch.Tensor
    result: Result

    def having(self, selection: str) -> Looked:
        """The same, stamped with how the weights were selected."""
        stamp = self.result.stamp.having(selection=selection)
        return replace(self, result=replace(self.result, stamp=stamp))


@dataclass(frozen=True)
class Tuned:
    """What `tune` made: the adapter's folder, the models before and after, both measured on the held-out pairs.

    `last` is measured with the weights of the last step, `compared` with those that validation selected.
    """

    adapter: Path
    before: Looked
    after: Looked
    pairs: Pairs
    outcome: Outcome
    compared: Compared
    last: Result
    general: Compared | None
    facts: dict[str, Any]
    skipped: list[tuple[str, str]]


def cached(
    model: Retriever, samples: Sequence[Sample], folder: Path, keep: int, say: Say
) -> tuple[FrameCache, list[tuple[str, str]]]:
    """The frames of all samples, decoded once; and the videos that could not be read."""
    sampling = replace(model.sampling, frames=keep)

    def forecast(f: Any) -> None:
        if f.videos:
            say(f"decoding {f.videos} videos into {folder} ({f.bytes / 2**20:.0f} MiB)")

    made = prepare(samples, folder, preprocess=model.preprocess, sampling=sampling, wait=True, forecast=forecast)
    return FrameCache(folder), made.skipped


def encode_cached(model: Retriever, samples: Sequence[Sample], frames: Frames, count: int) -> torch.Tensor:
    """Vectors (V, E) of cached videos; NaN rows for those that are missing, which count as missed."""
    stacks = (torch.from_numpy(np.array(taken(frames[s.id], count))) if s.id in frames else None for s in samples)
    return encode_stacks(model, stacks, len(samples))


def taken(stored: np.ndarray, count: int) -> np.ndarray:
    """The middles of `count` equal parts of the stored frames, or all where there are no more."""
    if len(stored) <= count:
        return stored
    return stored[(np.arange(count) * 2 + 1) * len(stored) // (2 * count)]


def measured(model: Retriever, samples: Sequence[Sample], frames: Frames, count: int, split: str) -> Result:
    return evaluate_vectors(model, samples, encode_cached(model, samples, frames, count), split, count)


def look(model: Retriever, samples: Sequence[Sample], frames: Frames, count: int, split: str) -> Looked:
    """A result, and the vectors that it was made of."""
    videos = encode_cached(model, samples, frames, count)
    return Looked(model, videos, evaluate_vectors(model, samples, videos, split, count))


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
    base = with_pixels(base or load(config.model, device=device, download=download), config.pixels)
    pairs = after_first(lambda: read_pairs(config.data, scratch))
    torch.manual_seed(config.train.seed)
    tuner = build(config.method, base.clip, chosen).to(base.device)
    if config.start is not None:
        start_from(tuner, base, config.method, config.start)
    recipe = RetrievalRecipe(base.clip, tuner, base.preprocess, loss=config.loss, max_scale=config.max_scale)
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
    split = f"{config.data.path} held out"

    def seen(model: Retriever, selection: str) -> Looked:
        return look(model, pairs.held_out, frames, config.frames, split).having(selection)

    how = outcome.selected.selection
    before = seen(plain(base, config), how)
    after = seen(adapted(base, tuner_with(base, config, outcome.selected), config), how)
    if outcome.last.step == outcome.selected.step:
        last = after.having(outcome.last.selection)
    else:
        last = seen(adapted(base, tuner_with(base, config, outcome.last), config), outcome.last.selection)
    compared = compare(before.result, after.result, pairs.held_out)
    general = (
        after_first(lambda: general_check(config, base, after.model, scratch, say)) if config.data.general else None
    )
    adapter = folder / "adapter"
    on_first(
        lambda: str(
            save_adapter(
                adapter,
                after.model,
                config.method,
                chosen,
                trained_on={"config": as_dict(config), "pairs": len(pairs.train), "step": outcome.selected.step},
                metrics=compared.to_dict() | ({"general": general.to_dict()} if general else {}),
                helped=compared.helped,
                licence={"base": base.name, "data": config.data.path},
            )
        )
    )
    facts = {"method": config.method, **costs(tuner, adapter, outcome)}
    if world().first:
        made = {
            "config": as_dict(config),
            "costs": facts,
            "compared": compared.to_dict(),
            "last": last.result.to_dict(),
        }
        write(folder / "report.json", (json.dumps(made, indent=1, default=str) + "\n").encode())
        write(folder / "config.yaml", to_yaml(config).encode())
    return Tuned(adapter, before, after, pairs, outcome, compared, last.result, general, facts, skipped)


def with_pixels(base: Retriever, changes: Mapping[str, Any]) -> Retriever:
    """The base with some values of its pixel recipe changed. Raises ClipreelError for one that it does not have."""
    try:
        pixels = replace(base.preprocess, **changes)
    except TypeError as e:
        allowed = ", ".join(base.preprocess.to_dict())
        raise ClipreelError(f"pixels: {', '.join(changes)} do not all fit ({e}); allowed are {allowed}") from e
    return base.adapted(base.tuner, adapter=base.adapter, preprocess=pixels) if changes else base


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
