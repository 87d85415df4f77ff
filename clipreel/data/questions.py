"""Questions about videos with one answer each, in the published JSON lines of MSRVTT-QA and MSVD-QA.

A line is {"question", "answer", "video_id" or "video"} and perhaps "question_id" and "answer_type" (what, who, how,
where, when). ALPRO specification 4 and 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipreel.data.readers import Row, rows_of
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError


@dataclass(frozen=True)
class Question:
    """A question, its right answer, and the kind that accuracy is reported for. `video_id` names the video."""

    id: str
    video_id: str
    video: Path
    question: str
    answer: str
    kind: str = ""

    def sample(self) -> Sample:
        """The question in the place of a caption, as batches take it."""
        return Sample(self.id, self.video, (self.question,))


def read_questions(path: str | Path, videos: str | Path | None = None, ending: str = ".mp4") -> list[Question]:
    """The questions of a file in its order. Videos lie below `videos`, else beside the file; `ending` is put behind a
    video_id. Raises ClipreelError with the line for a field that is missing or blank, or an id that comes twice."""
    file = Path(path)
    if not file.is_file():
        raise ClipreelError(f"there is no file {file}; check the path")
    folder = file.parent if videos is None else Path(videos)
    found: dict[str, Question] = {}
    for number, row in enumerate(rows_of(file)):
        name = str(row.fields.get("video") or "") or text(row, "video_id") + ending
        id = str(row.fields.get("question_id", number))
        if id in found:
            raise row.error(f"the question_id {id!r} comes twice; give each question its own")
        kind = str(row.fields.get("answer_type", "") or "")
        question, answer = text(row, "question"), text(row, "answer")
        found[id] = Question(f"q{id}", Path(name).stem, folder / name, question, answer, kind)
    if not found:
        raise ClipreelError(f"{file} holds no questions; a line is {{'question', 'answer', 'video_id'}}")
    return list(found.values())


def text(row: Row, key: str) -> str:
    value = row.fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise row.error(f"{key} is {value!r}; each line has question, answer, and video_id or video, as texts")
    return value.strip()


def answer_vocabulary(questions: Sequence[Question], most: int = 1500) -> tuple[str, ...]:
    """The most frequent answers, equal counts in order of the alphabet."""
    counts = Counter(q.answer for q in questions)
    return tuple(sorted(counts, key=lambda a: (-counts[a], a))[:most])


def accuracies(questions: Sequence[Question], given: Mapping[str, str]) -> dict[str, float]:
    """Per cent of right answers, of all and of each kind; `given` are the answers by question id. A question without
    one is wrong, and so is an answer that is outside the vocabulary."""
    if not questions:
        raise ClipreelError("there are no questions to judge the answers of")
    kinds: dict[str, list[bool]] = {}
    for q in questions:
        right = given.get(q.id) == q.answer
        kinds.setdefault("accuracy", []).append(right)
        if q.kind:
            kinds.setdefault(f"accuracy {q.kind}", []).append(right)
    return {kind: 100 * sum(right) / len(right) for kind, right in kinds.items()}
