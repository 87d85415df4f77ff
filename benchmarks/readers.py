"""Seconds to read 180,000 pairs (MSR-VTT 9k) in each published form, and videos a second that the doctor looks at.

`python benchmarks/readers.py [--videos N]` -> results/readers.json. The annotations are made: 9,000 videos with 20
captions of ten words; their files are empty, so finding them on disk is part of the time. The doctor decodes N shapes
videos (128 pixels, H.264, all frames) with one process a core, against the same in one process.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import tempfile
import time
from pathlib import Path

from machine import describe, in_turns, save, summary

from clipreel.data.doctor import look_at
from clipreel.data.readers import read_samples
from clipreel.data.sets import open_set
from clipreel.data.shapes import ShapesWorld
from clipreel.video.many import dismiss

VIDEOS, CAPTIONS, WORDS = 9000, 20, 10
PAIRS = VIDEOS * CAPTIONS


def write(root: Path) -> None:
    """The same pairs in the forms of four groups, and in the plain one."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(3000)]
    texts = {f"video{n}": [" ".join(rng.choices(words, k=WORDS)) for _ in range(CAPTIONS)] for n in range(VIDEOS)}
    (root / "videos").mkdir(parents=True)
    for id in texts:
        (root / "videos" / f"{id}.mp4").touch()
    rows = [(id, c) for id, captions in texts.items() for c in captions]
    with open(root / "MSRVTT_train.9k.csv", "w", newline="") as f:
        csv.writer(f).writerows([["video_id"], *([id] for id in texts)])
    sentences = [{"sen_id": n, "video_id": id, "caption": c} for n, (id, c) in enumerate(rows)]
    (root / "MSRVTT_data.json").write_text(json.dumps({"info": {}, "videos": [], "sentences": sentences}))
    (root / "train9k.jsonl").write_text("".join(json.dumps({"clip_id": i, "text": t}) + "\n" for i, t in texts.items()))
    pairs = [{"vid": i, "caption": c, "frames": [f"{i}/{n:04d}.jpg" for n in range(12)]} for i, c in rows]
    (root / "c4c_train_1ka.json").write_text(json.dumps(pairs))
    (root / "train.jsonl").write_text("".join(json.dumps({"clip_name": i, "caption": c}) + "\n" for i, c in rows))
    plain = (json.dumps({"video": f"videos/{i}.mp4", "caption": c}) + "\n" for i, c in rows)
    (root / "annotations.jsonl").write_text("".join(plain))


def read(root: Path, form: str) -> None:
    samples = open_set("msrvtt9k", root, form=form).part("train").samples
    assert sum(len(s.captions) for s in samples) == PAIRS


def plain(root: Path) -> None:
    assert sum(len(s.captions) for s in read_samples(root)) == PAIRS


def examined(folder: Path, log: Path, workers: int) -> dict[str, float]:
    """Looks at every file once, after the processes have started."""
    paths = sorted(folder.glob("*.mp4"))
    look_at(paths[:workers], log.with_name("warm"), workers=workers)
    start = time.perf_counter()
    seen = look_at(paths, log, workers=workers)
    seconds = time.perf_counter() - start
    dismiss()
    frames = sum(s.frames for s in seen.values())
    return {"videos_per_s": len(paths) / seconds, "frames_per_s": frames / seconds, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    result: dict[str, object] = {"machine": describe("av", "numpy"), "pairs": PAIRS}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "set"
        write(root)
        peers = {form: lambda form=form: read(root, form) for form in ("clip4clip", "clip-vip", "mv-adapter", "alpro")}
        times = summary(in_turns({**peers, "plain jsonl": lambda: plain(root)}, args.rounds))
        result["read"] = times
        print({k: round(v["best_s"], 2) for k, v in times.items()})
        films = Path(scratch) / "films"
        ShapesWorld().write_videos(films, "train", args.videos)
        cores = os.cpu_count() or 1
        result["doctor"] = found = {
            f"{n} processes": examined(films, Path(scratch) / f"{n}" / "seen.jsonl", n) for n in sorted({1, cores})
        }
        print({k: {n: round(v, 1) for n, v in row.items()} for k, row in found.items()})
    save("readers", result)


if __name__ == "__main__":
    main()
