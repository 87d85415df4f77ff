"""The three parts of a data set that never meet: trained on, choosing the weights, and held out for the comparison.

All captions and all parts of one video stay on one side.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from clipreel.data.readers import read_misses, read_samples
from clipreel.data.sample import Sample
from clipreel.data.sets import DEVELOPMENT, check_apart, developing, is_set
from clipreel.data.shapes import ShapesWorld
from clipreel.data.sources import Source, notes
from clipreel.errors import ClipreelError

SHAPES = "shapes"


@dataclass(frozen=True)
class DataConfig:
    """Where pairs come from. `path` is "shapes" (the shapes world), a data set by name (data/sets.yaml) in a published
    `form` below `root`, whose `captions` mode can be replaced, or what `read_samples` reads.

    Splits are named (`train`, `validation`, `held_out`) where the file has a split column, are those that were
    published, or are drawn by the shares `validation_share` and `held_out_share`. `limit` trains on the first so many
    videos only. `general` is a second set that must not get worse. `quarantine` is the list of files to leave out,
    where it lies elsewhere than the data.
    """

    path: str = ""
    form: str | None = None
    root: str | None = None
    videos: str | None = None
    captions: Literal["single", "all", "paragraph"] | None = None
    quarantine: str | None = None
    train: str | None = None
    validation: str | None = None
    held_out: str | None = None
    validation_share: float = 0.1
    held_out_share: float = 0.2
    limit: int | None = None
    general: str | None = None


@dataclass(frozen=True)
class Misses:
    """Moments that were judged wrong, by text; the file holds `marked` of them. Of those `trained` on, the video and a
    right answer of the text are trained on; of those `held_out`, both are held out. Others stay out: they would carry
    a video from one part into another."""

    marked: int = 0
    trained: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)
    held_out: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)

    def moments(self, known: Sequence[Sample]) -> list[Sample]:
        """Each once, without those that are `known`."""
        found = {s.id: s for side in (self.trained, self.held_out) for moments in side.values() for s in moments}
        there = {s.id for s in known}
        return [s for id, s in found.items() if id not in there]


@dataclass(frozen=True)
class Pairs:
    """The three parts of a data set; `opposite_of` names the order-opposite of training videos where it is known, and
    `label` what a stamp says of the held-out part. Of a published set `labels` says it of every part that was read, and
    `notes` what is missing."""

    train: list[Sample]
    validation: list[Sample]
    held_out: list[Sample]
    opposite_of: Mapping[str, str] | None = None
    label: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    misses: Misses = field(default_factory=Misses)


def shapes_pairs(folder: Path, seed: int = 0, limit: int | None = None) -> Pairs:
    """The shapes world as video files below a folder, at most `limit` of them for training."""
    made = ShapesWorld(seed)
    counts = {"train": limit, "val": None, "test": None}
    train, validation, held_out = (made.write_videos(folder / split, split, n) for split, n in counts.items())
    there = {s.id for s in train}
    opposite = {i.id: i.opposite for i in made.videos("train") if i.id in there and i.opposite in there}
    return Pairs(train, validation, held_out, opposite)


def read_pairs(config: DataConfig, scratch: Path) -> Pairs:
    """The three parts. Raises ClipreelError where one of them would be empty."""
    if not config.path:
        raise ClipreelError("there is no data to tune on; give a file of videos and captions, or shapes")
    if config.limit is not None and config.limit < 2:
        raise ClipreelError(f"data.limit {config.limit}: train on at least 2 videos")
    if config.path == SHAPES:
        return shapes_pairs(scratch / "shapes", limit=config.limit)
    if is_set(config.path):
        pairs = published(config)
        return replace(pairs, train=pairs.train[: config.limit])
    names = [name for name in (config.train, config.validation, config.held_out) if name]
    if len(names) not in (0, 3):
        raise ClipreelError("name all of data.train, data.validation and data.held_out, or none of them")
    pairs = named(config, names) if names else drawn(config)
    return replace(pairs, train=pairs.train[: config.limit], misses=misses_of(config, pairs))


def misses_of(config: DataConfig, pairs: Pairs) -> Misses:
    """The field `not` of the file; a video that no row describes is on the side that its name draws."""
    parts = pairs.train, pairs.validation, pairs.held_out
    every = read_misses(config.path, [s for p in parts for s in p], config.videos, quarantine=config.quarantine)
    known = {s.video: n for n, part in enumerate(parts) for s in part}

    def on(n: int) -> dict[str, tuple[Sample, ...]]:
        texts = [c for s in parts[n] for c in s.captions if c in every]
        found = {t: tuple(m for m in every[t] if known.get(m.video, side(config, m.video)) == n) for t in texts}
        return {t: moments for t, moments in found.items() if moments}

    return Misses(sum(map(len, every.values())), on(0), on(2))


def published(config: DataConfig) -> Pairs:
    """The splits of a published set; without a validation split a fixed part of the training videos selects."""
    given = (config.path, config.form, config.root, config.videos, config.captions, config.quarantine)
    found = Source(*given).opened()
    selects = config.validation or (DEVELOPMENT if DEVELOPMENT in found.splits else "validation")
    splits = (config.train or "train", selects, config.held_out or "test")
    parts = {split: found.part(split) for split in splits}
    train, validation, held_out = (parts[split].samples for split in splits)
    if selects == DEVELOPMENT:
        train = [s for s in train if not developing(s.id)]
    check_apart({"train": train, "validation": validation, "test": held_out})
    labels = {split: part.label for split, part in parts.items()}
    return Pairs(train, validation, held_out, label=labels[splits[2]], labels=labels, notes=notes(parts))


def named(config: DataConfig, splits: Sequence[str]) -> Pairs:
    """The parts that a split column names."""
    train, validation, held_out = (
        read_samples(config.path, config.videos, split=name, quarantine=config.quarantine) for name in splits
    )
    check_apart(dict(zip(splits, (train, validation, held_out), strict=True)))
    return Pairs(train, validation, held_out)


def side(config: DataConfig, video: Path) -> int:
    """0 trained on, 1 validation, 2 held out, by the shares. It follows from the name, so a set that grows keeps its
    sides."""
    draw = int.from_bytes(hashlib.blake2b(os.fsencode(video.name), digest_size=4).digest(), "big") / 2**32
    return 2 if draw < config.held_out_share else int(draw < config.held_out_share + config.validation_share)


def drawn(config: DataConfig) -> Pairs:
    """The parts by shares."""
    parts: tuple[list[Sample], list[Sample], list[Sample]] = ([], [], [])
    for sample in read_samples(config.path, config.videos, quarantine=config.quarantine):
        parts[side(config, sample.video)].append(sample)
    for part, what in zip(parts, ("trained on", "used for validation", "held out"), strict=True):
        if len({s.video for s in part}) < 2:
            raise ClipreelError(
                f"{config.path} holds {sum(map(len, parts))} videos, and {len(part)} of them would be {what}: give "
                "more videos, or other shares (data.held_out_share, data.validation_share)"
            )
    return Pairs(*parts)
