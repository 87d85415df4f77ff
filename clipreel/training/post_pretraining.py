"""Post-pretraining: CLIP turned into a video model on noisy pairs of one or several corpora (CLIP-ViP, section 1.5).

A source with captions gives four views of each video: frames and subtitle, the middle frame and its caption. A source
without gives its own pairs alone; one of images has `frames: 1`. What comes out is an adapter, from which tuning can
start. The released code measures without choosing weights by it, and so does this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from clipreel.adapter import load, save_adapter, trained
from clipreel.data.cache import FrameCache
from clipreel.data.captions import captioned, read_captions
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_talk import still_captions, subtitles
from clipreel.data.sources import SHAPES
from clipreel.data.tar_shards import open_shards
from clipreel.errors import ClipreelError
from clipreel.identity import digest
from clipreel.losses import four_named
from clipreel.retriever import Retriever
from clipreel.sites import Tuner
from clipreel.training.batches import Batches, Loader
from clipreel.training.config import GroupRule, OptimConfig, ScheduleConfig, TrainConfig, as_dict, within
from clipreel.training.distributed import after_first, on_first, share, world
from clipreel.training.engine import Outcome, Validator, fit
from clipreel.training.measuring import Say, cached, measured
from clipreel.training.mixture import Beside, Middle, Mixture
from clipreel.training.omnisource import OmnisourceRecipe
from clipreel.training.order import Order
from clipreel.training.pairs import LEAST, enough, some
from clipreel.training.recipe import Recipe
from clipreel.training.settings import PIXELS
from clipreel.training.snapshots import Snapshots
from clipreel.training.starting import start_from
from clipreel.training.streaming import Streamed
from clipreel.training.tuning import with_pixels
from clipreel.tuners import build, options
from clipreel.video.sampling import Sampling

NOT_DECAYED = GroupRule("bias|logit_scale", decay=0.0)  # LayerNorm weights and embeddings are, as in the released code


@dataclass(frozen=True)
class SourceConfig:
    """One corpus: `path`, `videos` and `split` as `read_samples` takes them; their captions are its subtitles. "shapes"
    is the shapes world with noisy subtitles, and as `captions` those of its stills.

    `captions` is a file of generated captions, whose absent ones are an error or the text `missing_caption`. `share`
    steps of every round are its own. `frames` of each video (None: as many as the run; 1 for images). `limit` takes
    so many videos, drawn by their names. With `source` "shards", `path` is a folder or URL of tar shards (`clipreel
    shards`), which are decoded as they are read and shuffled in runs of `buffer`; `captions` "shards" are those stored
    in them.
    """

    path: str
    source: Literal["pairs", "shards"] = "pairs"
    videos: str | None = None
    split: str | None = None
    captions: str | None = None
    missing_caption: str | None = None
    share: int = 1
    frames: int | None = None
    limit: int | None = None
    buffer: int = 512

    def __post_init__(self) -> None:
        for name, least in (("share", 1), ("frames", 1), ("buffer", 1), ("limit", LEAST)):
            within(name, getattr(self, name), least)
        if not self.path:
            raise ClipreelError("a source has no path; name its annotations, or its shards")


@dataclass(frozen=True)
class PostPretrainConfig:
    """Everything that the adapter depends on; the defaults of `train` are those of the paper. `loss` adds up terms of
    losses.FOUR. `validation` is measured and selects nothing. `snapshots` adapters are kept on the way, evenly (the
    released code keeps 100). The other names are those of TuneConfig."""

    model: str = "openai/clip-vit-base-patch32"
    method: str = "clip_vip"
    options: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    validation: SourceConfig | None = None
    pixels: dict[str, Any] = field(default_factory=dict, metadata=PIXELS)
    start: str | None = None
    frames: int = 12
    random_frames: bool = False
    batch: int = 1024
    loss: str = "v-sc+f-c"
    max_scale: float = 200.0
    snapshots: int = 0
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            seed=42,
            optim=OptimConfig("adamw_hf", 5e-6, 0.05, (0.9, 0.98), 1e-6, 5.0, (NOT_DECAYED,)),
            schedule=ScheduleConfig("hero_cosine", 0.01),
        )
    )

    def __post_init__(self) -> None:
        within("batch", self.batch, LEAST)  # a video alone is never told from another
        within("frames", self.frames, 1)
        within("snapshots", self.snapshots, 0)
        within("max_scale", self.max_scale, 1)
        four_named(self.loss)


@dataclass(frozen=True)
class PostPretrained:
    """The adapter's folder, the model with the weights of the last step, and the videos that could not be read."""

    adapter: Path
    model: Retriever
    outcome: Outcome
    skipped: list[tuple[str, str]]


