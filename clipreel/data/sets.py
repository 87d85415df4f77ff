"""The published data sets as they lie on this disk, under the name that they deserve.

Set and form are the user's words and are checked against the content: the ids are counted and hashed (sets.yaml). A
part that is whole carries its name; one that is not is "partial: 979 of 1004", or says what else differs. Specification
core.md 4.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from clipreel.data.forms import READERS, Annotated
from clipreel.data.many import all_kept
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.video.quarantine import read_quarantine

Mode = Literal["single", "all", "paragraph"]
MODES = ("single", "all", "paragraph")
FACTS = Path(__file__).with_name("sets.yaml")
HOME = "CLIPREEL_DATA"  # the folder that holds one folder per data set, where --root is not given
DEVELOPMENT = "development"
SHARE = 0.05  # of the training videos, kept for selection where no validation split was published
# endings of files that are looked at below the folder of videos
ENDINGS = ("3gp", "avi", "flv", "gif", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv")
VIDEO = frozenset(f".{e}" for e in ENDINGS)


@cache
def facts() -> dict[str, Any]:
    """What is known of every data set."""
    return yaml.safe_load(FACTS.read_text("utf-8"))


def is_set(name: str) -> bool:
    return name in facts()


def identity(lines: Iterable[str]) -> str:
    """Of a list in any order: the hash that sets.yaml holds."""
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def developing(id: str) -> bool:
    """Whether a training video is kept for selection: a fixed draw by its id, so a partial set draws the same."""
    draw = hashlib.sha256(f"clipreel development 0\n{id}".encode()).digest()[:8]
    return int.from_bytes(draw, "big") < SHARE * 2**64


def whereabouts(name: str, form: str | None = None) -> str:
    """Where the owner of a set offers it, how big it is, and who offers its annotations in a form (default: the first)
    under which file names, in three lines."""
    f = facts()[name]
    chosen = form if form in f["forms"] else next(iter(f["forms"]))
    files = dict.fromkeys(file for split in f["forms"][chosen].values() for file in split["files"])
    offered = f.get("offered", {}).get(chosen, f["annotations"])
    annotations = f"{offered}; in the form {chosen}: {', '.join(files)}"
    return f"{f['title']}: {f['size']}\n  videos: {f['videos']}\n  annotations: {annotations}"


def on_one_line(name: str, form: str | None = None) -> str:
    """The same in a sentence of an error."""
    return "; ".join(line.strip() for line in whereabouts(name, form).splitlines())


@dataclass(frozen=True)
class Part:
    """A split: its samples whose video can be used, and what is wrong with the others.

    `label` is what a stamp says. `missing` are ids without a file, `quarantined` ids with the reason, `blank` videos of
    which a caption was blank and left out.
    """

    label: str
    samples: list[Sample]
    mode: Mode
    listed: int
    missing: list[str] = field(default_factory=list)
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.samples) == self.listed


@dataclass(frozen=True)
class VideoSet:
    """A published set in one of its forms below `root`; `captions` replaces the mode that it was published with."""

    name: str
    form: str
    root: Path
    videos: Path
    captions: Mode | None = None
    quarantine: Path | Literal[False] | None = None
    _read: dict[str, Annotated] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def facts(self) -> dict[str, Any]:
        return facts()[self.name]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that can be read, `development` among them where no validation split was published."""
        published = tuple(self.facts["forms"][self.form])
        drawn = "validation" not in published and {"train", "test"} <= set(published)
        return (*published, DEVELOPMENT) if drawn else published

    @all_kept()
    def part(self, split: str) -> Part:
        """One split. Raises ClipreelError for a split that was not published, for files that are not what they should
        be, for a test list that shares videos with a training list that lies here, and where no video is there."""
        if split not in self.splits:
            raise ClipreelError(
                f"{self.name} in the form {self.form} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        source = "train" if split == DEVELOPMENT else split
        how = self.facts["forms"][self.form][source]
        annotated = self._annotated(source)
        if split == "test":
            self._check_apart(annotated)
        if split == DEVELOPMENT:
            annotated = replace(annotated, captions={i: c for i, c in annotated.captions.items() if developing(i)})
        stated = self.facts["splits"].get(split) or {"mode": self.facts["splits"][source]["mode"]}
        part = self._on_disk(annotated, how, stated, split)
        if split == DEVELOPMENT and not part.listed:
            raise ClipreelError(
                f"none of the training videos of {self.name} in {self.files(source)[0]} is among the {SHARE:.0%} that "
                "are kept to select the weights: is the list cut short?"
            )
        if not part.samples:
            why = f"{len(part.missing)} files are missing and {len(part.quarantined)} are quarantined"
            raise ClipreelError(
                f"none of the {part.listed} videos of {self.name} {split} can be used below {self.videos} ({why}): "
                f"name their folder with --videos. {on_one_line(self.name, self.form)}"
            )
        return part

    def _annotated(self, split: str) -> Annotated:
        """A published split as its files have it, read once."""
        if split not in self._read:
            self._read[split] = READERS[self.facts["forms"][self.form][split]["how"]](self.files(split))
        return self._read[split]

    def _check_apart(self, tested: Annotated) -> None:
        """ClipreelError where the training list shares videos with the test list, whether or not they are here."""
        try:
            self.files("train")
        except (ClipreelError, KeyError):
            return  # there is none here to compare with
        trained = self._annotated("train").captions
        refuse_shared("train", "test", [id for id in tested.captions if id in trained])

    def files(self, split: str) -> list[Path]:
        """The annotation files of a published split. Raises ClipreelError for one that is not there, or twice."""
        return [self._file(name) for name in self.facts["forms"][self.form][split]["files"]]

    def _file(self, name: str) -> Path:
        """The file of that name in the root, or in a folder or a folder of a folder of it."""
        found = [p for depth in ("", "*/", "*/*/") for p in sorted(self.root.glob(depth + name)) if p.is_file()]
        if len(found) == 1:
            return found[0]
        if found:
            raise ClipreelError(f"{name} is there twice ({found[0]} and {found[1]}); name a --root with one of them")
        others = ", ".join(f for f in self.facts["forms"] if f != self.form)
        raise ClipreelError(
            f"there is no {name} below {self.root}, which {self.name} in the form {self.form} is read from"
            + (f" (other forms: {others})" if others else "")
            + f". {on_one_line(self.name, self.form)}"
        )

    def _on_disk(self, annotated: Annotated, how: Mapping[str, Any], stated: Mapping[str, Any], split: str) -> Part:
        mode: Mode = self.captions or stated["mode"]
        places, bad = Places(self.videos), read_quarantine(self.root if self.quarantine is None else self.quarantine)
        samples: list[Sample] = []
        missing: list[str] = []
        quarantined: list[tuple[str, str]] = []
        texts: list[str] = []
        for id, captions in annotated.captions.items():
            if not captions:
                raise ClipreelError(f"{self.name} {split}: all captions of the video {id!r} are blank; repair its file")
            if len(captions) > 1 and stated["mode"] == "single" and self.captions is None and not how.get("first"):
                raise ClipreelError(
                    f"{self.name} {split}: the video {id!r} is there {len(captions)} times and was published with one "
                    "caption; keep one, or say which to take (captions: single, the first, or all)"
                )
            path = places.find(annotated.names.get(id, id), id)
            if path is None:
                missing.append(id)
            elif bad and (reason := bad.get(os.path.abspath(path))) is not None:
                quarantined.append((id, reason))
            else:
                said = spoken(captions, mode, how.get("longest"))
                samples.append(Sample(id, path, said, None, how.get("end_s")))
                texts += [f"{id}\t{c}" for c in said]
        title = stated.get("title", f"{self.facts['title']} {split}")
        unit = "questions" if how["how"] == "questions" else "captions"
        label = named(title, [s.id for s in samples], texts, stated, mode, len(annotated.captions), unit)
        return Part(label, samples, mode, len(annotated.captions), missing, quarantined, annotated.blank)


def spoken(captions: Sequence[str], mode: Mode, longest: int | None = None) -> tuple[str, ...]:
    """The texts of a video: its first caption, all, or all as one."""
    kept = [c[:longest] for c in captions]
    return tuple(kept[:1]) if mode == "single" else (" ".join(kept),) if mode == "paragraph" else tuple(kept)


def named(
    title: str,
    ids: Sequence[str],
    texts: Sequence[str],
    stated: Mapping[str, Any],
    mode: Mode,
    listed: int,
    unit: str = "captions",
) -> str:
    """What this part may be called. Only the whole published list of ids with all its texts carries the title."""
    videos, whole = stated.get("videos"), stated.get("captions")
    captions = "" if mode == stated["mode"] else f", captions: {mode}"
    if captions:
        whole = None  # of other texts than the published ones no number is known
    if videos is not None and len(ids) > videos:
        return f"another list: {len(ids)} videos instead of {videos} ({title}{captions})"
    if videos is None and whole is not None and len(texts) < whole:
        return f"partial: {len(texts)} of {whole} {unit} ({title})"
    if len(ids) < (videos or listed):
        return f"partial: {len(ids)} of {videos or listed} ({title}{captions})"
    if "ids" in stated and identity(ids) != stated["ids"]:
        return f"another list: {videos} videos that are not those of {title}{captions}"
    if whole is not None and len(texts) + stated.get("blank", 0) < whole:
        return f"partial: {len(texts)} of {whole} {unit} ({title})"
    if whole is not None and len(texts) > whole:
        return f"other captions: {len(texts)} {unit} instead of {whole} ({title})"
    if "ids" not in stated:
        known = "videos" if videos else unit if whole else None
        return f"{title} ({f'as many {known} as published' if known else 'unchecked'}){captions}"
    if "texts" in stated and not captions and identity(texts) != stated["texts"]:
        return f"other captions on the videos of {title}"
    return title + captions


class Places:
    """Where the videos of a folder lie, by their path as annotations write it, and by their name without ending."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: set[str] = set()
        self.stems: dict[str, list[str]] = {}
        for here, folders, files in os.walk(folder, followlinks=True):
            folders.sort()
            inside = os.path.relpath(here, folder)
            for name in files:
                stem, ending = os.path.splitext(name)
                if ending.lower() in VIDEO:
                    path = name if inside == "." else f"{inside}/{name}"
                    self.paths.add(path)
                    self.stems.setdefault(stem, []).append(path)

    def find(self, name: str, id: str) -> Path | None:
        """The file; None where there is none. ClipreelError where two have the name and none lies where it should."""
        if name in self.paths:
            return self.folder / name
        last = name.rsplit("/", 1)[-1]
        stem, ending = os.path.splitext(last)
        for wanted in (stem if ending.lower() in VIDEO else last, id):
            found = self.stems.get(wanted, [])
            if len(found) > 1:
                raise ClipreelError(
                    f"two files may be the video {id!r}: {found[0]} and {found[1]} below {self.folder}; keep one"
                )
            if found:
                return self.folder / found[0]
        return None


def open_set(
    name: str,
    root: str | Path | None = None,
    *,
    form: str | None = None,
    videos: str | Path | None = None,
    captions: Mode | None = None,
    quarantine: str | Path | Literal[False] | None = None,
) -> VideoSet:
    """A published set by its name in sets.yaml. Without `form` the first that sets.yaml states.

    `root` holds the annotations (default: the folder of that name in $CLIPREEL_DATA, else in data/), `videos` the
    videos (default: the folder videos of the root, else the root). Raises ClipreelError for unknown words, and where
    nothing is there: the message says who offers the set.
    """
    if not is_set(name):
        raise ClipreelError(f"there is no data set {name!r}; known are {', '.join(facts())}")
    forms = facts()[name]["forms"]
    chosen = form or next(iter(forms))
    if chosen not in forms:
        raise ClipreelError(f"{name} was not published in the form {chosen!r}; it was in {', '.join(forms)}")
    if captions is not None and captions not in MODES:
        raise ClipreelError(f"captions {captions!r}: allowed are {', '.join(MODES)}")
    place = Path(root) if root is not None else Path(os.environ.get(HOME, "data")) / name
    if not place.is_dir():
        raise ClipreelError(
            f"there is no folder {place} with the data set {name}: name it with --root. " + on_one_line(name, chosen)
        )
    inside = place / "videos"
    films = Path(videos) if videos is not None else inside if inside.is_dir() else place
    if not films.is_dir():
        raise ClipreelError(f"there is no folder {films}; name the folder of the videos with --videos")
    listed = Path(quarantine) if isinstance(quarantine, str) else quarantine
    return VideoSet(name, chosen, place, films, captions, listed)


def check_apart(parts: Mapping[str, Iterable[Sample]]) -> None:
    """ClipreelError that shows the overlap where two splits share a video, by id or by file."""
    seen: dict[str, tuple[str, str]] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for split, samples in parts.items():
        for key, id in {key: s.id for s in samples for key in (f"id {s.id}", f"file {s.video}")}.items():
            first, _ = seen.setdefault(key, (split, id))
            if first != split:
                shared.setdefault((first, split), []).append(id)
    for (first, second), ids in shared.items():
        refuse_shared(first, second, ids)


def refuse_shared(first: str, second: str, ids: Sequence[str]) -> None:
    """ClipreelError that shows what two splits share, if anything."""
    unique = list(dict.fromkeys(ids))
    if unique:
        shown = ", ".join(unique[:5]) + (", ..." if len(unique) > 5 else "")
        raise ClipreelError(
            f"the splits {first} and {second} share {len(unique)} videos ({shown}): what is tested must not be trained "
            "on; take them out of one"
        )
