"""What search in long videos finds, what scores mean, and whether minus terms and combinations do what they say.

`python benchmarks/moments.py [--parts moments scores terms] [--films N] [--videos N]` -> results/moments.json. Films of
the shapes world with many scenes at known times are indexed with each way of cutting; every scene's caption is a query
over all films. The films of the test split serve for scores and terms.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from machine import describe, save

import clipreel
from clipreel.data.shapes import Scene, ShapesWorld, Thing
from clipreel.data.shapes_long import LongFilm, long_films, write_films
from clipreel.data.shapes_render import COLOURS, SHAPES, draw
from clipreel.retriever import Retriever
from clipreel.search.ask import Asker, Request
from clipreel.search.bank import Bank, absent, general
from clipreel.search.calibration import calibrate
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.search.rerank import FACT
from clipreel.video.shots import Segments

WAYS = {
    "windows of 8 s, 1 frame/s": Segments("windows", 8.0, 0.5, 1.0),
    "windows of 4 s, 2 frames/s": Segments("windows", 4.0, 0.5, 2.0),
    "windows of 2 s, 4 frames/s": Segments("windows", 2.0, 0.5, 4.0),
    "shots, 4 frames/s": Segments("shots", 8.0, 0.5, 4.0),
    "keyframe intervals": Segments("keyframes", 1.0, 0.0, 1.0),
}
PARTS = ("moments", "scores", "terms")
MINUS = (0.25, 0.5, 1.0)


def indexed(place: Path, folder: Path, model: Retriever, how: Segments) -> tuple[Index, dict[str, float]]:
    """An index that keeps frames, and its cost per minute of video."""
    index = Index.create(place, facts_of(model, how) | FACT)
    report = update(index, model, [str(folder)], workers=1)
    minutes = report.video_s / 60
    cost = {f"{stage}_s_per_min": report.seconds[stage] / minutes for stage in ("decode", "encode")}
    return index, {**cost, "vectors_per_min": report.vectors / minutes}


def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    both = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return both / (max(a[1], b[1]) - min(a[0], b[0]))


def found_moments(asker: Asker, caption: str, refine: str) -> list[tuple[str, tuple[float, float], float]]:
    """(film, start and end, score) of all moments of the ten best films, best first."""
    hits = asker.answer(Request(caption, k=10, refine=refine)).hits
    every = [(h.path.stem, (h.start_s, h.end_s), h.score) for h in hits]
    every += [(h.path.stem, (m.start_s, m.end_s), m.score) for h in hits for m in h.moments]
    return sorted(every, key=lambda m: -m[2])


def moments_of(films: Sequence[LongFilm], asker: Asker, refine: str) -> dict[str, float | None]:
    """Recalls over all films at two IoUs, and over the right film alone; errors of time where the film is found."""
    rows: dict[str, list[float]] = {f"{r}_iou_{t}": [] for r, t in product(("r1", "r5", "r1_in_film"), (0.5, 0.7))}
    start_error, end_error, film_first = [], [], []
    for film, part in ((f, p) for f in films for p in f.parts):
        true = part.start_s, part.end_s
        every = found_moments(asker, part.caption, refine)
        inside = [m for m in every if m[0] == film.id]
        film_first.append(every[0][0] == film.id)
        for t in (0.5, 0.7):
            fits = [m[0] == film.id and iou(m[1], true) >= t for m in every[:5]]
            rows[f"r1_iou_{t}"].append(fits[0])
            rows[f"r5_iou_{t}"].append(any(fits))
            rows[f"r1_in_film_iou_{t}"].append(bool(inside) and iou(inside[0][1], true) >= t)
        if inside and iou(inside[0][1], true) > 0:
            start_error.append(abs(inside[0][1][0] - true[0]))
            end_error.append(abs(inside[0][1][1] - true[1]))
    recalls = {name: 100 * float(np.mean(values)) for name, values in rows.items()}
    errors = {"start_error_s": start_error, "end_error_s": end_error}
    return {
        **recalls,
        "film_r1": 100 * float(np.mean(film_first)),
        **{f"{name}_median": float(np.median(values)) if values else None for name, values in errors.items()},
        **{f"{name}_mean": float(np.mean(values)) if values else None for name, values in errors.items()},
        "queries": len(film_first),
    }


def part_moments(scratch: Path, model: Retriever, count: int, scenes: int) -> dict[str, object]:
    films = long_films(count, scenes)
    write_films(scratch / "long", films)
    result: dict[str, object] = {"films": count, "scenes": scenes, "seconds": sum(f.duration_s for f in films)}
    for n, (name, how) in enumerate(WAYS.items()):
        index, cost = indexed(scratch / f"long-{n}", scratch / "long", model, how)
        asker = Asker(index, model)
        result[name] = {
            "cost": cost,
            "segments": moments_of(films, asker, "none"),
            "with frames": moments_of(films, asker, "stored"),
        }
        print(name, result[name])
    return result


def part_scores(index: Index, model: Retriever, count: int | None) -> dict[str, object]:
    """Effect of ranking by the bank, and how often "nothing here matches" is said of queries that something answers."""
    world = ShapesWorld()
    train = [item.captions[0] for item in world.videos("train")][::4][:300]
    items = world.videos("test")[:count]
    result: dict[str, object] = {"videos": len(items)}
    for name, bank in {
        "general": general(),
        "training captions": Bank("train", tuple(dict.fromkeys(train)), absent()),
    }.items():
        fact = calibrate(index, model, bank)
        asker = Asker(index, model)
        row: dict[str, object] = {"calibration": fact}
        for rank in ("plain", "bank"):
            answers = [asker.answer(Request(item.captions[0], rank=rank, k=10, refine="none")) for item in items]
            places = [[h.path.stem for h in a.hits] for a in answers]
            for k in (1, 10):
                hit = [item.id in place[:k] for item, place in zip(items, places, strict=True)]
                row[f"{rank}_r{k}"] = 100 * float(np.mean(hit))
            row["answered_queries_called_nothing"] = 100 * float(np.mean([a.state == "nothing" for a in answers]))
        result[name] = row
        print(name, row)
    return result


def shown_in(scene: Scene) -> list[Thing]:
    return [*scene.actors, *([scene.bystander[0]] if scene.bystander else [])]


def part_terms(index: Index, model: Retriever, count: int | None) -> dict[str, object]:
    """Of the first ten: a shape without a colour, with and without the minus term; and a text with an image."""
    scenes = {item.id: item.scene for item in ShapesWorld().videos("test")[:count]}
    asker = Asker(index, model)

    def first(request: Request) -> list[list[Thing]]:
        return [shown_in(scenes[h.path.stem]) for h in asker.answer(request).hits]

    rows: dict[str, list[float]] = {}

    def note(name: str, fits: list[bool]) -> None:
        rows.setdefault(name, []).append(100 * float(np.mean(fits)))

    for shape, colour in product(list(SHAPES), list(COLOURS)):
        for weight in (0.0, *MINUS):
            minus = [f"a {colour} {shape}"] if weight else []
            hits = first(Request(f"a {shape}", minus=minus, weights={"minus": weight}, refine="none"))
            note(f"minus {weight:g}: has the shape", [any(t.shape == shape for t in x) for x in hits])
            unwanted = [any((t.shape, t.colour) == (shape, colour) for t in x) for x in hits]
            note(f"minus {weight:g}: shows what was taken away", unwanted)
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a, b in product(product(SHAPES, COLOURS), repeat=2) if a[0] != b[0] and a[1] != b[1]]
    for i in rng.permutation(len(pairs))[:60]:
        (shape, colour), (other, paint) = pairs[i]
        image = draw([Thing(other, paint, "large").mark(0.0, 0.0)], np.full(3, 30, np.float32), 128, 128)
        text = f"a {colour} {shape}"
        for name, request in {
            "text": Request(text, refine="none"),
            "image": Request(images=[image], refine="none"),
            "text + image": Request(text, images=[image], refine="none"),
        }.items():
            hits = [{(t.shape, t.colour) for t in x} for x in first(request)]
            note(f"{name}: has what the text says", [(shape, colour) in x for x in hits])
            note(f"{name}: has what the image shows", [(other, paint) in x for x in hits])
    result: dict[str, object] = {name: float(np.mean(values)) for name, values in rows.items()}
    print(result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=("moments", "scores", "terms"), default=["moments", "scores", "terms"]
    )
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--videos", type=int, default=None, help="films of the test split (default: all)")
    parser.add_argument("--model", default="shapes-tiny")
    parser.add_argument("--name", default="moments", help="of the file in results")
    args = parser.parse_args()
    model = clipreel.load(args.model)
    result: dict[str, object] = {"machine": describe("torch", "av", "lancedb"), "model": args.model}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if "moments" in args.parts:
            result["moments"] = part_moments(scratch, model, args.films, args.scenes)
        if {"scores", "terms"} & set(args.parts):
            ShapesWorld().write_videos(scratch / "test", "test", args.videos)
            index, _ = indexed(scratch / "test-index", scratch / "test", model, Segments("none"))
            for part, run in (("scores", part_scores), ("terms", part_terms)):
                if part in args.parts:
                    result[part] = run(index, model, args.videos)
    save(args.name, result)


if __name__ == "__main__":
    main()