@dataclass
class _Sources:
    """Reads and decodes the corpora of a run, and collects what could not be read."""

    base: Retriever
    config: PostPretrainConfig
    scratch: Path
    slots: int
    say: Say
    folder: Path
    skipped: list[tuple[str, str]] = field(default_factory=list)
    streams: list[Streamed] = field(default_factory=list)

    def decoded(
        self, name: str, source: SourceConfig, samples: list[Sample], random: bool
    ) -> tuple[list[Sample], FrameCache, Sampling]:
        """The samples of a source whose frames are there, the frames, and which of them a batch takes."""
        frames = source.frames or self.config.frames
        keep = frames * (3 if random else 1)
        place = self.scratch / f"frames-{name}-{self.base.preprocess.fingerprint()[:6]}-{keep}"
        found, skipped = after_first(lambda: cached(self.base, samples, place, keep, self.say))
        self.skipped += skipped
        return [s for s in samples if s.id in found], found, found.pick(frames, random)

    def samples(self, source: SourceConfig) -> list[Sample]:
        if source.path != SHAPES:
            return some(read_samples(source.path, source.videos, split=source.split), source.limit)
        films, split = ShapesWorld(), source.split or "train"
        only = {i.id for i in some(films.videos(split), source.limit, lambda item: item.group)}
        made = films.write_videos(self.scratch / "shapes" / split, split, only=only)
        return captioned(made, subtitles(films.videos(split)))

    def captions(self, source: SourceConfig) -> dict[str, str]:
        if source.captions == SHAPES:
            return still_captions(ShapesWorld().videos(source.split or "train"))
        return read_captions(str(source.captions))

    def batches(self, name: str, source: SourceConfig) -> Batches:
        if source.captions is None and {*"fc"} & {*"".join(four_named(self.config.loss))}:
            self.say(f"source {name} has no captions, so its steps take v-s in place of {self.config.loss}")
        if source.source == "shards":
            return self.streamed(name, source)
        if source.captions == "shards":
            raise ClipreelError(f"sources.{name}.captions: shards have some, pairs take a file; or say source: shards")
        samples = after_first(lambda: self.samples(source))
        if source.limit is not None:
            self.say(f"source {name}: {len(samples)} videos, drawn by their names (limit: {source.limit})")
        captions = None if source.captions is None else self.captions(source)
        if captions is not None:  # what is missing is told before hours of decoding
            captioned(samples, captions, source.missing_caption, source.captions or "")
        samples, frames, sampling = self.decoded(name, source, samples, self.config.random_frames)
        enough(len(samples), f"sources.{name}")
        main = self.loader(samples, frames, sampling)
        if captions is None:
            return main
        stills = captioned(samples, captions, source.missing_caption)
        return Beside(main, self.loader(stills, Middle(frames), Sampling("middles", 1)))

    def streamed(self, name: str, source: SourceConfig) -> Streamed:
        """The batches of a source of shards, and what is missing of it, which is told at once."""
        odd = [k for k in ("videos", "split", "limit") if getattr(source, k) is not None]
        if odd:
            raise ClipreelError(f"sources.{name}: shards have no {', '.join(odd)}; make other shards for that")
        shards, here, train = open_shards(source.path), world(), self.config.train
        for place, problem in shards.problems:
            self.say(f"{place}: {problem}")
        self.skipped += shards.problems
        enough(sum(shards.counts), f"sources.{name}")
        captions = source.captions
        stream = Streamed(
            shards,
            self.tokens,
            self.base.preprocess,
            Sampling("tsn_random" if self.config.random_frames else "uniform", source.frames or self.config.frames),
            batch=self.config.batch,
            seed=train.seed,
            buffer=source.buffer,
            captions=captions if captions in (None, "shards") else self.captions(source),
            missing=source.missing_caption,
            rank=here.rank,
            world=here.size,
            log=self.folder / f"skipped-{name}-{here.rank}.jsonl",
        )
        self.streams.append(stream)
        return stream

    def left_out(self) -> list[tuple[str, str]]:
        """What no process could use, each once."""
        streamed = [pair for part in share([list(s.skipped.items()) for s in self.streams]) for s in part for pair in s]
        return list(dict.fromkeys([*self.skipped, *((str(name), str(why)) for name, why in streamed)]))

    def tokens(self, texts: list[str]) -> torch.Tensor:
        if self.base.tokenizer is None:
            name = self.base.name
            raise ClipreelError(f"{name} has no vocabulary to read texts with: put tokenizer.json beside it")
        return self.base.tokenizer(texts, self.slots)

    def loader(self, samples: Sequence[Sample], frames: FrameCache | Middle, sampling: Sampling) -> Loader:
        order = Order(samples, "distinct", batch=self.config.batch, seed=self.config.train.seed)
        here = world()
        return Loader(
            order,
            frames,
            self.tokens,
            sampling=sampling,
            size=self.base.preprocess.size,
            rank=here.rank,
            world=here.size,
        )


