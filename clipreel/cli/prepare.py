"""clipreel prepare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from clipreel.cli.output import DEFAULT_MODEL, Progress, shown, skipped
from clipreel.errors import ClipreelError

if TYPE_CHECKING:
    from clipreel.data.cache import Forecast, Prepared
    from clipreel.data.sets import Part
    from clipreel.data.shrink import Shrunk

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def prepare(
    data: str,
    /,
    *,
    cache: Path | None = None,
    form: str | None = None,
    root: Path | None = None,
    captions: Literal["single", "all", "paragraph"] | None = None,
    quarantine: Path | None = None,
    shrink: int | None = None,
    into: Path | None = None,
    drop_originals: Flag = False,
    model: str = DEFAULT_MODEL,
    frames: int | None = None,
    sampling: Literal["uniform", "middles", "mv_adapter", "clip4clip", "clip_vip", "alpro"] | None = None,
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
    With --shrink no frames are kept: smaller copies of the videos are made, and checked before an original is removed.
    Try `clipreel prepare demo-output/shapes/test --model shapes-tiny --cache my-cache`

    Args:
        data: A published data set by name (see docs/data.md), or JSON lines, CSV or Parquet with columns video and
            caption or captions (also start, end, id, split), or a folder with annotations.jsonl.
        cache: Folder of the frames, for `clipreel tune --cache`; one that tune has made is added to.
        form: The form in which the annotations of a published set are here, such as clip4clip.
        root: Folder of those annotations (default: its folder in $CLIPREEL_DATA, else in data/).
        captions: Captions of a video taken as this, in place of how the set was published.
        quarantine: List of files to leave out (default: quarantine.jsonl beside the annotations).
        shrink: Pixels of the shorter side of smaller copies; nothing is enlarged.
        into: Folder of the copies, with an annotations.jsonl of them.
        drop_originals: Remove each original after its copy was decoded and compared with it.
        model: Hub id, folder, file or built-in name of the model to be trained.
        frames: Frames kept of each video (default: as many as the model sees). Three times as many let the training
            draw frames at random.
        sampling: Which frames are kept: at equal times (uniform), or by their number, as a paper's code does (default:
            as the model does).
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
    import sys
    from dataclasses import replace

    from clipreel.cli.search import load_model
    from clipreel.data.cache import amount, home
    from clipreel.data.cache import prepare as make
    from clipreel.data.sources import Source, notes

    if workers < 1:
        raise ClipreelError(f"{workers} workers: give at least 1")
    if not time_limit > 0:
        raise ClipreelError(f"a time limit of {time_limit:g} seconds: give more than 0")
    parts = Source(data, form, root, videos, captions, quarantine).parts(split)
    for note in notes(parts):
        print(f"note: {note}", file=sys.stderr)
    if (into, drop_originals) != (None, False) and shrink is None:
        raise ClipreelError("--into and --drop-originals go with --shrink PIXELS")
    if shrink is not None:
        return shrunk(parts, shrink, into, drop_originals, workers, json)
    if cache is None:
        raise ClipreelError("name a folder for the frames: --cache DIR (or smaller copies: --shrink 224 --into DIR)")
    retriever = load_model(model, download, "cpu")
    samples = [s for part in parts.values() for s in part.samples]
    pixels = retriever.preprocess if size is None else replace(retriever.preprocess, size=size)
    own = retriever.sampling
    chosen = replace(own, kind=sampling or own.kind, frames=own.frames if frames is None else frames)
    place = home(cache, pixels, chosen)
    report = make(
        samples,
        place,
        preprocess=pixels,
        sampling=chosen,
        workers=workers,
        timeout_s=time_limit,
        renew=renew,
        verify=verify,
        forecast=lambda forecast: announce(forecast, len(samples), place),
        progress=Progress("decoding"),
    )
    said = (
        f"decoded {report.made} videos ({amount(report.bytes)}, {report.renewed} of them had changed), kept "
        f"{report.kept}; cache at {shown(str(place))}"
    )
    return ended(report, {"cache": str(place)}, said, json)


def announce(forecast: Forecast, videos: int, cache: Path) -> None:
    """Says what is about to be written, on standard error."""
    import sys

    from clipreel.data.cache import amount

    print(
        f"{forecast.videos} of {videos} videos to decode: {amount(forecast.bytes)} to write, "
        f"{amount(forecast.free)} free at {shown(str(cache))}",
        file=sys.stderr,
    )


def shrunk(parts: dict[str, Part], side: int, into: Path | None, drop: bool, workers: int, json: bool) -> int:
    """Makes the smaller copies and says what came of it; returns the exit code."""
    import sys

    from clipreel.data.cache import amount
    from clipreel.data.shrink import shrink

    if into is None:
        raise ClipreelError(f"name a folder for the smaller videos: --shrink {side} --into DIR")

    def announced(forecast: Forecast, originals: int) -> None:
        print(
            f"{forecast.videos} videos to copy ({amount(originals)}): about {amount(forecast.bytes)} to write, "
            f"{amount(forecast.free)} free at {shown(str(into))}",
            file=sys.stderr,
        )

    how: dict[str, Any] = {"workers": workers, "forecast": announced, "progress": Progress("shrinking")}
    report = shrink(parts, into, side, drop_originals=drop, **how)
    said = (
        f"made {report.made} smaller videos, kept {report.kept}: {amount(report.before)} became "
        f"{amount(report.after)}; removed {report.dropped} originals; read them with {shown(str(into))}"
    )
    return ended(report, {"into": str(into)}, said, json)


def ended(report: Prepared | Shrunk, place: dict[str, str], said: str, json: bool) -> int:
    """Prints what was made, as JSON or as `said`, and what was skipped; returns the exit code."""
    import json as js
    import sys
    from dataclasses import asdict

    print(js.dumps({**asdict(report), **place}) if json else said)
    for path, warning in getattr(report, "warnings", ()):
        print(f"note: {shown(path)}: {warning}", file=sys.stderr)
    skipped(report.skipped)
    return (1 if report.made or report.kept else 2) if report.skipped else 0
