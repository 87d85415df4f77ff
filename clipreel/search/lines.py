"""What people gave an archive, as lines of JSON in a file beside its index: judged answers, asked texts.

An index can be made again and these cannot, so they live outside of it: `my-index.pairs.jsonl` stays when `my-index`
is deleted, migrated to another model, or put back. A file is replaced as a whole: a crash leaves the old or the new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipreel.errors import ClipreelError
from clipreel.search.index import Index

MOST_BYTES = 16 << 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Lines:
    """Rows of one kind of an index in a local folder."""

    folder: Path
    path: Path

    @classmethod
    def of(cls, index: Index, kind: str) -> Lines:
        """`PLACE.KIND.jsonl`. Raises ClipreelError for an index in an object store, which has no beside."""
        if not index.local:
            raise ClipreelError(f"the index at {index.place} is not on this machine, and nothing is kept beside it")
        folder = Path(os.path.abspath(index.place))
        return cls(folder, folder.with_name(f"{folder.name}.{kind}.jsonl"))

    def read(self) -> list[Row]:
        """All rows. Raises ClipreelError with the line that is none."""
        try:
            text = self.path.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        except OSError as e:
            raise ClipreelError(f"{self.path.name} beside the index cannot be read ({e.strerror})") from e
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise ClipreelError(
                        f"{self.path.name} beside the index, line {number}: no JSON object; mend or delete it"
                    )
                rows.append(row)
        return rows

    def change(self, edit: Callable[[list[Row]], list[Row]]) -> list[Row]:
        """Put what `edit` makes of the rows in their place, and return it; other processes wait for their turn."""
        import fcntl

        try:
            turn = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise ClipreelError(f"the index at {self.folder} is gone ({e.strerror}); mount its disk") from e
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
            rows = edit(self.read())
            self._write(rows)
        finally:
            os.close(turn)
        return rows

    def _write(self, rows: list[Row]) -> None:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")
        if len(data) > MOST_BYTES:
            raise ClipreelError(f"{self.path.name} would have {len(data)} bytes: at most {MOST_BYTES}; take rows out")
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            if not rows:
                self.path.unlink(missing_ok=True)
                return
            # for the user alone: it says what people looked for
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            part.replace(self.path)
        except OSError as e:
            part.unlink(missing_ok=True)
            raise ClipreelError(f"{self.path.name} cannot be written beside the index ({e.strerror})") from e
