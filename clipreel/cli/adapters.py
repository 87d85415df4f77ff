"""clipreel adapters: what lies in a folder of adapters, and care for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
adapters = App(name="adapters", help="List, show, verify and remove adapters. Try `clipreel adapters list tuned`")
HELPS = {True: "helps", False: "does not help", None: "unproven"}


def found(folder: Path) -> list[Path]:
    """Adapter folders at or below a folder."""
    from clipreel.adapter import CONFIG
    from clipreel.errors import ClipreelError

    if not folder.is_dir():
        raise ClipreelError(f"{folder} is no folder; give one that holds adapters")
    return sorted(p.parent for p in folder.rglob(CONFIG))


@adapters.command(name="list")
def list_(folder: Path = Path("tuned"), /, *, json: Flag = False) -> int:
    """One line for each adapter below a folder: method, head, base, size, whether it helps.

    Args:
        folder: Where to look.
        json: Print one JSON object a line.
    """
    import json as js

    from clipreel.adapter import WEIGHTS, read_config
    from clipreel.cli.output import shown, skipped
    from clipreel.errors import ClipreelError
    from clipreel.head_files import CONFIG as HEAD
    from clipreel.head_files import read_config as read_head_config

    broken: list[tuple[str, str]] = []
    for path in found(folder):
        try:
            c = read_config(path)
            size = (path / WEIGHTS).stat().st_size
            head = read_head_config(path).head if (path / HEAD).exists() else None
        except (ClipreelError, OSError) as e:
            broken.append((str(path), str(e)))
            continue
        row = {"path": str(path), "method": c.method, "head": head, "base": c.base_name, "bytes": size}
        row |= {"helps": HELPS[c.helped]}
        what = f"{c.method} with {head}" if head else c.method
        print(
            js.dumps(row)
            if json
            else f"{shown(str(path))}  {what}  on {c.base_name}  {size / 1e6:.2f} MB  {HELPS[c.helped]}"
        )
    skipped(broken)
    return 1 if broken else 0


@adapters.command
def show(folder: Path, /) -> int:
    """Everything that an adapter says of itself, as JSON, and what is known of the licences of what it comes from.

    Args:
        folder: The adapter.
    """
    import json as js
    from dataclasses import asdict

    from clipreel.adapter import read_config
    from clipreel.licences import lineage

    links = [asdict(link) for link in lineage(folder)]
    print(js.dumps({**asdict(read_config(folder)), "lineage": links}, indent=1, ensure_ascii=False))
    return 0


@adapters.command
def licence(folder: Path, what: str, text: str, /, *, allows: Flag = False) -> int:
    """State the licence of what an adapter comes from. Try `clipreel adapters licence FOLDER data "my films" --allows`

    Args:
        folder: The adapter.
        what: base or data.
        text: What its owner says.
        allows: It allows commercial use.
    """
    from clipreel.licences import lineage, state

    state(folder, what, text, allows)
    for link in lineage(folder):
        print(link)
    return 0


@adapters.command
def verify(folder: Path, /, *, model: str | None = None, download: Flag = False) -> int:
    """Check an adapter and its head: tensors against fingerprints, and with --model that they fit a base.

    Args:
        folder: The adapter.
        model: The base that it should fit; without it the files alone are checked.
        download: Allow the base to be fetched from the hub.
    """
    from clipreel.adapter import read_config, read_tensors, with_adapter
    from clipreel.cli.search import load_model
    from clipreel.head_files import CONFIG, read_head, with_head

    config = read_config(folder)
    tensors = read_tensors(folder, config)
    headed = (folder / CONFIG).exists()
    if headed:
        tensors |= {f"head.{name}": p for name, p in read_head(folder)[0].named_parameters()}
    if model is not None:
        found = with_adapter(load_model(model, download, "cpu"), folder)
        if headed:
            with_head(found, folder)
    fits = "" if model is None else f", fits {model}"
    print(f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers: all as stated{fits}")
    return 0


@adapters.command
def remove(folder: Path, /) -> int:
    """Delete the files of an adapter and of its head, and the folder where nothing else is in it.

    Args:
        folder: The adapter.
    """
    from clipreel import head_files
    from clipreel.adapter import CONFIG, WEIGHTS, read_config

    read_config(folder)
    # the configs first: what is left without them is no adapter and no head
    for name in (CONFIG, head_files.CONFIG, WEIGHTS, head_files.WEIGHTS):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
    print(f"removed {folder}")
    return 0
