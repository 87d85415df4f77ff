"""clipreel train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipreel.cli.output import skipped, spoken

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def train(
    config: Path,
    /,
    *changes: str,
    out: Path | None = None,
    download: Flag = False,
    json: Flag = False,
) -> int:
    """Train a stage of ALPRO: prompter, pretrain, retrieval or qa.

    Killed at any point, the same command goes on where it was; several processes: torchrun -m clipreel train ...
    Try `clipreel train configs/alpro/msvd-qa.yaml train_data=train.jsonl train.steps=100 --out my-alpro`

    Args:
        config: YAML file of the stage, such as those in configs/alpro.
        changes: Values of the config, such as train.steps=500 or model=my-pretrained/model.
        out: Folder of the run. (Default: trained/STAGE.)
        download: Allow the weights it starts from to be fetched from the hub.
        json: Print the outcome as JSON.
    """
    import json as js

    from clipreel.training.alpro_stages import run_stage
    from clipreel.training.config import override
    from clipreel.training.distributed import joined
    from clipreel.training.stage_cells import stage_cell

    found = stage_cell(config).config
    for change in changes:
        found = override(found, change)
    folder = out or Path("trained") / found.stage
    with joined(timeout_s=3600) as here:  # the others wait while the first decodes the videos
        progress, say = spoken(here.first, "step")
        made = run_stage(found, folder, download=download, progress=progress, say=say)
    if not here.first:
        return 0
    outcome = made.outcome
    if json:
        facts = {"model": str(made.folder), "step": outcome.selected.step, "seconds": outcome.seconds}
        print(js.dumps({**facts, "metrics": outcome.selected.metrics, "skipped": made.skipped}))
    else:
        figures = ", ".join(f"{k} {v:.1f}" for k, v in outcome.selected.metrics.items()) or "not measured"
        weights = (
            outcome.selected.selection if outcome.selected.metrics else "of the last step, without validation_data"
        )
        print(f"{made.folder}: step {outcome.selected.step}, {figures} (weights: {weights})")
    skipped(made.skipped)
    return 1 if made.skipped else 0
