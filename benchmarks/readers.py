"""Seconds to read 180,000 pairs in each published form, and videos a second that the doctor looks at.

`python benchmarks/readers.py [--videos N]` -> results/readers.json. The annotations are made: 9,000 videos with 20
captions of ten words as MSR-VTT 9k, LSMDC and VATEX write them, and 180,000 videos with one as WebVid does; their files
are empty, so finding them on disk is part of the time. The doctor decodes N shapes
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
FORMS = ("clip4clip", "x-pool", "frozen", "clip-vip", "mv-adapter", "alpro")  # of MSR-VTT 9k


def write(root: Path) -> None:
    """The same pairs in all forms, and in the plain one; below webvid/ those with a video for each."""
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
    (root / "train_list_jsfusion.txt").write_text("".join(f"{id}\n" for id in texts))
    annotations = [{"image_id": i, "caption": c, "id": n} for n, (i, c) in enumerate(rows)]
    (root / "MSR_VTT.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    tabs = ("\t".join([i, "0.1", "2.0", "0.0", "2.1", c]) + "\n" for i, c in rows)
    (root / "LSMDC16_annos_training.csv").write_text("".join(tabs))
    ten = [{"videoID": i, "enCap": t, "chCap": []} for i, t in texts.items()]
    (root / "vatex_training_v1.0.json").write_text(json.dumps(ten))
    write_webvid(root / "webvid", [c for _, c in rows])
    plain = (json.dumps({"video": f"videos/{i}.mp4", "caption": c}) + "\n" for i, c in rows)
    (root / "annotations.jsonl").write_text("".join(plain))


def write_webvid(root: Path, texts: list[str]) -> None:
    """A video a row, 1,000 in a folder."""
    head = ["videoid", "name", "page_idx", "page_dir", "duration", "contentUrl"]
    rows = [[str(10_000_000 + n), c, 1, f"{n // 1000:06d}", "PT00H00M10S", "https://x"] for n, c in enumerate(texts)]
    for folder in {row[3] for row in rows}:
        (root / "videos" / str(folder)).mkdir(parents=True)
    for id, _, _, folder, *_ in rows:
        (root / "videos" / str(folder) / f"{id}.mp4").touch()
    with open(root / "results_2M_train.csv", "w", newline="") as f:
        csv.writer(f).writerows([head, *rows])


def read(root: Path, form: str, name: str = "msrvtt9k") -> None:
    samples = open_set(name, root, form=form).part("train").samples
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
        peers = {form: lambda form=form: read(root, form) for form in FORMS}
        peers["lsmdc"] = lambda: read(root, "clip4clip", "lsmdc")
        peers["vatex"] = lambda: read(root, "owner", "vatex")
        peers["webvid"] = lambda: read(root / "webvid", "frozen", "webvid")
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
