"""clipreel compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def compare(
    *what: Path,
    seeds: int = 3,
    out: Path = Path("compared"),
    jobs: int = 1,
    format: Literal["terminal", "markdown", "latex", "html"] = "markdown",
    device: str = "auto",
    download: Flag = False,
    json: Flag = False,
) -> int:
    """Train configs with several seeds, or take runs that are done, and print a table: size, recalls, time, memory.

    A recall is the mean over seeds (lowest to highest), with its interval over resampled videos; "val" columns are of
    the videos that chose the weights, by which settings are chosen too. Runs that were made
    differently stand in separate tables, and the difference is named. Runs on the same queries are compared query by
    query: the first of a table with each of the others.
    With configs, each run is a process of its own, so that its memory is its own, and runs that are done are not
    repeated; configs that could not be compared are refused before training.
    Into OUT go table.json, .md, .tex, .html, and plots: recall against parameters, storage and time; training curves.
    Try `clipreel compare configs/shapes/vop.yaml --seeds 1`

    Args:
        what: YAML files as for `clipreel tune --config`; or folders of runs: of tune, of several seeds of it, of
            reproduce, of evaluate --store.
        seeds: Runs of each config, with the seeds 0, 1, 2 and so on.
        out: Folder of the runs, the decoded frames, the tables and the plots.
        jobs: Runs at a time, which share the cores.
        format: How the table is printed.
        device: Where to train: auto takes the GPU where there is one.
        download: Allow the base to be fetched from the hub.
        json: Print the tables as JSON.
    """
    import json as js
    import sys

    from clipreel.cli.output import shown, skipped
    from clipreel.errors import ClipreelError
    from clipreel.training.charts import draw
    from clipreel.training.comparing import as_json, finished, study
    from clipreel.training.rendering import rendered, save

    absent = next((p for p in what if not p.exists()), None)
    if absent is not None:
        raise ClipreelError(f"there is no {absent}; give configs to train, or folders of runs that are done")
    folders = [p for p in what if p.is_dir()]
    if folders and len(folders) < len(what):
        other = next(p for p in what if p not in folders)
        raise ClipreelError(
            f"{folders[0]} is a folder and {other} is none; give configs to train, or runs that are done"
        )
    found = finished(folders) if folders else study(what, seeds, out, jobs=jobs, device=device, download=download)
    drawn = draw(found, out, lambda text: print(text, file=sys.stderr))
    pictures = [p.read_text("utf-8") for p in drawn if p.suffix == ".svg"]
    save(found, js.dumps(as_json(found), indent=1), out, pictures)
    print(js.dumps(as_json(found)) if json else rendered(found, format))
    plots = f" and {len(drawn)} plots" if drawn else ""
    print(f"table.json, table.md, table.tex, table.html{plots} in {shown(str(out))}", file=sys.stderr)
    skipped(found[0].failed)
    return 1 if found[0].failed else 0
