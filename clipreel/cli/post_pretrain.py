"""clipreel post-pretrain."""

from __future__ import annotations

from pathlib import Path

from clipreel.cli.output import shown, skipped, spoken
from clipreel.cli.tune import Flag


def post_pretrain(
    config: Path,
    *changes: str,
    on: str | None = None,
    out: Path = Path("post-pretrained"),
    cache: Path | None = None,
    download: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> int:
    """Turn CLIP into a video model on noisy pairs: subtitles, generated captions, several corpora.

    The result is an adapter that `clipreel tune ... start=FOLDER` goes on from. Killed at any point, the same command
    goes on where it was.
    Try `clipreel post-pretrain configs/clip_vip/post_pretrain_b32.yaml train.steps=100 --on shapes-tiny`

    Args:
        config: YAML file of a PostPretrainConfig; names the sources.
        changes: Values of the config, such as train.steps=500 or loss=v-s.
        on: The base: hub id, folder, file or built-in name. (Default: that of the config.)
        out: Folder of the run.
        cache: Folder of decoded frames, which several runs may share. (Default: the folder of the run.)
        download: Allow the base to be fetched from the hub.
        device: Where to train: auto takes the GPU where there is one.
        json: Print what was made as JSON.
    """
    import json as js
    from dataclasses import replace

    from clipreel.cli.search import load_model
    from clipreel.training.config import read
    from clipreel.training.distributed import joined
    from clipreel.training.post_pretraining import PostPretrainConfig
    from clipreel.training.post_pretraining import post_pretrain as run

    found = read(PostPretrainConfig, config, changes)
    found = replace(found, model=on or found.model)

    with joined(timeout_s=3600) as here:  # the others wait while the first decodes the videos
        base = load_model(found.model, download, device)
        progress, say = spoken(here.first, "step")
        made = run(found, out, scratch=cache, base=base, progress=progress, say=say)
    if not here.first:
        return 0
    if json:
        print(js.dumps({"adapter": str(made.adapter), "step": made.outcome.last.step, **made.outcome.last.metrics}))
    else:
        for name, value in made.outcome.last.metrics.items():
            print(f"{name:9}{value:6.1f}")
        print(f"adapter {shown(str(made.adapter))} after {made.outcome.last.step} steps")
        print(f"go on: clipreel tune PAIRS start={shown(str(made.adapter))} --method {found.method} --on {found.model}")
    skipped(made.skipped)
    return 1 if made.skipped else 0
