"""Videos and their texts in tar files of a few hundred samples each, as WebDataset lays them out, here or at any URL.

A sample is a run of neighbouring members with one name: its video and its `json` (or `txt`). Beside the tars lies an
index: `shards.jsonl`, a line a shard, and `NAME.index.json` with the ids and the bytes of the samples of one, so that
any sample is one read of a range of bytes. shard_files.py makes and checks them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec

from clipreel.errors import ClipreelError

SCHEMA = 1
MANIFEST, INDEX = "shards.jsonl", ".index.json"
VIDEOS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "gif", "jpg", "jpeg", "png")
TEXTS = ("json", "txt")
WAITS_S = (1.0, 5.0, 30.0)  # before a read of a remote place is tried again
NEAR = 1 << 18  # a gap of so few bytes is read rather than left out
Span = tuple[int, int]


class Damaged(ClipreelError):
    """A sample that cannot be used, and why."""


@dataclass(frozen=True)
class Film:
    """A sample of a shard: the bytes of its video file with the ending of its name, its texts, and the part of it."""

    id: str
    video: bytes
    suffix: str
    captions: tuple[str, ...]
    generated: str | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class ShardFile:
    """A line of the index. `samples` are whole, `generated` of them have a generated caption; `lost` are known to be
    missing, and `problems` say what is wrong with the file; `made_of` identifies what it was made of here."""

    name: str
    bytes: int
    sha256: str
    samples: int
    generated: int = 0
    lost: int = 0
    problems: tuple[str, ...] = ()
    made_of: str = ""


@dataclass(frozen=True)
class Contents:
    """The samples of one shard in their order: ids, and which bytes of the tar each takes."""

    ids: tuple[str, ...]
    spans: tuple[Span, ...]

    def to_json(self) -> str:
        return json.dumps({"ids": self.ids, "spans": self.spans})

    @classmethod
    def from_json(cls, text: str) -> Contents:
        data = json.loads(text)
        return cls(tuple(data["ids"]), tuple((int(a), int(b)) for a, b in data["spans"]))


@dataclass
class Shards:
    """An indexed set of shards, read through fsspec. `problems` are (shard, what is missing of it).

    Shards that became shorter than their index keep the samples that are whole. Threads may share one.
    """

    place: str
    files: list[ShardFile]
    sizes: list[int]
    problems: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.contents = lru_cache(maxsize=256)(self._contents)
        self.counts = []
        for i, (file, size) in enumerate(zip(self.files, self.sizes, strict=True)):
            self.problems += [(self.url(i), p) for p in file.problems]
            count = file.samples
            if size < file.bytes:
                count = sum(end <= size for _, end in self._contents(i, whole=False).spans)
                gone = self._contents(i, whole=False).ids[count:]
                first = f", the first: {gone[0]!r}" if gone else ""
                self.problems.append(
                    (
                        self.url(i),
                        f"cut to {size} of {file.bytes} bytes: {len(gone)} of {file.samples} samples lost{first}",
                    )
                )
            self.counts.append(count)
        if not sum(self.counts):
            raise ClipreelError(
                f"{self.place}: {len(self.files)} shards hold no whole sample; clipreel shards says why"
            )

    @property
    def fingerprint(self) -> str:
        """Identity of what can be read."""
        facts = [(f.name, f.sha256, n) for f, n in zip(self.files, self.counts, strict=True)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def url(self, shard: int) -> str:
        return joined(self.place, self.files[shard].name)

    def _contents(self, shard: int, whole: bool = True) -> Contents:
        name = joined(self.place, Path(self.files[shard].name).name + INDEX)
        try:
            found = Contents.from_json(get(name).decode())
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ClipreelError(f"{name} cannot be read ({e}); make it again: clipreel shards {self.place}") from e
        n = self.counts[shard] if whole else len(found.ids)
        return Contents(found.ids[:n], found.spans[:n])

    def ids(self) -> list[str]:
        """All ids, shard by shard; reads every index file."""
        return [id for shard in range(len(self.files)) for id in self.contents(shard).ids]

    def read(self, shard: int, rows: Sequence[int]) -> list[bytes | Damaged]:
        """The bytes of some samples of a shard, ascending, neighbours in one read; those beyond its end are Damaged.

        Raises ClipreelError where the shard cannot be read at all.
        """
        found = self.contents(shard)
        runs: list[list[int]] = []
        for row in rows:
            if runs and found.spans[row][0] - found.spans[runs[-1][-1]][1] <= NEAR:
                runs[-1].append(row)
            else:
                runs.append([row])
        parts: list[bytes | Damaged] = []
        for run in runs:
            start, end = found.spans[run[0]][0], found.spans[run[-1]][1]
            try:
                data = get_again(self.url(shard), start, end)
            except Exception as e:  # the clients of remote places raise types of their own
                raise ClipreelError(
                    f"{self.url(shard)} cannot be read ({str(e)[:120] or type(e).__name__}); the same command goes on "
                    "from the last checkpoint when it can"
                ) from e
            for a, b in (found.spans[row] for row in run):
                piece = data[a - start : b - start]
                parts.append(piece if len(piece) == b - a else Damaged("the shard ends before it"))
        return parts


def open_shards(place: str | Path) -> Shards:
    """The shards whose index lies at a folder or URL. Raises ClipreelError that says how to make one."""
    place = str(place)
    files = read_manifest(place)
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(size_of, (joined(place, f.name) for f in files)))
    absent = [f.name for f, size in zip(files, sizes, strict=True) if size is None]
    if absent:
        raise ClipreelError(
            f"{len(absent)} of {len(files)} shards of {place} are not there (the first: {absent[0]}); copy them again, "
            "or index what is there: clipreel shards --renew"
        )
    return Shards(place, files, [int(size or 0) for size in sizes])


def read_manifest(place: str) -> list[ShardFile]:
    """The lines of the index at a folder or URL."""
    try:
        head, *rows = (json.loads(line) for line in get(joined(place, MANIFEST)).decode().splitlines())
        if head["clipreel_shards"] != SCHEMA:
            raise ClipreelError(
                f"{place} has an index of schema {head['clipreel_shards']}, this clipreel reads {SCHEMA}"
            )
        return [ShardFile(**{**row, "problems": tuple(row["problems"])}) for row in rows]
    except FileNotFoundError as e:
        raise ClipreelError(
            f"there is no {MANIFEST} at {place}; index the shards there: clipreel shards {place}"
        ) from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ClipreelError(f"{joined(place, MANIFEST)} is no index of shards ({e}); make it again") from e


@contextmanager
def on_disk(film: Film) -> Iterator[Path]:
    """Its video as a file for as long as it is read, because decoders seek."""
    with tempfile.NamedTemporaryFile(suffix=film.suffix) as f:
        f.write(film.video)
        f.flush()
        yield Path(f.name)


def parse(data: bytes, id: str) -> Film:
    """The sample in its bytes of a tar. Raises Damaged."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = {ending(m.name): tar.extractfile(m) for m in tar if m.isfile()}
            found = {e: f.read() for e, f in members.items() if f is not None}
    except (tarfile.TarError, EOFError, OSError) as e:
        raise Damaged(f"not readable as tar ({e})") from e
    suffix = next((e for e in VIDEOS if e in found), None)
    if suffix is None:
        raise Damaged("there is no video in it")
    try:
        said: Any = json.loads(found["json"]) if "json" in found else {"caption": found["txt"].decode().strip()}
        captions = texts_of(said)
        start_s, end_s = (None if said.get(k) is None else float(said[k]) for k in ("start_s", "end_s"))
    except KeyError as e:
        raise Damaged(f"there is no {e} in it") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise Damaged(f"its text is damaged ({e})") from e
    if not captions:
        raise Damaged("there is no caption in it")
    return Film(str(said.get("id", id)), found[suffix], f".{suffix}", captions, said.get("generated"), start_s, end_s)


