"""clipreel reproduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from clipreel.cli.output import Progress
    from clipreel.training.catalogue import Entry
    from clipreel.training.chains import Link
    from clipreel.training.reproducing import Reproduced

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def reproduce(
    cell: str | None = None,
    *changes: str,
    list: Flag = False,
    data: Path | None = None,
    model: str | None = None,
    seeds: int = 1,
    out: Path | None = None,
    cache: Path | None = None,
    download: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> int:
    """Run the frozen config of a published figure, and print that figure, ours, the difference, and how it was made.

    Killed at any point, the same command goes on where it was; seeds that are done are kept. OUT/result.json holds
    everything, OUT/row.md the row for docs/results.md. A cell that starts from another stage runs that first, where it
    is not here: beside OUT, under its own name, once for all cells that need it.
    On several GPUs: torchrun --nproc-per-node N -m clipreel reproduce ...
    Try `clipreel reproduce vop_fc/shapes-tiny`

    Args:
        cell: METHOD/DATASET-BACKBONE or SYSTEM/METHOD/DATASET-BACKBONE, such as vop_fc/msrvtt9k-b32; with --list, words
            that the names must contain.
        changes: Values of the config, such as train.steps=10, or of a stage before it, such as pretrain.train.steps=10;
            what comes out is then marked as changed.
        list: Name all cells with data set, backbone, printed figure and tolerance.
        data: Folder of the data set, or one that holds a folder for each set. (Default: $CLIPREEL_DATA, else data/.)
        model: Folder of the base, where it was copied by hand (default: the cache of the hub). One that is built in
            another way is a change.
        seeds: How many runs, from the frozen seed on.
        out: Folder of the runs. (Default: reproduced/CELL.)
        cache: Folder of decoded frames, of `clipreel prepare` or made here, which cells of one data set may share:
            cells of tune with as many frames, and of post-pretraining. (Default: OUT.)
        download: Allow the base to be fetched from the hub.
        device: Where to train: auto takes the GPU where there is one.
        json: Print the result as JSON.
    """
    import json as js
    import sys

    from clipreel.cli.output import shown, spoken
    from clipreel.errors import ClipreelError
    from clipreel.evaluation.report import aligned
    from clipreel.training.catalogue import catalogue, chosen
    from clipreel.training.chains import chain, lacking
    from clipreel.training.distributed import joined
    from clipreel.training.reproducing import how, told, verdict

    known = catalogue()
    if list:
        words = [w for w in (cell, *changes) if w]
        found = [e for e in known.values() if all(w in e.name for w in words)]
        print(js.dumps([facts(e) for e in found]) if json else listing(found))
        return 0 if found else 2
    if cell is None:
        raise ClipreelError("name a cell, such as vop_fc/msrvtt9k-b32; all of them: clipreel reproduce --list")
    if seeds < 1:
        raise ClipreelError(f"{seeds} seeds: run at least 1")
    entry = chosen(cell, known)
    folder = out or Path("reproduced") / entry.name.replace("/", "-")
    with joined(timeout_s=3600) as here:
        links = chain(entry, known, data, changes, folder)
        absent = lacking(links, base=model is None and not download)
        if absent:
            if here.first:
                print(f"clipreel: {entry.name} cannot be run, this is missing:", file=sys.stderr)
                print(*(f"  {row}" for row in absent), sep="\n", file=sys.stderr)
            return 2
        made = run(links, seeds, data, model, cache, download, device, *spoken(here.first, "step"))
    if not here.first:
        return 0
    if json:
        print(js.dumps(made.to_dict()))
    else:
        if made.ours:
            print(aligned(told(made)))
        print(f"{entry.name}: {verdict(made)}")
        print(how(made))
        print(f"result {shown(str(folder / 'result.json'))}")
    return 0


def run(
    links: Sequence[Link],
    seeds: int,
    data: Path | None,
    model: str | None,
    cache: Path | None,
    download: bool,
    device: str,
    progress: Progress,
    say: Callable[[str], None],
) -> Reproduced:
    """The stages that are not done, each with its own seed, then the cell with all seeds."""
    from functools import partial

    from clipreel.cli.output import Progress
    from clipreel.cli.search import load_model
    from clipreel.cli.tune_page import page
    from clipreel.training.alpro_stages import StageConfig
    from clipreel.training.distributed import on_first, world
    from clipreel.training.reproducing import on_base, parts_of_done, reproduce

    given = None
    if model is not None and not all(isinstance(link.config, StageConfig) for link in links):
        given = load_model(model, download, device)
        links = [on_base(link, model, given) for link in links]
    earlier: dict[str, str] = {}
    for link in links:
        last = link is links[-1]
        if not last and on_first(partial(getattr, link, "done")):
            earlier |= parts_of_done(link)
            say(f"{link.folder}: {link.entry.name} is done")
            continue
        config, first = link.config, link.config.train.seed
        base = None if isinstance(config, StageConfig) else given or load_model(config.model, download, device)
        found = reproduce(
            link,
            range(first, first + (seeds if last else 1)),
            base,
            data=data,
            cache=cache,
            device=device,
            download=download,
            earlier=earlier,
            made=lambda tuned, place: page(tuned, place) if world().first else None,
            progress=progress,
            decoding=Progress("decoding", world().first),
            say=say,
        )
        earlier = found.parts
    return found


def listing(found: Sequence[Entry]) -> str:
    """The table of --list."""
    from clipreel.evaluation.report import aligned

    widest = max((len(e.source) for e in found), default=0)
    head = ["cell", "data set", "backbone", "printed", "tolerance", "  source".ljust(widest + 2)]
    rows = [[*line(e), f"  {e.source.ljust(widest)}"] for e in found]
    return "\n".join(row.rstrip() for row in aligned([head, *rows]).split("\n"))


def line(e: Entry) -> list[str]:
    """A row of --list without its source."""
    from clipreel.training.reproducing import label

    if e.headline is None:
        printed, tolerance = "-", "-"
    else:
        (name, value), tolerance = e.headline, f"{e.tolerance:g}"
        way, _, measure = name.partition(" ")
        printed = f"{label(way, measure)} {value:.1f}{'?' if way in e.unverified else ''}"
    return [e.name, e.dataset, e.backbone, printed, tolerance]


def facts(e: Entry) -> dict[str, object]:
    """The same for --json."""
    return {
        "cell": e.name,
        "verb": e.verb,
        "config": str(e.file),
        "data_set": e.dataset,
        "backbone": e.backbone,
        "printed": e.printed,
        "unverified": e.unverified,
        "tolerance": e.tolerance,
        "source": e.source,
    }
