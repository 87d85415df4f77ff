"""The list of files that are not to be used, which `clipreel doctor` writes and every command that reads videos heeds.

`quarantine.jsonl` lies beside the annotations, or in the folder that is indexed: a line {"video", "reason", "size",
"mtime_ns"}, the video relative to the folder of the list where it lies below it. A file that was repaired since counts
as good again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from clipreel.errors import ClipreelError

NAME = "quarantine.jsonl"


def state(path: str | Path) -> tuple[int, int]:
    """Size and time of a file, (-1, -1) where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def read_quarantine(place: str | Path | Literal[False]) -> dict[str, str]:
    """Reason by absolute path, of a list or of the folder it lies in; {} where there is none, and for False.

    Raises ClipreelError with the line that cannot be read.
    """
    if place is False:
        return {}
    file = Path(place) / NAME if Path(place).is_dir() else Path(place)
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise ClipreelError(f"the quarantine list {file} cannot be read ({e}); repair it or take it away") from e
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            path, reason, then = (
                os.path.abspath(file.parent / row["video"]),
                row["reason"],
                (row["size"], row["mtime_ns"]),
            )
        except (ValueError, TypeError, KeyError) as e:
            raise ClipreelError(
                f"{file}, line {number}: {line[:60]!r} has no video, reason, size and mtime_ns; write the list again "
                "with clipreel doctor"
            ) from e
        if state(path) == then:
            found[path] = str(reason)
    return found


def write_quarantine(
    file: Path, rows: Iterable[tuple[Path, str]], looked_at: Iterable[str | Path] | None = None
) -> int:
    """The list: videos and why. An empty one says that all was looked at. With `looked_at`, files that were not stay in
    it while they do not change; how many these are is returned."""
    folder = os.path.abspath(file.parent)
    before = {} if looked_at is None else others(file, looked_at)
    lines = []
    for path, reason in [*rows, *((Path(p), reason) for p, reason in before.items())]:
        whole = os.path.abspath(path)
        name = os.path.relpath(whole, folder) if whole.startswith(folder + os.sep) else whole
        size, mtime_ns = state(whole)
        lines.append(json.dumps({"video": name, "reason": reason, "size": size, "mtime_ns": mtime_ns}) + "\n")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        part.write_text("".join(lines), "utf-8")
        part.replace(file)
    except OSError as e:
        raise ClipreelError(
            f"the quarantine list {file} cannot be written ({e.strerror}): name another with --quarantine"
        ) from e
    return len(before)


def others(file: Path, looked_at: Iterable[str | Path]) -> dict[str, str]:
    """What the list says of other files; nothing where it cannot be read, because it is written again."""
    try:
        found = read_quarantine(file)
    except ClipreelError:
        return {}
    known = {os.path.abspath(path) for path in looked_at}
    return {path: reason for path, reason in found.items() if path not in known}
