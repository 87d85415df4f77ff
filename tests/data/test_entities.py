"""Nouns of captions without a tagger's model."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipreel.alpro.prompter import read_entities
from clipreel.data.entities import mine, noun_phrases, write_entities
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_render import SHAPES
from clipreel.errors import ClipreelError

CAPTIONS = [
    "a man is playing the guitar",
    "a young man walks with a dog",
    "two dogs run on the beach",
    "a woman is cooking in a big kitchen",
    "the woman sings to the man",
    "a dog on a beach, near the sea",
]


def test_phrases_end_before_function_words() -> None:
    assert list(noun_phrases("A young man walks with a big dog.")) == [
        (["young", "man", "walks"], False),
        (["big", "dog"], True),
    ]
    assert list(noun_phrases("the guitar")) == [(["guitar"], True)]
    assert list(noun_phrases("it rains")) == []


def test_nouns_are_found_and_counted() -> None:
    found = dict(mine(CAPTIONS, tagger="places"))
    assert found == {"dog": 3, "man": 3, "beach": 2, "woman": 2, "guitar": 1, "kitchen": 1, "sea": 1}
    assert mine(CAPTIONS, 2, "places") == [("dog", 3), ("man", 3)]


def test_the_nouns_of_the_shapes_world_are_its_shapes() -> None:
    captions = [c for item in ShapesWorld().videos("train") for c in item.captions]
    top = [w for w, _ in mine(captions, len(SHAPES) + 2, "places")]
    assert set(top) == {*SHAPES, "left", "right"}


def test_a_vocabulary_is_read_back(tmp_path: Path) -> None:
    write_entities(tmp_path / "words.txt", [("dog", 3), ("man", 1)])
    assert read_entities(tmp_path / "words.txt") == ("dog", "man")


def test_wrong_use_is_told() -> None:
    with pytest.raises(ClipreelError, match="no noun was found in 1 captions"):
        mine(["it rains"], tagger="places")
    with pytest.raises(ClipreelError, match="allowed are auto, spacy, places"):
        mine(CAPTIONS, tagger="x")
    with pytest.raises(ClipreelError, match="0 entities"):
        mine(CAPTIONS, 0)
