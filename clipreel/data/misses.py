"""Parts of videos that a caption does not describe, as people judged them: the field `not` of an annotation file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from clipreel.data.readers import (
    Row,
    annotation_file,
    captions_of,
    check_videos,
    id_of,
    listed,
    part_of,
    rows_of,
    short,
)
from clipreel.data.sample import Sample
from clipreel.video.quarantine import read_quarantine


def read_misses(
    path: str | Path,
    samples: Sequence[Sample],
    videos: str | Path | None = None,
    *,
    quarantine: str | Path | Literal[False] | None = None,
) -> dict[str, tuple[Sample, ...]]:
    """By caption, the parts of videos that `not` says it does not describe, each once and without captions.

    `not` is a list of {"video", "start", "end"}, the times optional as in a row, and holds for all captions of the row.
    `samples` are those of the file; a part that is one of them has its id. `videos` and `quarantine` are those of
    `read_samples`. Raises ClipreelError with the line for a `not` of another form, a video that is not there, and a
    part that is judged both ways.

    >>> from tempfile import mkdtemp
    >>> file = Path(mkdtemp()) / "pairs.jsonl"
    >>> file.with_name("b.mp4").touch()
    >>> _ = file.write_text('{"video": "a.mp4", "caption": "a dog", "not": [{"video": "b.mp4"}]}')
    >>> read_misses(file, [])["a dog"][0].id
    'b'
    """
    file = annotation_file(Path(path))
    folder = file.parent if videos is None else Path(videos)
    bad = read_quarantine(file.parent if quarantine is None else quarantine)
    known = {(os.path.abspath(s.video), s.start_s, s.end_s): s for s in samples}
    owner = {s.id: part for part, s in known.items()}
    found: dict[str, dict[str, Sample]] = {}
    for row in rows_of(file):
        for wrong in parts_not(row):
            name, start_s, end_s = part_of(wrong)
            part = os.path.abspath(folder / name), start_s, end_s
            id = known[part].id if part in known else id_of(wrong, name, start_s, end_s)
            if owner.setdefault(id, part) != part:
                raise wrong.error(f"the id {id!r} of this part is taken by another one; give that another id")
            both = [c for c in captions_of(row) if part in known and c in known[part].captions]
            if both:
                raise wrong.error(f"{id!r} is an answer to {short(both[0])} and none; keep one of the two")
            sample = Sample(id, folder / name, (), start_s, end_s)
            check_videos([(wrong, sample)], folder)
            if os.path.abspath(sample.video) not in bad:
                for caption in captions_of(row):
                    found.setdefault(caption, {})[id] = sample
    return {caption: tuple(parts.values()) for caption, parts in found.items()}


def parts_not(row: Row) -> list[Row]:
    """What the field `not` lists, each as a row; a cell may hold a JSON list."""
    said = row.fields.get("not")
    if isinstance(said, str):
        said = listed(said)
    if not isinstance(said, list | None) or not all(isinstance(x, dict) for x in said or []):
        raise row.error(f'not {short(said)} is no list of parts, as [{{"video": ..., "start": 2, "end": 5.5}}]')
    return [Row(f"{row.where}, 'not' {n}", x) for n, x in enumerate(said or [], 1)]
