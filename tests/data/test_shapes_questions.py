"""Questions about the shapes world."""

from __future__ import annotations

from pathlib import Path

from clipreel.data.questions import answer_vocabulary, read_questions
from clipreel.data.shapes import Scene, ShapesWorld, Thing
from clipreel.data.shapes_questions import KINDS, questions_of, shapes_questions, write_questions

RED, BLUE = Thing("circle", "red", "small"), Thing("square", "blue", "large")


def test_the_questions_of_a_scene() -> None:
    assert list(questions_of(Scene("order", (RED, BLUE), backwards=True))) == [
        ("colour", "what colour is the circle?", "red"),
        ("shape", "which shape is red?", "circle"),
        ("colour", "what colour is the square?", "blue"),
        ("shape", "which shape is blue?", "square"),
        ("number", "how many things are there?", "two"),
        ("first", "what comes first?", "square"),
    ]
    assert ("way", "which way does the circle go?", "left") in questions_of(Scene("across", (RED,), backwards=True))
    assert ("number", "how many things are there?", "one") in questions_of(Scene("rest", (RED,)))


def test_opposites_differ_in_what_needs_time_and_in_nothing_else() -> None:
    items = {i.id: i for i in ShapesWorld().videos("test")}
    met = set()
    for item in items.values():
        if item.opposite is None:
            continue
        for (kind, q, a), (_, r, b) in zip(
            questions_of(item.scene), questions_of(items[item.opposite].scene), strict=True
        ):
            met.add(kind)
            assert q == r
            assert (a != b) == (kind in ("way", "first"))
    assert met == set(KINDS)


def test_no_question_has_two_answers() -> None:
    for item in ShapesWorld().videos("train"):
        questions = [q for _, q, _ in questions_of(item.scene)]
        assert len(set(questions)) == len(questions)


def test_they_are_read_back(tmp_path: Path) -> None:
    world = ShapesWorld()
    found = read_questions(write_questions(world, "val", tmp_path))
    made = shapes_questions(world, "val", tmp_path)
    assert [(q.video_id, q.question, q.answer, q.kind) for q in found] == [
        (q.video_id, q.question, q.answer, q.kind) for q in made
    ]
    train = shapes_questions(world, "train", tmp_path)
    assert {q.answer for q in made} <= set(answer_vocabulary(train))
