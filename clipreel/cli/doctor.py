"""clipreel doctor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from clipreel.cli.output import Progress, shown, skipped
from clipreel.errors import ClipreelError

if TYPE_CHECKING:
    from clipreel.data.doctor import Checkup, Costs
    from clipreel.data.sets import Part
    from clipreel.retriever import Retriever

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
Reads = tuple[int, int, Callable[[str], int] | None]  # tokens, pixels of a side, how tokens are counted
CLIP_READS: Reads = (77, 224, None)  # where no model is named


def doctor(
    data: str,
    /,
    *,
    form: str | None = None,
    root: Path | None = None,
    videos: Path | None = None,
    split: str | None = None,
    captions: Literal["single", "all", "paragraph"] | None = None,
    out: Path | None = None,
    quarantine: Path | None = None,
    also: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    model: str | None = None,
    frames: int = 12,
    epochs: float = 5.0,
    workers: int = 2,
    time_limit: float = 120.0,
    download: Flag = False,
    json: Flag = False,
) -> int:
    """Decode a whole data set once, say what is wrong with it, and what a cache and a training will cost.

    Writes quarantine.jsonl beside the annotations, which prepare, tune, evaluate and index heed, and a page with
    pictures of what is wrong. Stopped at any point, the same command goes on where it was.
    Try `clipreel doctor demo-output/shapes/test --model shapes-tiny`

    Args:
        data: A published data set by name (see docs/data.md), or JSON lines, CSV or Parquet of videos and captions, or
            a folder with annotations.jsonl.
        form: The form in which the annotations of a published set are here, such as clip4clip.
        root: Folder of those annotations (default: its folder in $CLIPREEL_DATA, else in data/).
        videos: Folder of the videos (default: videos/ in the root; the folder of the annotations).
        split: Only this split.
        captions: Captions of a video taken as this, in place of how the set was published.
        out: Folder of the log and the page (default: doctor/NAME).
        quarantine: The list that is written (default: quarantine.jsonl beside the annotations).
        also: More kinds that go into quarantine besides missing and broken, such as truncated or "same file".
        model: Hub id, folder, file or built-in name of the model to be trained: its vocabulary counts tokens, and its
            speed here gives the hours of training.
        frames: Frames of each video in the cache that is forecast.
        epochs: Rounds of the training that is forecast.
        workers: Processes that decode.
        time_limit: Seconds after which a file is given up.
        download: Allow the model to be fetched from the hub.
        json: Print the report as JSON.
    """
    import json as js

    from clipreel.cli.doctor_page import said, write_page
    from clipreel.cli.search import load_model
    from clipreel.data.doctor import QUARANTINED
    from clipreel.data.sets import check_apart
    from clipreel.data.sources import Source
    from clipreel.video.quarantine import NAME, write_quarantine

    check_kinds(also)
    if workers < 1 or frames < 1 or not time_limit > 0 or not epochs > 0:
        raise ClipreelError("--workers, --frames, --time-limit and --epochs must be above 0")
    source = Source(data, form, root, videos, captions, quarantine=False)
    parts = source.parts(split)
    check_apart({name: part.samples for name, part in parts.items()})
    retriever = None if model is None else load_model(model, download, "auto")
    folder = out or Path("doctor") / Path(data).name
    checkup = examined(parts, folder / "seen.jsonl", workers, time_limit, retriever)
    expected, pairs = forecast(parts, checkup, retriever, frames, workers, epochs)
    listed = quarantine or source.folder / NAME
    rows = checkup.quarantine((*QUARANTINED, *also))
    before = write_quarantine(listed, rows, checkup.seen)
    cost = said(expected, checkup, f"{epochs:g} rounds of {pairs:,} pairs on this machine")
    write_page(folder / "doctor.html", f"{data}: what was found", parts, checkup, cost)
    report = reported(parts, checkup, expected, listed, len(rows), folder / "doctor.html")
    (folder / "doctor.json").write_text(js.dumps(report, indent=1) + "\n", "utf-8")
    if json:
        print(js.dumps(report))
    else:
        told(parts, checkup)
        print(cost)
        more = f" and {before} from before, which this did not look at" if before else ""
        print(f"{len(rows)} files{more} in {shown(str(listed))}; page {shown(str(folder / 'doctor.html'))}")
        if gone := sum(len(part.missing) for part in parts.values()):
            print(f"{gone} videos without a file have no name to list; every command leaves them out and says so")
        if retriever is None:
            print("give --model for the hours of training and for tokens instead of words")
    skipped([(str(path), reason) for path, reason in rows])
    return 1 if rows or any(part.missing for part in parts.values()) else 0


def examined(parts: Mapping[str, Part], log: Path, workers: int, time_limit: float, model: Retriever | None) -> Checkup:
    """All files decoded, and what is wrong with them, with those that are missing, and with the captions."""
    from clipreel.data.doctor import Checkup, Finding, caption_problems, look_at, problems

    paths = list(dict.fromkeys(s.video for part in parts.values() for s in part.samples))
    seen = look_at(paths, log, workers=workers, timeout_s=time_limit, progress=Progress("looking at files"))
    gone = [Finding("missing", id, f"no file (split {name})") for name, part in parts.items() for id in part.missing]
    context, _, count = CLIP_READS if model is None else reading(model)
    splits = {str(s.video): name for name, part in parts.items() for s in part.samples}
    return Checkup(seen, [*gone, *problems(seen, splits), *caption_problems(parts, context, count)])


def forecast(
    parts: Mapping[str, Part], checkup: Checkup, model: Retriever | None, frames: int, workers: int, epochs: float
) -> tuple[Costs, int]:
    """What a cache and a training will cost, and the pairs of a round."""
    from clipreel.data.doctor import costs

    _, size, _ = CLIP_READS if model is None else reading(model)
    pair_s = None if model is None else measured(model, frames)
    pairs = sum(len(s.captions) for s in parts.get("train", next(iter(parts.values()))).samples)
    return costs(checkup, pairs, frames * 3 * size**2, workers, epochs, pair_s), pairs


def reported(
    parts: Mapping[str, Part], checkup: Checkup, expected: Costs, listed: Path, quarantined: int, page: Path
) -> dict[str, Any]:
    """What doctor.json holds."""
    from dataclasses import asdict

    return {
        "parts": {n: {"label": p.label, "listed": p.listed, "videos": len(p.samples)} for n, p in parts.items()},
        "findings": [{**asdict(f), "path": f.path and str(f.path)} for f in checkup.findings],
        "forecast": asdict(expected),
        "quarantine": str(listed),
        "quarantined": quarantined,
        "page": str(page),
    }


def check_kinds(also: tuple[str, ...]) -> None:
    """ClipreelError for words that are no kind of finding about files."""
    from clipreel.data.doctor import KINDS

    allowed = [k for k in KINDS if not k.startswith("caption")]
    strange = [kind for kind in also if kind not in allowed]
    if strange:
        raise ClipreelError(f"--also {strange[0]!r}: allowed are {', '.join(allowed)}")


def told(parts: Mapping[str, Part], checkup: Checkup) -> None:
    """Prints a line for each split and for each kind of finding."""
    from clipreel.data.doctor import KINDS

    for part in parts.values():
        print(f"{part.label}: {checkup.present(part)} of {part.listed} listed videos have a file")
    for kind in KINDS:
        found = [f for f in checkup.findings if f.kind == kind]
        if found:
            says = f": {shown(found[0].says)[:80]}" if found[0].says else ""
            print(f"{kind}: {len(found)}, the first: {shown(found[0].name)[:60]}{says}")


def reading(model: Retriever) -> Reads:
    """Tokens that the model reads, pixels of a side, and how tokens are counted."""
    tokenizer = model.tokenizer
    size = model.preprocess.size
    return model.context, size, None if tokenizer is None else lambda caption: len(tokenizer.encode(caption)) + 2


def measured(model: Retriever, frames: int) -> float:
    """Seconds of training on a pair: three times as long as encoding its video, whose text costs little beside it."""
    import time

    import torch

    size, batch = model.preprocess.size, 4
    pixels = model.preprocess.normalise(torch.zeros(batch, frames, 3, size, size, dtype=torch.uint8).to(model.device))
    with torch.no_grad():
        model.encode_video(pixels)
        start = time.perf_counter()
        model.encode_video(pixels).cpu()
    return 3 * (time.perf_counter() - start) / batch
