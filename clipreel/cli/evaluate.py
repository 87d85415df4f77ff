"""clipreel evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def evaluate(
    folder: Path | None = None,
    /,
    *,
    model: str = "shapes-tiny",
    adapter: str | None = None,
    frames: int = 8,
    dual_softmax: Literal["product", "softmax"] | None = None,
    download: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    device: str = "auto",
    engine: Literal["torch", "int8"] = "torch",
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
) -> int:
    """Retrieval numbers of a model, with the protocol they were made under.

    Without a folder: the test split of the shapes world, beside its order-blind bound. With one: its videos and the
    captions of its annotations.jsonl ({"video": ..., "captions": [...]} a line).
    Try `clipreel evaluate --model shapes-tiny`

    Args:
        folder: Folder with annotations.jsonl and the videos it names.
        model: Hub id, folder, file or built-in name.
        adapter: Folder of an adapter on the model.
        frames: Frames of each video, evenly spread.
        dual_softmax: Re-weight by all queries at once; transductive, so stamped.
        download: Allow the model to be fetched from the hub.
        device: Where the model runs: auto takes the GPU where there is one.
        engine: What computes the videos; int8 only after `clipreel quantize`.
        json: Print the result as JSON.
    """
    import json as js
    import tempfile

    from clipreel.cli.output import skipped
    from clipreel.cli.search import load_model
    from clipreel.evaluation.report import protocol, table
    from clipreel.evaluation.runs import evaluate_samples, read_annotations, shapes_bound, shapes_samples

    retriever = load_model(model, download, device, adapter, engine)
    with tempfile.TemporaryDirectory() as scratch:
        samples = shapes_samples(Path(scratch)) if folder is None else read_annotations(folder)
        split = "shapes test" if folder is None else f"{folder.name} (annotations.jsonl)"
        result, failed = evaluate_samples(retriever, samples, split, frames, dual_softmax)
    if json:
        extra = (
            {} if folder is not None else {"order_blind_bound": {"t2v": shapes_bound()[0], "v2t": shapes_bound()[1]}}
        )
        print(js.dumps({**result.to_dict(), **extra, "skipped": failed}))
    else:
        rows = {retriever.name: result} | ({} if folder is not None else {"order-blind bound": shapes_bound()})
        print(table(rows))
        print(protocol(result))
    skipped(failed)
    return 1 if failed else 0
