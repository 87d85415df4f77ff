"""Indexing end to end: videos per second, and where the time goes (decode, resize, encode, store).

`python benchmarks/index.py [--videos N] [--seconds S]` -> results/index.json. Makes its own H.264 files and a
ViT-B/32 with random weights. Decode and resize are CPU seconds of the reading processes, measured apart on the same
files; encode and store are those that the indexer itself reports; all of them overlap, so they do not add up to the
time that passed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from decode import make
from encode import B32
from machine import describe, save

from clipreel.clip import Clip
from clipreel.retriever import BUILT_IN, Retriever
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.tokenizer import Tokenizer
from clipreel.video.decode import read_frames
from clipreel.video.sampling import Sampling
from clipreel.video.shots import Segments
from clipreel.video.transforms import Preprocess


def model() -> Retriever:
    torch.manual_seed(0)
    return Retriever(
        Clip(B32),
        tokenizer=Tokenizer.from_files(BUILT_IN["shapes-tiny"]),
        preprocess=Preprocess(B32.image_size),
        sampling=Sampling("uniform", 12),
        name="random ViT-B/32",
    )


def cpu(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=20)
    args = parser.parse_args()
    found = model()
    segments = Segments()
    how = segments.sampling(found.sampling)
    result: dict[str, object] = {"machine": describe("torch", "av", "lancedb", "pillow"), "videos": args.videos}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (width, height) in {"240p": (320, 240), "720p": (1280, 720)}.items():
            folder = Path(scratch) / name
            folder.mkdir()
            one = make(folder / "0.mp4", width, height, args.seconds)
            for n in range(1, args.videos):  # other bytes, so that each is a file of its own
                (folder / f"{n}.mp4").write_bytes(one.read_bytes() + bytes([n]))
            bare = cpu(lambda: read_frames(one, how))  # noqa: B023 - called at once
            resized = cpu(lambda: read_frames(one, how, transform=found.preprocess.pixels))  # noqa: B023
            index = Index.create(Path(scratch) / f"index-{name}", facts_of(found, segments))
            start = time.perf_counter()
            report = update(index, found, [str(folder)])
            passed = time.perf_counter() - start
            assert report.indexed == args.videos
            parts = {"decode": bare * args.videos, "resize": (resized - bare) * args.videos}
            parts |= {stage: report.seconds[stage] for stage in ("encode", "store")}
            result[name] = {
                "seconds": passed,
                "videos_per_s": args.videos / passed,
                "video_seconds_per_s": report.video_s / passed,
                "vectors": report.vectors,
                "split_s": parts,
            }
            print(
                name,
                f"{report.video_s / passed:.1f} seconds of video a second",
                {k: round(v, 2) for k, v in parts.items()},
            )
    save("index", result)


if __name__ == "__main__":
    main()
