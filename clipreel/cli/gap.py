"""clipreel gap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from clipreel.cli.output import DEFAULT_MODEL, Progress, shown

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def gap(
    *corpora: str,
    model: str = DEFAULT_MODEL,
    texts: int = 1000,
    seeds: int = 5,
    out: Path = Path("gap"),
    download: Flag = False,
    device: str = "auto",
    json: Flag = False,
) -> int:
    """Tell how far corpora of texts lie apart: the NMI of two clusters of their features with their origin.

    0: nothing tells them apart, 1: the clusters are the corpora. OUT gets table.md, gap.json and clusters.png; a folder
    with the result of other corpora or settings is left as it is.
    Try `clipreel gap shapes/subtitles shapes/captions shapes/test --model shapes-tiny`

    Args:
        corpora: Two or more, each annotations, captions (.json, .jsonl), lines of text (.txt) or a name as above; as
            NAME=PATH under a name of your own.
        model: Hub id, folder, file or built-in name of the model whose text tower is asked.
        texts: Drawn of each corpus; as many of both as the smaller one has.
        seeds: Draws and clusterings, with the seeds 0, 1, 2 and so on.
        out: Folder of what is written.
        download: Allow the model to be fetched from the hub.
        device: Where the model runs: auto takes the GPU where there is one.
        json: Print the gaps as JSON.
    """
    import hashlib
    import json as js
    import sys

    import torch

    from clipreel.adapter import write
    from clipreel.cli.search import load_model
    from clipreel.data.gap import MADE, Floats, draw, gaps, read_corpus, table
    from clipreel.errors import ClipreelError

    named = [c.split("=", 1) if "=" in c else [Path(c).stem if Path(c).suffix else c, c] for c in corpora]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ClipreelError(f"two corpora have the same name ({', '.join(sorted(names))}); write NAME=PATH")
    found = {name: read_corpus(source) for name, source in named}
    retriever = load_model(model, download, device)
    asked: dict[str, Any] = {"space": retriever.space, "seeds": seeds, "most_texts": texts, "sources": {}}
    for name, source in named:
        told = source if source in MADE else Path(source).name
        digest = hashlib.sha256("\n".join(found[name]).encode()).hexdigest()[:16]
        asked["sources"][name] = {"source": told, "texts": len(found[name]), "hash": digest}
    refuse_other(out, asked)
    line = Progress("encoding texts")

    def encode(wanted: list[str]) -> Floats:
        parts = []
        for i in range(0, len(wanted), 256):
            parts.append(retriever.encode_text(wanted[i : i + 256]).cpu())
            line(min(i + 256, len(wanted)), len(wanted))
        return torch.cat(parts).double().numpy()

    panels = gaps(found, encode, texts=texts, seeds=seeds)
    rows = [p.gap for p in panels]
    made = {"model": retriever.name, **asked, "gaps": [g.to_dict() for g in rows]}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ClipreelError(f"{out} cannot be made ({e.strerror}); name another --out") from e
    write(out / "gap.json", (js.dumps(made, indent=1) + "\n").encode())
    write(out / "table.md", (table(rows) + "\n").encode())
    try:
        draw(panels, out / "clusters.png")
    except ImportError:
        print("matplotlib is not installed, so nothing is drawn (pip install 'clipreel[plots]')", file=sys.stderr)
    print(js.dumps(made) if json else f"{table(rows)}\n{shown(str(out))}: gap.json, table.md, clusters.png")
    return 0


def refuse_other(out: Path, asked: dict[str, Any]) -> None:
    """Raises ClipreelError where a folder holds a result that these settings would not give."""
    import json as js

    from clipreel.errors import ClipreelError
    from clipreel.training.config import differences

    path = out / "gap.json"
    if not path.is_file():
        return
    try:
        before = js.loads(path.read_text("utf-8"))
        other = differences({key: before.get(key) for key in asked}, asked)
    except (OSError, ValueError, AttributeError) as e:
        raise ClipreelError(f"{path} is no result of clipreel gap ({e}); name another --out") from e
    if other:
        raise ClipreelError(
            f"{out} holds another result ({'; '.join(other[:3])}); name another --out, or delete that one"
        )
