"""clipreel compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def compare(
    *configs: Path,
    seeds: int = 3,
    out: Path = Path("compared"),
    jobs: int = 1,
    device: str = "auto",
    download: Flag = False,
    json: Flag = False,
) -> int:
    """Train every config with several seeds and print one table: size, recalls (mean, lowest to highest), time, memory.

    Each run is a process of its own, so that its memory is its own; runs that are done are not repeated. The table and
    the protocol go to OUT/table.json and OUT/table.md. Configs that could not be compared are refused before training.
    Try `clipreel compare configs/shapes/vop.yaml --seeds 1`

    Args:
        configs: YAML files as for `clipreel tune --config`.
        seeds: Runs of each config, with the seeds 0, 1, 2 and so on.
        out: Folder of the runs, the decoded frames and the table.
        jobs: Runs at a time, which share the cores.
        device: Where to train: auto takes the GPU where there is one.
        download: Allow the base to be fetched from the hub.
        json: Print the table as JSON.
    """
    import json as js

    from clipreel.cli.output import skipped
    from clipreel.training.comparing import markdown, study

    found = study(configs, seeds, out, jobs=jobs, device=device, download=download)
    if json:
        print(js.dumps(found.to_dict()))
    else:
        print(markdown(found))
    skipped(found.failed)
    return 1 if found.failed else 0
