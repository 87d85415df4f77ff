"""The index: vectors and facts of videos in LanceDB, in a folder or at an object-store URI.

Tables: `facts` (key, value), `files` (one row a file, also skipped ones with the reason), `vectors` (whole videos and
segments). Vectors are written before their file's row, and only vectors of files with a row are ever read, so an
interruption at any point leaves nothing half-visible; the next run takes orphans out.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipreel.errors import ClipreelError
from clipreel.search.library import Known

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

SCHEMA = 1
LEVELS = ("video", "segment")


@dataclass(frozen=True)
class File:
    """A row of `files`. `reason` is empty for a file that was indexed."""

    id: str
    path: str
    size: int
    mtime_ns: int
    hash: str
    duration_s: float = 0.0
    width: int = 0
    height: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Moments:
    """Vectors in memory: `vectors` (N, E) float32 unit rows; `file`, `level`, `start_s`, `end_s` per row."""

    vectors: NDArray[np.float32]
    file: NDArray[np.int64]
    level: NDArray[np.int64]
    start_s: NDArray[np.float32]
    end_s: NDArray[np.float32]
    files: tuple[File, ...]


def default_place() -> str:
    from platformdirs import user_data_dir

    return os.path.join(user_data_dir("clipreel", appauthor=False), "index")


def text_of(path: str) -> str:
    """A path as valid text: undecodable bytes and control characters are written as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Index:
    """An index that exists, or is made by `create`."""

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self.local = "://" not in self.place
        if self.local and not os.path.isdir(self.place):
            raise ClipreelError(f"there is no index at {self.place}; make one with: clipreel index FOLDER")
        self.db = self._connect()
        names = set(self._names())
        if not {"facts", "files", "vectors"} <= names:
            raise ClipreelError(
                f"{self.place} is not a whole clipreel index (tables: {', '.join(sorted(names)) or 'none'}); "
                "give another --index, or delete that folder and index again"
            )
        self.facts: dict[str, Any] = self._guard(
            lambda: {r["key"]: json.loads(r["value"]) for r in self.db.open_table("facts").to_arrow().to_pylist()}
        )
        if self.facts.get("schema") != SCHEMA:
            raise ClipreelError(
                f"the index at {self.place} has schema {self.facts.get('schema')}, this version reads {SCHEMA}; "
                "index again into another folder"
            )
        self.files, self.vectors = (self._guard(lambda n=n: self.db.open_table(n)) for n in ("files", "vectors"))

    @classmethod
    def create(cls, place: str | Path, facts: dict[str, Any]) -> Index:
        """A new, empty index with these facts (space, model, embed_dim, segments); an existing one is opened."""
        import pyarrow as pa

        place = str(place)
        if "://" not in place:
            try:
                os.makedirs(place, exist_ok=True)
            except OSError as e:
                raise ClipreelError(f"no index can be made at {place} ({e.strerror}); give another --index") from e
        new = cls.__new__(cls)
        new.place, new.local = place, "://" not in place
        new.db = new._connect()
        have = set(new._names())
        if "facts" not in have and "vectors" not in have:
            new.db.create_table("files", schema=file_schema(), exist_ok=True)
            new.db.create_table("vectors", schema=vector_schema(facts["embed_dim"]), exist_ok=True)
            rows = [{"key": k, "value": json.dumps(v)} for k, v in {**facts, "schema": SCHEMA}.items()]
            schema = pa.schema([("key", pa.string()), ("value", pa.string())])
            new.db.create_table("facts", pa.Table.from_pylist(rows, schema), exist_ok=True)
        return cls(place)

    def _connect(self) -> Any:
        import lancedb

        return self._guard(lambda: lancedb.connect(self.place))

    def _names(self) -> list[str]:
        found = self._guard(lambda: self.db.list_tables())
        return list(getattr(found, "tables", found))

    def _guard(self, action: Any) -> Any:
        """Runs a store operation and turns its dozen exception types into one message with a next step."""
        try:
            return action()
        except ClipreelError:
            raise
        except Exception as e:
            text = str(e)
            if (isinstance(e, OSError) and e.errno == errno.ENOSPC) or "No space left" in text:
                raise ClipreelError(
                    f"the disk of the index at {self.place} is full; what was stored before is safe. "
                    "Make room and run the same command again, it goes on where it stopped"
                ) from e
            raise ClipreelError(
                f"the index at {self.place} cannot be read or written ({text.splitlines()[0][:160] if text else e!r}); "
                "if it is damaged, delete that folder and index again"
            ) from e

    # -------------------------------------------------------------- writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps a second writer out while the first lives; readers are not concerned. Local folders only."""
        if not self.local:
            yield
            return
        import fcntl

        with open(os.path.join(self.place, "writer.lock"), "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                lock.seek(0)
                raise ClipreelError(
                    f"another process ({lock.read().strip() or 'unknown'}) is writing the index at {self.place}; "
                    "wait for it. Searching works meanwhile"
                ) from e
            lock.truncate(0)
            lock.write(f"pid {os.getpid()}")
            lock.flush()
            yield

    def put(self, files: Sequence[File], rows: Sequence[dict[str, Any]]) -> None:
        """Store vectors, then the files they belong to; both replace what has the same id."""
        import pyarrow as pa

        def store() -> None:
            if rows:
                table = pa.Table.from_pylist(list(rows), self.vectors.schema)
                self.vectors.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(table)
            if files:
                listed = [{**vars(f), "path": f.path.encode("utf-8", "surrogateescape")} for f in files]
                table = pa.Table.from_pylist(listed, self.files.schema)
                self.files.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(table)

        self._guard(store)

    def remove(self, ids: Iterable[str]) -> None:
        """Forget files: their rows first, so that their vectors are no longer seen."""
        ids = list(ids)
        for start in range(0, len(ids), 500):
            quoted = ", ".join(f"'{i}'" for i in ids[start : start + 500])
            self._guard(lambda q=quoted: (self.files.delete(f"id IN ({q})"), self.vectors.delete(f"file IN ({q})")))

    def sweep(self) -> int:
        """Take out vectors whose file never got its row (an interrupted run); returns how many files that were."""
        listed = set(self._guard(lambda: self.files.to_arrow().column("id").to_pylist()))
        owners = self._guard(lambda: self.vectors.search().select(["file"]).limit(None).to_arrow())
        orphans = set(owners.column("file").unique().to_pylist()) - listed
        self.remove(orphans)
        return len(orphans)

    def tidy(self) -> None:
        """Merge the small pieces that buffered writes leave; versions younger than an hour stay for other readers."""
        for table in (self.files, self.vectors):
            self._guard(lambda t=table: t.optimize(cleanup_older_than=timedelta(hours=1)))

    # -------------------------------------------------------------- reading

    def list_files(self) -> list[File]:
        rows = self._guard(lambda: self.files.to_arrow().to_pylist())
        return [File(**{**r, "path": r["path"].decode("utf-8", "surrogateescape")}) for r in rows]

    def known(self, root: str) -> list[Known]:
        """What is remembered below a folder."""
        below = os.path.join(os.path.abspath(root), "")
        return [
            Known(f.id, f.path, f.size, f.mtime_ns, f.hash)
            for f in self.list_files()
            if f.path.startswith(below) or f.path == below.rstrip(os.sep)
        ]

    def moments(self) -> Moments:
        """Every visible vector, in a fixed order (path, level, start)."""
        files = sorted((f for f in self.list_files() if not f.reason), key=lambda f: f.path)
        number = {f.id: i for i, f in enumerate(files)}
        table = self._guard(lambda: self.vectors.to_arrow())
        owner = np.asarray([number.get(i, -1) for i in table.column("file").to_pylist()], np.int64)
        keep = np.flatnonzero(owner >= 0)
        flat = table.column("vector").combine_chunks()
        width = self.facts["embed_dim"]
        values = flat.flatten().to_numpy(zero_copy_only=False) if len(flat) else np.zeros(0, np.float32)
        vectors = values.reshape(-1, width)[keep].astype(np.float32)
        level, start, end = (table.column(c).to_numpy()[keep] for c in ("level", "start_s", "end_s"))
        order = np.lexsort((start, level, owner[keep]))
        return Moments(
            np.ascontiguousarray(vectors[order]),
            owner[keep][order],
            level[order],
            start[order],
            end[order],
            tuple(files),
        )

    def version(self) -> tuple[int, int]:
        """Changes when another process wrote."""
        for table in (self.files, self.vectors):
            self._guard(lambda t=table: t.checkout_latest())
        return self.files.version, self.vectors.version


def file_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.binary()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("hash", pa.string()),
            ("duration_s", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("reason", pa.string()),
        ]
    )


def vector_schema(width: int) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("file", pa.string()),
            ("level", pa.int8()),
            ("start_s", pa.float32()),
            ("end_s", pa.float32()),
            ("vector", pa.list_(pa.float32(), width)),
        ]
    )
