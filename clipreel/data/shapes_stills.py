"""Stills of the shapes world with captions, for image-text pre-training: the films never take part.

They come in twos and fours that differ in one thing (an attribute, who stands where, what comes first), so that word
order matters in every batch. Comic strips (beginning left, end right) carry every word of the films' captions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import numpy as np
from numpy.typing import NDArray

from clipreel.data.shapes import (
    COLOURS,
    PHRASES,
    SHAPES,
    SIDES,
    SIZES,
    Thing,
    held_out,
    random_scene,
    random_thing,
    still_of,
)
from clipreel.data.shapes_render import Image, Mark, draw

PLACES = {
    "on the left": (-0.55, 0.0),
    "on the right": (0.55, 0.0),
    "at the top": (0.0, -0.55),
    "at the bottom": (0.0, 0.55),
    "in the middle": (0.0, 0.0),
}
ATTRIBUTES = ("shape", "colour", "size", "relation")


OTHER_WAY = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Still:
    """`same`: stills of which it is equal are told by each other's captions too ("a left of b", "b right of a")."""

    image: Image
    caption: str
    same: str


def picture(marks: list[Mark], rng: Random, size: int) -> Image:
    return draw(marks, np.full(3, rng.randrange(15, 60), np.float32), size, size)


def one(rng: Random, size: int, unseen: bool | None = None) -> list[Still]:
    """One thing somewhere, and the same with one attribute or the place changed."""
    a = random_thing(rng, unseen)
    changed = rng.choice(("shape", "colour", "size", "place"))
    b = a
    while changed != "place" and (b == a or (held_out(b) and not unseen)):
        other = random_thing(rng)
        b = replace(a, **{changed: getattr(other, changed)})
    places = rng.sample(list(PLACES), 2) if changed == "place" else [rng.choice(list(PLACES))] * 2
    sized = changed == "size" or rng.random() < 0.5
    placed = changed == "place" or rng.random() < 0.3
    stills = []
    for thing, place in zip((a, b), places, strict=True):
        # where the caption is silent about the place, the thing is anywhere
        x, y = PLACES[place] if placed else (rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6))
        text = thing.phrase(rng, sized) + (f" {place}" if placed else "")
        x, y = x + rng.uniform(-0.1, 0.1), y + rng.uniform(-0.1, 0.1)
        stills.append(Still(picture([thing.mark(x, y, rng.uniform(0.9, 1.1))], rng, size), text, text))
    return stills


def related(a: Thing, b: Thing, relation: str, rng: Random) -> list[Mark]:
    """Thing a in this relation to thing b, back to front."""
    if relation == "behind":
        x, y = rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3)
        reach = SIZES[b.size] * 0.9
        return [a.mark(x + rng.choice((-1, 1)) * reach, y + rng.uniform(-0.5, 0.5) * reach), b.mark(x, y)]
    dx, dy = SIDES[relation]
    gap = rng.uniform(0.4, 0.6)
    slip = rng.uniform(-0.2, 0.2)
    x, y = dx * gap + abs(dy) * slip, dy * gap + abs(dx) * slip
    return [a.mark(x, y), b.mark(-x, -y)]


def two(rng: Random, size: int, unseen: bool | None = None, both_sides: bool = False) -> list[Still]:
    """Two things, and the same two in exchanged roles. `both_sides`: each said from both sides, so that neither the
    order of the words nor the relation alone tells the four captions apart."""
    a = random_thing(rng, unseen)
    b = random_thing(rng, other_than=a)
    relation = rng.choice((*SIDES, "behind"))
    sized = rng.random() < 0.3
    names = {thing: thing.phrase(rng, sized) for thing in (a, b)}
    stills = []
    for p, q in ((a, b), (b, a)):
        same = f"{names[p]} {relation} {names[q]}"
        said = [same]
        if both_sides and relation != "behind":
            said.append(f"{names[q]} {OTHER_WAY[relation]} {names[p]}")
        stills += [Still(picture(related(p, q, relation, rng), rng, size), text, said[0]) for text in said]
    return stills


def three(rng: Random, size: int, unseen: bool | None = None) -> list[Still]:
    """Three things, and the same with one of them exchanged."""
    things = [random_thing(rng, unseen), random_thing(rng), random_thing(rng)]
    stills = []
    for _ in range(2):
        spots = rng.sample([(-0.55, -0.5), (0.55, -0.5), (0.0, 0.1), (-0.5, 0.6), (0.5, 0.6)], 3)
        words = [t.phrase(rng, False) for t in things]
        marks = [replace(t, size="small").mark(x, y) for t, (x, y) in zip(things, spots, strict=True)]
        text = f"{words[0]} with {words[1]} and {words[2]}"
        stills.append(Still(picture(marks, rng, size), text, text))
        things[rng.randrange(3)] = random_thing(rng)
    return stills


def strip(rng: Random, size: int, unseen: bool | None = None) -> list[Still]:
    """A comic strip of a scene and of its opposite, or of another scene where there is no opposite."""
    scene = random_scene(rng, rng.choice(list(PHRASES)), unseen)
    other = scene.opposite() or random_scene(rng, scene.kind)
    told = [(s, s.caption(rng)) for s in (scene, other)]
    return [Still(still_of(s, size), text, text) for s, text in told]


MIX = (0.35, 0.3, 0.1, 0.25)  # shares of one, two, three, strip


def stills(seed: int | str, size: int, mix: tuple[float, ...] = MIX, both_sides: bool = False) -> Iterator[Still]:
    """An endless stream of training stills, twins next to each other. The held-out pairs of shape and colour never
    come up. `both_sides` is that of `two`."""
    rng = Random(f"stills/{seed}")
    while True:
        kind = rng.choices((one, partial(two, both_sides=both_sides), three, strip), mix)[0]
        yield from kind(rng, size)


@dataclass(frozen=True)
class Question:
    """A still, and captions that differ in one attribute; the first one is true."""

    image: NDArray[np.uint8]
    captions: tuple[str, ...]


def questions(attribute: str, count: int, seed: int, size: int, unseen: bool = False) -> list[Question]:
    """`count` questions about one attribute of new stills; `unseen` takes shapes in colours that training never had."""
    if attribute not in ATTRIBUTES:
        raise ValueError(f"attribute {attribute!r}: allowed are {', '.join(ATTRIBUTES)}")
    rng = Random(f"questions/{seed}/{attribute}/{unseen}")
    made = []
    for _ in range(count):
        a = random_thing(rng, unseen)
        if attribute == "relation":
            b = random_thing(rng, other_than=a)
            names = a.phrase(rng, False), b.phrase(rng, False)
            truth = rng.choice(list(SIDES))
            order = [truth, *(r for r in SIDES if r != truth)]
            image = picture(related(a, b, truth, rng), rng, size)
            made.append(Question(image, tuple(f"{names[0]} {r} {names[1]}" for r in order)))
            continue
        values = {"shape": list(SHAPES), "colour": list(COLOURS), "size": list(SIZES)}[attribute]
        others = [replace(a, **{attribute: v}) for v in values if v != getattr(a, attribute)]
        image = picture([a.mark(rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.6))], rng, size)
        words = Random(rng.random())
        state = words.getstate()
        captions = []
        for thing in (a, *others):  # the same paraphrase of every alternative
            words.setstate(state)
            captions.append(thing.phrase(words, attribute == "size"))
        made.append(Question(image, tuple(captions)))
    return made
