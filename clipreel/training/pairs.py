"""The three parts of a data set that never meet: trained on, choosing the weights, and held out for the comparison.

All captions and all parts of one video stay on one side.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from clipreel.data.misses import read_misses
from clipreel.data.readers import annotation_file, read_samples
from clipreel.data.sample import Sample
from clipreel.data.sets import DEVELOPMENT, check_apart, developing, is_set
from clipreel.data.shapes import ShapesWorld, VideoItem
from clipreel.data.sources import SHAPES, Source, notes
from clipreel.errors import ClipreelError
from clipreel.evaluation.protocol import split_hash
from clipreel.training.config import within

T = TypeVar("T", Sample, VideoItem)
LEAST = 2  # videos of each part, because among fewer there is nothing to find


@dataclass(frozen=True)
class DataConfig:
    """Where pairs come from. `path` is "shapes" (the shapes world), a data set by name (data/sets.yaml) in a published
    `form` below `root`, whose `captions` mode can be replaced, or what `read_samples` reads.

    Splits are named (`train`, `validation`, `held_out`) where the file has a split column, are those that were
    published, or are drawn by the shares `validation_share` and `held_out_share` of the paths in the file. `limit`
    trains on so many of the videos only, drawn by their names (`some`). `general` is a second set that must not get
    worse. `quarantine` is the list of files to leave out, where it lies elsewhere than the data.
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

    def __post_init__(self) -> None:
        within("validation_share", self.validation_share, 0, 1)
        within("held_out_share", self.held_out_share, 0, 1)


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
    """The three parts of a data set; `opposite_of` names the order-opposite of training videos where it is known,
    `label` what a stamp says of the held-out part, and `mode` how its captions become texts where that was published.
    Of a published set `labels` says the first of every part that was read, and `notes` what is missing."""

    train: list[Sample]
    validation: list[Sample]
    held_out: list[Sample]
    opposite_of: Mapping[str, str] | None = None
    label: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    misses: Misses = field(default_factory=Misses)
    mode: str | None = None

    def stated(self, path: str) -> dict[str, str]:
        """What a stamp says besides: the training list of the data at `path`, by its hash with captions, and how
        captions became texts where that is known."""
        said = split_hash(f"{s.id}\t{c}" for s in self.train for c in s.captions)
        found = {"trained_on": f"{Path(path).name}: {len(self.train)} videos ({said})"}
        return found | ({"caption_mode": self.mode} if self.mode == "paragraph" else {})


def shapes_pairs(folder: Path, seed: int = 0, limit: int | None = None) -> Pairs:
    """The shapes world as video files below a folder, at most `limit` of them for training, with their opposites."""
    made = ShapesWorld(seed)
    every = made.videos("train")
    there = {i.id: i.opposite for i in some(every, limit, lambda item: item.group)}
    train = made.write_videos(folder / "train", "train", only=there)
    validation, held_out = (made.write_videos(folder / split, split) for split in ("val", "test"))
    opposite = {id: other for id, other in there.items() if other in there}
    return Pairs(train, validation, held_out, opposite, notes=limited(len(train), len(every)))


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
        train = some(pairs.train, config.limit)
        return replace(pairs, train=train, notes=[*pairs.notes, *limited(len(train), len(pairs.train))])
    names = [name for name in (config.train, config.validation, config.held_out) if name]
    if len(names) not in (0, 3):
        raise ClipreelError("name all of data.train, data.validation and data.held_out, or none of them")
    if len(set(names)) < len(names):
        raise ClipreelError(
            f"data.train {config.train}, data.validation {config.validation} and data.held_out {config.held_out} are "
            "not three splits: what is measured must not be trained on or have chosen the weights"
        )
    pairs = named(config, names) if names else drawn(config)
    train = some(pairs.train, config.limit)
    said = limited(len(train), len(pairs.train))
    return replace(pairs, train=train, misses=misses_of(config, pairs), notes=said)


