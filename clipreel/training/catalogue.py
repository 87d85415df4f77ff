"""Every frozen config by name, SYSTEM/METHOD/DATASET-BACKBONE, with the figures that were printed for it.

The tables are in `configs/`: in a checkout beside the package, installed inside it. The study on the shapes world takes
its figures from configs/shapes/table.json, the committed table of `clipreel compare`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from clipreel.errors import ClipreelError
from clipreel.training.alpro_stages import StageConfig
from clipreel.training.cells import TOLERANCE, Figures, cells
from clipreel.training.config import read
from clipreel.training.post_pretraining import PostPretrainConfig
from clipreel.training.settings import TuneConfig, read_config
from clipreel.training.stage_cells import stage_cell
from clipreel.training.stage_data import set_and_split

PACKAGE = Path(__file__).parent.parent
BACKBONES = {
    "openai/clip-vit-base-patch32": "b32",
    "openai/clip-vit-base-patch16": "b16",
    "shapes-tiny": "tiny",
}
Verb = Literal["tune", "train", "post-pretrain"]
Config = TuneConfig | StageConfig | PostPretrainConfig


@dataclass(frozen=True)
class Entry:
    """A frozen config. `verb` trains it; `printed` holds way -> measure -> value, and is empty where nothing was
    printed; `tolerance` is in points of R@1 or accuracy."""

    name: str
    verb: Verb
    file: Path
    dataset: str
    backbone: str
    config: Config
    source: str = ""
    printed: Figures = field(default_factory=dict)
    unverified: tuple[str, ...] = ()
    tolerance: float = TOLERANCE

    @property
    def headline(self) -> tuple[str, float] | None:
        """The first printed figure and its name, such as ("t2v R@1", 44.6)."""
        for way, row in self.printed.items():
            for measure, value in row.items():
                return f"{way} {measure}", value
        return None


def configs_folder() -> Path:
    """Where the frozen configs are."""
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "vop").is_dir():
            return folder
    raise ClipreelError(f"the frozen configs are neither in {PACKAGE} nor beside it; install clipreel again")


def catalogue(folder: Path | None = None) -> dict[str, Entry]:
    """All frozen configs, by name in order of systems. Raises ClipreelError for a file that is wrong, and for two of
    one name."""
    folder = folder or configs_folder()
    found: dict[str, Entry] = {}
    for file in sorted(folder.glob("*/*.yaml")):
        for entry in entries(file):
            if entry.name in found:
                raise ClipreelError(f"{file} and {found[entry.name].file} both define {entry.name}; rename a cell")
            found[entry.name] = entry
    if not found:
        raise ClipreelError(f"{folder} holds no configs; install clipreel again")
    return found


def entries(file: Path) -> Iterable[Entry]:
    """The cells of one file, whatever kind it is."""
    system = file.parent.name
    try:
        data = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise ClipreelError(f"{file} is not readable YAML ({' '.join(str(e).split())})") from e
    if "cells" in data:
        return table_entries(system, file)
    if "stage" in data.get("config", {}):
        return [stage_entry(system, file)]
    if "sources" in data or file.stem.startswith("post_pretrain"):
        return [corpus_entry(system, file)]
    return [] if file.stem == "default" else [study_entry(file)]


def table_entries(system: str, file: Path) -> list[Entry]:
    found = []
    for cell in cells(file).values():
        config, backbone = cell.config, backbone_of(cell.config.model)
        method = config.method if cell.name in BACKBONES.values() else cell.name
        name = f"{system}/{method}/{config.data.path}-{backbone}"
        facts = (cell.source, cell.figures, cell.unverified, cell.tolerance)
        found.append(Entry(name, "tune", file, config.data.path, backbone, config, *facts))
    return found


def stage_entry(system: str, file: Path) -> Entry:
    cell = stage_cell(file)
    stage: str = cell.config.stage
    place = "webvid2m" if stage in ("prompter", "pretrain") else file.stem.removesuffix(f"-{stage}")
    named = set_and_split(cell.config.train_data)
    dataset = place if named is None else named[0]
    printed: Figures = {"t2v" if stage == "retrieval" else stage: cell.target} if cell.target else {}
    return Entry(f"{system}/{stage}/{place}-b16", "train", file, dataset, "b16", cell.config, cell.source, printed)


def corpus_entry(system: str, file: Path) -> Entry:
    config = read(PostPretrainConfig, file)
    dataset, backbone = next(iter(config.sources)), backbone_of(config.model)
    dataset = "shapes" if config.sources[dataset].path == "shapes" else dataset
    source = (
        "nothing was printed" if dataset == "shapes" else "microsoft/XPretrain, released config; nothing was printed"
    )
    return Entry(
        f"{system}/post_pretrain/{dataset}-{backbone}", "post-pretrain", file, dataset, backbone, config, source
    )


def study_entry(file: Path) -> Entry:
    config = read_config(file)
    backbone = backbone_of(config.model)
    name = f"{file.parent.name}/{file.stem}/{config.data.path}-{backbone}"
    printed, tolerance = committed(file.with_name("table.json"), file.stem)
    source = "clipreel compare configs/shapes/*.yaml, mean over seeds" if printed else ""
    return Entry(name, "tune", file, config.data.path, backbone, config, source, printed, (), tolerance)


def committed(table: Path, method: str) -> tuple[Figures, float]:
    """A row of a study's table as figures, and how far its seeds lie apart in t2v R@1 as the tolerance."""
    if not table.is_file():
        return {}, TOLERANCE
    try:
        data: dict[str, Any] = json.loads(table.read_text("utf-8"))
        rows = {row["name"]: row["recalls"] for row in data["rows"]}
        if method not in rows:
            return {}, TOLERANCE
        printed: Figures = {}
        for key, spread in rows[method].items():
            way, measure = key.split(" ")
            printed.setdefault(way, {})[measure] = spread["mean"]
        first = rows[method]["t2v R@1"]
        return printed, max(TOLERANCE, first["high"] - first["low"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ClipreelError(f"{table} is no table of clipreel compare ({type(e).__name__}: {e})") from e


def backbone_of(model: str) -> str:
    return BACKBONES.get(model, model.rsplit("/", 1)[-1])


def chosen(name: str, among: dict[str, Entry]) -> Entry:
    """The entry that a name means: the whole name, or METHOD/DATASET-BACKBONE or SYSTEM/DATASET-BACKBONE where only one
    has it. Raises ClipreelError that lists the near ones."""
    wanted = name.strip().strip("/")
    if wanted in among:
        return among[wanted]
    fits = [n for n in among if n.split("/", 1)[1] == wanted] or [n for n in among if short(n) == wanted]
    if len(fits) == 1:
        return among[fits[0]]
    if fits:
        raise ClipreelError(f"{name!r} is several cells: {', '.join(fits)}; name one of them")
    forms = {form: n for n in among for form in (n, n.split("/", 1)[1], short(n))}
    near = difflib.get_close_matches(wanted, forms, 6, 0.4)
    near = list(dict.fromkeys(forms[form] for form in near))
    hint = f"near ones: {', '.join(near)}" if near else "all of them: clipreel reproduce --list"
    raise ClipreelError(f"there is no cell {name!r}; {hint}")


def short(name: str) -> str:
    """SYSTEM/DATASET-BACKBONE."""
    system, _, place = name.split("/")
    return f"{system}/{place}"
