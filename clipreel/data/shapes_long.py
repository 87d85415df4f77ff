"""Long films of the shapes world: many scenes after each other, each at a known time, to measure moments with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from clipreel.data.shapes import PHRASES, Scene, ShapesWorld, random_scene
from clipreel.data.shapes_render import write_mp4
from clipreel.errors import ClipreelError

SECONDS = (2, 3, 4, 5, 6)  # of a scene


@dataclass(frozen=True)
class Part:
    """A scene of a long film, when it is seen (seconds), and what is said of it."""

    start_s: float
    end_s: float
    scene: Scene
    caption: str


@dataclass(frozen=True)
class LongFilm:
    id: str
    parts: tuple[Part, ...]

    @property
    def duration_s(self) -> float:
        return self.parts[-1].end_s

    def render(self, size: int = ShapesWorld.SIZE, fps: int = ShapesWorld.FPS) -> NDArray[np.uint8]:
        """The film (frames, size, size, 3) uint8."""
        return np.concatenate([p.scene.render(size, round((p.end_s - p.start_s) * fps)) for p in self.parts])


def long_films(count: int, scenes: int = 8, seed: int = 0) -> list[LongFilm]:
    """Films of `scenes` scenes of 2 to 6 s; no two scenes of them all say the same, forwards or backwards.

    >>> [part.start_s for part in long_films(1, 3)[0].parts][0]
    0.0
    """
    if count < 1 or scenes < 1:
        raise ClipreelError(f"{count} films of {scenes} scenes: give at least 1 of each")
    rng = Random(f"{seed}/long")
    fresh = scenes_of(rng)
    found = []
    for n in range(count):
        parts: list[Part] = []
        for _ in range(scenes):
            start, scene = (parts[-1].end_s if parts else 0.0), next(fresh)
            parts.append(Part(start, start + rng.choice(SECONDS), scene, scene.caption(rng)))
        found.append(LongFilm(f"long-{n:03d}", tuple(parts)))
    return found


def scenes_of(rng: Random) -> Iterator[Scene]:
    """Scenes without end, of all kinds in turn, each said only once."""
    seen: set[tuple] = set()
    while True:
        for kind in PHRASES:
            scene = random_scene(rng, kind, False)
            while scene.said in seen:
                scene = random_scene(rng, kind, False)
            seen.add(scene.said)
            yield scene


def write_films(folder: Path, films: Sequence[LongFilm]) -> list[Path]:
    """MP4 files and `moments.jsonl` (video, start_s, end_s, caption) below a folder; files that are there are kept."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths, rows = [], []
    for film in films:
        path = folder / f"{film.id}.mp4"
        if not path.exists():
            part = path.with_suffix(".part.mp4")
            write_mp4(part, film.render(), ShapesWorld.FPS)
            part.replace(path)
        paths.append(path)
        rows += [{"video": path.name, "start_s": p.start_s, "end_s": p.end_s, "caption": p.caption} for p in film.parts]
    (folder / "moments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths
