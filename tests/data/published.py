"""Samples written in the forms in which annotations were published, field by field as core.md 4 describes them."""

import csv
import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clipreel.data.sample import Sample

Splits = Mapping[str, Sequence[Sample]]
FILE = {"train": "train", "validation": "val", "test": "test"}


def lines(path: Path, rows: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(r + "\n" for r in rows), "utf-8")


def dump(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), "utf-8")


def table(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([names, *rows])
    path.write_text(out.getvalue(), "utf-8")


def msrvtt_data(splits: Splits, official: bool = False) -> dict:
    named = {"train": "train", "validation": "validate", "test": "test"}
    every = [(named[split] if official else "train", s) for split, samples in splits.items() for s in samples]
    sentences = [(s.id, c) for _, s in every for c in s.captions]
    return {
        "info": {"version": "1.0"},
        "videos": [
            {"video_id": s.id, "category": 1, "url": f"https://x/?v={n}", "split": split, "id": n}
            for n, (split, s) in enumerate(every)
        ],
        "sentences": [{"sen_id": n, "video_id": i, "caption": c} for n, (i, c) in enumerate(sentences)],
    }


def clip4clip_msrvtt(root: Path, splits: Splits, train: str = "9k") -> None:
    table(root / f"MSRVTT_train.{train}.csv", ["video_id"], [[s.id] for s in splits["train"]])
    rows = [[f"ret{n}", f"msr{n}", s.id, s.captions[0]] for n, s in enumerate(splits["test"])]
    table(root / "MSRVTT_JSFUSION_test.csv", ["key", "vid_key", "video_id", "sentence"], rows)
    dump(root / "MSRVTT_data.json", msrvtt_data(splits))


def full_msrvtt(root: Path, splits: Splits) -> None:
    dump(root / "MSRVTT_data.json", msrvtt_data(splits, official=True))


def frozen_msrvtt(root: Path, splits: Splits, lists: Mapping[str, str], numbers: bool = False) -> None:
    every = [s for samples in splits.values() for s in samples]
    # where a number picks the caption, others stand before it
    texts = {s.id: (["something else", *s.captions] if numbers and s in splits["test"] else s.captions) for s in every}
    rows = [{"image_id": i, "caption": c, "id": n} for i, captions in texts.items() for n, c in enumerate(captions)]
    dump(root / "annotation" / "MSR_VTT.json", {"images": [{"id": s.id} for s in every], "annotations": rows})
    folder = root / "high-quality" / "structured-symlinks"
    for split, name in lists.items():
        lines(folder / name, [s.id for s in splits[split]])
    if numbers:
        (folder / "jsfusion_val_caption_idx.pkl").write_bytes(pickle.dumps({s.id: 1 for s in splits["test"]}))


def lists(root: Path, splits: Splits, ending: str = "") -> None:
    for split, samples in splits.items():
        lines(root / f"{FILE[split]}_list.txt", [s.id + ending for s in samples])


def xpool_msvd(root: Path, splits: Splits) -> None:
    lists(root, splits)
    dump(root / "captions_msvd.json", {s.id: list(s.captions) for samples in splits.values() for s in samples})


def pickled(root: Path, splits: Splits) -> None:
    lists(root, splits)
    words = {s.id: [c.split(" ") for c in s.captions] for samples in splits.values() for s in samples}
    (root / "raw-captions.pkl").write_bytes(pickle.dumps(words, protocol=2))


def lsmdc(root: Path, splits: Splits) -> None:
    names = dict(zip(FILE, ("annos_training", "annos_val", "challenge_1000_publictect"), strict=True))
    for split, samples in splits.items():
        rows = ["\t".join([s.id, "0.1", "2.0", "0.0", "2.1", c]) for s in samples for c in s.captions]
        lines(root / f"LSMDC16_{names[split]}.csv", rows)


def didemo(root: Path, splits: Splits) -> None:
    lists(root, splits, ".mov")  # the release of the list had other endings than the one on disk
    for split, samples in splits.items():
        rows = [
            {"annotation_id": n, "description": c, "video": f"{s.id}.mov", "times": [[0, 1]], "num_segments": 6}
            for s in samples
            for n, c in enumerate(s.captions)
        ]
        dump(root / f"{FILE[split]}_data.json", rows)


def activitynet(root: Path, splits: Splits) -> None:
    for split, ids, data in (("train", "train_ids", "train"), ("test", "val_ids", "val_1")):
        dump(root / f"{ids}.json", [s.id for s in splits[split]])
        rows = {
            s.id: {
                "duration": 2.0,
                "timestamps": [[0, 1]] * len(s.captions),
                "sentences": [f" {c}" for c in s.captions],
            }
            for s in splits[split]
        }
        dump(root / f"{data}.json", rows)


def vatex(root: Path, splits: Splits) -> None:
    def row(s: Sample) -> dict:
        return {"videoID": s.id, "enCap": list(s.captions), "chCap": ["..."]}

    dump(root / "vatex_training_v1.0.json", [row(s) for s in splits["train"]])
    dump(root / "vatex_validation_v1.0.json", [row(s) for k in ("test", "validation") for s in splits[k]])
    lists(root, {k: splits[k] for k in ("validation", "test")})


def webvid(root: Path, splits: Splits) -> None:
    for split in ("train", "validation"):
        rows = [[s.id, s.captions[0], 1, "000001_000050", "PT00H00M02S", "https://x"] for s in splits[split]]
        head = ["videoid", "name", "page_idx", "page_dir", "duration", "contentUrl"]
        table(root / f"results_2M_{FILE[split]}.csv", head, rows)


def rows_of(id: str, text: str, names: Mapping[str, str], listed: bool = False) -> Callable[[Path, Splits], None]:
    """JSON lines with one row per caption, or with a list of captions where there are several."""

    def write(root: Path, splits: Splits) -> None:
        for split, name in names.items():
            if listed:
                rows = [
                    {id: s.id, text: s.captions[0] if len(s.captions) == 1 else list(s.captions)} for s in splits[split]
                ]
            else:
                rows = [{id: s.id, text: c} for s in splits[split] for c in s.captions]
            lines(root / "txt" / name, [json.dumps(r) for r in rows])

    return write


def mv_adapter(names: Mapping[str, str]) -> Callable[[Path, Splits], None]:
    """One JSON list; training rows have one caption, those of a test with several captions a list."""

    def write(root: Path, splits: Splits) -> None:
        for split, name in names.items():
            rows: list[dict] = []
            for s in splits[split]:
                frames = [f"{s.id}/{n:04d}.jpg" for n in range(2)]
                if split == "train" or len(s.captions) == 1:
                    rows += [{"vid": s.id, "caption": c, "frames": frames} for c in s.captions]
                else:
                    rows.append({"vid": s.id, "caption": list(s.captions), "frames": frames})
            dump(root / "split" / name, rows)

    return write
