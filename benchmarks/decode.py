"""Decode, sample and resize 12 frames of a video: ours against OpenCV, every-frame decoding, and keyframes alone.

`python benchmarks/decode.py [--realdata DIR]` -> results/decode.json. Makes its own H.264 files; CPU seconds, peers in
turns. OpenCV reads as CLIP4Clip does (set the position, then read).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from machine import describe, save

from clipreel.video import decode
from clipreel.video.decode import read_frames
from clipreel.video.packets import Clock, scan
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

UNIFORM, KEYS = Sampling("uniform", 12), Sampling("keyframes", 12)


def make(path: Path, width: int, height: int, seconds: int, fps: int = 25) -> Path:
    """A drifting texture with grain, at the bit rate of films on the web (5 Mbit/s at 1080p)."""
    rng = np.random.default_rng(0)
    texture = rng.integers(64, 191, (height // 8, width // 8 + seconds * fps, 3), dtype=np.int16)
    grain = (8 * rng.standard_normal((8, height, width, 1))).astype(np.int16)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 250
        stream.bit_rate = int(2.4 * width * height)
        for t in range(seconds * fps):
            part = texture[:, t : t + width // 8].repeat(8, 0).repeat(8, 1) + np.roll(grain[t % 8], 37 * t, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(part.astype(np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    return path


def opencv(path: Path) -> None:
    import cv2

    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    for index in np.linspace(0, count - 1, 12).astype(int):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(index))
        ok, frame = capture.read()
        if ok:
            cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), (224, 224), interpolation=cv2.INTER_CUBIC)


def every_frame(path: Path) -> None:
    """Full decode of the file with PyAV, each frame converted: what keyframe sampling saves."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24")


def never_seek(path: Path) -> None:
    real = decode.leap
    decode.leap = lambda keys, position, target: False
    try:
        read_frames(path, UNIFORM, transform=Preprocess().pixels)
    finally:
        decode.leap = real


def cpu_seconds(peers: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(peers, float("inf"))
    for r in range(rounds + 1):
        for name, run in peers.items():
            start = time.process_time()
            run()
            if r:
                best[name] = min(best[name], time.process_time() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--realdata", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"machine": describe("av", "torch", "pillow", "opencv-python-headless")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {
            "240p 20 s": make(folder / "a.mp4", 320, 240, 20),
            "1080p 20 s": make(folder / "b.mp4", 1920, 1080, 20),
            "240p 10 min": make(folder / "c.mp4", 320, 240, 600),
        }
        if args.realdata:
            files |= {p.name: p for p in sorted((args.realdata / "clips" / "msrvtt").glob("*.mp4"))}
        for name, path in files.items():
            best = cpu_seconds(
                {
                    "clipreel uniform, pil": lambda p=path: read_frames(p, UNIFORM, transform=Preprocess().pixels),
                    "clipreel uniform, uint8": lambda p=path: read_frames(
                        p, UNIFORM, transform=Preprocess(resize="uint8").pixels
                    ),
                    "clipreel keyframes, uint8": lambda p=path: read_frames(
                        p, KEYS, transform=Preprocess(resize="uint8").pixels
                    ),
                    "opencv, seek and read": lambda p=path: opencv(p),
                    "never seek": lambda p=path: never_seek(p),
                    "every frame": lambda p=path: every_frame(p),
                    "packets only": lambda p=path: scan(p, Clock(p, 60)),
                },
                args.rounds,
            )
            keyed = best["every frame"] / best["clipreel keyframes, uint8"]
            row = {"cpu_s": best, "keyframes_against_every_frame": keyed}
            row["uniform_against_opencv"] = best["opencv, seek and read"] / best["clipreel uniform, uint8"]
            result[name] = row
            print(name, {k: round(v, 4) for k, v in best.items()}, f"keyframes {keyed:.1f}x")
    save("decode", result)


if __name__ == "__main__":
    main()
