"""clipreel tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipreel.cli.output import Progress, shown, skipped, spoken

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def tune(
    data: str | None = None,
    *changes: str,
    method: str | None = None,
    head: str | None = None,
    on: str | None = None,
    config: Path | None = None,
    out: Path | None = None,
    cache: Path | None = None,
    general: Path | None = None,
    download: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> int:
    """Tune a model to pairs of videos and captions: a small adapter, and a report that says if it helps.

    The pairs are split by video into training, validation (chooses the weights) and held-out (before and after).
    Killed at any point, the same command goes on where it was.
    On several GPUs: torchrun --nproc-per-node N -m clipreel tune ...
    Try `clipreel tune shapes train.steps=100 frames=8 --method vop_f --on shapes-tiny`

    Args:
        data: JSON lines, CSV or Parquet of videos and captions, a folder with annotations.jsonl, or shapes.
        changes: Values of the config, such as train.steps=500, lr=1e-3 or options.joint_layers=2.
        method: What is trained; see `clipreel info ViT-B/32`; frozen: the head alone. (Default: vop_fc.)
        head: What is trained over the frames: seq_lstm, seq_transf, tight_transf, x_pool. (Default: their mean.)
        on: The base: hub id, folder, file or built-in name. (Default: openai/clip-vit-base-patch32.)
        config: YAML file with the differences to the default config.
        out: Folder of the run. (Default: tuned/METHOD.)
        cache: Folder of decoded frames, which several runs may share, or which `clipreel prepare` made. (Default: the
            folder of the run.)
        general: A second set of pairs, on which the adapter must not be worse: then search does not use it.
        download: Allow the base to be fetched from the hub.
        device: Where to train: auto takes the GPU where there is one.
        json: Print the report as JSON.
    """
    import json as js
    from dataclasses import replace

    from clipreel.cli.search import load_model
    from clipreel.cli.tune_page import gained, page, said_of_misses, verdict, weights_told
    from clipreel.training.distributed import joined
    from clipreel.training.settings import read_config
    from clipreel.training.tuning import tune as run

    if data is not None and "=" in data:  # the first word may be a change of a config that names its data
        changes, data = (data, *changes), None
    found = read_config(config, changes, method=method, model=on, head=head)
    found = replace(
        found,
        data=replace(found.data, path=data or found.data.path, general=str(general) if general else found.data.general),
    )
    with_head = "" if found.head.kind == "mean" else f"-{found.head.kind}"
    folder = out or Path("tuned") / f"{found.method}{with_head}"
    with joined(timeout_s=3600) as here:  # the others wait while the first decodes the videos
        base = load_model(found.model, download, device)
        progress, say = spoken(here.first, "step")
        decoding = Progress("decoding", here.first)
        tuned = run(found, folder, scratch=cache, base=base, progress=progress, decoding=decoding, say=say)
    if not here.first:
        return 0
    report = page(tuned, folder)
    c = tuned.compared
    if json:
        facts: dict[str, object] = {"adapter": str(tuned.adapter), "report": str(report), "costs": tuned.facts}
        facts |= {"helped": tuned.helped, "compared": c.to_dict(), "last": tuned.last.to_dict()}
        facts |= {"misses": tuned.misses} if tuned.misses else {}
        facts |= {"general": tuned.general.to_dict()} if tuned.general else {}
        print(js.dumps(facts, default=str))
    else:
        for way, name in (("t2v", "text to video"), ("v2t", "video to text")):
            for measure, gain in c.gains[way].items():
                before, after = (c.intervals[f"{when} {way}"][measure] for when in ("before", "after"))
                print(f"{name} {measure:5}{before.value:6.1f} -> {after.value:5.1f}   gain {gain}")
        print(weights_told(tuned))
        print(f"{verdict(tuned)} {gained(c)}")
        if tuned.misses:
            print(said_of_misses(tuned.misses))
        if tuned.general is not None:
            print(f"on {found.data.general}: {gained(tuned.general)}")
        print(f"adapter {shown(str(tuned.adapter))} ({tuned.facts['adapter_bytes'] / 1e6:.2f} MB)   report {report}")
        frames = "" if tuned.after.model.head is None else " --frames"
        print(f"{usage(found.model, shown(str(tuned.adapter)), tuned.helped)}{frames}")
        if frames:
            print(f"        clipreel search TEXT --rerank {shown(str(tuned.adapter))}")
    skipped(tuned.skipped)
    return 1 if tuned.skipped else 0


def usage(model: str, adapter: str, helped: bool | None) -> str:
    """The command that takes an adapter, with what one that does not help needs besides."""
    command = f"clipreel index FOLDER --model {model} --adapter {adapter}"
    return f"use it all the same: {command} --unhelpful" if helped is False else f"use it: {command}"
