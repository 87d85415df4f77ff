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
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from clipreel.adapter import fill, load, save_adapter, trained, write
from clipreel.checkpoints import digest
from clipreel.data.cache import FrameCache
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import save_features
from clipreel.evaluation.metrics import Result
from clipreel.head_files import save_head
from clipreel.heads import Head, build_head, head_named, head_options
from clipreel.losses import missed_in
from clipreel.retriever import Retriever
from clipreel.sites import PLAIN, Tuner
from clipreel.training.batches import Augment, Loader
from clipreel.training.checkpoint import read_whole, take
from clipreel.training.config import GroupRule, TrainConfig, as_dict, override, read, to_yaml
from clipreel.training.distributed import after_first, on_first, world
from clipreel.training.engine import Outcome, Snapshot, Validator, fit
from clipreel.training.measuring import Compared, Looked, Say, below, cached, compare, look, measured
from clipreel.training.order import Order
from clipreel.training.pairs import DataConfig, Pairs, read_pairs
from clipreel.training.recipe import HeadRecipe, Recipe, RetrievalRecipe
from clipreel.training.starting import start_from
from clipreel.tuners import FROZEN, build, method, options


@dataclass(frozen=True)
class HeadChoice:
    """The head that is trained with the method: a name in heads.HEADS, or as its paper writes it, and its own `lr`.

    `mean` is the mean of the frames' vectors, which is what there is without a head.
    """

    name: str = "mean"
    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-4

    @property
    def kind(self) -> str:
        """Our name of the head."""
        return head_named(self.name)


