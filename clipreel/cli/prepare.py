"""clipreel prepare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from clipreel.cli.output import DEFAULT_MODEL, Progress, shown, skipped

if TYPE_CHECKING:
    from clipreel.data.cache import Forecast

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def prepare(
    data: Path,
    /,
    *,
    cache: Path,
    model: str = DEFAULT_MODEL,
    frames: int | None = None,
    size: int | None = None,
    videos: Path | None = None,
    split: str | None = None,
    workers: int = 2,
    time_limit: float = 120.0,
    renew: Flag = False,
    verify: Flag = False,
    download: Flag = False,
    json: Flag = False,
) -> int:
    """Decode the videos of a data set once, as a model wants them, so that training does not wait for them.

    Stopped at any point, the same command goes on where it was; videos whose file changed are made again.
    Try `clipreel prepare demo-output/shapes/test --model shapes-tiny --cache my-cache`

    Args:
        data: JSON lines, CSV or Parquet with columns video and caption or captions (also start, end, id, split), or
            a folder with annotations.jsonl.
        cache: Folder of the frames.
        model: Hub id, folder, file or built-in name of the model to be trained.
        frames: Frames kept of each video (default: as many as the model sees). Three times as many let the training
            draw frames at random.
        size: Pixels of a side, where the training cuts random parts out of larger frames (default: the model's).
        videos: Folder that the names of videos count from (default: that of the data file).
        split: Only the rows of this split.
        workers: Files decoded at once.
        time_limit: Seconds after which a file is given up.
        renew: Start over, also where the cache was made for another model.
        verify: Hash all that is there, and make damaged parts again.
        download: Allow the model to be fetched from the hub.
        json: Print the report as JSON.
    """
    import json as js
    import sys
    from dataclasses import asdict, replace

    from clipreel.cli.search import load_model
    from clipreel.data.cache import amount
    from clipreel.data.cache import prepare as make
    from clipreel.data.readers import read_samples
    from clipreel.errors import ClipreelError

    if workers < 1:
        raise ClipreelError(f"{workers} workers: give at least 1")
    if not time_limit > 0:
        raise ClipreelError(f"a time limit of {time_limit:g} seconds: give more than 0")
    samples = read_samples(data, videos, split=split, check_files=False)
    retriever = load_model(model, download, "cpu")
    line = Progress("decoding")

    def announce(forecast: Forecast) -> None:
        print(
            f"{forecast.videos} of {len(samples)} videos to decode: {amount(forecast.bytes)} to write, "
            f"{amount(forecast.free)} free at {shown(str(cache))}",
            file=sys.stderr,
        )

    report = make(
        samples,
        cache,
        preprocess=retriever.preprocess if size is None else replace(retriever.preprocess, size=size),
        sampling=retriever.sampling if frames is None else replace(retriever.sampling, frames=frames),
        workers=workers,
        timeout_s=time_limit,
        renew=renew,
        verify=verify,
        forecast=announce,
        progress=line,
    )
    if json:
        print(js.dumps({**asdict(report), "cache": str(cache)}))
    else:
        print(
            f"decoded {report.made} videos ({amount(report.bytes)}, {report.renewed} of them had changed), kept "
            f"{report.kept}; cache at {shown(str(cache))}"
        )
    for path, warning in report.warnings:
        print(f"note: {shown(path)}: {warning}", file=sys.stderr)
    skipped(report.skipped)
    return (1 if report.made or report.kept else 2) if report.skipped else 0
