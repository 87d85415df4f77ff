"""A cell and the stages that it starts from, earliest first: where their data lie, and what of them is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipreel.alpro.start import may_be
from clipreel.data.sets import HOME, whereabouts
from clipreel.errors import ClipreelError
from clipreel.training.alpro_stages import StageConfig
from clipreel.training.catalogue import Config, Entry
from clipreel.training.config import override
from clipreel.training.pairs import SHAPES, read_pairs
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


def lacking(links: Sequence[Link]) -> list[str]:
    """What a cell needs and is not there, a line each: data (what, how big, who offers it), then what it starts from.

    Stages that are done need nothing.
    """
    *earlier, cell = links
    found = lacks(cell)
    for link, following in reversed([*zip(earlier, links[1:], strict=True)]):
        if not link.done and (rows := lacks(link)):
            found += [instead(link, following), *(f"  {row}" for row in rows)]
    return found


def instead(link: Link, following: Link) -> str:
    """What the model of a stage can be replaced by, before what the stage itself needs."""
    needs = f"{link.entry.name} needs:"
    frozen = following.entry.config
    if isinstance(frozen, TuneConfig) and isinstance(following.config, TuneConfig):
        place = following.config.data.root
        return (
            f"{frozen.start}, the released checkpoint that it starts from: see {following.entry.source}; put it into "
            f"{place}. To make one instead, {needs}"
        )
    if link.stage == "pretrain":
        return f"the model it starts from: model=FILE of a released one (github.com/salesforce/ALPRO). Else {needs}"
    return f"before it, {needs}"


def lacks(link: Link) -> list[str]:
    config, entry = link.config, link.entry
    if isinstance(config, PostPretrainConfig):
        wanted = [p for s in config.sources.values() for p in (s.path, s.captions) if p and s.source == "pairs"]
        return [absent_file(p, "$CLIPREEL_DATA or --data") for p in wanted if p != SHAPES and not Path(p).exists()]
    if isinstance(config, StageConfig):
        return stage_lacks(config)
    found = []
    place = config.data.root
    if place is not None and not Path(place).is_dir():
        found += absent_set(config.data.path, Path(place))
    elif place is not None:
        try:
            read_pairs(config.data, Path())
        except ClipreelError as e:
            found.append(str(e))
    if config.start is not None and not Path(config.start).exists() and not link_made(config.start):
        where = f"see {entry.source}; put it into {place}"
        found.append(f"{config.start}, the released checkpoint that it starts from: {where}")
    return found


def link_made(start: str) -> bool:
    """Whether this is what an earlier stage will make."""
    return Path(start).name in ("adapter", "model") and Path(start).parent.name.startswith("seed-")


def stage_lacks(config: StageConfig) -> list[str]:
    found: list[str] = []
    texts = [config.train_data, config.validation_data, *([config.test_data] if must_test(config) else [])]
    folders: set[Path] = set()
    for text in filter(None, texts):
        named = set_and_split(text)
        if named is None:
            if not Path(text).exists():
                found.append(absent_file(text, "the folder of --data"))
            continue
        place = folder_of(named[0], config.root)
        if place.is_dir():
            try:
                part_in(config, text)
            except ClipreelError as e:
                found.append(str(e))
        elif place not in folders:
            folders.add(place)
            found += absent_set(named[0], place)
    for name in FILES:
        file = getattr(config, name)
        unused = name in ("vit", "bert", "tokenizer") and bool(config.model)
        if file and not unused and not may_be(file):
            found.append(absent_file(file, "the folder of --data"))
    return found


def must_test(config: StageConfig) -> bool:
    """Whether a stage is nothing without its test: fine-tuning is, pre-training is measured where the data are here."""
    return config.stage in ("retrieval", "qa")


def absent_set(name: str, place: Path) -> list[str]:
    return [
        f"the data set {name}, in the folder {place} (name another with --data)",
        *whereabouts(name).splitlines(),
    ]


def absent_file(file: str, place: str) -> str:
    origin = ORIGINS.get(file)
    return f"{file}, below {place}" + (f" ({origin})" if origin else "")
