"""Texts of videos that a model wrote, kept apart from the annotations: a JSON list or JSON lines of id and caption.

The published captions of CLIP-ViP are such a list, with `image_id` for the id (specification clip_vip.md 1.4).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError


def read_captions(path: str | Path) -> dict[str, str]:
    """Caption by sample id. Raises ClipreelError with the entry that is no caption or that contradicts another."""
    found: dict[str, str] = {}
    for number, (row, caption) in enumerate(entries(Path(path)), 1):
        id = row.get("id", row.get("image_id"))
        if id is None:
            raise ClipreelError(f"{path}, entry {number}: {str(row)[:80]} has no id, so it is of no video")
        if found.setdefault(str(id), caption) != caption:
            raise ClipreelError(f"{path}, entry {number}: {id!r} has another caption already; keep one of them")
    return found


def read_texts(path: str | Path) -> list[str]:
    """The captions alone, of whatever they are."""
    return [caption for _, caption in entries(Path(path))]


def entries(path: Path) -> list[tuple[dict[str, Any], str]]:
    """The entries of a file with their captions. Raises ClipreelError with the first one that has none."""
    wanted = '{"id": ..., "caption": ...}, in a JSON list or one a line'
    try:
        text = path.read_text("utf-8")
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        listed = text.lstrip().startswith("[")
        rows: list[Any] = json.loads(text) if listed else []
    except (OSError, ValueError) as e:
        raise ClipreelError(f"the captions {path} cannot be read ({e}); what is expected is {wanted}") from e
    for number, line in [] if listed else lines:
        try:
            rows.append(json.loads(line))
        except ValueError as e:
            raise ClipreelError(f"{path}, line {number} is no JSON ({e}); what is expected is {wanted}") from e
    for number, row in enumerate(rows, 1):
        caption = row.get("caption") if isinstance(row, dict) else None
        if not isinstance(caption, str) or not caption.strip():
            raise ClipreelError(f"{path}, entry {number}: {str(row)[:80]} is not {wanted}")
    return [(row, row["caption"]) for row in rows]


def captioned(
    samples: Sequence[Sample], captions: dict[str, str], missing: str | None = None, source: str = "the captions"
) -> list[Sample]:
    """The same samples, each with this caption alone; `missing` is the text of those without one.

    Raises ClipreelError where a sample has none and `missing` is not given.
    """
    absent = [s.id for s in samples if s.id not in captions]
    if absent and missing is None:
        raise ClipreelError(
            f"{source} have none for {len(absent)} of {len(samples)} samples (the first: {absent[0]!r}): caption those "
            "too, or say missing_caption: None, the text that the released code takes"
        )
    return [replace(s, captions=(captions.get(s.id, missing or ""),)) for s in samples]
