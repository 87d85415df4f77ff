"""clipreel evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from clipreel.data.sample import Sample
    from clipreel.evaluation.features import Features
    from clipreel.evaluation.gallery import Section
    from clipreel.evaluation.metrics import Result

Mode = Literal["single", "all", "paragraph"]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def evaluate(
    data: Path | None = None,
    /,
    *,
    root: Path | None = None,
    split: str = "test",
    form: str | None = None,
    captions: Mode | None = None,
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

    Without data: the test split of the shapes world, beside its order-blind bound. With a folder: its videos and the
    captions of its annotations.jsonl ({"video": ..., "captions": [...]} a line). Or a published set by name, such as
    msrvtt1ka, as it lies below --root; a part of it is named as a part.
    On several GPUs: torchrun --nproc-per-node N -m clipreel evaluate ...
    Try `clipreel evaluate --model shapes-tiny --gallery failures.html`

    Args:
        data: Folder with annotations.jsonl (or .csv, .parquet) and the videos it names, such a file, or a data set.
        root: Folder of the data set. (Default: its name in $CLIPREEL_DATA, else in data/.)
        split: Split of the data set.
        form: In which form its annotations were published. (Default: the first that is known.)
        captions: How its captions become texts: the first, all, or all as one. (Default: as published.)
        model: Hub id, folder, file or built-in name.
        adapter: Folder of an adapter on the model.
        frames: Frames of each video, evenly spread.
        v2t: Gallery of video to text where videos have several captions: all captions, or videos by their best one.
        dual_softmax: Re-weight by all queries at once; transductive, so stamped.
        bank: Captions that are no queries: a text a line, or annotations. (Default: some of the training split of the
            shapes world, where that is evaluated.)
        query_bank: Normalise each query by the bank; stamped.
        store: Keep the vectors with their ids in this folder.
        features: Score the vectors of such a folder again, without the model.
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
    from clipreel.cli.search import load_model
    from clipreel.errors import ClipreelError
    from clipreel.evaluation.failures import page
    from clipreel.evaluation.features import load_features, save_features
    from clipreel.evaluation.runs import read_bank, shapes_bank
    from clipreel.training.distributed import after_first, joined
    from clipreel.training.evaluating import evaluate_together

    if features is not None and (data is not None or adapter is not None or store is not None or bank is not None):
        raise ClipreelError("--features scores stored vectors; leave out the data, --adapter, --bank and --store")
    with joined() as here, tempfile.TemporaryDirectory() as scratch:
        found: Features
        drawn: Section | None = None
        if features is not None:
            found, name = load_features(features), features.name
        else:
            retriever = load_model(model, download, device, adapter, engine)
            wanted = data is None and (query_bank or gallery is not None)
            others = read_bank(bank) if bank is not None else shapes_bank() if wanted else []
            place = Path(scratch) if store is None else store / "videos"
            samples, label = after_first(lambda: read_data(data, place, root, split, form, captions))
            name = retriever.name
            found = evaluate_together(retriever, samples, label, frames, others, Progress("videos"))
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


def read_data(
    data: Path | None, place: Path, root: Path | None, split: str, form: str | None, captions: Mode | None
) -> tuple[list[Sample], str]:
    """The samples that are meant, and what a stamp calls them; films of the shapes world are written to `place`."""
    import sys

    from clipreel.data.sets import is_set, open_set
    from clipreel.data.sources import notes
    from clipreel.evaluation.runs import read_annotations, shapes_samples
    from clipreel.training.distributed import world

    if data is None:
        return shapes_samples(place), "shapes test"
    if is_set(str(data)) and not data.exists():
        part = open_set(str(data), root, form=form, captions=captions).part(split)
        for note in notes({split: part}) if world().first else ():
            print(f"note: {note}", file=sys.stderr)
        return part.samples, part.label
    return read_annotations(data), f"{data.name} (annotations.jsonl)"
