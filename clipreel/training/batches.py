"""Batches of a training run as a pure function of (seed, step): frames, tokens, crops and flips.

Nothing is carried from one batch to the next, so a run resumes at any step without any state of the loader, and any
number of processes share one global batch by rows. order.py says which captions meet.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.training.order import Ints, Order
from clipreel.video.sampling import Sampling

FRAMES, AUGMENT, MISS = 2, 3, 8  # streams of random numbers beside those of order.py, mixture.py and mixed.py
WRONG = -1  # the group of a row whose video was judged wrong for its text


@dataclass(frozen=True)
class Batch:
    """The rows of one step that this process computes.

    `frames` (B, T, 3, H, W) uint8, normalised later on the device; `ids` (B, L) int64 tokens; `groups` (B,) int64,
    equal where the video is the same, so that its captions are equally right, and `WRONG` in the last rows where the
    video is no answer to the text, which then stands in a row before, too; `names` the sample ids, for messages;
    `frame_mask` (B, T) is False where a short video repeats its last frame, None where no video is short. `beside`
    holds other pixels and texts of the same videos, row by row (one frame and its caption).
    """

    frames: Tensor
    ids: Tensor
    groups: Tensor
    names: tuple[str, ...]
    frame_mask: Tensor | None = None
    beside: Batch | None = None

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the rows, as views."""
        part = slice(start, stop)
        mask = None if self.frame_mask is None else self.frame_mask[part]
        beside = None if self.beside is None else self.beside.rows(start, stop)
        return Batch(self.frames[part], self.ids[part], self.groups[part], self.names[part], mask, beside)

    def to(self, device: torch.device | str) -> Batch:
        """The same rows on a device; does not wait for the copy where the memory is pinned."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin(self) -> Batch:
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        mask = None if self.frame_mask is None else move(self.frame_mask)
        beside = None if self.beside is None else self.beside._each(move)
        return Batch(move(self.frames), move(self.ids), move(self.groups), self.names, mask, beside)


@dataclass(frozen=True)
class Augment:
    """Random changes of the pixels, one draw for all frames of a video (X-Pool and VoP: crop (0.5, 1.0), flip 0.5).

    `crop` is the share of the area that a random part keeps, resized to the model's size; its shape varies by
    `ratio`. `flip` is how often a video is mirrored, which makes "left" and "right" in its captions wrong.
    """

    crop: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ClipreelError(f"crop {self.crop}: give two shares of the area, 0 < least <= most <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ClipreelError(f"ratio {self.ratio}: give width over height, 0 < least <= most")
        if not 0 <= self.flip <= 1:
            raise ClipreelError(f"flip {self.flip}: give a probability from 0 to 1")

    def __call__(self, frames: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        """uint8 (T, 3, H, W) -> (T, 3, size, size), all frames alike."""
        if self.crop is not None:
            top, left, height, width = self.box(frames.shape[-2], frames.shape[-1], rng)
            part = frames[..., top : top + height, left : left + width]
            frames = F.interpolate(part, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return frames.flip(-1) if self.flip and rng.random() < self.flip else frames

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a part: ten tries at area and shape, then the largest part of legal shape.

        The shape is even in the logarithm of width over height, as in torchvision's RandomResizedCrop.
        """
        least, most = self.crop or (1.0, 1.0)
        for _ in range(10):
            area = height * width * rng.uniform(least, most)
            shape = np.exp(rng.uniform(*np.log(self.ratio)))
            h, w = round(float(np.sqrt(area / shape))), round(float(np.sqrt(area * shape)))
            if 0 < h <= height and 0 < w <= width:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        shape = min(max(width / height, self.ratio[0]), self.ratio[1])
        h, w = min(height, round(width / shape)), min(width, round(height * shape))
        return (height - h) // 2, (width - w) // 2, h, w


