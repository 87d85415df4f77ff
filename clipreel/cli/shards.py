"""clipreel shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipreel.cli.output import Progress, shown, skipped

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def shards(
    source: str,
    /,
    *,
    out: Path | None = None,
    videos: Path | None = None,
    split: str | None = None,
    captions: Path | None = None,
    per_shard: int = 256,
    index: Path | None = None,
    decode: Flag = False,
    renew: Flag = False,
    json: Flag = False,
) -> int:
    """Make tar shards of captioned videos (WebDataset), or check and index those that are there.

    With --out, shards of a data set are made, and a stopped run goes on with the same command. Without it, the shards
    at a folder, a URL or a pattern are read once: what is whole, cut or damaged is counted and named, and where there
    is no index one is written, which `clipreel post-pretrain` needs.
    Try `clipreel shards demo-output/shapes/test --out my-shards` and then `clipreel shards my-shards --decode`

    Args:
        source: Annotations of videos (see clipreel prepare), or a folder, URL or pattern (* or {000..012}) of shards.
        out: Folder of new shards.
        videos: Folder that the names of videos count from (default: that of the data file).
        split: Only the rows of this split.
        captions: Generated captions by id, which go into the shards too (see clipreel caption).
        per_shard: Videos of one shard.
        index: Folder of the index, where it cannot lie beside the shards.
        decode: Also decode a frame of every video; a new index leaves out videos without one.
        renew: Make the index again from what is there now.
        json: Print the report as JSON.
    """
    import json as js
    from dataclasses import asdict

    from clipreel.data.captions import read_captions
    from clipreel.data.readers import read_samples
    from clipreel.data.shard_files import check_shards, make_shards

    if out is not None:
        samples = read_samples(source, videos, split=split, check_files=False)
        said = None if captions is None else read_captions(captions)
        made = make_shards(samples, out, per_shard=per_shard, generated=said, progress=Progress("writing shards"))
        if json:
            print(js.dumps({**asdict(made), "out": str(out)}))
        else:
            print(f"{made.samples} samples in {made.made} new and {made.kept} kept shards at {shown(str(out))}")
        skipped(made.skipped)
        return (1 if made.samples else 2) if made.skipped else 0
    found = check_shards(source, index=index, decode=decode, renew=renew, progress=Progress("checking shards"))
    if json:
        print(js.dumps({**asdict(found), "source": source}))
    else:
        lost = f", {found.lost} known to be lost" if found.lost else ""
        written = f"; index written to {shown(str(index or source))}" if found.indexed else ""
        print(f"{found.samples} whole samples in {found.shards} shards{lost}{written}")
    skipped(found.problems)
    return (1 if found.samples else 2) if found.problems else 0
