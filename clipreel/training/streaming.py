"""Batches out of tar shards, decoded while they are read: a pure function of (seed, step), as all batches are.

The shards of an epoch come in an order of their own, and runs of `buffer` samples of that stream are shuffled. So a
step says which bytes of which shards it needs, a run goes on in the middle of a shard without any stored cursor, and
each process reads only its own rows. A sample that is damaged is left out of its batch, and named; the batch may be
empty then. A place that cannot be read is an error: rows left out for it would make the run another one.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipreel.data.tar_shards import Damaged, Film, Shards, on_disk, parse
from clipreel.errors import ClipreelError
from clipreel.training.batches import Batch, Batches, short
from clipreel.video.decode import read_frames
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

SHARD_ORDER, WITHIN, WORDS, MOMENTS = 20, 21, 22, 23  # streams of random numbers beside those of the other orders
KEPT = 3  # buffers in memory: the last, the present and the next
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """A decoded sample: frames uint8 (T, 3, S, S), its text, and one frame (1, 3, S, S) with its text."""

    name: str
    frames: Tensor
    text: str
    still: Tensor | None
    still_text: str


class Streamed(Batches):
    """The samples of shards, `batch` a step, each once an epoch; the last batch of an epoch may be shorter.

    `tokenize` turns texts into ids (N, L). `sampling` says which frames (by time); `captions` are those of the middle
    frames by id, or "shards" for the generated ones that lie there, and make four views of every video; `missing` is
    the text where one has none. Samples that could not be used are in `skipped` by name, and in the file `log`.
    """

    def __init__(
        self,
        shards: Shards,
        tokenize: Callable[[list[str]], Tensor],
        preprocess: Preprocess,
        sampling: Sampling,
        *,
        batch: int,
        seed: int = 0,
        buffer: int = 512,
        captions: Mapping[str, str] | str | None = None,
        missing: str | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
        log: Path | None = None,
    ) -> None:
        for name, value in (("batch", batch), ("buffer", buffer), ("workers", workers)):
            if value < 1:
                raise ClipreelError(f"{name} {value}: give at least 1")
        if sampling.by_index:
            raise ClipreelError(f"sampling {sampling.kind!r} goes by index; videos in shards are sampled by time")
        self.shards, self.tokenize, self.preprocess, self.sampling = shards, tokenize, preprocess, sampling
        self.per_step, self.seed, self.buffer = batch, seed, buffer
        self.captions, self.missing, self.rank, self.world, self.log = captions, missing, rank, world, log
        self.counts: Ints = np.asarray(shards.counts, np.int64)
        self.total = int(self.counts.sum())
        self.steps_per_epoch = -(-self.total // batch)
        self._check_captions()
        self.skipped: dict[str, str] = read_log(log)
        self.order = lru_cache(maxsize=4)(self._order)
        self.samples = lru_cache(maxsize=8)(self._samples)
        self.decoding = ThreadPoolExecutor(workers, thread_name_prefix="shards-decode")
        self.reading = ThreadPoolExecutor(1, thread_name_prefix="shards-read")
        self.buffers: OrderedDict[tuple[int, int], Future[dict[int, bytes | Damaged]]] = OrderedDict()
        self.lock = Lock()

    def _check_captions(self) -> None:
        """ClipreelError where captions are wanted, some are not there, and no text was given for those."""
        if self.captions is None or self.missing is not None:
            return
        if self.captions == "shards":
            absent = self.total - sum(min(f.generated, n) for f, n in zip(self.shards.files, self.counts, strict=True))
            first = ""
        else:
            names = [id for id in self.shards.ids() if id not in self.captions]
            absent, first = len(names), f" (the first: {names[0]!r})" if names else ""
        if absent:
            raise ClipreelError(
                f"{self.shards.place}: {absent} of {self.total} samples have no generated caption{first}: caption "
                "those too, or say missing_caption: None, the text that the released code takes"
            )

    # ------------------------------------------------------------------ which samples

    def _order(self, epoch: int) -> tuple[Ints, Ints]:
        """The shards in the order of an epoch, and the place in the stream at which each ends; call `order`."""
        shards = np.random.default_rng([self.seed, SHARD_ORDER, epoch]).permutation(len(self.counts))
        return shards, np.cumsum(self.counts[shards])

    def _samples(self, epoch: int, window: int) -> tuple[Ints, Ints]:
        """Shard and row in it of the samples of a window, shuffled; call `samples`."""
        shards, ends = self.order(epoch)
        first = window * self.buffer
        places = first + np.arange(min(self.buffer, self.total - first))
        places = np.random.default_rng([self.seed, WITHIN, epoch, window]).permutation(places)
        turn = np.searchsorted(ends, places, "right")
        return shards[turn], places - (ends[turn] - self.counts[shards[turn]])

    def told(self) -> list[str]:
        return short(self.total, self.per_step)

    def batch_rows(self, step: int) -> int:
        within = step % self.steps_per_epoch
        return min(self.per_step, self.total - within * self.per_step)

    def own(self, step: int) -> range:
        """The places in the epoch of the rows of this process."""
        rows, first = self.batch_rows(step), step % self.steps_per_epoch * self.per_step
        return range(first + rows * self.rank // self.world, first + rows * (self.rank + 1) // self.world)

    # ------------------------------------------------------------------ their bytes

    def fetch(self, epoch: int, window: int) -> dict[int, bytes | Damaged]:
        """The bytes of this process's samples of a window, by place in the epoch; each shard is read in long runs."""
        first = window * self.buffer
        shards, rows = self.samples(epoch, window)
        steps = range(first // self.per_step, -(-(first + len(rows)) // self.per_step))
        mine = [p for step in steps for p in self.own(step) if first <= p < first + len(rows)]
        found: dict[int, bytes | Damaged] = {}
        for shard in sorted({int(shards[p - first]) for p in mine}):
            wanted = sorted((int(rows[p - first]), p) for p in mine if shards[p - first] == shard)
            data = self.shards.read(shard, [row for row, _ in wanted])
            found |= {p: piece for (_, p), piece in zip(wanted, data, strict=True)}
        return found

    def window(self, epoch: int, window: int) -> dict[int, bytes | Damaged]:
        """The same, remembered, with the next window under way."""
        last = -(-self.total // self.buffer) - 1
        following = (epoch, window + 1) if window < last else (epoch + 1, 0)
        with self.lock:
            for key in ((epoch, window), following):
                if key not in self.buffers:
                    self.buffers[key] = self.reading.submit(self.fetch, *key)
                self.buffers.move_to_end(key)
            while len(self.buffers) > KEPT:
                self.buffers.popitem(last=False)
            job = self.buffers[epoch, window]
        return job.result()

    # ------------------------------------------------------------------ their frames

    def batch(self, step: int) -> Batch:
        epoch = step // self.steps_per_epoch
        mine = self.own(step)
        found = list(self.decoding.map(lambda place: self.row(epoch, place), mine))
        rows = [(place, row) for place, row in zip(mine, found, strict=True) if row is not None]
        groups = torch.tensor([place for place, _ in rows], dtype=torch.int64)
        names = tuple(row.name for _, row in rows)

        def side(frames: list[Tensor], texts: list[str], count: int, beside: Batch | None) -> Batch:
            size = self.preprocess.size
            pixels = torch.stack(frames) if frames else torch.empty(0, count, 3, size, size, dtype=torch.uint8)
            ids = self.tokenize(texts) if texts else self.tokenize(["-"])[:0]
            return Batch(pixels, ids.long(), groups, names, None, beside)

        stills = [r.still for _, r in rows if r.still is not None]
        aside = side(stills, [r.still_text for _, r in rows], 1, None) if self.captions is not None else None
        return side([r.frames for _, r in rows], [r.text for _, r in rows], self.sampling.frames, aside)

    def row(self, epoch: int, place: int) -> Row | None:
        """One decoded sample; None for one that cannot be used, which is noted."""
        window = place // self.buffer
        data = self.window(epoch, window)[place]
        shards, rows = self.samples(epoch, window)
        shard, number = int(shards[place % self.buffer]), int(rows[place % self.buffer])
        id = self.shards.contents(shard).ids[number]
        try:
            if isinstance(data, Damaged):
                raise Damaged(str(data))
            return self.decoded(parse(data, id), epoch, place)
        except (Damaged, DecodeError) as e:
            why = e.reason if isinstance(e, DecodeError) else str(e)
            self.note(f"{self.shards.url(shard)}/{id}", why)
            return None

    def decoded(self, film: Film, epoch: int, place: int) -> Row:
        """Raises DecodeError, and Damaged for a caption that is not there."""
        words = np.random.default_rng([self.seed, WORDS, epoch, place])
        moments = np.random.default_rng([self.seed, MOMENTS, epoch, place])
        text = film.captions[int(words.integers(len(film.captions)))]
        read = partial(read_frames, start_s=film.start_s, end_s=film.end_s, transform=self.pixels)
        with on_disk(film) as path:
            frames = read(path, self.sampling, rng=moments).pixels
            if self.captions is None:
                return Row(film.id, frames, text, None, "")
            still = read(path, Sampling("uniform", 1)).pixels  # frame floor(n / 2)
        said = film.generated if isinstance(self.captions, str) else self.captions.get(film.id)
        said = said or self.missing
        if said is None:
            raise Damaged("there is no generated caption of it")
        return Row(film.id, frames, text, still, said)

    def pixels(self, frame: Tensor) -> Tensor:
        """uint8 (1, 3, S, S) of a decoded frame, as the frame cache keeps it."""
        x = self.preprocess.pixels(frame)
        return x if x.dtype == torch.uint8 else (x.clamp(0, 1) * 255).round().to(torch.uint8)

    def note(self, name: str, why: str) -> None:
        """Remember a sample that was left out, once."""
        with self.lock:
            if name in self.skipped:
                return
            self.skipped[name] = why
            if self.log is not None:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                with self.log.open("a", encoding="utf-8") as f:
                    f.write(json.dumps({"sample": name, "reason": why}) + "\n")


def read_log(log: Path | None) -> dict[str, str]:
    """What runs before this one left out; a line that was not written to its end does not count."""
    if log is None or not log.exists():
        return {}
    *lines, _ = log.read_text("utf-8").split("\n")
    rows = [json.loads(line) for line in lines]
    return {row["sample"]: row["reason"] for row in rows}
