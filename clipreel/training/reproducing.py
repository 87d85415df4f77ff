"""A frozen config run with one or several seeds, and what came out beside what was printed.

Seeds that are done are kept, and one that was killed goes on. What comes out is result.json: the printed figures, ours,
the difference, the intervals over resampled videos, and the stamp of how it was made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from clipreel.adapter import write
from clipreel.data.sets import HOME, whereabouts
from clipreel.errors import ClipreelError
from clipreel.evaluation.bootstrap import Interval
from clipreel.evaluation.features import ABOUT, load_features
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.report import protocol
from clipreel.retriever import Retriever
from clipreel.training.catalogue import Entry
from clipreel.training.cells import WAYS, Figures
from clipreel.training.config import as_dict, override, to_yaml
from clipreel.training.distributed import on_first
from clipreel.training.finished import Spread, is_done, pooled, read_report
from clipreel.training.pairs import SHAPES, read_pairs
from clipreel.training.tuning import TuneConfig, Tuned, read_config, tune

SCHEMA = 1  # of result.json
NOT_WHOLE = ("partial", "another list", "other captions")  # how a split is named that is not the published one
RESULT, ROW = "result.json", "row.md"
HEAD = ["cell", "printed", "ours", "difference", "seeds", "within", "frames, tokens, selection, data"]


@dataclass(frozen=True)
class Reproduced:
    """`ours` holds way -> measure -> spread over seeds; `within` says whether the first printed figure is met to within
    the tolerance, and is None where that cannot be said: nothing was printed, the config was changed, data are
    partial."""

    cell: str
    source: str
    config: dict[str, Any]
    changes: list[str]
    seeds: list[int]
    printed: Figures
    unverified: list[str]
    tolerance: float
    ours: dict[str, dict[str, Spread]]
    difference: Figures
    within: bool | None
    intervals: dict[str, dict[str, Interval]]
    steps: list[int]
    costs: list[dict[str, Any]]
    result: Result

    def to_dict(self) -> dict[str, Any]:
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "result"}
        plain = json.loads(json.dumps(facts, default=asdict))
        return {"schema": SCHEMA, "kind": "reproduction", **plain, "stamp": self.result.stamp.to_dict()}


def config_of(entry: Entry, root: Path | None, changes: Sequence[str]) -> TuneConfig:
    """The config of a cell on the data in the folder `root`, with values changed.

    Raises ClipreelError for cells of other verbs, with the command that runs them, and for changes that do not fit.
    """
    if entry.config is None:
        raise ClipreelError(
            f"{entry.name} is a stage that other runs start from: clipreel {entry.verb} {entry.file} "
            "(and clipreel evaluate what comes out)"
        )
    config = entry.config
    if entry.dataset != SHAPES:
        place = root if root is not None else Path(os.environ.get(HOME, "data")) / entry.dataset
        config = replace(config, data=replace(config.data, root=str(place)))
        if config.start is not None and (place / config.start).exists():
            config = replace(config, start=str(place / config.start))
    for change in changes:
        config = override(config, change)
    return config


def lacking(entry: Entry, config: TuneConfig) -> list[str]:
    """What a cell needs and is not there, a line each: its data (what, how big, who offers it), and what it starts
    from."""
    found: list[str] = []
    place = config.data.root
    if place is not None and not Path(place).is_dir():
        found.append(f"the data set {config.data.path}, in the folder {place} (name another with --data)")
        found += whereabouts(config.data.path).splitlines()
    elif place is not None:
        try:
            read_pairs(config.data, Path())
        except ClipreelError as e:
            found.append(str(e))
    if config.start is not None and not Path(config.start).exists():
        where = f"see {entry.source}; put it into {place}"
        found.append(f"{config.start}, the released checkpoint that it starts from: {where}")
    return found


def stated(config: TuneConfig, out: Path) -> TuneConfig:
    """The config with every option of its method, as it is written to `out`/config.yaml."""
    path = out / "config.yaml"

    def put() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ClipreelError(f"{out} cannot be made ({e.strerror}); give another --out") from e
        write(path, to_yaml(config).encode())

    on_first(put)
    return read_config(path)


def reproduce(
    entry: Entry,
    config: TuneConfig,
    seeds: Sequence[int],
    out: Path,
    base: Retriever,
    *,
    changes: Sequence[str] = (),
    made: Callable[[Tuned, Path], object] = lambda tuned, folder: None,
    progress: Callable[[int, int, str], None] = lambda done, total, extra: None,
    say: Callable[[str], None] = lambda text: None,
) -> Reproduced:
    """Train what is not done, read all, and write `out`/result.json and `out`/row.md. `made` sees each fresh run."""
    folders = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        wanted = replace(config, train=replace(config.train, seed=seed))
        folders.append(folder)
        if on_first(partial(is_done, folder, as_dict(wanted))):
            say(f"{folder}: done before")
            continue
        say(f"{folder}: seed {seed}")
        made(tune(wanted, folder, scratch=out, base=base, progress=progress, say=say), folder)
    found = collected(entry, config, list(seeds), folders, list(changes))

    def put() -> None:
        write(out / RESULT, (json.dumps(found.to_dict(), indent=1) + "\n").encode())
        write(out / ROW, (markdown_row(found.to_dict()) + "\n").encode())

    on_first(put)
    return found


def collected(
    entry: Entry, config: TuneConfig, seeds: list[int], folders: Sequence[Path], changes: list[str]
) -> Reproduced:
    """What the runs of all seeds say together. Raises ClipreelError where they were not made in the same way."""
    reports = [read_report(folder) for folder in folders]
    kept = all((folder / "features" / ABOUT).is_file() for folder in folders)
    features = [load_features(folder / "features") for folder in folders] if kept else []
    after = [Result.from_dict(r["compared"]["after"]) for r in reports]
    for other in after[1:]:
        after[0].stamp.require_equal(other.stamp)
    rows: dict[str, list[dict[str, Any]]] = {"t2v": [r.t2v for r in after], "v2t": [r.v2t for r in after]}
    plain = [f.result() for f in features]
    if "dual_softmax" in entry.printed and features:
        rows["dual_softmax"] = [f.result(dual_softmax="product").t2v for f in features]
    measures = ("R@1", "R@5", "R@10", "MdR", "MnR")
    ours = {way: {m: Spread.of([row[m] for row in many]) for m in measures} for way, many in rows.items()}
    difference = {
        way: {m: ours[way][m].mean - value for m, value in row.items() if m in ours[way]}
        for way, row in entry.printed.items()
        if way in ours
    }
    first = entry.headline
    comparable = first is not None and not changes and not after[0].stamp.split.startswith(NOT_WHOLE)
    way, measure = first[0].split(" ", 1) if first else ("", "")
    within = abs(difference[way][measure]) <= entry.tolerance if comparable else None
    stamp = after[0].stamp.having(seeds=tuple(seeds))
    return Reproduced(
        entry.name,
        entry.source,
        as_dict(config),
        changes,
        seeds,
        entry.printed,
        list(entry.unverified),
        entry.tolerance,
        ours,
        difference,
        within,
        pooled(plain) if plain else {},
        [r["costs"]["step"] for r in reports],
        [r["costs"] for r in reports],
        replace(after[0], stamp=stamp),
    )


def told(found: Reproduced) -> list[list[str]]:
    """Lines of a table: measure, printed, ours, difference, interval."""
    lines = [["", "printed", "ours", "difference", "95 % of resampled videos"]]
    for way in (w for w in WAYS if w in found.ours):
        for measure, spread in found.ours[way].items():
            printed = found.printed.get(way, {}).get(measure)
            gap = found.difference.get(way, {}).get(measure)
            interval = found.intervals.get(way, {}).get(measure)
            lines.append(
                [
                    f"{way} {measure}",
                    "-" if printed is None else f"{printed:.1f}{'?' if way in found.unverified else ''}",
                    str(spread),
                    "-" if gap is None else f"{gap:+.1f}",
                    "-" if interval is None else f"{interval.low:.1f} to {interval.high:.1f}",
                ]
            )
    return lines


def verdict(found: Reproduced) -> str:
    """Whether the printed figure was met, in a sentence."""
    if found.changes:
        return f"not the frozen config ({', '.join(found.changes)} changed), so nothing follows for the printed figure"
    if not found.printed:
        return "nothing was printed for this cell"
    if found.within is None:
        return f"the data are not the whole set ({found.result.stamp.split}), so nothing follows for the printed figure"
    way, row = next(iter(found.printed.items()))
    measure = next(iter(row))
    gap = found.difference[way][measure]
    said = f"{way} {measure} differs by {gap:+.1f} points from the printed {row[measure]:.1f}"
    return f"{'reproduced' if found.within else 'not reproduced'}: {said} (tolerance {found.tolerance:g})"


def how(found: Reproduced) -> str:
    return protocol(found.result)


def markdown_row(data: dict[str, Any]) -> str:
    """A row of docs/results.md from the data of result.json; its columns are HEAD."""
    printed = next(iter(data["printed"].items()), None)
    way = printed[0] if printed else "t2v"
    measure = next(iter(printed[1])) if printed else "R@1"
    ours = Spread(**data["ours"][way][measure])
    stamp = data["stamp"]
    gap = data["difference"].get(way, {}).get(measure)
    within = {True: "yes", False: "no", None: "changed config" if data["changes"] else "-"}[data["within"]]
    cells = [
        f"{data['cell']} ({way} {measure})",
        f"{printed[1][measure]:.1f}" if printed else "-",
        str(ours),
        "-" if gap is None else f"{gap:+.1f}",
        ", ".join(map(str, data["seeds"])),
        within,
        f"{stamp['frames']}, {stamp['tokens']}, {stamp['selection']}, {stamp['split']} ({stamp['split_hash']})",
    ]
    return f"| {' | '.join(cells)} |"
