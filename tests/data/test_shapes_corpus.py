"""A corpus of captions for mining."""

from __future__ import annotations

from clipreel.data.entities import mine
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_corpus import NOUNS, corpus
from clipreel.data.shapes_render import SHAPES


def test_the_shapes_come_first_and_every_other_noun_is_found() -> None:
    texts = corpus(ShapesWorld())
    assert texts == corpus(ShapesWorld())
    found = mine(texts, 1000, "places")
    words = [word for word, _ in found]
    assert set(SHAPES) < set(words[:10])
    assert set(NOUNS) < set(words)
    assert len(set(NOUNS)) == len(NOUNS) >= 190
    assert words.index("dog") < words.index("tree") < words.index("lantern")


def test_no_absent_thing_is_a_word_of_the_films() -> None:
    said = {word for item in ShapesWorld().videos("train") for caption in item.captions for word in caption.split()}
    assert not said & set(NOUNS)
