"""What is said over the films of the shapes world, and what a captioner would say of their stills.

Subtitles as noisy as those of the web, for post-pretraining: a quarter says what happens, a quarter what the same
things did before or after (the film backwards), a quarter tells it of another thing, a quarter belongs to another film.
Captions name who is to be seen, never what happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from clipreel.data.shapes import VideoItem, random_thing

KINDS = ("right", "shifted in time", "partly wrong", "of another film")


def subtitles(items: Sequence[VideoItem], seed: int = 0) -> dict[str, str]:
    """One subtitle by id of the film."""
    rng = Random(f"{seed}/subtitles")
    found = {}
    for item in items:
        kind, scene = rng.choice(KINDS), item.scene
        if kind == "shifted in time":
            scene = scene.opposite() or rng.choice(items).scene
        elif kind == "partly wrong":
            scene = replace(scene, actors=(random_thing(rng, other_than=scene.actors[0]), *scene.actors[1:]))
        elif kind == "of another film":
            scene = rng.choice(items).scene
        found[item.id] = scene.caption(rng)
    return found


def still_captions(items: Sequence[VideoItem], seed: int = 0) -> dict[str, str]:
    """One caption of a still by id of the film."""
    rng = Random(f"{seed}/stills")
    return {item.id: " and ".join(thing.phrase(rng) for thing in item.scene.actors) for item in items}
