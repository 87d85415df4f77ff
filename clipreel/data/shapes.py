"""The shapes world: made videos and stills with captions, for studies that need no download.

A scene is a motion, an interaction or an order of one to three things. Its opposite is the same scene played
backwards: both have exactly the same frames, so a model that averages frames cannot tell them apart, and the
captions differ only in direction or order. Everything follows from a seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clipreel.data.sample import Sample
from clipreel.data.shapes_render import COLOURS, SHAPES, Image, Mark, draw, write_mp4
from clipreel.errors import ClipreelError

SIZES = {"small": 0.22, "large": 0.4}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

# kind of scene -> (phrases forwards, phrases backwards); kinds whose film is its own mirror have no backwards
PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "across": (
        ("{a} moves to the right", "{a} goes right", "there is {a} moving right"),
        ("{a} moves to the left", "{a} goes left", "there is {a} moving left"),
    ),
    "upright": (
        ("{a} moves up", "{a} rises to the top", "there is {a} moving up"),
        ("{a} moves down", "{a} falls to the bottom", "there is {a} moving down"),
    ),
    "scale": (
        ("{a} grows", "{a} gets bigger", "there is {a} growing"),
        ("{a} shrinks", "{a} gets smaller", "there is {a} shrinking"),
    ),
    "presence": (
        ("{a} appears", "{a} fades in", "there is {a} appearing"),
        ("{a} vanishes", "{a} fades out", "there is {a} vanishing"),
    ),
    "spin": (
        ("{a} spins clockwise", "{a} turns clockwise"),
        ("{a} spins anticlockwise", "{a} turns anticlockwise"),
    ),
    "orbit": (
        ("{a} circles clockwise", "{a} goes around clockwise"),
        ("{a} circles anticlockwise", "{a} goes around anticlockwise"),
    ),
    "pass": (
        ("{a} passes behind {b} to the right", "{a} goes right behind {b}"),
        ("{a} passes behind {b} to the left", "{a} goes left behind {b}"),
    ),
    "meet": (("{a} meets {b}", "{a} and {b} come together"), ("{a} leaves {b}", "{a} and {b} move apart")),
    "swap": (
        ("{a} on the left swaps places with {b} on the right", "{a} starts on the left and swaps places with {b}"),
        ("{a} on the right swaps places with {b} on the left", "{a} starts on the right and swaps places with {b}"),
    ),
    "order": (
        ("first {a} then {b}", "{a} and then {b}", "first {a} is shown then {b}"),
        ("first {b} then {a}", "{b} and then {a}", "first {b} is shown then {a}"),
    ),
    "bounce": (("{a} bounces", "there is {a} bouncing"), ()),
    "rest": (("{a} stays still", "{a} does not move"), ()),
}
TWO_THINGS = ("pass", "meet", "swap", "order")
OPPOSED = tuple(kind for kind, (_, back) in PHRASES.items() if back)
MIRRORED = tuple(kind for kind, (_, back) in PHRASES.items() if not back)
UPRIGHT = ("upright", "bounce")  # these run up and down, so a bystander stands beside them
ROUND = ("circle", "ring")  # their spinning cannot be seen


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str

    def phrase(self, rng: Random, sized: bool = True) -> str:
        words = [rng.choice(SIZE_WORDS[self.size])] if sized else []
        return " ".join(["a" if words or self.colour != "orange" else "an", *words, self.colour, self.shape])

    def mark(self, x: float, y: float, scale: float = 1.0, angle: float = 0.0, alpha: float = 1.0) -> Mark:
        return Mark(self.shape, self.colour, x, y, SIZES[self.size] * scale, angle, alpha)


@dataclass(frozen=True)
class Scene:
    """What happens: `kind` of PHRASES, one or two actors, maybe a bystander, where, which way round."""

    kind: str
    actors: tuple[Thing, ...]
    bystander: tuple[Thing, str] | None = None
    place: float = 0.0
    backwards: bool = False
    shade: int = 30

    def opposite(self) -> Scene | None:
        """The same film played backwards, or None where that is the same film."""
        return replace(self, backwards=not self.backwards) if PHRASES[self.kind][1] else None

    @property
    def said(self) -> tuple:
        """What captions tell apart, whichever way the film runs: sizes are not always said, so they do not count."""
        names = [t.phrase(Random(0), False) for t in self.actors]
        other = None if self.bystander is None else (self.bystander[0].phrase(Random(0), False), self.bystander[1])
        return self.kind, tuple(sorted(names) if self.kind in ("order", "meet", "swap") else names), other

    def caption(self, rng: Random) -> str:
        """One paraphrase; sizes are said about half of the time."""
        sized = rng.random() < 0.5
        names = {"ab"[i]: t.phrase(rng, sized) for i, t in enumerate(self.actors)}
        text = rng.choice(PHRASES[self.kind][self.backwards]).format(**names)
        if self.bystander is None:
            return text
        other, side = self.bystander
        return f"{text} {side} {other.phrase(rng, sized)}"

    def marks(self, u: float) -> list[Mark]:
        """What is drawn at time u in 0..1, from back to front."""
        u = 1 - u if self.backwards else u
        if self.bystander is None:
            return self._acting(u, *((self.place, 0.0) if self.kind in UPRIGHT else (0.0, self.place)))
        other, side = self.bystander
        dx, dy = SIDES[side]
        x, y = 0.55 * dx, 0.55 * dy
        return [*self._acting(u, x, y), other.mark(-x + self.place * abs(dy), -y + self.place * abs(dx))]

    def _acting(self, u: float, x: float, y: float) -> list[Mark]:
        a = self.actors[0]
        b = self.actors[1] if len(self.actors) > 1 else None
        run, turn = 1.3 * u - 0.65, 2 * math.pi * 0.75 * u
        if b is not None:
            if self.kind == "pass":
                return [a.mark(run, y), b.mark(0.0, y)]
            if self.kind == "meet":
                return [a.mark(-0.7 + 0.42 * u, y), b.mark(0.7 - 0.42 * u, y)]
            if self.kind == "swap":  # one goes over, the other under
                arc = 0.3 * math.sin(math.pi * u)
                return [a.mark(run, y - arc), b.mark(-run, y + arc)]
            first = u < 0.5
            return [(a if first else b).mark(x, y)]
        return {
            "across": lambda: [a.mark(run, y)],
            "upright": lambda: [a.mark(x, -run)],
            "scale": lambda: [a.mark(x, y, scale=0.5 + 0.9 * u)],
            "presence": lambda: [a.mark(x, y, alpha=min(1.0, max(0.0, 1.4 * u - 0.2)))],
            "spin": lambda: [a.mark(x, y, angle=0.15 * u)],
            "orbit": lambda: [a.mark(x + 0.35 * math.cos(turn), y + 0.35 * math.sin(turn))],
            "bounce": lambda: [a.mark(x, 0.35 - 0.7 * abs(math.sin(2 * math.pi * u)))],
            "rest": lambda: [a.mark(x, y)],
        }[self.kind]()

    def render(self, size: int, frames: int) -> NDArray[np.uint8]:
        """The film (frames, size, size, 3) uint8; frame t of the opposite is frame -1-t of this one, bit by bit."""
        ground = np.full(3, self.shade, np.float32)
        steps = [t / (frames - 1) if frames > 1 else 0.5 for t in range(frames)]
        drawn = [draw(replace(self, backwards=False).marks(u), ground, size, size) for u in steps]
        return np.stack(drawn[::-1] if self.backwards else drawn)


@dataclass(frozen=True)
class VideoItem:
    """A video of the world. Items of one `group` have the same frames in another order; `opposite` is the other one."""

    id: str
    scene: Scene
    captions: tuple[str, ...]
    group: str
    opposite: str | None


def held_out(thing: Thing) -> bool:
    """One colour of every shape is kept for validation and test."""
    return (list(SHAPES).index(thing.shape) + 3 * list(COLOURS).index(thing.colour)) % 8 == 0


class ShapesWorld:
    """All data of one seed. Splits: train, val, test; no scene is in two of them.

    In val and test every other group has an actor whose shape and colour never meet in training.

    >>> item = ShapesWorld().videos("test")[0]
    >>> item.scene.render(64, 24).shape
    (24, 64, 64, 3)
    """

    COUNTS: ClassVar = {"train": (720, 160), "val": (72, 16), "test": (110, 20)}  # groups of two and of one
    FPS, FRAMES, SIZE = 12, 24, 128

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def videos(self, split: str) -> list[VideoItem]:
        """The videos of a split; training ones have four captions, the others one."""
        if split not in self.COUNTS:
            raise ClipreelError(f"the shapes world has the splits {', '.join(self.COUNTS)}, not {split!r}")
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[str, list[VideoItem]]:
        seen: set[tuple] = set()
        return {split: list(self._split(split, seen)) for split in ("test", "val", "train")}

    def _split(self, split: str, seen: set[tuple]) -> Iterator[VideoItem]:
        rng = Random(f"{self.seed}/{split}")
        for kinds, count in zip((OPPOSED, MIRRORED), self.COUNTS[split], strict=True):
            made = 0
            while made < count:
                unseen = None if split == "train" else made // len(kinds) % 2 == 0
                scene = random_scene(rng, kinds[made % len(kinds)], unseen)
                if scene.said in seen:
                    continue
                if split != "train":  # training may say one thing twice, in other sizes and places
                    seen.add(scene.said)
                yield from self._items(split, scene, f"{split}-{scene.kind}-{made:03d}", rng)
                made += 1

    def _items(self, split: str, scene: Scene, group: str, rng: Random) -> Iterator[VideoItem]:
        opposite = scene.opposite()
        both = [(group + "a", scene)] if opposite is None else [(group + "a", scene), (group + "b", opposite)]
        for k, (name, s) in enumerate(both):
            captions = tuple(dict.fromkeys(s.caption(rng) for _ in range(4 if split == "train" else 1)))
            yield VideoItem(name, s, captions, group, None if opposite is None else both[1 - k][0])

    def fingerprint(self, split: str) -> str:
        """Identity of a split: ids and captions in order."""
        text = json.dumps([[item.id, item.captions] for item in self.videos(split)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write_videos(
        self, folder: Path, split: str, count: int | None = None, only: Collection[str] | None = None
    ) -> list[Sample]:
        """Render a split, its first `count` videos or those with `only` these ids, to MP4 files and `annotations.jsonl`
        below `folder`; files that are there are kept."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        samples = []
        for item in (i for i in self.videos(split)[:count] if only is None or i.id in only):
            path = folder / f"{item.id}.mp4"
            if not path.exists():
                part = path.with_suffix(".part.mp4")
                write_mp4(part, item.scene.render(self.SIZE, self.FRAMES), self.FPS)
                part.replace(path)
            samples.append(Sample(item.id, path, item.captions))
        rows = [json.dumps({"video": s.video.name, "captions": list(s.captions)}) + "\n" for s in samples]
        (folder / "annotations.jsonl").write_text("".join(rows))
        return samples


def random_thing(rng: Random, unseen: bool | None = None, other_than: Thing | None = None) -> Thing:
    """A thing; `unseen` True / False asks for one inside / outside the held-out pairs, None avoids them too."""
    while True:
        thing = Thing(rng.choice(list(SHAPES)), rng.choice(list(COLOURS)), rng.choice(list(SIZES)))
        if held_out(thing) != bool(unseen):
            continue
        if other_than is None or (thing.shape != other_than.shape and thing.colour != other_than.colour):
            return thing


def random_scene(rng: Random, kind: str, unseen: bool | None = None) -> Scene:
    """A scene of this kind; `unseen` puts a held-out pair of shape and colour into the first actor."""
    while True:
        a = random_thing(rng, unseen)
        if not (kind == "spin" and a.shape in ROUND):
            break
    actors: tuple[Thing, ...] = (a,)
    if kind in TWO_THINGS:
        b = random_thing(rng, other_than=a)
        # what passes behind must come out again on both sides
        actors = (a, replace(b, size="small")) if kind == "pass" else (a, b)
    bystander = None
    if kind not in TWO_THINGS and rng.random() < 0.5:
        sides = ["left of", "right of"] if kind in UPRIGHT else ["above", "below"]
        bystander = (replace(random_thing(rng, other_than=a), size="small"), rng.choice(sides))
    place = round(rng.uniform(-0.3, 0.3), 2)
    backwards = rng.random() < 0.5 and kind in OPPOSED
    return Scene(kind, actors, bystander, place, backwards, rng.randrange(15, 60))


def still_of(scene: Scene, size: int) -> Image:
    """A still that tells a scene: its beginning in the left half and its end in the right half, like a comic strip."""
    ground = np.full(3, scene.shade, np.float32)
    halves = [draw(scene.marks(u), ground, size // 2, size) for u in (0.08, 0.92)]
    halves[1][:, :1] = 128
    return np.concatenate(halves, 1)
