"""Decoded frames of a data set on disk, memory-mapped, so that training waits for the model and not for videos.

Each video is decoded once, at the model's size and before normalisation; shards.py describes the files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipreel.data.sample import Sample
from clipreel.data.shards import (
    LOCK,
    MANIFEST,
    CacheRecipe,
    Entry,
    Pixels,
    Shard,
    Writer,
    live,
    locked,
    read_manifest,
    stat_of,
)
from clipreel.errors import ClipreelError
from clipreel.video.decode import Frames, read_frames
from clipreel.video.many import read_many
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

SHARD_BYTES = 128 << 20  # held in memory until written; what a killed run has to decode again


class FrameCache(Mapping[str, Pixels]):
    """Sample id -> frames (T, 3, H, W) uint8, memory-mapped and read-only. Threads may share one.

    Opening looks at the manifest and the sizes of the shards; `verify` reads everything. Raises ClipreelError when
    there is no cache, or a shard is missing or cut short.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.recipe, self.shards = read_manifest(self.folder)
        damaged = [d for s in self.shards if (d := s.damage(self.folder))]
        if damaged:
            raise ClipreelError(f"{self.folder}: {damaged[0]}; clipreel prepare makes what is missing again")
        self._place = {v.id: (n, v) for n, shard in enumerate(self.shards) for v in shard.videos}

    def __len__(self) -> int:
        return len(self._place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __contains__(self, id: object) -> bool:
        return id in self._place

    def __getitem__(self, id: str) -> Pixels:
        shard, entry = self._place[id]
        return self._maps[shard][entry.first : entry.first + entry.count]

    @cached_property
    def _maps(self) -> list[Pixels]:
        # plain arrays over the maps: slices of np.memmap cost several times more
        return [np.asarray(np.load(self.folder / s.name, mmap_mode="r", allow_pickle=False)) for s in self.shards]

    def entry(self, id: str) -> Entry:
        return self._place[id][1]

    def verify(self) -> list[str]:
        """What is wrong with the shards after reading and hashing every byte; [] when all is well."""
        return [d for s in self.shards if (d := s.damage(self.folder, hashed=True))]

    def require(self, samples: Sequence[Sample], preprocess: Preprocess, sampling: Sampling) -> None:
        """ClipreelError unless every sample is here, from its present file, with the pixels and frames of a model.

        It may keep more frames than `sampling` asks for; `pick` says which of them are taken.
        """
        own, asked = self.recipe, CacheRecipe.of(preprocess, sampling)
        if replace(own, frames=asked.frames) != asked or own.frames < asked.frames:
            raise ClipreelError(
                f"the frame cache at {self.folder} holds {own} and {asked} are needed: prepare another --cache folder"
            )
        absent = [s.id for s in samples if s.id not in self]
        if absent:
            raise ClipreelError(
                f"{len(absent)} of {len(samples)} samples are not in the frame cache at {self.folder} (the first: "
                f"{absent[0]!r}): run clipreel prepare again, or leave them out"
            )
        stale = [s.id for s in samples if not self.entry(s.id).made_of(s)]
        if stale:
            raise ClipreelError(
                f"{len(stale)} of {len(samples)} videos changed since the frame cache at {self.folder} was made (the "
                f"first: {stale[0]!r}): run clipreel prepare again, it renews them"
            )

    def lacks(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that are not here, or whose file has changed."""
        return [s for s in samples if s.id not in self or not self.entry(s.id).made_of(s)]

    def pick(self, frames: int, random: bool = False) -> Sampling:
        """How a loader takes `frames` of those kept: the plain choice again, or at random one of each equal part.

        Of 3 x frames kept evenly (or 5 x), the plain choice is exactly what sampling the video itself gives.
        """
        if not 1 <= frames <= self.recipe.frames:
            raise ClipreelError(
                f"{frames} frames are asked for and the cache at {self.folder} keeps {self.recipe.frames} of each "
                f"video: clipreel prepare --frames {3 * max(frames, 1)} --cache elsewhere"
            )
        if random:
            return Sampling("tsn_random_index", frames)
        return Sampling("middles" if self.recipe.sampling == "uniform" else self.recipe.sampling, frames)


# ---------------------------------------------------------------------- where it lies


def place_in(folder: Path, preprocess: Preprocess, sampling: Sampling, name: str = "frames") -> Path:
    """The cache of these pixels and frames in a folder of several."""
    kind = "" if sampling.kind == "uniform" else f"-{sampling.kind}"
    return folder / f"{name}-{preprocess.fingerprint()[:6]}{kind}-{sampling.frames}"


def home(folder: Path, preprocess: Preprocess, sampling: Sampling) -> Path:
    """Where a --cache keeps these frames: the folder itself where it is a cache, else that of them in it, if `clipreel
    tune` has made it a folder of several; a new folder becomes a cache."""
    several = not (folder / MANIFEST).exists() and any(p.is_dir() for p in folder.glob("frames-*"))
    return place_in(folder, preprocess, sampling) if several else folder


# ---------------------------------------------------------------------- making it


@dataclass
class Prepared:
    """What a run did: videos `made`, those of them `renewed` because their file had changed, `kept` from before, and
    `skipped` and `warnings` as (path, reason)."""

    made: int = 0
    renewed: int = 0
    kept: int = 0
    bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Forecast:
    """What a run is about to do: videos to decode, bytes it will write, bytes free where it writes."""

    videos: int
    bytes: int
    free: int


def prepare(
    samples: Sequence[Sample],
    folder: str | Path,
    *,
    preprocess: Preprocess,
    sampling: Sampling,
    workers: int = 2,
    shard_bytes: int = SHARD_BYTES,
    timeout_s: float = 120.0,
    renew: bool = False,
    verify: bool = False,
    wait: bool = False,
    forecast: Callable[[Forecast], None] = lambda forecast: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Decode every sample that the cache does not hold yet; the same call goes on after an interruption.

    Frames are resized and cut as the model wants them and kept as uint8 before normalisation; the float resizes of
    `Preprocess` are rounded to it. Videos whose file changed are made anew. `verify` hashes what is there and makes
    damaged shards anew, `renew` starts over. `workers` threads decode. While another process writes, `wait` for it.
    Raises ClipreelError, before anything is written, for a cache of another recipe, for a disk that is too small, and
    without `wait` for one that another process is writing.
    """
    folder, recipe, report = Path(folder), CacheRecipe.of(preprocess, sampling), Prepared()
    unique = {s.id: s for s in samples}
    if len(unique) != len(samples):
        raise ClipreelError(f"{len(samples)} samples have {len(unique)} ids; give each its own id")
    with locked(folder, wait):
        old = existing(folder, recipe, renew)
        damage = {s.name: None if renew else s.damage(folder, hashed=verify) for s in old}
        report.warnings = [(str(folder), f"{d}; what it held is made again") for d in damage.values() if d]
        sound = [] if renew else [s for s in old if damage[s.name] is None]
        have = {v.id: v for s in sound for v in s.videos}
        todo = [s for s in samples if s.id not in have or not have[s.id].made_of(s)]
        free = shutil.disk_usage(folder).free + sum(s.bytes for s in old if s not in sound)
        expected = Forecast(len(todo), len(todo) * recipe.video_bytes, free)
        forecast(expected)
        if expected.bytes > free:
            raise ClipreelError(
                f"{len(todo)} videos at {recipe} need {amount(expected.bytes)} and {amount(free)} are free "
                f"at {folder}: free some, keep fewer --frames, or put the --cache elsewhere"
            )
        report.kept, report.renewed = len(samples) - len(todo), sum(s.id in have for s in todo)
        writer = Writer(folder, recipe, max(shard_bytes // recipe.video_bytes, 1))
        writer.keep(sound)
        try:
            decode_into(writer, todo, preprocess, sampling, workers, timeout_s, report, progress)
        finally:
            writer.seal()  # what is decoded is kept, also when stopped by hand
        if len(live(writer.shards)) < len(writer.shards):
            writer.keep(live(writer.shards))
    return report


def decode_into(
    writer: Writer,
    todo: Sequence[Sample],
    preprocess: Preprocess,
    sampling: Sampling,
    workers: int,
    timeout_s: float,
    report: Prepared,
    progress: Callable[[int, int], None],
) -> None:
    def pixels(frame: Tensor) -> Tensor:
        x = preprocess.pixels(frame)
        return x if x.dtype == torch.uint8 else (x.clamp(0, 1) * 255).round().to(torch.uint8)

    def read(work: tuple[Sample, os.stat_result | None]) -> Frames:
        s = work[0]
        return read_frames(s.video, sampling, start_s=s.start_s, end_s=s.end_s, timeout_s=timeout_s, transform=pixels)

    # the state of a file is noted before it is read: a change while reading is seen by the next run
    work = ((s, stat_of(s.video)) for s in todo)
    for done, ((s, state), found) in enumerate(read_many(work, read, workers, ahead=2 * workers), 1):
        progress(done, len(todo))
        if isinstance(found, DecodeError):
            report.skipped.append((str(s.video), found.reason))
        elif (s.start_s or 0) >= found.info.duration_s:
            report.skipped.append((str(s.video), f"ends at {found.info.duration_s:.2f} s, before start {s.start_s:g}"))
        elif state is not None:
            pixels_T3HW = found.pixels.contiguous().numpy()
            source = os.path.abspath(s.video)
            writer.add(Entry(s.id, source, state.st_size, state.st_mtime_ns, s.start_s, s.end_s), pixels_T3HW)
            report.warnings += [(str(s.video), w) for w in found.warnings]
            report.made, report.bytes = report.made + 1, report.bytes + pixels_T3HW.nbytes


def existing(folder: Path, recipe: CacheRecipe, renew: bool) -> list[Shard]:
    """The shards that are there. ClipreelError for a cache of another recipe and for a folder of other things."""
    if not (folder / MANIFEST).exists():
        strange = [p.name for p in folder.iterdir() if p.name != LOCK and p.suffix != ".part"]
        if strange:
            raise ClipreelError(
                f"{folder} is no frame cache and holds {strange[0]}: name a new or empty --cache folder"
            )
        return []
    if renew:
        try:
            return read_manifest(folder)[1]
        except ClipreelError:
            return []
    known, shards = read_manifest(folder)
    if known != recipe:
        raise ClipreelError(
            f"the frame cache at {folder} holds {known} and {recipe} are asked for: name another --cache folder, or "
            "make this one again with --renew"
        )
    return shards


def amount(size: float) -> str:
    """Bytes for people: 512.0 KiB, 1.5 GiB."""
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"
