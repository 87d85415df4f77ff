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
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        listed = text.lstrip().startswith("[")
        rows: list[Any] = json.loads(text) if listed else [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as e:
        raise ClipreelError(f"the captions {path} cannot be read ({e}); a JSON list or JSON lines is expected") from e
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        entry = row if isinstance(row, dict) else {}
        id, caption = entry.get("id", entry.get("image_id")), entry.get("caption")
        if id is None or not isinstance(caption, str) or not caption.strip():
            shape = '{"id": ..., "caption": ...}'
            raise ClipreelError(f"{path}, entry {number}: {str(row)[:80]} is not {shape} with a text")
        if found.setdefault(str(id), caption) != caption:
            raise ClipreelError(f"{path}, entry {number}: {id!r} has another caption already; keep one of them")
    return found


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