def texts_of(said: Mapping[str, Any]) -> tuple[str, ...]:
    """The captions that the json of a sample holds, under the names that are common; blank ones do not count."""
    found = said.get("captions", said.get("caption", said.get("text")))
    several = found if isinstance(found, list) else [found]
    return tuple(t for t in several if isinstance(t, str) and t.strip())


def ending(name: str) -> str:
    """The part of a member's name behind its first dot, which says what it is."""
    return name.rsplit("/", 1)[-1].partition(".")[2].lower()


# ---------------------------------------------------------------------- files wherever they are


def joined(place: str, name: str) -> str:
    """A name below a folder or URL; whole URLs and absolute paths stay."""
    return name if "://" in name or os.path.isabs(name) else f"{place.rstrip('/')}/{name}"


def get(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """A file, or a range of its bytes. Raises OSError, or ClipreelError for a kind of URL that cannot be read here."""
    fs, path = system(url)
    return bytes(fs.cat_file(path, start=start, end=end))


def get_again(url: str, start: int, end: int) -> bytes:
    """The same, tried again after each of `WAITS_S` for what may pass."""
    for wait in WAITS_S:
        try:
            return get(url, start, end)
        except (FileNotFoundError, PermissionError, ClipreelError):
            break
        except Exception:
            time.sleep(wait)
    return get(url, start, end)


def size_of(url: str) -> int | None:
    """Bytes of a file, None where it is not there."""
    fs, path = system(url)
    try:
        return int(fs.info(path)["size"] or 0)
    except (FileNotFoundError, NotADirectoryError):
        return None


def system(url: str) -> tuple[Any, str]:
    """The file system of a URL or path, and the path in it."""
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as e:
        raise ClipreelError(f"{url} cannot be opened: {e}") from e
