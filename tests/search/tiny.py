"""A small random model and small videos, so that tests of search are fast."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.retriever import BUILT_IN, Retriever
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of
from clipreel.tokenizer import Tokenizer
from clipreel.video.sampling import Sampling
from clipreel.video.shots import Segments
from clipreel.video.transforms import Preprocess
from tests.video.make import write


@lru_cache
def tiny_model(seed: int = 0) -> Retriever:
    torch.manual_seed(seed)
    words = Tokenizer.from_files(BUILT_IN["shapes-tiny"])
    config = ClipConfig(16, 8, TowerConfig(1, 32, 2, 64), TowerConfig(1, 32, 2, 64), 32, words.vocab_size, 16, "gelu")
    return Retriever(
        Clip(config),
        tokenizer=words,
        preprocess=Preprocess(16, "uint8"),
        sampling=Sampling("uniform", 4),
        name=f"tiny-{seed}",
    )


def new_index(place: Path, segments: Segments | None = None) -> Index:
    return Index.create(place, facts_of(tiny_model(), segments or Segments("windows", 0.5, 0.0, 4.0)))


def library(folder: Path, names: tuple[str, ...] = ("a.mp4", "b.mp4", "sub/c.mkv")) -> Path:
    """Videos of different length in a folder."""
    for n, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, frames=12 + 6 * n)
    return folder