class Batches(ABC):
    """What training takes: the batch of every step, as a pure function of the step. Epochs have `steps_per_epoch`."""

    steps_per_epoch: int
    ahead = 2

    @abstractmethod
    def batch_rows(self, step: int) -> int:
        """Rows of the global batch."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The rows of this process; the same whenever and wherever it is asked for."""

    def told(self) -> list[str]:
        """What a run should say of its batches before it begins."""
        return []

    def stream(self, start: int, stop: int) -> Generator[tuple[int, Batch, float], None, None]:
        """Steps start..stop-1 as (step, batch, seconds waited for it), built ahead in threads."""
        todo = iter(range(start, stop))
        jobs: deque[tuple[int, Future[Batch]]] = deque()
        with ThreadPoolExecutor(self.ahead, thread_name_prefix="batches") as pool:
            try:
                began = time.perf_counter()
                jobs.extend((s, pool.submit(self.batch, s)) for s in islice(todo, self.ahead))
                while jobs:
                    step, job = jobs.popleft()
                    made = job.result()
                    waited = time.perf_counter() - began
                    jobs.extend((s, pool.submit(self.batch, s)) for s in islice(todo, 1))
                    yield step, made, waited
                    began = time.perf_counter()
            finally:
                for _, job in jobs:
                    job.cancel()


def short(rows: int, batch: int) -> list[str]:
    """What is told of an epoch that does not fill a single batch."""
    said = f"an epoch has {rows} rows and a batch {batch}, so every step takes the same {rows} rows"
    return [said] if rows < batch else []


