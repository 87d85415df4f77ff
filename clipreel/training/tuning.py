"""Tuning a base to pairs of videos and captions, from the files to an adapter with its before and after.

The weights are chosen on one part of the data and compared on another, neither of which is trained on (pairs.py).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from clipreel.adapter import fill, load, save_adapter, trained, write
from clipreel.data.cache import FrameCache
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import save_features
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.runs import spread
from clipreel.head_files import save_head
from clipreel.heads import Head, build_head
from clipreel.identity import digest
from clipreel.losses import missed_in
from clipreel.retriever import Retriever
from clipreel.sites import PLAIN, Tuner
from clipreel.training.batches import Loader
from clipreel.training.checkpoint import read_whole, take
from clipreel.training.config import GroupRule, TrainConfig, as_dict, to_yaml
from clipreel.training.decoding import Decoder, sizes_of
from clipreel.training.distributed import after_first, on_first, world
from clipreel.training.engine import Outcome, Snapshot, Validator, fit
from clipreel.training.log import peak_memory
from clipreel.training.measuring import Compared, Looked, Say, compare, helps, look, measured, readable, told
from clipreel.training.order import Order
from clipreel.training.pairs import Pairs, read_pairs
from clipreel.training.recipe import HeadRecipe, Recipe, RetrievalRecipe
from clipreel.training.settings import TuneConfig, checked, resolved, settled
from clipreel.training.sharding import Sharded
from clipreel.training.starting import before_that, origin, start_from
from clipreel.tuners import build
from clipreel.tuners.overriding import Overriding


@dataclass(frozen=True)
class Tuned:
    """What `tune` made: the adapter's folder, the models before and after, both measured on the held-out pairs.

    `last` is measured with the weights of the last step, `compared` with those that validation selected. `helped` is
    the verdict: an adapter that is `worse` beyond chance on the general set does not help. `misses` says how many
    moments judged wrong were `marked` and `trained` on, and how many of those `held_out` score less than the right
    answer `before` and `after`; None without any.
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

    @property
    def worse(self) -> bool:
        return self.general is not None and self.general.worse

    @property
    def helped(self) -> bool | None:
        return helps(self.compared, self.general)

    def report(self, config: TuneConfig, unread: int) -> dict[str, Any]:
        """What report.json holds; `unread` training samples could not be decoded."""
        return {
            "config": as_dict(config),
            "costs": self.facts,
            "compared": self.compared.to_dict(),
            "last": self.last.to_dict(),
            "helped": self.helped,
            **({"general": self.general.to_dict()} if self.general else {}),
            "validation": self.outcome.selected.metrics,
            **({"misses": self.misses} if self.misses else {}),
            "parts": dict(self.pairs.labels),
            "unread": unread,
        }


def tune(
    config: TuneConfig,
    folder: Path,
    *,
    scratch: Path | None = None,
    base: Retriever | None = None,
    device: str = "auto",
    download: bool = True,
    progress: Callable[[int, int, str], None] = lambda done, total, extra: None,
    decoding: Callable[[int, int], None] = lambda done, total: None,
    say: Say = lambda text: None,
) -> Tuned:
    """Train, select on validation, compare on held-out pairs, and write adapter and head into `folder`/adapter.

    `scratch` holds decoded frames (default: `folder`), which runs may share, or is a cache of `clipreel prepare`. The
    same call goes on where a killed run stopped. Under torchrun, processes share the batch, and the first one writes.
    `progress` tells of steps, `decoding` of videos. Raises ClipreelError for data, options or a base that do not fit,
    before anything is decoded, and for too few readable videos before anything is trained.
    """
    folder, scratch = Path(folder), Path(scratch or folder)
    checked(config)
    config = settled(config)
    base = sampled(with_pixels(base or load(config.model, device=device, download=download), config.pixels), config)
    begun = prepared(config, base, scratch, say, decoding)
    outcome = fit(
        begun.recipe,
        begun.loader,
        rates(config, begun.head),
        folder / "run",
        validator=Validator(config.train.select.split, begun.measure),
        facts=facts_of(config, base, begun.pairs) | begun.decode.facts(begun.larger),
        progress=progress,
        say=say,
    )
    if outcome.on_test:
        say("the weights were chosen on the held-out part, so its figures flatter them; its stamp says so")
    made = proven(begun, outcome, folder / "adapter")
    if world().first:
        texts = spread([c for s in begun.pairs.train for c in s.captions])
        save_features(folder / "features", made.after.kept(texts))
        report = made.report(config, sum(s.id not in begun.frames for s in begun.pairs.train))
        write(folder / "report.json", (json.dumps(report, indent=1, default=str) + "\n").encode())
        write(folder / "config.yaml", to_yaml(config).encode())
    return made


