"""A frozen config run with one or several seeds, and what came out beside what was printed.

Seeds that are done are kept, and one that was killed goes on. What comes out is result.json: the printed figures, ours,
the difference, the intervals over resampled videos, and the stamp of how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from clipreel.adapter import load, write
from clipreel.block import TowerConfig
from clipreel.clip import ClipConfig
from clipreel.errors import ClipreelError
from clipreel.evaluation.bootstrap import Interval
from clipreel.evaluation.features import ABOUT, load_features
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.protocol import Stamp
from clipreel.retriever import BUILT_IN, Retriever
from clipreel.training.alpro_stages import StageConfig
from clipreel.training.catalogue import Config
from clipreel.training.cells import Figures
from clipreel.training.chains import RESULT, Link
from clipreel.training.config import as_dict, to_yaml
from clipreel.training.distributed import on_first
from clipreel.training.finished import Spread, is_done, pooled, read_report
from clipreel.training.settings import TuneConfig, read_config
from clipreel.training.stage_runs import Judged, finished, run_judged
from clipreel.training.tuning import Tuned, tune

SCHEMA = 1  # of result.json
NOT_WHOLE = ("partial", "another list", "other captions")  # how a split is named that is not the published one
ROW = "row.md"
TEXT = TowerConfig(layers=12, width=512, heads=8, mlp=2048)
ARCHITECTURES = {  # core.md 1.1
    f"openai/clip-vit-base-patch{patch}": ClipConfig(
        image_size=224,
        patch=patch,
        vision=TowerConfig(layers=12, width=768, heads=12, mlp=3072),
        text=TEXT,
        context=77,
        vocab=49408,
        embed=512,
        activation="quick_gelu",
    )
    for patch in (32, 16)
}
HEAD = ["cell", "printed", "ours", "difference", "seeds", "within", "frames, tokens, selection, data"]


@dataclass(frozen=True)
class Reproduced:
    """`ours` holds way -> measure -> spread over seeds, `stamps` how each way was made; `within` says whether the first
    printed figure is met to within the tolerance, and is None where that cannot be said: nothing was printed or
    measured, the config was changed, data are partial. `parts` is how the data are named that it was trained and
    selected on, those of the stages before it among them."""

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
    stamps: dict[str, Stamp]
    protocols: dict[str, str]
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def not_whole(self) -> str | None:
        """A part of the data that is not the published one, as it is named."""
        every = [*(stamp.split for stamp in self.stamps.values()), *self.parts.values()]
        return next((label for label in every if label.startswith(NOT_WHOLE)), None)

    @property
    def stamp(self) -> Stamp:
        """That of the way that was printed first."""
        first = next((way for way in self.printed if way in self.stamps), None) or next(iter(self.stamps), None)
        return Stamp() if first is None else self.stamps[first]

    def to_dict(self) -> dict[str, Any]:
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "protocols"}
        plain = json.loads(json.dumps(facts, default=asdict))
        return {"schema": SCHEMA, "kind": "reproduction", **plain, "stamp": self.stamp.to_dict()}


def stated(config: Config, out: Path) -> Config:
    """The config with every option of its method, as it is written to `out`/config.yaml."""
    path = out / "config.yaml"

    def put() -> None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ClipreelError(f"{out} cannot be made ({e.strerror}); give another --out") from e
        write(path, to_yaml(config).encode())

    on_first(put)
    return read_config(path) if isinstance(config, TuneConfig) else config


def on_base(link: Link, source: str, base: Retriever) -> Link:
    """The cell on a base that was given in the place of its own; another architecture is a change of what was
    printed."""
    config = link.config
    if isinstance(config, StageConfig) or same_architecture(config.model, base):
        return link
    changes = tuple(c for c in link.changes if not c.startswith("model="))
    return replace(link, config=replace(config, model=source), changes=(*changes, f"model={source}"))


def same_architecture(name: str, base: Retriever) -> bool:
    """Whether a base is built as the one that a config names; that its weights are the same cannot be seen."""
    expected = load(name).network.config if name in BUILT_IN else ARCHITECTURES.get(name)
    found = base.network.config
    if not isinstance(expected, ClipConfig) or not isinstance(found, ClipConfig):
        return False
    return replace(found, eos_id=None) == replace(expected, eos_id=None)


def reproduce(
    link: Link,
    seeds: Sequence[int],
    base: Retriever | None,
    *,
    data: Path | None = None,
    cache: Path | None = None,
    device: str = "auto",
    download: bool = False,
    earlier: Mapping[str, str] | None = None,
    made: Callable[[Tuned, Path], object] = lambda tuned, folder: None,
    progress: Callable[[int, int, str], None] = lambda done, total, extra: None,
    decoding: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Reproduced:
    """Train what is not done, read all, and write result.json and row.md into the folder of the cell.

    `cache` holds decoded frames, which cells may share (default: the folder of the cell; of ALPRO that of each run).
    `earlier` are the parts of the data of the stages before it; `made` sees each fresh run of `tune`. Raises
    ClipreelError for what does not fit.
    """
    out = link.folder
    config = stated(link.config, out)
    runs = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        wanted = replace(config, train=replace(config.train, seed=seed))
        if on_first(partial(is_there, folder, wanted)):
            say(f"{folder}: done before")
        else:
            say(f"{folder}: {link.entry.name}, seed {seed}")
            if isinstance(wanted, TuneConfig):
                how: dict[str, Any] = {"scratch": cache or out, "device": device, "decoding": decoding}
                made(tune(wanted, folder, base=base, progress=progress, say=say, **how), folder)
            else:
                how = {"data": data, "cache": cache, "device": device, "download": download}
                run_judged(wanted, folder, base=base, progress=progress, say=say, **how)
        runs.append(judged_tune(folder) if isinstance(wanted, TuneConfig) else read_judged(folder, wanted))
    found = collected(link, config, list(seeds), runs, earlier or {})

    def put() -> None:
        write(out / RESULT, (json.dumps(found.to_dict(), indent=1) + "\n").encode())
        write(out / ROW, (markdown_row(found.to_dict()) + "\n").encode())

    on_first(put)
    return found


def is_there(folder: Path, config: Config) -> bool:
    """Whether a run of this very config is done."""
    return is_done(folder, config) if isinstance(config, TuneConfig) else finished(folder, config) is not None


def parts_of_done(link: Link) -> dict[str, str]:
    """How the data are named that a stage was made of. Raises ClipreelError where it was made with other changes than
    those that are given."""
    path = link.folder / RESULT
    try:
        found = json.loads(path.read_text("utf-8"))
        made = found["changes"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ClipreelError(f"{path} is no result of clipreel reproduce ({e}); remove it and run again") from e
    if set(made) != set(link.changes):
        was = ", ".join(made) or "no changes"
        wanted = ", ".join(link.changes) or "none"
        raise ClipreelError(
            f"{link.folder} was made with {was}, and {wanted} is asked for; give the same, or another --out, "
            "beside which it is made anew"
        )
    return found.get("parts", {})


def read_judged(folder: Path, config: Config) -> Judged:
    """What a finished stage reached, with its vectors where they were kept."""
    found = finished(folder, config)
    if found is None:
        raise ClipreelError(f"{folder} was not finished; start the same command again")
    if (folder / "features" / ABOUT).is_file():
        found.features = load_features(folder / "features")
    return found


def judged_tune(folder: Path) -> Judged:
    """What a finished run of `tune` reached; after dual softmax where its vectors were kept."""
    report = read_report(folder)
    found = Judged(costs=report["costs"], parts=report.get("parts", {}))
    if unread := report.get("unread", 0):
        found.parts["unread"] = f"partial: {unread} videos to train on could not be read"
    found.both(Result.from_dict(report["compared"]["after"]))
    if (folder / "features" / ABOUT).is_file():
        found.features = load_features(folder / "features")
        found.add("dual_softmax", found.features.result(dual_softmax="product"))
    return found


def collected(
    link: Link, config: Config, seeds: list[int], runs: Sequence[Judged], earlier: Mapping[str, str]
) -> Reproduced:
    """What the runs of all seeds say together. Raises ClipreelError where they were not made in the same way."""
    entry, first = link.entry, runs[0]
    for other in runs[1:]:
        for way, stamp in first.stamps.items():
            stamp.require_equal(other.stamps[way])
    ours = {
        way: {m: Spread.of([run.ours[way][m] for run in runs]) for m in row}
        for way, row in first.ours.items()
        if way != "dual_softmax" or way in entry.printed or entry.verb != "tune"
    }
    difference = {
        way: {m: ours[way][m].mean - value for m, value in row.items() if m in ours[way]}
        for way, row in entry.printed.items()
        if way in ours
    }
    stamps = {way: first.stamps[way].having(seeds=tuple(seeds)) for way in ours}
    gap = gap_of(entry.headline, difference)
    parts = {**earlier, **{f"{link.stage} {name}": label for run in runs for name, label in run.parts.items()}}
    features = [run.features for run in runs if run.features is not None]
    said = f"; seeds {', '.join(map(str, seeds))}"
    found = Reproduced(
        entry.name,
        entry.source,
        as_dict(config),
        list(link.changes),
        seeds,
        entry.printed,
        list(entry.unverified),
        entry.tolerance,
        ours,
        difference,
        None,
        pooled([f.result() for f in features]) if len(features) == len(runs) else {},
        [run.costs["step"] for run in runs],
        [run.costs for run in runs],
        stamps,
        {way: first.protocols[way] + said for way in ours},
        parts,
    )
    if gap is None or found.not_whole is not None or link.changes:
        return found
    return replace(found, within=abs(gap) <= entry.tolerance)


def gap_of(headline: tuple[str, float] | None, difference: Figures) -> float | None:
    """How far the first printed figure is missed; None where nothing was printed or measured."""
    way, _, measure = headline[0].partition(" ") if headline else ("", "", "")
    return difference.get(way, {}).get(measure)


def told(found: Reproduced) -> list[list[str]]:
    """Lines of a table: measure, printed, ours, difference, interval."""
    lines = [["", "printed", "ours", "difference", "95 % of resampled videos"]]
    for way, row in found.ours.items():
        for measure, spread in row.items():
            printed = found.printed.get(way, {}).get(measure)
            gap = found.difference.get(way, {}).get(measure)
            interval = found.intervals.get(way, {}).get(measure)
            lines.append(
                [
                    label(way, measure),
                    "-" if printed is None else f"{printed:.1f}{'?' if way in found.unverified else ''}",
                    str(spread),
                    "-" if gap is None else f"{gap:+.1f}",
                    "-" if interval is None else f"{interval.low:.1f} to {interval.high:.1f}",
                ]
            )
    return lines


def label(way: str, measure: str) -> str:
    """The figure as a table names it; the stage of a measure that says itself what it is is left out."""
    return f"{way} {measure}" if measure[:2] in ("R@", "Md", "Mn") else measure


def verdict(found: Reproduced) -> str:
    """Whether the printed figure was met, in a sentence."""
    if found.changes:
        return f"not the frozen config ({', '.join(found.changes)} changed), so nothing follows for the printed figure"
    if not found.printed:
        return "nothing was printed for this cell"
    way, row = next(iter(found.printed.items()))
    measure = next(iter(row))
    gap = found.difference.get(way, {}).get(measure)
    if gap is None:
        return f"{label(way, measure)} was not measured, so nothing follows for the printed {row[measure]:.1f}"
    if found.within is None:
        return f"the data are not the whole set ({found.not_whole}), so nothing follows for the printed figure"
    said = f"{label(way, measure)} differs by {gap:+.1f} points from the printed {row[measure]:.1f}"
    return f"{'reproduced' if found.within else 'not reproduced'}: {said} (tolerance {found.tolerance:g})"


def how(found: Reproduced) -> str:
    """The protocol of every way that has its own, a paragraph each."""
    ways: dict[str, list[str]] = {}
    for way, said in found.protocols.items():
        ways.setdefault(said, []).append(way)
    if len(ways) < 2:
        return next(iter(ways), "nothing was measured")
    return "\n".join(f"{', '.join(names)}: {said}" for said, names in ways.items())


def markdown_row(data: dict[str, Any]) -> str:
    """A row of docs/results.md from the data of result.json; its columns are HEAD."""
    printed = next(iter(data["printed"].items()), None)
    way = printed[0] if printed else next(iter(data["ours"]), "t2v")
    measure = next(iter(printed[1] if printed else data["ours"].get(way, {"R@1": 0})))
    ours = data["ours"].get(way, {}).get(measure)
    stamp = data["stamp"]
    gap = data["difference"].get(way, {}).get(measure)
    within = {True: "yes", False: "no", None: "changed config" if data["changes"] else "-"}[data["within"]]
    cells = [
        f"{data['cell']} ({label(way, measure)})",
        f"{printed[1][measure]:.1f}" if printed else "-",
        "-" if ours is None else str(Spread(**ours)),
        "-" if gap is None else f"{gap:+.1f}",
        ", ".join(map(str, data["seeds"])),
        within,
        f"{stamp['frames']}, {stamp['tokens']}, {stamp['selection']}, {stamp['split']} ({stamp['split_hash']})",
    ]
    return f"| {' | '.join(cells)} |"
