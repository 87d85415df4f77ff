"""From videos with captions to a stamped result: read, encode, rank; a video that cannot be read counts as missed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from clipreel.data.readers import annotation_file, part_of, read_samples, rows_of
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import Features
from clipreel.evaluation.metrics import Result, measures
from clipreel.evaluation.protocol import Stamp, split_hash
from clipreel.evaluation.ranks import order_blind
from clipreel.video.decode import Frames, read_frames
from clipreel.video.many import read_many
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

BATCH = 16
CAPTIONS = 512  # that are encoded at once


def shapes_samples(folder: Path) -> list[Sample]:
    """The test split of the shapes world as files in this folder."""
    return ShapesWorld().write_videos(folder, "test")


def shapes_bound() -> tuple[dict[str, Any], dict[str, Any]]:
    """What the best model without a sense of time reaches on that split, text to video and video to text."""
    t2v, v2t = order_blind([item.group for item in ShapesWorld().videos("test")])
    return measures(t2v), measures(v2t)


def shapes_bank(count: int = 500) -> list[str]:
    """Captions of its training split, spread over its kinds of scenes, for a query bank."""
    captions = [item.captions[0] for item in ShapesWorld().videos("train")]
    return captions[:: max(1, len(captions) // count)][:count]


def read_annotations(folder: Path) -> list[Sample]:
    """The samples of a folder with annotations.jsonl (or .csv, .parquet), or of one such file. A video that is not
    there is left to be found by its reader. Raises ClipreelError for one that occurs twice: its captions would be
    split over two queries of the gallery, or silently become one."""
    file = annotation_file(Path(folder))
    parts = Counter(part_of(row) for row in rows_of(file))
    twice = [name for (name, _, _), count in parts.items() if count > 1]
    if twice:
        raise ClipreelError(f"{file}: a video occurs twice ({', '.join(twice[:3])}); put its captions in one line")
    return read_samples(file, check_files=False)


def read_bank(path: Path) -> list[str]:
    """The captions of a query bank: a text a line (.txt), or those of an annotation file or folder."""
    if path.suffix.lower() != ".txt":
        return [c for s in read_samples(path, check_files=False) for c in s.captions]
    try:
        found = [line.strip() for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise ClipreelError(f"{path} cannot be read as text in UTF-8 ({e})") from e
    if not found:
        raise ClipreelError(f"{path} holds no texts; put a caption on each line")
    return found


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
    numbered = enumerate(stacks)
    # cut by position, so that processes which share the blocks pad and round as one does
    while block := list(islice(numbered, BATCH)):
        batch = [(i, stack) for i, stack in block if stack is not None]
        if not batch:
            continue
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
    return features_of(model, samples, videos, split, frames).result(dual_softmax=dual_softmax)


@torch.no_grad()
def encode_captions(model: Retriever, captions: Sequence[str]) -> torch.Tensor:
    """Vectors (T, E) on the CPU, some captions at a time: all of a large set would not fit."""
    parts = [model.encode_text(captions[i : i + CAPTIONS]).cpu() for i in range(0, len(captions), CAPTIONS)]
    return torch.cat(parts) if parts else torch.empty(0, model.embed_dim)


def features_of(
    model: Retriever,
    samples: Sequence[Sample],
    videos: torch.Tensor,
    split: str,
    frames: int = 8,
    bank: Sequence[str] = (),
    failed: Sequence[tuple[str, str]] = (),
    encode: Callable[[Retriever, Sequence[str]], torch.Tensor] = encode_captions,
) -> Features:
    """The vectors of videos (V, E), of their captions, and of the texts of a bank, stamped with how they were made."""
    texts = encode(model, [c for s in samples for c in s.captions])
    others = encode(model, bank) if bank else None
    sampling = replace(model.sampling, frames=frames)
    return Features(samples, texts, videos, stamp_of(model, samples, split, frames), others, failed, sampling)


def stamp_of(model: Retriever, samples: Sequence[Sample], split: str, frames: int) -> Stamp:
    return Stamp(
        split=split,
        split_hash=split_hash([s.id for s in samples]),
        frames=frames_of(replace(model.sampling, frames=frames)),
        resolution=model.preprocess.size,
        tokens=model.tokens,
        tokenizer="none" if model.tokenizer is None else model.tokenizer.mode,
        base=model.fingerprint[:12] + ("" if model.engine is None else f" in {model.engine_name}"),
        adapter=model.adapter[:12],
    )


def frames_of(sampling: Sampling) -> str:
    """How frames are chosen, as stamps say it."""
    rate = f" at {sampling.fps:g} a second" if sampling.kind in ("rate", "cover") else ""
    return f"{sampling.frames} {sampling.kind}{rate}"
