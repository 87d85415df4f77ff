"""The one type of a (video, captions) pair that readers give and training and evaluation take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """A video or a part of it (`start_s` to `end_s`, seconds) with its captions; `id` names the video."""

    id: str
    video: Path
    captions: tuple[str, ...]
    start_s: float | None = None
    end_s: float | None = None
