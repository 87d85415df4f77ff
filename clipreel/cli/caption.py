"""clipreel caption."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from clipreel.cli.output import Progress, shown, skipped

if TYPE_CHECKING:
    from clipreel.data.sample import Sample

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def caption(
    data: Path,
    /,
    *,
    out: Path = Path("captions.jsonl"),
    model: str = "Salesforce/blip-image-captioning-base",
    videos: Path | None = None,
    split: str | None = None,
    frames: int = 1,
    words: int = 16,
    prompt: str | None = None,
    beams: int = 1,
    batch: int = 16,
    workers: int = 2,
    licence: str | None = None,
    download: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> int:
    """Caption the middle frame of every video with an image captioner, for post-pretraining (needs clipreel[caption]).

    Each line of OUT names the model, its licence and a hash of its weights. Stopped at any point, the same command goes
    on where it was.
    Try `clipreel caption demo-output/shapes/test --model my-captioner`, made with
    `python -m clipreel.training.shapes_captioner --out my-captioner`

    Args:
        data: Annotations of videos (see clipreel prepare), or a folder of videos.
        out: JSON lines of id and caption, which are appended to.
        model: Folder or hub id of a captioner of transformers: BLIP, GIT, Florence-2 and their kin.
        videos: Folder that the names of videos count from (default: that of the data file).
        split: Only the rows of this split.
        frames: One is the middle frame; of several, evenly spread, each is captioned.
        words: The most that are kept of what is said of a frame.
        prompt: What is put before the caption (default: what the kind of model needs).
        beams: Candidates that are kept while a caption is written.
        batch: Frames that are captioned at once.
        workers: Files decoded at once.
        licence: The licence to be stored, where the card of the model does not say it.
        download: Allow the captioner to be fetched from the hub.
        device: Where it runs: auto takes the GPU where there is one.
        json: Print the report as JSON.
    """
    import json as js
    import sys
    from dataclasses import asdict

    from clipreel.data.captioner import Captioner, caption_videos
    from clipreel.retriever import pick_device

    samples = samples_of(data, videos, split)
    captioner = Captioner(
        model,
        words=words,
        prompt=prompt,
        beams=beams,
        licence=licence,
        download=download,
        device=str(pick_device(device)),
    )
    if captioner.licence == "unknown":
        print(f"note: the card of {model} names no licence; say --licence NAME to store one", file=sys.stderr)
    made = caption_videos(
        samples, captioner, out, frames=frames, batch=batch, workers=workers, progress=Progress("captioning")
    )
    if json:
        print(js.dumps({**asdict(made), "out": str(out), "model": captioner.name, "licence": captioner.licence}))
    else:
        print(f"{made.made} captions made, {made.kept} kept; {shown(str(out))} ({model}, {captioner.licence})")
    skipped(made.skipped)
    return (1 if made.made or made.kept else 2) if made.skipped else 0


def samples_of(data: Path, videos: Path | None, split: str | None) -> list[Sample]:
    """The rows of annotations, or the videos of a folder without any, named by their path without the ending."""
    from clipreel.data.readers import IN_A_FOLDER, read_samples
    from clipreel.data.sample import Sample
    from clipreel.errors import ClipreelError
    from clipreel.search.library import walk

    if not data.is_dir() or any((data / name).is_file() for name in IN_A_FOLDER):
        return read_samples(data, videos, split=split, check_files=False)
    unreadable: list[tuple[str, str]] = []
    found = [Path(f.path) for f in walk(data, unreadable)]
    skipped(unreadable)
    if not found:
        raise ClipreelError(f"{data} holds neither annotations nor videos; name a file or another folder")
    return [Sample(str(p.relative_to(data.absolute()).with_suffix("")), p, ()) for p in found]
