"""Rows a second of the frame cache against decoding in every epoch, and how long a training step waits for its batch.

`python benchmarks/loader.py [--videos N]` -> results/loader.json. Shapes videos (128 pixels, H.264), peers in turns,
the same number of threads; the cache is read warm, as from the second epoch on. `augmented` is X-Pool's crop and flip.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from machine import describe, in_turns, save, summary

from clipreel import load
from clipreel.data.cache import FrameCache, prepare
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.retriever import Retriever
from clipreel.training.batches import Augment, Loader
from clipreel.training.order import Order
from clipreel.video.decode import read_frames
from clipreel.video.many import read_many
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

BATCH, THREADS = 32, 2
RECIPES = {
    "shapes-tiny, 8 frames of 64": (Preprocess(size=64), Sampling("uniform", 8)),
    "ViT-B/32, 12 frames of 224": (Preprocess(size=224), Sampling("uniform", 12)),
}


def epoch(loader: Loader) -> None:
    for _ in loader.stream(0, loader.steps_per_epoch):
        pass


def decode(samples: Sequence[Sample], preprocess: Preprocess, sampling: Sampling) -> None:
    """The same rows without a cache: every video decoded and resized, batches stacked."""

    def read(path: Path):
        return read_frames(path, sampling, transform=preprocess.pixels)

    rows = []
    for _, found in read_many([s.video for s in samples], read, THREADS, ahead=2 * THREADS):
        assert not isinstance(found, DecodeError)
        rows.append(found.pixels)
        if len(rows) == BATCH:
            torch.stack(rows)
            rows = []


def waiting(model: Retriever, loader: Loader) -> dict[str, float]:
    """Seconds that training steps (both towers forwards and backwards) wait for batches, of all their seconds."""
    model.clip.requires_grad_(True)
    waited = 0.0
    start = time.perf_counter()
    for _, batch, seconds in loader.stream(0, loader.steps_per_epoch):
        waited += seconds
        v = model.clip.encode_video(model.preprocess.normalise(batch.frames)).mean(1)
        (v @ model.clip.encode_text(batch.ids).T).mean().backward()
    return {"steps_s": time.perf_counter() - start, "waited_s": waited}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = load("shapes-tiny", device="cpu")
    tokenizer = model.tokenizer
    assert tokenizer is not None
    result: dict[str, object] = {"machine": describe("av", "torch", "numpy"), "videos": args.videos, "batch": BATCH}
    with tempfile.TemporaryDirectory() as scratch:
        samples = ShapesWorld().write_videos(Path(scratch) / "videos", "train", args.videos)
        for n, (name, (preprocess, sampling)) in enumerate(RECIPES.items()):
            folder = Path(scratch) / f"cache {n}"
            start = time.perf_counter()
            prepare(samples, folder, preprocess=preprocess, sampling=sampling, workers=THREADS)
            prepared = time.perf_counter() - start
            cache, order = FrameCache(folder), Order(samples, batch=BATCH)

            def loader(augment: Augment | None = None, cache=cache, order=order) -> Loader:
                return Loader(
                    order, cache, lambda texts: tokenizer(texts, model.context), augment=augment, ahead=THREADS
                )

            plain, changed = loader(), loader(Augment((0.5, 1.0), flip=0.5))
            times = in_turns(
                {
                    "cache": lambda plain=plain: epoch(plain),
                    "cache, augmented": lambda changed=changed: epoch(changed),
                    "decode": lambda p=preprocess, s=sampling: decode(samples, p, s),
                },
                args.rounds,
            )
            rows = {k: args.videos / v["best_s"] for k, v in summary(times).items()}
            ratio = rows["cache"] / rows["decode"]
            result[name] = {"prepare_s": prepared, "rows_per_s": rows, "cache_against_decode": ratio}
            print(name, {k: round(v) for k, v in rows.items()}, f"{ratio:.1f}x")
            if preprocess.size == model.preprocess.size:
                result["training shapes-tiny"] = found = waiting(model, plain)
                print(f"training waits {found['waited_s']:.3f} of {found['steps_s']:.1f} s")
    save("loader", result)


if __name__ == "__main__":
    main()
