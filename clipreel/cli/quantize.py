"""clipreel quantize."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def quantize(
    data: str,
    /,
    *,
    model: str,
    frames: int = 8,
    download: Flag = False,
    json: Flag = False,
) -> int:
    """Make the int8 video tower of a model for the CPU, and measure what it costs in recall on your pairs.

    Only then `--engine int8` of index, search and evaluate takes it; its vectors are a space of their own.
    Try `clipreel quantize shapes --model shapes-tiny`

    Args:
        data: JSON lines, CSV or Parquet of videos and captions, a folder with annotations.jsonl, or shapes.
        model: Hub id, folder, file or built-in name.
        frames: Frames of each video, evenly spread.
        download: Allow the model to be fetched from the hub.
        json: Print the figures as JSON.
    """
    import json as js
    import tempfile
    from pathlib import Path

    from clipreel import int8
    from clipreel.cli.output import Progress, shown, skipped
    from clipreel.cli.search import load_model
    from clipreel.data.readers import read_samples
    from clipreel.evaluation.report import protocol, table
    from clipreel.evaluation.runs import shapes_samples

    retriever = load_model(model, download, "cpu")
    int8.require(retriever, int8.TO_MAKE)  # before the data are looked at
    with tempfile.TemporaryDirectory() as scratch:
        own = data != "shapes"
        samples = read_samples(data, check_files=False) if own else shapes_samples(Path(scratch))
        split = Path(data).name if own else "shapes test"
        measured, failed = int8.quantize(retriever, samples, split, frames, Progress("encoding"))
    if json:
        print(js.dumps({**measured.to_dict(), "skipped": failed}))
    else:
        print(table({"fp32": measured.fp32, "int8": measured.int8}))
        print(protocol(measured.int8))
        for way, name in (("t2v", "text to video"), ("v2t", "video to text")):
            change = ", ".join(
                f"{k} {g.value:+.1f} ({g.low:+.1f} to {g.high:+.1f})" for k, g in measured.gains[way].items()
            )
            print(f"int8 - fp32, {name}: {change}")
        rates = ", ".join(f"{name} {rate:.1f}" for name, rate in measured.frames_per_s.items())
        print(
            f"frames/s (threads: {measured.threads}): {rates}; cosine with fp32 at least {measured.cosine['min']:.4f}"
        )
        print(f"use it: clipreel index FOLDER --model {shown(model)} --engine int8")
    skipped(failed)
    return 1 if failed else 0
