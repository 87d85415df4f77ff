"""What a stage of ALPRO reads: files of its own rows, or a split of a published set, named SET/SPLIT.

A published set lies in `root`/SET, else in `root` itself, else in $CLIPREEL_DATA/SET or data/SET.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipreel.data.questions import Question, read_questions
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.data.sets import DEVELOPMENT, HOME, Part, VideoSet, check_apart, developing, is_set, open_set
from clipreel.evaluation.protocol import UNSTATED

if TYPE_CHECKING:
    from clipreel.training.alpro_stages import StageConfig


def folder_of(name: str, root: str | Path | None, own: bool = True) -> Path:
    """Where a published set is looked for: in its folder below `root`; where there is none in the root, if that was
    given for this very set (`own`)."""
    if root is not None:
        inside = Path(root) / name
        if own or inside.is_dir():
            return inside if inside.is_dir() else Path(root)
    return Path(os.environ.get(HOME, "data")) / name


def set_and_split(text: str) -> tuple[str, str] | None:
    """What SET/SPLIT names; None for a file."""
    name, slash, split = text.partition("/")
    return (name, split) if slash and is_set(name) and not Path(text).exists() else None


def published(config: StageConfig, text: str) -> tuple[VideoSet, str] | None:
    """The set and the split that a text means; None for a file. Raises ClipreelError where it is not there."""
    found = set_and_split(text)
    if found is None:
        return None
    name, split = found
    trained = set_and_split(config.train_data)
    same = trained is not None and trained[0] == name
    root = folder_of(name, config.root, own=same)
    form, videos = (config.form, config.videos) if same else (None, None)
    return open_set(name, root, form=form, videos=videos), split


def part_in(config: StageConfig, text: str) -> Part | None:
    """The part of a published set; None for a file."""
    found = published(config, text)
    return None if found is None else found[0].part(found[1])


def label_in(config: StageConfig, text: str) -> str:
    """What a stamp says of it."""
    part = part_in(config, text)
    return Path(text).name if part is None else part.label


def mode_in(config: StageConfig, text: str) -> str:
    """How its captions became texts, as far as it was published."""
    part = part_in(config, text)
    return UNSTATED if part is None else part.mode


def labels_in(config: StageConfig) -> dict[str, str]:
    """The same of the published splits that it is trained and selected on."""
    texts = dict.fromkeys(filter(None, (config.train_data, config.validation_data)))
    found = {text: part_in(config, text) for text in texts}
    return {text: part.label for text, part in found.items() if part is not None}


def captions_in(config: StageConfig, text: str) -> list[Sample]:
    """The captioned videos; [] for an empty text."""
    part = part_in(config, text) if text else None
    if part is not None:
        back = drawn_from(config, text)
        return [s for s in part.samples if not (back and developing(s.id))]
    return read_samples(text, config.videos) if text else []


def questions_in(config: StageConfig, text: str) -> list[Question]:
    """The questions; of a published set those whose video is there. [] for an empty text."""
    found = published(config, text) if text else None
    if found is None:
        return read_questions(text, config.videos) if text else []
    of, split = found
    paths = {s.id: s.video for s in of.part(split).samples}
    (file,) = of.files(split)
    return [replace(q, video=paths[q.video_id]) for q in read_questions(file) if q.video_id in paths]


def refuse_overlap(config: StageConfig, train: Sequence[Sample], validation: Sequence[Sample]) -> None:
    """ClipreelError where what is trained on is also selected by, or tested on where that is a file."""
    parts = {"train_data": train, "validation_data": validation}
    test = config.test_data
    if test and set_and_split(test) is None and Path(test).exists():  # a published set compares its lists itself
        asked = config.stage == "qa"
        parts["test_data"] = films(questions_in(config, test)) if asked else captions_in(config, test)
    check_apart(parts)


def films(questions: Iterable[Question]) -> list[Sample]:
    """The video of each question, under its name."""
    return [Sample(q.video_id, q.video, (q.question,)) for q in questions]


def drawn_from(config: StageConfig, text: str) -> bool:
    """Whether what selects is drawn from these videos, which are then not trained on."""
    selects = set_and_split(config.validation_data)
    return selects is not None and selects[1] == DEVELOPMENT and text == config.train_data
