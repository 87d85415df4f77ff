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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipreel.errors import ClipreelError
from clipreel.search.library import Known

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from clipreel.search.answer import Answer
    from clipreel.search.ask import Asker

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

    @cached_property
    def firsts(self) -> NDArray[np.int64]:
        """The first row of each file that has any: rows are in order of file."""
        return np.flatnonzero(np.diff(self.file, prepend=-1))

    def best(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The highest of the rows' scores (N,) of each file (V,), -inf for a file without rows."""
        best = np.full(len(self.files), -np.inf, np.float32)
        if len(self.firsts):
            best[self.file[self.firsts]] = np.maximum.reduceat(scores, self.firsts)
        return best


def default_place() -> str:
    from platformdirs import user_data_dir

    return os.path.join(user_data_dir("clipreel", appauthor=False), "index")


def text_of(path: str) -> str:
    """A path as valid text: undecodable bytes and control characters are written as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class NoIndex(ClipreelError):
    """Nothing was made at a place yet, or making it was interrupted before anything was stored."""


class Index:
    """An index that exists, or is made by `create`."""

    def __init__(self, place: str | Path, db: Any = None) -> None:
        self.place, self.local = located(place)
        if self.local and not os.path.isdir(self.place):
            raise NoIndex(f"there is no index at {self.place}; make one with: clipreel index FOLDER")
        self.db = db or self._connect()
        names = set(self._names())
        if not names and (not self.local or not os.listdir(self.place)):
            raise NoIndex(
                f"there is no index at {self.place}; make one with: clipreel index FOLDER --index {self.place}"
            )
        if names and "facts" not in names and not self._rows(names):  # the facts are written last
            raise NoIndex(f"making the index at {self.place} was interrupted; run clipreel index FOLDER again")
        if not {"facts", "files", "vectors"} <= names:
            raise ClipreelError(
                f"{self.place} is not a whole clipreel index (tables: {', '.join(sorted(names)) or 'none'}); "
                "give another --index, or delete that folder and index again"
            )
        self._open()
        self.facts: dict[str, Any] = self.read_facts()
        if (schema := self.facts.get("schema")) != SCHEMA:
            newer = "a newer clipreel made it: update clipreel, or " if (schema or 0) > SCHEMA else ""
            raise ClipreelError(
                f"the index at {self.place} has schema {schema}, this version reads {SCHEMA}; "
                f"{newer}index again into another folder"
            )
        self._asker: Asker | None = None

    @classmethod
    def create(cls, place: str | Path, facts: dict[str, Any]) -> Index:
        """A new, empty index with these facts (space, model, embed_dim, segments); an existing one is opened."""
        import pyarrow as pa

        new = cls.__new__(cls)
        new.place, new.local = located(place)
        if new.local:
            try:
                os.makedirs(new.place, exist_ok=True)
            except OSError as e:
                raise ClipreelError(f"no index can be made at {new.place} ({e.strerror}); give another --index") from e
        new.db = new._connect()
        have = set(new._names())
        if "facts" not in have and not new._rows(have):
            for name, schema in (("files", file_schema()), ("vectors", vector_schema(facts["embed_dim"]))):
                mode = "overwrite" if name in have else "create"  # empty, of an interrupted `create`
                new.guard(lambda n=name, s=schema, m=mode: new.db.create_table(n, schema=s, mode=m))
            rows = pa.Table.from_pylist(fact_rows({**facts, "schema": SCHEMA}))
            new.guard(lambda: new.db.create_table("facts", rows, exist_ok=True))
        return cls(place, new.db)  # the same connection: memory:// lives in it

    def _connect(self) -> Any:
        import lancedb

        return self.guard(lambda: lancedb.connect(self.place))

    def _open(self) -> None:
        self._folder = self.guard(lambda: os.stat(self.place).st_ino) if self.local else 0
        names = ("facts", "files", "vectors")
        self._facts, self.files, self.vectors = (self.guard(lambda n=n: self.db.open_table(n)) for n in names)

    def _names(self) -> list[str]:
        found = self.guard(lambda: self.db.list_tables())
        return list(getattr(found, "tables", found))

    def _rows(self, names: Iterable[str]) -> int:
        """How much is stored in the tables of these names."""
        return sum(self.guard(lambda n=n: self.db.open_table(n).count_rows()) for n in names)

    def guard(self, action: Any) -> Any:
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
            repair = (
                "if it is damaged, delete that folder and index again"
                if self.local
                else "check the address, the credentials in the environment and the network"
            )
            raise ClipreelError(
                f"the index at {self.place} cannot be read or written ({text.splitlines()[0][:160] if text else e!r}); "
                f"{repair}"
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

        self.guard(store)

    def remove(self, ids: Iterable[str]) -> None:
        """Forget files: their rows first, so that their vectors are no longer seen."""
        ids = list(ids)
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            self.guard(lambda i=some: (self.files.delete(among(i, "id")), self.vectors.delete(among(i))))

    def sweep(self) -> int:
        """Take out vectors whose file never got its row (an interrupted run); returns how many files that were."""
        listed = set(self.guard(lambda: self.files.to_arrow().column("id").to_pylist()))
        owners = self.guard(lambda: self.vectors.search().select(["file"]).limit(None).to_arrow())
        orphans = set(owners.column("file").unique().to_pylist()) - listed
        self.remove(orphans)
        return len(orphans)

    def set_facts(self, **facts: Any) -> None:
        """Remember facts beside those of `create`; None takes one out."""
        import pyarrow as pa

        gone = [k for k, v in facts.items() if v is None and k in self.facts]
        kept = {k: v for k, v in facts.items() if v is not None}
        if kept:
            rows = pa.Table.from_pylist(fact_rows(kept))
            merge = self._facts.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
            self.guard(lambda: merge.execute(rows))
        for key in gone:
            self.guard(lambda k=key: self._facts.delete(f"key = '{k}'"))
        self.facts = {k: v for k, v in {**self.facts, **facts}.items() if v is not None}

    def replace_table(self, name: str, rows: pa.Table) -> None:
        """Store a table beside those of the index, in place of the one of that name."""
        mode = "overwrite" if name in self._names() else "create"
        self.guard(lambda: self.db.create_table(name, rows, mode=mode))

    def tidy(self) -> None:
        """Merge the small pieces that buffered writes leave; versions younger than an hour stay for other readers."""
        for table in (self.files, self.vectors):
            self.guard(lambda t=table: t.optimize(cleanup_older_than=timedelta(hours=1)))

    # -------------------------------------------------------------- reading

    def search(self, text: str = "", *, device: str = "auto", **request: Any) -> Answer:
        """What `text` and the other fields of a `Request` ask (k, images, like, minus, filters, rank ...).

        The model of the index is loaded on the first call. Raises ClipreelError for what cannot be asked.

        `clipreel.Index("my-index").search("a red circle", k=3)`
        """
        from clipreel.search.answer import Request
        from clipreel.search.ask import Asker
        from clipreel.search.loading import model_of

        if self._asker is None:
            self._asker = Asker(self, model_of(self, device))
        return self._asker.answer(Request(text, **request))

    def read_facts(self) -> dict[str, Any]:
        rows = self.guard(lambda: self._facts.to_arrow().to_pylist())
        return {r["key"]: json.loads(r["value"]) for r in rows}

    def list_files(self) -> list[File]:
        table = self.guard(lambda: self.files.to_arrow())
        columns = {n: table.column(n).to_pylist() for n in table.column_names}
        columns["path"] = [p.decode("utf-8", "surrogateescape") for p in columns["path"]]
        names = [f.name for f in fields(File)]
        return [File(*row) for row in zip(*(columns[n] for n in names), strict=True)]

    def visible(self) -> list[File]:
        """The files whose vectors may be seen, in order of path."""
        return sorted((f for f in self.list_files() if not f.reason), key=lambda f: f.path)

    def known(self, root: str) -> list[Known]:
        """What is remembered below a folder."""
        below = os.path.join(os.path.abspath(root), "")
        return [
            Known(f.id, f.path, f.size, f.mtime_ns, f.hash)
            for f in self.list_files()
            if f.path.startswith(below) or f.path == below.rstrip(os.sep)
        ]

    def rows(self, where: str) -> pa.Table:
        """Stored vectors that satisfy a condition, with all columns."""
        return self.guard(lambda: self.vectors.search().where(where).limit(None).to_arrow())

    def moments(self) -> Moments:
        """Every visible vector."""
        return arranged(self.guard(lambda: self.vectors.to_arrow()), self.visible())

    def version(self) -> tuple[int, ...]:
        """Changes when another process wrote, or put another index here; the facts are read again."""
        if self.replaced:
            self.db = self._connect()
            self._open()
        tables = (self._facts, self.files, self.vectors)
        for table in tables:
            self.guard(lambda t=table: t.checkout_latest())
        self.facts = self.read_facts()
        return (self._folder, *(t.version for t in tables))

    @property
    def replaced(self) -> bool:
        """Whether another index has taken the place of this one (migrate.py); not while nothing is there."""
        with suppress(OSError):
            return self.local and os.stat(self.place).st_ino != self._folder
        return False


def arranged(table: pa.Table, files: Sequence[File], number: dict[str, int] | None = None) -> Moments:
    """Rows of `vectors` in a fixed order (file as listed, level, start); those of other files are left out.

    `number` is the place of each file's id in `files`, where it is known already.
    """
    owner = owners(table, number if number is not None else {f.id: i for i, f in enumerate(files)})
    keep = np.flatnonzero(owner >= 0)
    level, start, end = (table.column(c).to_numpy()[keep] for c in ("level", "start_s", "end_s"))
    order = np.lexsort((start, level, owner[keep]))
    rows = keep[order]
    vectors = np.ascontiguousarray(vectors_in(table)[rows], np.float32)
    return Moments(vectors, owner[rows], level[order], start[order], end[order], tuple(files))


def owners(table: pa.Table, number: dict[str, int]) -> NDArray[np.int64]:
    """The place of each row's file, -1 for a file that is not listed."""
    return np.asarray([number.get(i, -1) for i in table.column("file").to_pylist()], np.int64)


def vectors_in(table: pa.Table | pa.RecordBatch) -> NDArray[np.float32]:
    """The column of vectors as an array (N, E)."""
    flat = table.column("vector")
    if hasattr(flat, "combine_chunks"):
        flat = flat.combine_chunks()
    return flat.flatten().to_numpy(zero_copy_only=False).reshape(len(flat), flat.type.list_size)


def located(place: str | Path) -> tuple[str, bool]:
    """Where an index is: a folder (True; also written file://) or an object-store URI (False)."""
    place = str(place).removeprefix("file://")
    return place, "://" not in place


def among(ids: Iterable[str], column: str = "file", without: bool = False) -> str:
    """The condition that a column holds one of the ids (or none of them)."""
    quoted = ", ".join(f"'{i}'" for i in ids) or "''"
    return f"{column} {'NOT ' if without else ''}IN ({quoted})"


def fact_rows(facts: dict[str, Any]) -> list[dict[str, str]]:
    return [{"key": k, "value": json.dumps(v)} for k, v in facts.items()]


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

    text, number = pa.string(), pa.float32()
    columns = [("id", text), ("file", text), ("level", pa.int8()), ("start_s", number), ("end_s", number)]
    return pa.schema([*columns, ("vector", pa.list_(number, width))])
