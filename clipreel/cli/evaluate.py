"""clipreel evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from clipreel.data.sets import Part
    from clipreel.data.sources import Source
    from clipreel.evaluation.features import Features
    from clipreel.evaluation.gallery import Section
    from clipreel.evaluation.metrics import Result
    from clipreel.retriever import Retriever

Mode = Literal["single", "all", "paragraph"]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def evaluate(
    data: str | None = None,
    /,
    *,
    form: str | None = None,
    root: Path | None = None,
    videos: Path | None = None,
    split: str | None = None,
    captions: Mode | None = None,
    quarantine: Path | None = None,
    model: str = "shapes-tiny",
    adapter: str | None = None,
    frames: int = 8,
    v2t: Literal["caption", "video"] = "caption",
    dual_softmax: Literal["product", "softmax"] | None = None,
    bank: Path | None = None,
    query_bank: Flag = False,
    store: Path | None = None,
    features: Path | None = None,
    gallery: Path | None = None,
    download: Flag = False,
    device: str = "auto",
    engine: Literal["torch", "int8"] = "torch",
    json: Flag = False,
) -> int:
    """Retrieval numbers of a model, with the protocol they were made under.

    Without data, or of shapes: the test split of the shapes world, beside its order-blind bound. With a folder: its
    videos and the captions of its annotations.jsonl ({"video": ..., "captions": [...]} a line). Or a published set by
    name, such as msrvtt1ka, as it lies below --root. What is not whole is named as a part.
    On several GPUs: torchrun --nproc-per-node N -m clipreel evaluate ...
    Try `clipreel evaluate --model shapes-tiny --gallery failures.html`

    Args:
        data: A published data set by name; or JSON lines, CSV or Parquet of videos and captions, or their folder.
        form: The form in which the annotations of a published set are here, such as clip4clip.
        root: Folder of those annotations. (Default: its folder in $CLIPREEL_DATA, else in data/.)
        videos: Folder of the videos. (Default: videos/ in the root; the folder of the annotations.)
        split: Only this split. (Default: test of a published set; all rows of a file.)
        captions: Captions of a video taken as this, in place of how the set was published.
        quarantine: List of files to leave out. (Default: quarantine.jsonl beside the annotations.)
        model: Hub id, folder, file or built-in name.
        adapter: Folder of an adapter on the model, or of a head, whose scores then rank.
        frames: Frames of each video, evenly spread.
        v2t: Gallery of video to text where videos have several captions: all captions, or videos by their best one.
        dual_softmax: Re-weight by all queries at once; transductive, so stamped.
        bank: Captions that are no queries: a text a line, or annotations. (Default: some of the training split of the
            shapes world, where that is evaluated.)
        query_bank: Normalise each query by the bank; stamped.
        store: Keep the vectors with their ids in this folder.
        features: Score the vectors of such a folder again, without the model (with --bank: their model).
        gallery: Write a page (HTML) of the worst misses and the confusions, with the frames that were decoded, and of
            what the proxies of a CLIP-ViP model look at.
        download: Allow the model to be fetched from the hub.
        device: Where the model runs: auto takes the GPU where there is one.
        engine: What computes the videos; int8 only after `clipreel quantize`.
        json: Print the result as JSON.
    """
    import tempfile

    from clipreel.cli.output import Progress
    from clipreel.cli.proxy_page import attention
    from clipreel.data.sources import SHAPES, Source
    from clipreel.errors import ClipreelError
    from clipreel.evaluation.failures import page
    from clipreel.evaluation.features import load_features, save_features
    from clipreel.evaluation.runs import read_bank, shapes_bank
    from clipreel.training.distributed import after_first, joined
    from clipreel.training.evaluating import evaluate_together, with_bank

    source = Source(data or SHAPES, form, root, videos, captions, quarantine)
    if features is not None and (data or split or store or source != Source(SHAPES) or (adapter and not bank)):
        raise ClipreelError("--features scores stored vectors; leave out the data, what belongs to it, and --store")
    with joined() as here, tempfile.TemporaryDirectory() as scratch:
        found: Features
        drawn: Section | None = None
        others = [] if bank is None else read_bank(bank)
        if features is not None:
            found, name = load_features(features), features.name
            if others:
                found = with_bank(found, whole_model(model, download, device, adapter, engine), others)
        else:
            retriever = whole_model(model, download, device, adapter, engine)
            place = Path(scratch) if store is None else store / "videos"
            part = after_first(lambda: read_part(source, split, place))
            if bank is None and source.data == SHAPES and (query_bank or gallery is not None):
                others = shapes_bank()
            name = retriever.name if retriever.head is None else f"{retriever.name} with {retriever.head.name}"
            found = evaluate_together(retriever, part.samples, part.label, frames, others, Progress("videos"))
            found = found.having(caption_mode=part.mode, trained_on=training_list(retriever))
        if not here.first:
            return 0
        if store is not None:
            save_features(store, found)
        result = found.result(v2t=v2t, dual_softmax=dual_softmax, by_bank=query_bank)
        if gallery is not None:
            if features is None:
                drawn = attention(retriever, found.samples, found.sampling)
            page(found, f"What {name} misses", gallery, more=[] if drawn is None else [drawn])
    return told(name, found, result, gallery, json)


def whole_model(model: str, download: bool, device: str, adapter: str | None, engine: str) -> Retriever:
    """The model with its adapter, and with the head that may lie in the same folder."""
    from clipreel.cli.search import load_model
    from clipreel.head_files import CONFIG, with_head

    found = load_model(model, download, device, adapter, engine)
    return with_head(found, adapter) if adapter is not None and (Path(adapter) / CONFIG).is_file() else found


def training_list(model: Retriever) -> str:
    """What the adapter of the model was trained on, as `tune` has stamped it."""
    from clipreel.adapter import read_config
    from clipreel.evaluation.protocol import UNSTATED

    metrics = read_config(model.adapter_folder).metrics if model.adapter_folder else {}
    return str(metrics.get("after", {}).get("stamp", {}).get("trained_on", UNSTATED))


def told(name: str, found: Features, result: Result, gallery: Path | None, json: bool) -> int:
    """Prints the numbers with their protocol, and the videos that could not be read; returns the exit code."""
    import json as js

    from clipreel.cli.output import shown, skipped
    from clipreel.evaluation.report import protocol, table
    from clipreel.evaluation.runs import shapes_bound
    from clipreel.training.comparing import SHAPES_SPLITS

    bound = shapes_bound() if found.stamp.split in SHAPES_SPLITS else None
    if json:
        extra = {"order_blind_bound": {"t2v": bound[0], "v2t": bound[1]}} if bound else {}
        print(js.dumps({**result.to_dict(), **extra, "skipped": found.failed}))
    else:
        print(table({name: result} | ({"order-blind bound": bound} if bound else {})))
        print(protocol(result))
        if gallery is not None:
            print(f"gallery {shown(str(gallery))}")
    skipped(found.failed)
    return 1 if found.failed else 0


def read_part(source: Source, split: str | None, place: Path) -> Part:
    """The samples that are meant; films of the shapes world are written to `place`."""
    import sys

    from clipreel.data.sets import Part, is_set
    from clipreel.data.sources import SHAPES, Source, notes
    from clipreel.errors import ClipreelError
    from clipreel.evaluation.runs import shapes_samples
    from clipreel.training.distributed import world

    if source.data == SHAPES:
        if source != Source(SHAPES) or split not in (None, "test"):
            raise ClipreelError(
                f"{SHAPES} is evaluated on its test split as it is: leave out --form, --root, --videos, --captions, "
                "--quarantine and --split, or name data of your own"
            )
        films = shapes_samples(place)
        return Part(f"{SHAPES} test", films, "single", len(films))
    ((_, part),) = source.parts(split or ("test" if is_set(source.data) else None)).items()
    for note in notes({part.label: part}) if world().first else ():
        print(f"note: {note}", file=sys.stderr)
    return part
