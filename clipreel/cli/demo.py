"""clipreel demo: the whole tool in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def demo(
    *,
    videos: Path | None = None,
    model: str | None = None,
    out: Path = Path("demo-output"),
    download: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    device: str = "auto",
) -> int:
    """Render, evaluate, tune, index and search a small world of videos, and write a report to look at.

    Try `clipreel demo`, or on your own files: `clipreel demo --videos ~/Videos --model FOLDER`

    Args:
        videos: Your own folder instead of the shapes world.
        model: The model (default shapes-tiny, with --videos openai/clip-vit-base-patch32). Without --videos it is
            tuned, which takes a minute with shapes-tiny and half an hour with ViT-B/32 on two cores.
        out: Where videos, index and report go.
        download: Allow the model to be fetched from the hub.
        device: Where the model runs: auto takes the GPU where there is one.
    """
    from clipreel.cli.demo_run import own_videos, shapes

    if videos is not None:
        return own_videos(videos, model, out, download, device)
    return shapes(model or "shapes-tiny", out, device)