@dataclass(frozen=True)
class TuneConfig:
    """Everything that a tuned adapter depends on. `options` change the preset of the `method`, "frozen" trains the
    `head` alone; `lr` None takes the method's own; `order` says which captions meet in a batch; `random_frames` draws
    one frame of each part; `loss` is a name in losses.TWO, its scale never above `max_scale`; `pixels` changes the
    pixel recipe of the base; `start` is an adapter of the method, or a released checkpoint of it, to go on from."""

    model: str = "openai/clip-vit-base-patch32"
    method: str = "vop_fc"
    options: dict[str, Any] = field(default_factory=dict)
    head: HeadChoice = field(default_factory=HeadChoice)
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
class Tuned:
    """What `tune` made: the adapter's folder, the models before and after, both measured on the held-out pairs.

    `last` is measured with the weights of the last step, `compared` with those that validation selected. `misses` says
    how many moments judged wrong were `marked` and `trained` on, and how many of those `held_out` score less than the
    right answer `before` and `after`; None without any.
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
    misses: dict[str, int] | None = None


def read_config(
    path: Path | None,
    changes: Sequence[str] = (),
    *,
    method: str | None = None,
    model: str | None = None,
    head: str | None = None,
) -> TuneConfig:
    """A config from a YAML file (the defaults without one), then method, model and head, then changes as "lr=1e-3".

    Changes may name every option of the method and of the head, as options.joint_layers=2 or head.options.layers=2.
    """
    config = read(TuneConfig, path)
    first = [c for c in changes if c.startswith(("method=", "head.name="))]
    for change in first:
        config = override(config, change)
    config = replace(config, method=method or config.method, model=model or config.model)
    if head not in (None, config.head.name):
        config = replace(config, head=HeadChoice(str(head)))
    every = options(config.method, config.options)
    if "frames" not in config.options:  # follows the frames of the config
        every.pop("frames", None)
    of_head = head_options(config.head.name, config.head.options)
    config = replace(config, options=every, head=replace(config.head, options=of_head))
    for change in changes:
        if change not in first:
            config = override(config, change)
    checked(config)
    return config


def checked(config: TuneConfig) -> None:
    """Raises ClipreelError for options and heads that do not go together, before anything is loaded."""
    resolved(config)
    head_options(config.head.name, config.head.options)
    if config.head.kind == "mean":
        if config.method == FROZEN:
            raise ClipreelError(f"the method {FROZEN} trains nothing below a head: name one, as --head seq_transf")
    elif config.loss != "contrastive":
        raise ClipreelError(f"loss {config.loss!r}: a head is trained by contrastive alone; take that, or no head")


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
    """Train, select on validation, compare on held-out pairs, and write adapter and head into `folder`/adapter.

    `scratch` holds decoded frames (default: `folder`), which runs may share. The same call goes on where a killed run
    stopped. Under torchrun, processes share the batch, and the first one writes. Raises ClipreelError for data, options
    or a base that do not fit, before anything is decoded.
    """
    folder, scratch = Path(folder), Path(scratch or folder)
    checked(config)
    base = with_pixels(base or load(config.model, device=device, download=download), config.pixels)
    pairs = after_first(lambda: read_pairs(config.data, scratch))
    if pairs.misses.trained:
        missed_in(config.loss)
    for note in pairs.notes:
        say(f"note: {note}")
    torch.manual_seed(config.train.seed)
    tuner, head = parts(base, config)
    if config.start is not None:
        start_from(tuner, base, config.method, config.start, head)
    recipe = recipe_of(base, tuner, head, config)
    keep = config.frames * (3 if config.random_frames else 1)
    everything = [*pairs.train, *pairs.validation, *pairs.held_out]
    everything += pairs.misses.moments(everything)
    place = scratch / f"frames-{base.preprocess.fingerprint()[:6]}-{keep}"
    frames, skipped = after_first(lambda: cached(base, everything, place, keep, say))
    loader = loader_of(base, tuner, [s for s in pairs.train if s.id in frames], pairs, frames, config)
    validation = [s for s in pairs.validation if s.id in frames]

    def measure(_: Recipe) -> dict[str, float]:
        now = measured(adapted(base, tuner, head, config), validation, frames, config.frames, "validation")
        return {f"{way} {k}": d[k] for way, d in (("t2v", now.t2v), ("v2t", now.v2t)) for k in ("R@1", "R@5", "R@10")}

    outcome = fit(
        recipe,
        loader,
        rates(config, head),
        folder / "run",
        validator=Validator("validation", measure),
        facts=facts_of(config, base, pairs),
        progress=progress,
        say=say,
    )
    split = pairs.label or f"{config.data.path} held out"

    def seen(model: Retriever, selection: str) -> Looked:
        return look(model, pairs.held_out, frames, config.frames, split).having(selection)

    how = outcome.selected.selection
    before = seen(plain(base, config), how)
    after = seen(with_weights(base, config, outcome.selected), how)
    if outcome.last.step == outcome.selected.step:
        last = after.having(outcome.last.selection)
    else:
        last = seen(with_weights(base, config, outcome.last), outcome.last.selection)
    compared = compare(before.result, after.result, pairs.held_out)
    misses = told(loader, pairs, before.model, after.model, frames, config)
    general = (
        after_first(lambda: general_check(config, base, after.model, scratch, say)) if config.data.general else None
    )
    adapter = folder / "adapter"
    about = {"config": as_dict(config), "pairs": len(pairs.train), "step": outcome.selected.step}
    about |= {"misses": misses["trained"]} if misses else {}
    metrics = compared.to_dict() | ({"general": general.to_dict()} if general else {})
    on_first(lambda: saved(adapter, after.model, config, trained_on=about, metrics=metrics, helped=compared.helped))
    facts = {"method": config.method, "head": config.head.kind, **costs(recipe, adapter, outcome)}
    if world().first:
        if after.result.features is not None:  # a head that reads the text scores pairs and has no vectors to keep
            save_features(folder / "features", after.result.features, after.result.stamp)
        made = {
            "config": as_dict(config),
            "costs": facts,
            "compared": compared.to_dict(),
            "last": last.result.to_dict(),
            "validation": outcome.selected.metrics,
            **({"misses": misses} if misses else {}),
            "parts": dict(pairs.labels),
            "unread": sum(s.id not in frames for s in pairs.train),
        }
        write(folder / "report.json", (json.dumps(made, indent=1, default=str) + "\n").encode())
        write(folder / "config.yaml", to_yaml(config).encode())
    return Tuned(adapter, before, after, pairs, outcome, compared, last.result, general, facts, skipped, misses)


def parts(base: Retriever, config: TuneConfig) -> tuple[Tuner, Head | None]:
    """A new tuner and a new head, None where it would be the mean. Raises ClipreelError where the head cannot take as
    many frames as the config has."""
    tuner = build(config.method, base.clip, resolved(config)).to(base.device)
    if config.head.kind == "mean":
        return tuner, None
    head = build_head(config.head.name, base.clip, config.head.options)
    with torch.no_grad():
        head(torch.ones(1, head.width), torch.ones(1, config.frames, head.width))
    return tuner, head.to(base.device)


def recipe_of(base: Retriever, tuner: Tuner, head: Head | None, config: TuneConfig) -> RetrievalRecipe:
    if head is None:
        return RetrievalRecipe(base.clip, tuner, base.preprocess, loss=config.loss, max_scale=config.max_scale)
    return HeadRecipe(base.clip, tuner, base.preprocess, head, max_scale=config.max_scale)


def rates(config: TuneConfig, head: Head | None) -> TrainConfig:
    """The training config with the learning rates of the method and of the head."""
    optim = config.train.optim
    own = (GroupRule(r"^head\.", lr=config.head.lr),) if head is not None and trained(head) else ()
    lr = config.lr or method(config.method).rate
    return replace(config.train, optim=replace(optim, lr=lr, groups=(*own, *optim.groups)))


def with_weights(base: Retriever, config: TuneConfig, snapshot: Snapshot) -> Retriever:
    """The base with method and head of a snapshot, ready for use."""
    tuner, head = parts(base, config)
    tensors = read_whole(snapshot.weights)[0]
    fill(tuner, {n: t for n, t in tensors.items() if n in trained(tuner)}, str(snapshot.weights))
    if head is not None:
        fill(head, take(tensors, "head."), str(snapshot.weights))
    return adapted(base, tuner.requires_grad_(False).eval(), head, config)


def saved(folder: Path, model: Retriever, config: TuneConfig, **facts: Any) -> str:
    """Write method and head into one folder, the head first, because an adapter's config says that all is there."""
    if model.head is not None:
        save_head(folder, model, {"pairs": facts["trained_on"]["pairs"], "step": facts["trained_on"]["step"]})
    licence = {"base": model.base_name, "data": config.data.path}
    return str(save_adapter(folder, model, config.method, resolved(config), licence=licence, **facts))


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