@dataclass(frozen=True)
class Begun:
    """What a training works on. `larger` are the frames that are trained on, `frames` those that are measured, and
    `general` a second data set with its frames."""

    config: TuneConfig
    base: Retriever
    pairs: Pairs
    tuner: Tuner
    head: Head | None
    recipe: RetrievalRecipe
    decode: Decoder
    larger: FrameCache
    frames: FrameCache
    general: tuple[list[Sample], FrameCache] | None
    licence: dict[str, str]

    @cached_property
    def loader(self) -> Loader:
        readable = [s for s in self.pairs.train if s.id in self.larger]
        return loader_of(self.base, self.tuner, readable, self.pairs, self.larger, self.config)

    def measure(self, _: Recipe) -> dict[str, float]:
        """Recalls in per cent of the weights as they are, on the part that chooses among them."""
        if isinstance(self.recipe, Sharded):
            self.recipe.gather()
        where, pairs = self.config.train.select.split, self.pairs
        samples = [s for s in (pairs.held_out if where == "test" else pairs.validation) if s.id in self.frames]
        model = adapted(self.base, self.tuner, self.head, self.config)
        now = measured(model, samples, self.frames, self.config.frames, where)
        return {f"{way} {k}": d[k] for way, d in (("t2v", now.t2v), ("v2t", now.v2t)) for k in ("R@1", "R@5", "R@10")}


def prepared(
    config: TuneConfig, base: Retriever, scratch: Path, say: Say, decoding: Callable[[int, int], None]
) -> Begun:
    """Read the pairs, build method, head and recipe, and decode what is not decoded yet: all that can refuse bad data
    or options, before anything is trained."""
    pairs = after_first(lambda: read_pairs(config.data, scratch))
    others = read_samples(config.data.general) if config.data.general else []
    if pairs.misses.trained:
        missed_in(config.loss)
    for note in pairs.notes:
        say(f"note: {note}")
    torch.manual_seed(config.train.seed)
    tuner, head = parts(base, config)
    if config.start is not None:
        start_from(tuner, base, config.method, config.start, head)
    licence = origin(base.base_name, config.data.path, config.start)
    recipe = recipe_of(base, tuner, head, config)
    if config.shard and isinstance(tuner, Overriding) and world().size > 1:
        recipe = Sharded(recipe, tuner)
        say(f"each of {world().size} processes holds a share of what is trained")
    sizes = sizes_of(base.preprocess.size, config.crop_from, config.augment.crop)
    decode = Decoder(scratch, config.frames, config.random_frames, say, decoding, sizes)
    larger, frames = after_first(lambda: decode.of_pairs(base, pairs))
    general = (others, after_first(lambda: decode.of_general(base, others))) if others else None
    return Begun(config, base, pairs, tuner, head, recipe, decode, larger, frames, general, licence)


def proven(begun: Begun, outcome: Outcome, adapter: Path) -> Tuned:
    """Measure before, after and the last step on what was held out, and save the selected weights with the verdict."""
    config, pairs, frames = begun.config, begun.pairs, begun.frames
    before, after, last = held_out(begun.base, config, pairs, frames, outcome)
    both = before.model, after.model
    compared, general = compare(before.result, after.result, pairs.held_out), None
    if begun.general:
        others, theirs = begun.general
        first, then = (measured(model, others, theirs, config.frames, "general") for model in both)
        general = compare(first, then, others)
    misses = None
    if pairs.misses.marked:
        counts = {"marked": pairs.misses.marked, "trained": sum(map(len, begun.loader.misses.values()))}
        misses = counts | told(pairs.misses.held_out, pairs.held_out, both, frames, config.frames)
    metrics = compared.to_dict() | ({"general": general.to_dict()} if general else {})
    about = {"config": as_dict(config), "pairs": len(pairs.train), "step": outcome.selected.step}
    about |= {"misses": misses["trained"]} if misses else {}
    verdict = {"metrics": metrics, "helped": helps(compared, general), "licence": begun.licence}
    on_first(lambda: saved(adapter, after.model, config, trained_on=about, **verdict))
    after = replace(after, model=after.model.kept_at(adapter))
    facts = {"method": config.method, "head": config.head.kind, **costs(begun.recipe, adapter, outcome)}
    skipped = begun.decode.skipped
    return Tuned(adapter, before, after, pairs, outcome, compared, last.result, general, facts, skipped, misses)


