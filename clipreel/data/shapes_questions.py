"""Questions about the shapes world: what colour, which shape, how many, which way, what came first.

Colour, shape and number can be read off one frame; which way and what came first need several. The opposite of a video
has the same frames, the same questions, and other answers to those two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from clipreel.data.questions import Question
from clipreel.data.shapes import Scene, ShapesWorld

KINDS = ("colour", "shape", "number", "way", "first")
WAYS = {  # kind of scene -> the answer forwards, and backwards
    "across": ("right", "left"),
    "upright": ("up", "down"),
    "pass": ("right", "left"),
    "spin": ("clockwise", "anticlockwise"),
    "orbit": ("clockwise", "anticlockwise"),
}


def questions_of(scene: Scene) -> Iterator[tuple[str, str, str]]:
    """(kind, question, answer) of a scene."""
    things = [*scene.actors, *([] if scene.bystander is None else [scene.bystander[0]])]
    for thing in things:  # no two things of a scene share a shape or a colour
        yield "colour", f"what colour is the {thing.shape}?", thing.colour
        yield "shape", f"which shape is {thing.colour}?", thing.shape
    yield "number", "how many things are there?", "two" if len(things) > 1 else "one"
    if scene.kind in WAYS:
        yield "way", f"which way does the {scene.actors[0].shape} go?", WAYS[scene.kind][scene.backwards]
    if scene.kind == "order":
        yield "first", "what comes first?", scene.actors[1 if scene.backwards else 0].shape


def shapes_questions(world: ShapesWorld, split: str, folder: Path) -> list[Question]:
    """All questions of a split, about the files that `ShapesWorld.write_videos` puts into the folder."""
    return [
        Question(f"{item.id}-{n}", item.id, Path(folder) / f"{item.id}.mp4", question, answer, kind)
        for item in world.videos(split)
        for n, (kind, question, answer) in enumerate(questions_of(item.scene))
    ]


def write_questions(world: ShapesWorld, split: str, folder: Path) -> Path:
    """The questions of a split in the published form, as questions.jsonl beside the videos."""
    rows = [
        {"question_id": q.id, "video": q.video.name, "question": q.question, "answer": q.answer, "answer_type": q.kind}
        for q in shapes_questions(world, split, folder)
    ]
    file = Path(folder) / "questions.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file