def adapted(base: Retriever, tuner: Tuner, head: Head | None, config: TuneConfig) -> Retriever:
    """The base with a method and a copy of the head, which a retriever would freeze."""
    sampling = replace(base.sampling, frames=config.frames)
    identity = "none" if tuner is PLAIN else digest(trained(tuner))
    model = base.adapted(tuner, adapter=identity, sampling=sampling)
    return model if head is None else model.headed(deepcopy(head))


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
        misses=readable(pairs.misses.trained, frames),
        sampling=frames.pick(config.frames, config.random_frames),
        augment=config.augment,
        size=base.preprocess.size,
        rank=world().rank,
        world=world().size,
    )


def readable(misses: Mapping[str, Sequence[Sample]], frames: FrameCache) -> dict[str, list[Sample]]:
    """Those of which there are frames."""
    found = {text: [m for m in moments if m.id in frames] for text, moments in misses.items()}
    return {text: moments for text, moments in found.items() if moments}


def told(
    loader: Loader, pairs: Pairs, before: Retriever, after: Retriever, frames: FrameCache, config: TuneConfig
) -> dict[str, int] | None:
    """What `Tuned` says of misses."""
    if not pairs.misses.marked:
        return None
    held_out = readable(pairs.misses.held_out, frames)
    fewer = {
        when: below(model, held_out, pairs.held_out, frames, config.frames)
        for when, model in (("before", before), ("after", after))
    }
    trained, measured = (sum(map(len, m.values())) for m in (loader.misses, held_out))
    return {"marked": pairs.misses.marked, "trained": trained, "held_out": measured, **fewer}


def facts_of(config: TuneConfig, base: Retriever, pairs: Pairs) -> dict[str, Any]:
    """What a resumed run must share with its beginning, besides the training config."""
    known = as_dict(replace(config, train=TrainConfig()))
    names = "\n".join(f"{s.id}\t{c}" for s in pairs.train for c in s.captions)
    names += "".join(f"\n{m.id}\t{t}\tnot" for t, moments in pairs.misses.trained.items() for m in moments)
    return {"base": base.fingerprint, "pairs": hashlib.sha256(names.encode()).hexdigest()[:16], "config": known}


def general_check(config: TuneConfig, base: Retriever, after: Retriever, scratch: Path, say: Say) -> Compared:
    """The second data set, whole, before and after."""
    samples = read_samples(str(config.data.general))
    frames, _ = cached(base, samples, scratch / "frames-general", config.frames, say)
    first, then = (measured(r, samples, frames, config.frames, "general") for r in (plain(base, config), after))
    return compare(first, then, samples)


def costs(recipe: Recipe, adapter: Path, outcome: Outcome) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    size = sum(p.stat().st_size for p in adapter.iterdir() if p.suffix == ".safetensors")
    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "trainable": sum(p.numel() for p in recipe.trained().values()),
        "adapter_bytes": size,
        "seconds": round(outcome.seconds, 1),
        "data_wait": round(outcome.data_wait, 4),
        "peak_memory_bytes": cuda or peak,
        "step": outcome.selected.step,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