def post_pretrain(
    config: PostPretrainConfig,
    folder: Path,
    *,
    scratch: Path | None = None,
    base: Retriever | None = None,
    device: str = "auto",
    download: bool = True,
    progress: Callable[[int, int, str], None] = lambda done, total, extra: None,
    say: Say = lambda text: None,
) -> PostPretrained:
    """Train on all sources, a step of one of them at a time, and write the adapter into `folder`/adapter.

    `scratch` holds decoded frames (default: `folder`). The same call goes on where a killed run stopped. Raises
    ClipreelError for sources, options or a base that do not fit.
    """
    folder, scratch = Path(folder), Path(scratch or folder)
    if not config.sources:
        raise ClipreelError("there is nothing to train on; name a source, such as sources: {mine: {path: pairs.jsonl}}")
    chosen = every_option(config)
    base = with_pixels(base or load(config.model, device=device, download=download), config.pixels)
    torch.manual_seed(config.train.seed)
    tuner = build(config.method, base.clip, chosen).to(base.device)
    if config.start is not None:
        start_from(tuner, base, config.method, config.start)
    read = _Sources(base, config, scratch, base.clip.config.context - tuner.text_slots, say, folder)
    found = {name: read.batches(name, source) for name, source in config.sources.items()}
    mixture = Mixture(found, {n: s.share for n, s in config.sources.items()}, config.train.seed)
    recipe = OmnisourceRecipe(base.clip, tuner, base.preprocess, loss=config.loss, max_scale=config.max_scale)
    facts = {"base": base.fingerprint, "config": as_dict(replace(config, train=TrainConfig()))}
    facts["texts"] = {n: identity(b) for n, b in found.items()}

    def keep(step: int) -> None:
        """The weights of this moment as an adapter."""
        now = {"trained_on": {"config": as_dict(config), "step": step}, "licence": licence}
        place = folder / f"adapter-{step:06d}"
        on_first(lambda: str(save_adapter(place, with_tuner(base, tuner, config), config.method, chosen, **now)))
        recipe.train(True)

    licence = {"base": base.name, "data": ", ".join(s.path for s in config.sources.values())}
    outcome = fit(
        recipe,
        mixture if not config.snapshots else Snapshots(mixture, config.snapshots, keep),
        config.train,
        folder / "run",
        validator=None if config.validation is None else validator(read, config.validation, tuner),
        facts=facts,
        progress=progress,
        say=say,
    )
    after = with_tuner(base, tuner.requires_grad_(False).eval(), config)
    about = {
        "trained_on": {"config": as_dict(config), "step": outcome.last.step},
        "metrics": outcome.last.metrics,
        "licence": licence,
    }
    adapter = folder / "adapter"
    on_first(lambda: str(save_adapter(adapter, after, config.method, chosen, **about)))
    return PostPretrained(adapter, after, outcome, read.left_out())


def every_option(config: PostPretrainConfig) -> dict[str, Any]:
    """All options of the method, with as many frame positions as frames where that is not said."""
    known = options(config.method, config.options)
    return known | ({"frames": config.frames} if "frames" in known and "frames" not in config.options else {})


def identity(batches: Batches) -> str:
    """Of all texts of a source, or of its shards, which a resumed run must share with its beginning."""
    if isinstance(batches, Streamed):
        said = batches.captions
        captions = said if said is None or isinstance(said, str) else json.dumps(dict(said), sort_keys=True)
        return hashlib.sha256(f"{batches.shards.fingerprint}/{captions}".encode()).hexdigest()[:16]
    loaders = (batches.main, batches.aside) if isinstance(batches, Beside) else (batches,)
    return digest({"ids": torch.cat([x.tokens.flatten() for x in loaders if isinstance(x, Loader)])})


def with_tuner(base: Retriever, tuner: Tuner, config: PostPretrainConfig) -> Retriever:
    sampling = replace(base.sampling, frames=config.frames)
    return base.adapted(tuner, adapter=digest(trained(tuner)), sampling=sampling)


def validator(read: _Sources, source: SourceConfig, tuner: Tuner) -> Validator:
    samples = after_first(lambda: read.samples(source))
    samples, frames, _ = read.decoded("validation", source, samples, random=False)
    count = source.frames or read.config.frames

    def measure(_: Recipe) -> dict[str, float]:
        now = measured(with_tuner(read.base, tuner, read.config), samples, frames, count, "validation")
        return {f"{way} {k}": d[k] for way, d in (("t2v", now.t2v), ("v2t", now.v2t)) for k in ("R@1", "R@5", "R@10")}

    return Validator("validation", measure)
