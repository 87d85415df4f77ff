"""A model on videos that it was not trained on: frames decoded once, vectors, a stamped result, two of them compared.

Captions and videos meet by the cosine of their vectors, or by the scores of a head that judges pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clipreel.data.cache import FrameCache, prepare
from clipreel.data.sample import Sample
from clipreel.evaluation.bootstrap import Interval, gain, overall, recalls, verdict
from clipreel.evaluation.features import Features
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.runs import BATCH, encode_captions, encode_stacks, features_of
from clipreel.heads import PoolingHead
from clipreel.retriever import Retriever

Frames = Mapping[str, np.ndarray]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Compared:
    """A data set before and after: results, intervals of the recalls, the paired gains, and what follows."""

    before: Result
    after: Result
    intervals: dict[str, dict[str, Interval]]
    gains: dict[str, dict[str, Interval]]
    overall: Interval
    helped: bool | None

    @property
    def worse(self) -> bool:
        """Whether the loss is beyond chance."""
        return self.overall.high < 0

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
    """A model, its result on videos, and what the result was made of: the videos' vectors (V, E), and `judged` (N, V)
    where a head scores every caption with every video."""

    model: Retriever
    videos: Tensor
    result: Result
    judged: Tensor | None = None

    def scores(self, captions: Sequence[str]) -> Tensor:
        """How well each of the captions fits each video (N, V); NaN where a video is missing."""
        return self.model.encode_text(captions).cpu() @ self.videos.T if self.judged is None else self.judged

    def having(self, selection: str, **stated: str) -> Looked:
        """The same, stamped with how the weights were selected, and with more; what has no weights of its own was
        trained on nothing."""
        if self.model.adapter == "none" and self.model.head is None:
            stated |= {"trained_on": "none"} if "trained_on" in stated else {}
        stamp = self.result.stamp.having(selection=selection, **stated)
        return replace(self, result=replace(self.result, stamp=stamp))

    def kept(self, bank: Sequence[str]) -> Features:
        """What is stored, with the vectors of texts that are no queries where vectors rank."""
        found = self.result.features
        assert found is not None
        found = replace(found, stamp=self.result.stamp)
        return found if found.scores is not None else replace(found, bank=encode_captions(self.model, bank))


def cached(
    model: Retriever,
    samples: Sequence[Sample],
    folder: Path,
    keep: int,
    say: Say,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[FrameCache, list[tuple[str, str]]]:
    """The frames of all samples, decoded once; and the videos that could not be read."""
    sampling = replace(model.sampling, frames=keep)

    def forecast(f: Any) -> None:
        if f.videos:
            say(f"decoding {f.videos} videos into {folder} ({f.bytes / 2**20:.0f} MiB)")

    how: dict[str, Any] = {"wait": True, "forecast": forecast, "progress": progress}
    made = prepare(samples, folder, preprocess=model.preprocess, sampling=sampling, **how)
    return FrameCache(folder), made.skipped


def taken(stored: np.ndarray, count: int) -> np.ndarray:
    """The middles of `count` equal parts of the stored frames, or all where there are no more."""
    if len(stored) <= count:
        return stored
    return stored[(np.arange(count) * 2 + 1) * len(stored) // (2 * count)]


def stacks(samples: Sequence[Sample], frames: Frames, count: int) -> Iterable[Tensor | None]:
    """uint8 (T, 3, H, W) of each sample, None for those that are missing."""
    return (torch.from_numpy(np.array(taken(frames[s.id], count))) if s.id in frames else None for s in samples)


@torch.no_grad()
def frame_vectors(model: Retriever, given: Iterable[Tensor | None], videos: int, most: int) -> tuple[Tensor, Tensor]:
    """Raw vectors (V, T, E) of at most `most` frames a video, and which are real (V, T); NaN for missing videos."""
    found, mask = torch.full((videos, most, model.embed_dim), torch.nan), torch.zeros(videos, most, dtype=torch.bool)
    mask[:, 0] = True  # a video without a frame is an error to a head, one of NaN is missed
    numbered = enumerate(given)
    while block := list(islice(numbered, BATCH)):  # cut by position, as encode_stacks does
        batch = [(i, stack) for i, stack in block if stack is not None]
        if not batch:
            continue
        rows, few = zip(*batch, strict=True)
        lengths = torch.tensor([len(stack) for stack in few])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        pixels = model.preprocess.normalise(pad_sequence(list(few), batch_first=True).to(model.device))
        vectors = model.encode_frames(pixels, None if real.all() else real, normalize=False).cpu()
        found[list(rows), : vectors.shape[1]], mask[list(rows), : vectors.shape[1]] = vectors, real
    return found, mask


def measured(model: Retriever, samples: Sequence[Sample], frames: Frames, count: int, split: str) -> Result:
    return look(model, samples, frames, count, split).result


def scored(
    model: Retriever, texts: Sequence[str], samples: Sequence[Sample], frames: Frames, count: int
) -> tuple[Tensor, Tensor | None]:
    """The vectors of videos (V, E), and the scores (N, V) of a head that judges pairs; NaN for missing videos."""
    head, given = model.head, stacks(samples, frames, count)
    if head is None or isinstance(head, PoolingHead):
        return encode_stacks(model, given, len(samples)), None
    vectors, mask = (x.to(model.device) for x in frame_vectors(model, given, len(samples), count))
    text = model.encode_text(texts, normalize=False)
    return model.pool(vectors, mask).cpu(), head.score(text, vectors, mask).cpu()


def below(
    model: Retriever, misses: Mapping[str, Sequence[Sample]], samples: Sequence[Sample], frames: Frames, count: int
) -> int:
    """How many of the moments that were judged wrong for a text score less than its best right one among `samples`."""
    if not misses:
        return 0
    right: dict[str, list[Sample]] = {text: [] for text in misses}
    for s in samples:
        for text in right.keys() & set(s.captions):
            right[text].append(s)
    asked = list({s.id: s for found in (*right.values(), *misses.values()) for s in found}.values())
    videos, judged = scored(model, list(misses), asked, frames, count)
    scores = model.encode_text(list(misses)).cpu() @ videos.T if judged is None else judged
    scores, at = scores.nan_to_num(-torch.inf), {s.id: n for n, s in enumerate(asked)}
    rows = zip(scores, right.values(), misses.values(), strict=True)
    return sum(int((row[[at[s.id] for s in w]] < row[[at[s.id] for s in r]].max()).sum()) for row, r, w in rows)


def readable(misses: Mapping[str, Sequence[Sample]], frames: Frames) -> dict[str, list[Sample]]:
    """Those of which there are frames."""
    found = {text: [m for m in moments if m.id in frames] for text, moments in misses.items()}
    return {text: moments for text, moments in found.items() if moments}


def told(
    misses: Mapping[str, Sequence[Sample]],
    samples: Sequence[Sample],
    models: tuple[Retriever, Retriever],
    frames: Frames,
    count: int,
) -> dict[str, int]:
    """How many misses are `held_out`, and how many of those score less than the right answer with the models `before`
    and `after`."""
    there = readable(misses, frames)
    held_out = {"held_out": sum(map(len, there.values()))}
    fewer = (below(model, there, samples, frames, count) for model in models)
    return held_out | dict(zip(("before", "after"), fewer, strict=True))


def look(model: Retriever, samples: Sequence[Sample], frames: Frames, count: int, split: str) -> Looked:
    """A result, and the vectors or scores that it was made of. Videos that are missing count as missed."""
    videos, judged = scored(model, [c for s in samples for c in s.captions], samples, frames, count)
    features = features_of(model, samples, videos, split, count)
    result = replace(features, scores=judged).result()
    return Looked(model, videos, result, judged)


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


def helps(compared: Compared, general: Compared | None) -> bool | None:
    """The verdict on an adapter: that on the held-out pairs, unless it is worse on a second set."""
    return False if general is not None and general.worse else compared.helped