def some(items: Sequence[T], limit: int | None, name: Callable[[T], str] = lambda item: item.id) -> list[T]:
    """At most `limit` items in their order, whatever that is: those whose names draw the lowest. What shares a name is
    drawn together. Files are often sorted by kind, so their first rows would not stand for all."""
    if limit is None or limit >= len(items):
        return list(items)
    names = [name(item) for item in items]
    lowest = sorted(range(len(items)), key=lambda i: (draw(f"some {names[i]}"), names[i], i))
    return [items[i] for i in sorted(lowest[:limit])]


def enough(videos: int, what: str, least: int = LEAST) -> None:
    """Raises ClipreelError for fewer videos than are needed, by default to be told from each other."""
    if videos < least:
        raise ClipreelError(f"{what}: {videos} videos can be read and at least {least} are needed; give more")


def limited(taken: int, of: int) -> list[str]:
    """What a run says of `data.limit`."""
    return [f"{taken} of {of} videos are trained on (data.limit), drawn by their names"] if taken < of else []


def misses_of(config: DataConfig, pairs: Pairs) -> Misses:
    """The field `not` of the file; a video that no row describes is on the side that its path draws."""
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
    held = splits[2]
    return Pairs(
        train, validation, held_out, label=labels[held], labels=labels, notes=notes(parts), mode=parts[held].mode
    )


def named(config: DataConfig, splits: Sequence[str]) -> Pairs:
    """The parts that a split column names."""
    train, validation, held_out = (
        read_samples(config.path, config.videos, split=name, quarantine=config.quarantine) for name in splits
    )
    check_apart(dict(zip(splits, (train, validation, held_out), strict=True)))
    return Pairs(train, validation, held_out)


def written(config: DataConfig, video: Path) -> str:
    """The path of a video as the file of captions writes it, in one form for all ways to write it."""
    folder = annotation_file(Path(config.path)).parent if config.videos is None else Path(config.videos)
    whole, root = Path(os.path.abspath(video)), Path(os.path.abspath(folder))
    if whole.is_relative_to(root):
        return whole.relative_to(root).as_posix()
    return Path(os.path.normpath(video.relative_to(folder) if video.is_relative_to(folder) else video)).as_posix()


def draw(path: str) -> float:
    """A number from 0 to 1 that follows from a path alone, so a set that moves or grows keeps it."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=4).digest(), "big") / 2**32


def side(config: DataConfig, video: Path) -> int:
    """0 trained on, 1 validation, 2 held out, by the shares."""
    drawn = draw(written(config, video))
    return 2 if drawn < config.held_out_share else int(drawn < config.held_out_share + config.validation_share)


def drawn(config: DataConfig) -> Pairs:
    """The parts by shares. The lowest draws are held out, those above them are for validation, and either has at least
    two videos. Raises ClipreelError where fewer than two are left to train on, which draws can do to a small set: one
    taken back from the other parts would be measured on later, when the set has grown.

    A video that is trained on stays so when videos are added, and one for validation is never held out later; what a
    small set held out beyond its share may move down. Taking videos away can move others up.
    """
    samples = read_samples(config.path, config.videos, quarantine=config.quarantine)
    paths = [written(config, s.video) for s in samples]
    draws = {path: draw(path) for path in paths}
    rest = sorted(draws, key=lambda path: (draws[path], path))
    of: dict[str, int] = {}
    for number, top in ((2, config.held_out_share), (1, config.held_out_share + config.validation_share)):
        count = max(LEAST, sum(draws[path] < top for path in rest))
        of |= dict.fromkeys(rest[:count], number)
        rest = rest[count:]
    if len(rest) < LEAST:
        raise ClipreelError(
            f"{config.path} holds {len(draws)} videos, and {len(rest)} of them would be trained on: give more videos, "
            "or other shares (data.held_out_share, data.validation_share)"
        )
    train, validation, held_out = (
        [s for s, path in zip(samples, paths, strict=True) if of.get(path, 0) == number] for number in range(3)
    )
    return Pairs(train, validation, held_out)
