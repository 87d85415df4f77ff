"""From videos with captions to a stamped result: read, encode, rank; a video that cannot be read counts as missed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import Features
from clipreel.evaluation.metrics import Result, measures
from clipreel.evaluation.protocol import Stamp, parts_hash, split_hash
from clipreel.evaluation.ranks import order_blind
from clipreel.video.decode import Frames, read_frames
from clipreel.video.many import read_many
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

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
    return spread([item.captions[0] for item in ShapesWorld().videos("train")], count)


def spread(captions: Sequence[str], count: int = 500) -> list[str]:
    """At most so many of the captions, evenly spread over them."""
    return list(captions[:: max(1, len(captions) // count)][:count])


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
    return encode_stacks(model, stacks(model, samples, frames, failed, progress), len(samples)), failed


def stacks(
    model: Retriever,
    samples: Sequence[Sample],
    frames: int,
    failed: list[tuple[str, str]],
    progress: Callable[[int, int], None],
) -> Iterator[torch.Tensor | None]:
    """The frames of each sample, (T, 3, H, W) as `model.preprocess.pixels` gives them; None for one that cannot be
    read, which is put on the list of those that `failed` with its reason."""
    sampling = replace(model.sampling, frames=frames)

    def read(s: Sample) -> Frames:
        return read_frames(s.video, sampling, start_s=s.start_s, end_s=s.end_s, transform=model.preprocess.pixels)

    for n, (sample, found) in enumerate(read_many(samples, read), 1):
        if isinstance(found, DecodeError):
            failed.append((str(sample.video), found.reason))
        yield None if isinstance(found, DecodeError) else found.pixels
        progress(n, len(samples))


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
        base=base_of(model),
        base_name=model.base_name,
        adapter=identity(model),
        pixels=pixels_of(model.preprocess),
        part=parts_hash([(s.start_s, s.end_s) for s in samples]),
    )


def base_of(model: Retriever) -> str:
    """What a stamp calls the base of a model."""
    return model.fingerprint[:12] + ("" if model.engine is None else f" in {model.engine_name}")


def identity(model: Retriever) -> str:
    """What a stamp calls the adapter of a model and its head."""
    return model.adapter[:12] + ("" if model.head is None else f" {model.head.name} {model.head.fingerprint()[:6]}")


def pixels_of(recipe: Preprocess) -> str:
    """How frames become pixels, as stamps say it; mean and deviation are said where they are not CLIP's."""
    usual = Preprocess(recipe.size, recipe.resize, recipe.geometry)
    return f"{recipe.resize} {recipe.geometry}" + (
        "" if recipe == usual else f", normalised {recipe.fingerprint()[:6]}"
    )


def frames_of(sampling: Sampling) -> str:
    """How frames are chosen, as stamps say it."""
    rate = f" at {sampling.fps:g} a second" if sampling.kind in ("rate", "cover") else ""
    return f"{sampling.frames} {sampling.kind}{rate}"
