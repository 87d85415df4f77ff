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
    """One line for each adapter below a folder: method, base, size, whether it helps.

    Args:
        folder: Where to look.
        json: Print one JSON object a line.
    """
    import json as js

    from clipreel.adapter import WEIGHTS, read_config
    from clipreel.cli.output import shown, skipped
    from clipreel.errors import ClipreelError

    broken: list[tuple[str, str]] = []
    for path in found(folder):
        try:
            c = read_config(path)
            size = (path / WEIGHTS).stat().st_size
        except (ClipreelError, OSError) as e:
            broken.append((str(path), str(e)))
            continue
        row = {"path": str(path), "method": c.method, "base": c.base_name, "bytes": size, "helps": HELPS[c.helped]}
        print(
            js.dumps(row)
            if json
            else f"{shown(str(path))}  {c.method}  on {c.base_name}  {size / 1e6:.2f} MB  {HELPS[c.helped]}"
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
    """Check an adapter: its tensors against its fingerprint, and with --model that it fits a base.

    Args:
        folder: The adapter.
        model: The base that it should fit; without it the files alone are checked.
        download: Allow the base to be fetched from the hub.
    """
    from clipreel.adapter import read_config, read_tensors, with_adapter
    from clipreel.cli.search import load_model

    config = read_config(folder)
    tensors = read_tensors(folder, config)
    if model is not None:
        with_adapter(load_model(model, download, "cpu"), folder)
    fits = "" if model is None else f", fits {model}"
    print(f"{len(tensors)} tensors, {sum(t.numel() for t in tensors.values()):,} numbers: all as stated{fits}")
    return 0


@adapters.command
def remove(folder: Path, /) -> int:
    """Delete an adapter's two files, and its folder where nothing else is in it.

    Args:
        folder: The adapter.
    """
    from clipreel.adapter import CONFIG, WEIGHTS, read_config

    read_config(folder)
    for name in (CONFIG, WEIGHTS):  # the config first: what is left without it is no adapter
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
    print(f"removed {folder}")
    return 0