class Loader(Batches):
    """Batches in an order, with frames from a cache or any other mapping from sample id to uint8 (T, 3, H, W).

    `tokenize` turns texts into ids (N, L), once and up front. The global batch has the rows that `order` gives a step;
    process `rank` of `world` gets a run of neighbouring rows, maybe none of a short last batch, and all ranks in turn
    are the batch of one process. The frames of a video are chosen by `sampling` from those in the cache: without it
    the middles of as many parts as the longest has frames, `Sampling("tsn_random_index", T)` draws one of each part.
    `misses` are moments that were judged wrong, by text: whenever a text is trained on that has some, one of them is
    drawn and stands with the text in a row behind all pairs, so that the pairs are those of a loader without misses.
    `ahead` threads build as many steps ahead of `stream`. Raises ClipreelError for what cannot make batches.
    """

    def __init__(
        self,
        order: Order,
        frames_of: Mapping[str, NDArray[np.uint8]],
        tokenize: Callable[[list[str]], Tensor],
        *,
        misses: Mapping[str, Sequence[Sample]] | None = None,
        sampling: Sampling | None = None,
        augment: Augment | None = None,
        size: int | None = None,
        rank: int = 0,
        world: int = 1,
        ahead: int = 2,
        pin: bool = False,
    ) -> None:
        if not 0 <= rank < world:
            raise ClipreelError(f"rank {rank} of {world} processes: ranks go from 0 to {world - 1}")
        self.order, self.samples, self.frames_of = order, order.samples, frames_of
        self.augment, self.rank, self.world = augment or Augment(), rank, world
        self.ahead, self.pinned = max(ahead, 1), pin
        self.steps_per_epoch = order.steps_per_epoch
        texts = [c for s in self.samples for c in s.captions]
        self.misses = {t: tuple(found) for t in texts if (found := (misses or {}).get(t))}
        self.wrong = {item: self.misses[t] for item, t in enumerate(texts) if t in self.misses}
        counts, stored = self._stored([*self.samples, *(s for found in self.misses.values() for s in found)])
        self.sampling = sampling or Sampling("middles", max(counts))
        if not self.sampling.by_index:
            raise ClipreelError(
                f"sampling {self.sampling.kind!r} goes by time and a cache holds frames: take one by index, such as "
                "middles or tsn_random_index"
            )
        self.masked = min(counts) < self.sampling.frames  # of all samples, so that every process agrees
        self.size = size or stored
        if self.size != stored and self.augment.crop is None:
            raise ClipreelError(f"the frames have {stored} pixels and {self.size} are asked for: that needs a crop")
        self.tokens = tokenize(texts).to(torch.int32)

    def _stored(self, samples: Sequence[Sample]) -> tuple[list[int], int]:
        """How many frames each sample has, and their size."""
        absent = [s.id for s in samples if s.id not in self.frames_of]
        if absent:
            raise ClipreelError(
                f"{len(absent)} of {len(samples)} samples have no frames (the first: {absent[0]!r}): run "
                "clipreel prepare again, or leave them out"
            )
        shapes = [self.frames_of[s.id].shape for s in samples]
        size = shapes[0][-1]
        for s, shape in zip(samples, shapes, strict=True):
            if shape[1:] != (3, size, size) or not shape[0]:
                raise ClipreelError(f"the frames of {s.id!r} have shape {shape}; expected (T, 3, {size}, {size})")
        return [shape[0] for shape in shapes], size

    def told(self) -> list[str]:
        return short(self.order.rows, self.order.per_step)

    def batch_rows(self, step: int) -> int:
        """Rows of the global batch; the last one of an epoch may be shorter."""
        return len(self._rows(step)[0])

    def _rows(self, step: int) -> tuple[Ints, Ints, list[Sample]]:
        """Items, groups and moments of the global batch: the pairs, and behind them a wrong moment of a text."""
        items = self.order.items(step)
        groups, moments = self.order.group_of[items], [self.samples[i] for i in self.order.sample_of[items]]
        missed = [i for i in items.tolist() if i in self.wrong]
        if not missed:
            return items, groups, moments
        draws = np.random.default_rng([self.order.seed, step, MISS]).random(len(missed))
        moments += [self.wrong[i][int(x * len(self.wrong[i]))] for i, x in zip(missed, draws, strict=True)]
        return np.append(items, missed), np.append(groups, [WRONG] * len(missed)), moments

    def share(self, step: int) -> tuple[int, int]:
        """First row and end of what this process computes of the global batch."""
        rows = self.batch_rows(step)
        return rows * self.rank // self.world, rows * (self.rank + 1) // self.world

    def batch(self, step: int) -> Batch:
        """The rows of this process; the same whenever and wherever it is asked for."""
        start, stop = self.share(step)
        items, groups, samples = self._rows(step)
        items, groups, samples = items[start:stop], groups[start:stop], samples[start:stop]
        shape = (len(items), self.sampling.frames)
        frames = torch.empty(*shape, 3, self.size, self.size, dtype=torch.uint8)
        mask = torch.ones(shape, dtype=torch.bool)
        for row, sample in enumerate(samples):
            own = self._fill(frames[row], self.frames_of[sample.id], (self.order.seed, step, start + row))
            mask[row, own:] = False
        ids = self.tokens[torch.from_numpy(items)].long()
        names = tuple(s.id for s in samples)
        made = Batch(frames, ids, torch.from_numpy(groups), names, mask if self.masked else None)
        return made.pin() if self.pinned else made

    def _fill(self, out_T3HW: Tensor, stored: NDArray[np.uint8], key: tuple[int, int, int]) -> int:
        """Write the frames of one row; returns how many are its own and not repeats of the last."""
        rng = np.random.default_rng([*key, FRAMES]) if self.sampling.random else None
        try:
            chosen = self.sampling.indices(len(stored), rng)
        except ValueError as e:
            raise ClipreelError(f"{e}; prepare with more --frames, or draw with tsn_random_index") from e
        padded = np.concatenate([chosen, np.repeat(chosen[-1:], self.sampling.frames - len(chosen))])
        if self.augment == Augment():
            np.take(stored, padded, axis=0, out=out_T3HW.numpy(), mode="clip")
        else:
            picked = torch.from_numpy(np.take(stored, padded, axis=0))
            out_T3HW.copy_(self.augment(picked, self.size, np.random.default_rng([*key, AUGMENT])))
        return len(chosen)