def held_out(
    base: Retriever, config: TuneConfig, pairs: Pairs, frames: FrameCache, outcome: Outcome
) -> tuple[Looked, Looked, Looked]:
    """The held-out pairs as the base sees them, with the selected weights, and with those of the last step."""
    split, listed = pairs.label or f"{config.data.path} held out", pairs.stated(config.data.path)
    if config.start is not None:  # its data may hold what is held out here, so the stamp says what they were
        listed["trained_on"] += f" after {before_that(config.start)}"

    def seen(model: Retriever, selection: str) -> Looked:
        return look(model, pairs.held_out, frames, config.frames, split).having(selection, **listed)

    chosen, last = outcome.selected, outcome.last
    before = seen(plain(base, config), chosen.selection)
    after = seen(with_weights(base, config, chosen), chosen.selection)
    if last.step == chosen.step:
        return before, after, after.having(last.selection, **listed)
    return before, after, seen(with_weights(base, config, last), last.selection)


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
    how: dict[str, Any] = {"max_scale": config.max_scale, "same_video": config.same_video}
    if head is None:
        return RetrievalRecipe(base.clip, tuner, base.preprocess, loss=config.loss, **how)
    return HeadRecipe(base.clip, tuner, base.preprocess, head, **how)


def rates(config: TuneConfig, head: Head | None) -> TrainConfig:
    """The training config with the learning rates of the method and of the head."""
    train = settled(config).train
    own = (GroupRule(r"^head\.", lr=config.head.lr),) if head is not None and trained(head) else ()
    return replace(train, optim=replace(train.optim, groups=(*own, *train.optim.groups)))


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
    return str(save_adapter(folder, model, config.method, resolved(config), **facts))


def with_pixels(base: Retriever, changes: Mapping[str, Any]) -> Retriever:
    """The base with some values of its pixel recipe changed. Raises ClipreelError for one that it does not have."""
    try:
        pixels = replace(base.preprocess, **changes)
    except TypeError as e:
        allowed = ", ".join(base.preprocess.to_dict())
        raise ClipreelError(f"pixels: {', '.join(changes)} do not all fit ({e}); allowed are {allowed}") from e
    return base.adapted(base.tuner, adapter=base.adapter, preprocess=pixels) if changes else base


def sampled(base: Retriever, config: TuneConfig) -> Retriever:
    """The base with frames chosen as the config says. Raises ClipreelError where they cannot be drawn at random."""
    if config.sampling is not None:
        chosen = replace(base.sampling, kind=config.sampling)
        base = base.adapted(base.tuner, adapter=base.adapter, sampling=chosen)
    if config.random_frames and base.sampling.kind != "uniform":
        raise ClipreelError(f"random_frames draws among equal times, not {base.sampling.kind}: say sampling=uniform")
    return base


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


def facts_of(config: TuneConfig, base: Retriever, pairs: Pairs) -> dict[str, Any]:
    """What a resumed run must share with its beginning, besides the training config."""
    known = as_dict(replace(config, train=TrainConfig()))
    del known["shard"]  # a run may go on in shares, or without
    names = "\n".join(f"{s.id}\t{c}" for s in pairs.train for c in s.captions)
    names += "".join(f"\n{m.id}\t{t}\tnot" for t, moments in pairs.misses.trained.items() for m in moments)
    return {"base": base.fingerprint, "pairs": hashlib.sha256(names.encode()).hexdigest()[:16], "config": known}


def costs(recipe: Recipe, adapter: Path, outcome: Outcome) -> dict[str, Any]:
    size = sum(p.stat().st_size for p in adapter.iterdir() if p.suffix == ".safetensors")
    return {
        "trainable": sum(p.numel() for p in recipe.trained().values()),
        "adapter_bytes": size,
        "seconds": round(outcome.seconds, 1),
        "data_wait": round(outcome.data_wait, 4),
        "peak_memory_bytes": peak_memory(),
        "step": outcome.selected.step,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
