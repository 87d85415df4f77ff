"""What a user means by data on the command line: a published set by its name, or a file of videos and captions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipreel.data.readers import IN_A_FOLDER, annotation_file, read_samples
from clipreel.data.sample import Sample
from clipreel.data.sets import DEVELOPMENT, Mode, Part, VideoSet, is_set, open_set
from clipreel.errors import ClipreelError
from clipreel.video.quarantine import read_quarantine

OF_SETS = ("form", "root", "captions")
SHAPES = "shapes"  # which evaluate and tune make themselves


@dataclass(frozen=True)
class Source:
    """`data` is a name in sets.yaml, or a path for `read_samples`; `form`, `root` and `captions` go with a name only.

    `quarantine` False reads what is quarantined as well.
    """

    data: str
    form: str | None = None
    root: str | Path | None = None
    videos: str | Path | None = None
    captions: Mode | None = None
    quarantine: str | Path | Literal[False] | None = None

    @property
    def folder(self) -> Path:
        """Where the annotations lie, and the quarantine list beside them."""
        return self.opened().root if is_set(self.data) else annotation_file(Path(self.data)).parent

    def opened(self) -> VideoSet:
        """The set of that name."""
        return open_set(
            self.data,
            self.root,
            form=self.form,
            videos=self.videos,
            captions=self.captions,
            quarantine=self.quarantine,
        )

    def parts(self, split: str | None = None) -> dict[str, Part]:
        """One split, or all (of a set those that were published; of a file its rows as one part). Videos of a file that
        are missing are not looked for: the reader of the videos says so."""
        if is_set(self.data):
            found = self.opened()
            wanted = [split] if split else [s for s in found.splits if s != DEVELOPMENT]
            return {name: found.part(name) for name in wanted}
        if self.data == SHAPES:
            raise ClipreelError(
                f"{SHAPES} is the shapes world, which clipreel evaluate and tune make themselves; clipreel demo writes "
                f"its films: name their folder, demo-output/{SHAPES}/test (or ./{SHAPES} for a folder of that name)"
            )
        given = [name for name in OF_SETS if getattr(self, name) is not None]
        if given:
            raise ClipreelError(f"--{given[0]} goes with a published data set by its name, and {self.data} is a file")
        every = read_samples(self.data, self.videos, split=split, check_files=False, quarantine=False)
        bad = read_quarantine(self.folder if self.quarantine is None else self.quarantine)
        reasons = [(s, bad.get(os.path.abspath(s.video)) if bad else None) for s in every]
        kept = [s for s, reason in reasons if reason is None]
        if not kept:
            raise ClipreelError(f"all {len(every)} videos of {self.data} are in the quarantine list; repair some")
        left_out = [(s.id, reason) for s, reason in reasons if reason is not None]
        name = called(annotation_file(Path(self.data))) + (f" {split}" if split else "")
        label = name if not left_out else f"partial: {len(kept)} of {len(every)} ({name})"
        return {split or "all": Part(label, kept, "all", len(every), quarantined=left_out)}

    def samples(self, split: str | None = None) -> list[Sample]:
        """The samples of all these parts."""
        return [s for part in self.parts(split).values() for s in part.samples]


def called(file: Path) -> str:
    """The name of a data set that is a file: that of its folder where a folder has one such file, else its own."""
    return Path(os.path.abspath(file)).parent.name if file.name in IN_A_FOLDER else file.name


def notes(parts: dict[str, Part]) -> list[str]:
    """What a user has to know of parts that are not whole, a line each."""
    found = []
    for part in parts.values():
        if part.missing:
            found.append(f"{part.label}: {len(part.missing)} videos are missing, the first is {part.missing[0]}")
        if part.quarantined:
            id, reason = part.quarantined[0]
            found.append(f"{part.label}: {len(part.quarantined)} videos are quarantined, the first is {id} ({reason})")
        if part.blank:
            found.append(
                f"{part.label}: {len(part.blank)} blank captions are left out, the first is of {part.blank[0]}"
            )
        doubled = {s.id: len(s.captions) - len(set(s.captions)) for s in part.samples}
        if first := next((id for id, more in doubled.items() if more), None):
            more = sum(doubled.values())
            found.append(f"{part.label}: {more} captions stand again with the same video, the first with {first}")
    return found
