"""A cell and the stages that it starts from, earliest first: where their data lie, and what of them is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipreel.alpro.start import may_be
from clipreel.data.sets import HOME, on_one_line, whereabouts
from clipreel.data.sources import SHAPES
from clipreel.errors import ClipreelError, NotHere
from clipreel.hub import HUB_ID, size_of, snapshot
from clipreel.retriever import BUILT_IN
from clipreel.training.alpro_stages import StageConfig
from clipreel.training.catalogue import Config, Entry
from clipreel.training.config import override
from clipreel.training.pairs import read_pairs
from clipreel.training.post_pretraining import PostPretrainConfig, SourceConfig
from clipreel.training.settings import TuneConfig
from clipreel.training.stage_data import folder_of, part_in, set_and_split

RESULT = "result.json"
PLACES = {f"{at}{key}" for at in ("", "data.") for key in ("form", "root", "videos", "quarantine")}
FILES = ("images", "vit", "bert", "tokenizer", "entities", "answers")  # of a stage, beside its data
ORIGINS = {
    "hdvila/annotations.jsonl": "HD-VILA-100M with its subtitles, about 92 million videos: "
    "github.com/microsoft/XPretrain",
    "hdvila/captions.jsonl": "captions of its middle frames: beside CLIP-ViP in the same place, or clipreel caption",
    "cc3m.jsonl": "Conceptual Captions, 3.3 million pictures as rows of video and caption: "
    "ai.google.com/research/ConceptualCaptions",
    "entities.txt": "the most frequent nouns of the captions: clipreel entities CAPTIONS",
    "vit_base_patch16_224.safetensors": "ViT-B/16: huggingface.co/timm, vit_base_patch16_224",
    "bert-base-uncased": "a folder with its weights and vocabulary: huggingface.co/google-bert/bert-base-uncased",
    "pretrain_clipvip_base_32.pt": "about 605 MB in float32: the links of the README of CLIP-ViP, which expire: "
    "github.com/microsoft/XPretrain; a copy by others, which nobody checked: huggingface.co/tensorpro/clip_vip",
    "pretrain_clipvip_base_16.pt": "about 600 MB in float32, from the same places as "
    "pretrain_clipvip_base_32.pt: github.com/microsoft/XPretrain",
}


@dataclass(frozen=True)
class Link:
    """A cell as it will be run: its config on the data that are here, its folder, and what was changed in it and in
    the stages before it. Where the data lie, and in which published form, is no change of what was printed."""

    entry: Entry
    config: Config
    folder: Path
    changes: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """How changes of it are named by cells that start from it."""
        return self.entry.name.split("/")[1]

    @property
    def made(self) -> Path:
        """What the next stage starts from."""
        return self.folder / f"seed-{self.config.train.seed}" / ("model" if self.entry.verb == "train" else "adapter")

    @property
    def done(self) -> bool:
        return (self.folder / RESULT).is_file() and self.made.is_dir()


def chain(
    entry: Entry, among: Mapping[str, Entry], data: Path | None, changes: Sequence[str], folder: Path
) -> list[Link]:
    """The cell at the end, before it the stages that make what it starts from where that is not here. These are kept
    beside its folder, under their own names, for all cells that start from them.

    A change such as "pretrain.train.steps=2" is one of that stage. Raises ClipreelError for changes that do not fit.
    """
    links = linked(entry, among, data, changes, folder)
    words = {link.stage for link in links[:-1]}
    for change in changes:
        word = stage_of(change, among)
        if word is not None and word not in words:
            allowed = ", ".join(sorted(words)) or "none"
            raise ClipreelError(f"{change}: {entry.name} builds on no stage {word} here; it builds on {allowed}")
    return links


def linked(
    entry: Entry, among: Mapping[str, Entry], data: Path | None, changes: Sequence[str], folder: Path, word: str = ""
) -> list[Link]:
    own = tuple(c.removeprefix(f"{word}.") for c in changes if (stage_of(c, among) or "") == word)
    config = entry.config
    for change in own:
        config = override(config, change)
    config = placed(entry, config, data)
    own = tuple(c for c in own if c.partition("=")[0] not in PLACES)
    earlier = before(entry, config, among)
    if earlier is None:
        return [Link(entry, config, folder, own)]
    place = folder.parent / earlier.name.replace("/", "-")
    stage = earlier.name.split("/")[1]
    links = linked(earlier, among, data, changes, place, stage)
    others = tuple(c if stage_of(c, among) else f"{stage}.{c}" for c in links[-1].changes)
    made = str(links[-1].made)
    if isinstance(config, StageConfig):
        config = replace(config, prompter=made) if config.stage == "pretrain" else replace(config, model=made)
    elif isinstance(config, TuneConfig):
        config = replace(config, start=made)
    return [*links, Link(entry, config, folder, (*others, *own))]


def stage_of(change: str, among: Mapping[str, Entry]) -> str | None:
    """The stage whose value is changed, of "pretrain.train.steps=2"."""
    word, dot, _ = change.partition("=")[0].partition(".")
    stages = {e.name.split("/")[1] for e in among.values() if e.verb != "tune"}
    return word if dot and word in stages else None


def before(entry: Entry, config: Config, among: Mapping[str, Entry]) -> Entry | None:
    """The cell that makes what this one starts from; None where that is here, or is nothing."""
    frozen = entry.config
    if isinstance(config, StageConfig):
        start = config.prompter if config.stage == "pretrain" else config.model
        if not start or Path(start).exists():
            return None
        wanted = Path(start).parent.name  # trained/pretrain/model
        fits = [e for e in among.values() if isinstance(e.config, StageConfig) and e.config.stage == wanted]
        return fits[0] if fits else None
    if isinstance(config, TuneConfig) and config.start is not None and not Path(config.start).exists():
        assert isinstance(frozen, TuneConfig)
        fits = [
            e
            for e in among.values()
            if isinstance(e.config, PostPretrainConfig)
            and (e.config.model, e.config.method) == (frozen.model, frozen.method)
        ]
        return fits[0] if fits else None
    return None


def placed(entry: Entry, config: Config, data: Path | None) -> Config:
    """The config on the data in the folder `data`: that of the set, or one with a folder for each."""
    if isinstance(config, TuneConfig):
        if entry.dataset == SHAPES:
            return config
        place = folder_of(entry.dataset, data)
        start = config.start if config.start is None else found_in([place, data], config.start)
        return replace(config, data=replace(config.data, root=str(place)), start=start)
    home = Path(os.environ.get(HOME, "data"))
    if isinstance(config, PostPretrainConfig):
        return replace(config, sources={n: placed_source(s, [data, home]) for n, s in config.sources.items()})
    folders = [None if data is None else folder_of(entry.dataset, data), data, home / entry.dataset, home]
    files: dict[str, Any] = {name: found_in(folders, getattr(config, name)) for name in FILES}
    root = config.root if data is None else str(data)
    return replace(config, root=root, **files)


def placed_source(source: SourceConfig, folders: Sequence[Path | None]) -> SourceConfig:
    captions = None if source.captions is None else found_in(folders, source.captions)
    return replace(source, path=found_in(folders, source.path), captions=captions)


def found_in(folders: Sequence[Path | None], name: str) -> str:
    """The file of that name in the first folder that has it, else the name alone."""
    places = [f / name for f in folders if f is not None and name]
    return next((str(p) for p in places if p.exists()), name)


# ---------------------------------------------------------------------- what is missing


@dataclass
class Told:
    """Lines about what is missing, none of which is said twice: those in `known` were said. `base` says whether a base
    that is not here counts."""

    base: bool
    lines: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    anything: bool = False

    def add(self, *lines: str) -> None:
        self.anything = True
        fresh = [line for line in lines if line not in self.known]
        self.known.update(fresh)
        self.lines += fresh

    def stage(self, head: str, other: Told) -> None:
        """What an earlier stage needs, below a line that names it."""
        self.lines += [head, *(f"  {line}" for line in other.lines or ["the same as above"])]

    def refusal(self, problem: ClipreelError, name: str, form: str | None) -> None:
        """An error about a set, which says who offers it the first time only."""
        offered = on_one_line(name, form)
        text = str(problem)
        if offered in self.known:
            text = text.replace(f". {offered}", "")
        self.known.add(offered)
        self.add(text)

    def data_set(self, name: str, form: str | None, place: Path) -> None:
        where = f"the data set {name}, in the folder {place} (name another with --data)"
        self.add(where, *whereabouts(name, form).splitlines())

    def file(self, file: str, place: str) -> None:
        origin = ORIGINS.get(file)
        self.add(f"{file}, below {place}" + (f" ({origin})" if origin else ""))

    def model(self, name: str) -> None:
        """A base of the hub that is not on this machine."""
        if not self.base or name in BUILT_IN or Path(name).exists() or not HUB_ID.fullmatch(name):
            return
        try:
            snapshot(name, download=False)
        except NotHere:
            by_hand = "allow its download with --download, or copy its folder here and give --model FOLDER"
            self.add(f"{name}, the base ({size_of(name)}: huggingface.co/{name}): {by_hand}")


def lacking(links: Sequence[Link], base: bool = False) -> list[str]:
    """What a cell needs and is not there, a line each: data (what, how big, who offers it), then what it starts from,
    `base` also what it builds on.

    Stages that are done need nothing.
    """
    *earlier, cell = links
    told = Told(base)
    lacks(cell, told)
    for link, following in reversed([*zip(earlier, links[1:], strict=True)]):
        if not link.done:
            inner = Told(base, known=told.known)
            lacks(link, inner)
            if inner.anything:
                told.stage(instead(link, following), inner)
    return told.lines


# ---------------------------------------------------------------------- what is missing


def instead(link: Link, following: Link) -> str:
    """What the model of a stage can be replaced by, before what the stage itself needs."""
    needs = f"{link.entry.name} needs:"
    frozen = following.entry.config
    if isinstance(frozen, TuneConfig) and isinstance(following.config, TuneConfig):
        released = checkpoint(str(frozen.start), following.entry, following.config.data.root)
        return f"{released}. To make one instead, {needs}"
    if link.stage == "pretrain":
        released = "model=FILE of a released one (the README of github.com/salesforce/ALPRO; its size is unknown)"
        return f"the model it starts from: {released}. Else {needs}"
    return f"before it, {needs}"


def checkpoint(start: str, entry: Entry, place: str | None) -> str:
    origin = ORIGINS.get(Path(start).name, f"its size is unknown; see {entry.source}")
    return f"{start}, the released checkpoint that it starts from ({origin}); put it into {place}"


def lacks(link: Link, told: Told) -> None:
    """Everything that a cell or a stage itself needs."""
    config, entry = link.config, link.entry
    if isinstance(config, StageConfig):
        stage_lacks(config, told)
    elif isinstance(config, PostPretrainConfig):
        wanted = [p for s in config.sources.values() for p in (s.path, s.captions) if p and s.source == "pairs"]
        for path in wanted:
            if path != SHAPES and not Path(path).exists():
                told.file(path, "$CLIPREEL_DATA or --data")
        told.model(config.model)
    else:
        place, data = config.data.root, config.data
        if place is not None and not Path(place).is_dir():
            told.data_set(data.path, data.form, Path(place))
        elif place is not None:
            try:
                read_pairs(data, Path())
            except ClipreelError as e:
                told.refusal(e, data.path, data.form)
        if config.start is not None and not Path(config.start).exists() and not link_made(config.start):
            told.add(checkpoint(config.start, entry, place))
        told.model(config.model)


def link_made(start: str) -> bool:
    """Whether this is what an earlier stage will make."""
    return Path(start).name in ("adapter", "model") and Path(start).parent.name.startswith("seed-")


def stage_lacks(config: StageConfig, told: Told) -> None:
    texts = [config.train_data, config.validation_data, *([config.test_data] if must_test(config) else [])]
    for text in filter(None, texts):
        named = set_and_split(text)
        if named is None:
            if not Path(text).exists():
                told.file(text, "the folder of --data")
            continue
        place = folder_of(named[0], config.root)
        if place.is_dir():
            try:
                part_in(config, text)
            except ClipreelError as e:
                told.refusal(e, named[0], config.form)
        else:
            told.data_set(named[0], config.form, place)
    for name in FILES:
        file = getattr(config, name)
        unused = name in ("vit", "bert", "tokenizer") and bool(config.model)
        if file and not unused and not may_be(file):
            told.file(file, "the folder of --data")


def must_test(config: StageConfig) -> bool:
    """Whether a stage is nothing without its test: fine-tuning is, pre-training is measured where the data are here."""
    return config.stage in ("retrieval", "qa")
