"""From videos with captions to a stamped result: read, encode, rank; a video that cannot be read counts as missed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.metrics import Result, evaluate, measures
from clipreel.evaluation.protocol import Stamp, split_hash
from clipreel.evaluation.ranks import order_blind
from clipreel.video.decode import Frames, read_frames
from clipreel.video.many import read_many
from clipreel.video.packets import DecodeError

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

BATCH = 16


def shapes_samples(folder: Path) -> list[Sample]:
    """The test split of the shapes world as files in this folder."""
    return ShapesWorld().write_videos(folder, "test")


def shapes_bound() -> tuple[dict[str, Any], dict[str, Any]]:
    """What the best model without a sense of time reaches on that split, text to video and video to text."""
    t2v, v2t = order_blind([item.group for item in ShapesWorld().videos("test")])
    return measures(t2v), measures(v2t)


def read_annotations(folder: Path) -> list[Sample]:
    """Samples of `annotations.jsonl`: {"video": name, "captions": [...]} or {"video": name, "caption": ...} a line."""
    path = Path(folder) / "annotations.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except FileNotFoundError as e:
        raise ClipreelError(f'{path} is missing: one line per video, {{"video": "a.mp4", "captions": ["..."]}}') from e
    except (OSError, ValueError) as e:
        raise ClipreelError(f"{path} cannot be read as JSON lines in UTF-8 ({e})") from e
    samples = []
    for number, row in enumerate(rows, 1):
        captions = row.get("captions", [row["caption"]] if row.get("caption") else []) if isinstance(row, dict) else []
        if not captions or not isinstance(row.get("video"), str):
            raise ClipreelError(f"{path}, line {number}: a video name and at least one caption are needed")
        samples.append(Sample(row["video"], Path(folder) / row["video"], tuple(captions)))
    twice = {s.id for s in samples if sum(o.id == s.id for o in samples) > 1} if len(samples) < 2000 else set()
    if twice or len({s.id for s in samples}) != len(samples):
        raise ClipreelError(
            f"{path}: a video occurs twice ({', '.join(sorted(twice)[:3])}); put its captions in one line"
        )
    if not samples:
        raise ClipreelError(f"{path} holds no samples")
    return samples


def encode_videos(
    model: Retriever,
    samples: Sequence[Sample],
    frames: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    """Vectors (V, E), NaN rows for videos that could not be read, and those videos with their reasons."""
    failed: list[tuple[str, str]] = []
    sampling = replace(model.sampling, frames=frames)

    def read(s: Sample) -> Frames:
        return read_frames(s.video, sampling, start_s=s.start_s, end_s=s.end_s, transform=model.preprocess.pixels)

    def stacks() -> Iterator[torch.Tensor | None]:
        for n, (sample, found) in enumerate(read_many(samples, read), 1):
            if isinstance(found, DecodeError):
                failed.append((str(sample.video), found.reason))
            yield None if isinstance(found, DecodeError) else found.pixels
            progress(n, len(samples))

    return encode_stacks(model, stacks(), len(samples)), failed


@torch.no_grad()
def encode_stacks(model: Retriever, stacks: Iterable[torch.Tensor | None], count: int) -> torch.Tensor:
    """Vectors (count, E) of videos given as uint8 frames (T, 3, H, W), a few at a time; NaN rows where one is None.

    Videos may differ in frames: shorter ones are padded and masked.
    """
    vectors = torch.full((count, model.embed_dim), torch.nan)
    there = ((i, stack) for i, stack in enumerate(stacks) if stack is not None)
    while batch := list(islice(there, BATCH)):
        rows, found = zip(*batch, strict=True)
        lengths = torch.tensor([len(stack) for stack in found])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        pixels = model.preprocess.normalise(pad_sequence(list(found), batch_first=True).to(model.device))
        vectors[list(rows)] = model.encode_video(pixels, None if mask.all() else mask).cpu()
    return vectors


def evaluate_samples(
    model: Retriever,
    samples: Sequence[Sample],
    split: str,
    frames: int = 8,
    dual_softmax: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Result, list[tuple[str, str]]]:
    """Every caption is a query over all videos; stamped. Returns the result and the videos that were not read."""
    videos, failed = encode_videos(model, samples, frames, progress)
    return evaluate_vectors(model, samples, videos, split, frames, dual_softmax), failed


def evaluate_vectors(
    model: Retriever,
    samples: Sequence[Sample],
    videos: torch.Tensor,
    split: str,
    frames: int = 8,
    dual_softmax: str | None = None,
) -> Result:
    """The same from vectors (V, E) of `encode_videos`, one per sample."""
    captions = [c for s in samples for c in s.captions]
    truth = torch.tensor([i for i, s in enumerate(samples) for _ in s.captions])
    texts = model.encode_text(captions).cpu()
    stamp = Stamp(
        split=split,
        split_hash=split_hash([s.id for s in samples]),
        frames=f"{frames} {model.sampling.kind}",
        resolution=model.preprocess.size,
        tokens=model.tokens,
        tokenizer="none" if model.tokenizer is None else model.tokenizer.mode,
        base=model.fingerprint[:12] + ("" if model.engine is None else f" in {model.engine_name}"),
        adapter=model.adapter[:12],
    )
    return evaluate(texts, videos, truth, stamp=stamp, dual_softmax=dual_softmax)
