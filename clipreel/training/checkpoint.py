"""Checkpoints of a run: one safetensors file each, complete or not there, the one before it kept.

Tensors `param/<name>` and `optim/<name>/<key>`; the metadata holds the rest as JSON. Random numbers and data order are
functions of (seed, step), so nothing else is needed to continue bit for bit.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipreel.errors import ClipreelError

SCHEMA = 1
KEEP = 2
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class State:
    """Everything that a run needs to go on after `step` updates."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def disk_errors(path: Path, kept: str = "") -> Iterator[None]:
    """Turns a failed write into one line; `kept` says what is still good."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        full = getattr(e, "errno", None) in FULL or "No space left" in str(e) or "quota" in str(e).lower()
        why = "the disk is full" if full else str(e)
        todo = "free some space" if full else "repair that"
        raise ClipreelError(f"{path} cannot be written: {why}; {todo} and start again to go on{kept}") from e


def write_whole(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], kept: str = "") -> Path:
    """The tensors in a safetensors file that is either complete or absent, whatever stops the machine.

    Raises ClipreelError when the disk is full; what was at `path` is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.part")
    with disk_errors(path, kept):
        try:
            save_file({n: t.contiguous() for n, t in tensors.items()}, waiting, {"clipreel": json.dumps(dict(facts))})
            _flush(waiting)
            os.replace(waiting, path)
            _flush(path.parent)
        finally:
            waiting.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """The same for a text file."""
    waiting = path.with_name(f".{path.name}.part")
    with disk_errors(path):
        try:
            waiting.write_text(text, "utf-8")
            _flush(waiting)
            os.replace(waiting, path)
        finally:
            waiting.unlink(missing_ok=True)
    return path


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and needs no flush of it
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file of `write_whole`."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["clipreel"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - a file handle
    except (OSError, SafetensorError, KeyError, ValueError) as e:
        raise ClipreelError(f"{path} is no file of a clipreel run ({e})") from e


def read_facts(path: Path) -> dict[str, Any]:
    """The facts alone, without the tensors."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {})["clipreel"])


def save(folder: Path, state: State) -> Path:
    """Write this state beside the one before it; older ones are removed."""
    there = saved(folder)
    kept = f" from step {there[-1][0]}" if there else ""
    path = write_whole(
        folder / f"step-{state.step:08d}.safetensors",
        state.tensors,
        {"schema": SCHEMA, "step": state.step, **state.facts},
        kept,
    )
    for _, old in saved(folder)[:-KEEP]:
        old.unlink()
    return path


def saved(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files, oldest first."""
    return sorted((int(p.stem.removeprefix("step-")), p) for p in folder.glob("step-*.safetensors"))


def latest(folder: Path, say: Callable[[str], None]) -> State | None:
    """The newest state that can be read, None where a run has not saved one; says which file is damaged.

    Raises ClipreelError where none can be read, and for another schema.
    """
    there = saved(folder)
    for i, (_, path) in enumerate(reversed(there)):
        try:
            tensors, facts = read_whole(path)
        except ClipreelError as e:
            if i + 1 == len(there):
                raise
            say(f"{e}; going on from the one before it")
            continue
        if facts.pop("schema", None) != SCHEMA:
            raise ClipreelError(f"{path} was written by another version of clipreel; start in a new folder")
        return State(facts.pop("step"), tensors, facts)
    return None


def take(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with the prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def require_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raises ClipreelError that names the first tensor that is missing, too much, or of another shape."""
    for name in sorted(set(found) ^ set(wanted)):
        said = "misses" if name in wanted else "has an unknown"
        raise ClipreelError(f"{source} {said} tensor {name}; it belongs to another method or configuration")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise ClipreelError(
                f"{source}: tensor {name} is {tuple(found[name].shape)}, here it is {tuple(tensor.shape)}; "
                "it belongs to another method or configuration"
            )
