"""The files of a frame cache: shards of frames, and the manifest that says what lies where.

`shard-*.npy` is uint8 (frames, 3, size, size), readable with numpy alone. `manifest.jsonl` begins with the recipe of
the pixels and has one line per finished shard: its SHA-256 and its videos. A shard is renamed into place before its
line is appended, and a line counts once it ends, so a process may be killed anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.video.sampling import BY_INDEX, Sampling
from clipreel.video.transforms import Preprocess

SCHEMA = 1
MANIFEST, LOCK = "manifest.jsonl", "writer.lock"
KINDS = ("uniform", *BY_INDEX)
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class CacheRecipe:
    """How the frames of a cache were made: resized and cut to `size`, not normalised, `frames` of each video."""

    size: int
    resize: str
    geometry: str
    sampling: str
    frames: int

    @classmethod
    def of(cls, preprocess: Preprocess, sampling: Sampling) -> CacheRecipe:
        """ClipreelError for a sampling that draws at random or keeps a varying number of frames."""
        if sampling.kind not in KINDS:
            raise ClipreelError(
                f"a cache cannot hold frames of sampling {sampling.kind!r}: allowed are {', '.join(KINDS)}"
            )
        return cls(preprocess.size, preprocess.resize, preprocess.geometry, sampling.kind, sampling.frames)

    @property
    def video_bytes(self) -> int:
        return self.frames * 3 * self.size**2

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.frames} frames ({self.sampling}) of {self.size} pixels ({self.resize}, {self.geometry})"


@dataclass(frozen=True)
class Entry:
    """A video in a shard: its frames lie at first .. first + count; the rest says which file it was made of."""

    id: str
    source: str
    size: int
    mtime_ns: int
    start_s: float | None
    end_s: float | None
    first: int = 0
    count: int = 0

    def made_of(self, sample: Sample) -> bool:
        """Whether this is still that part of that file. A folder may move: the name counts, not the place.

        A file that is no longer there counts as unchanged: a cache is used without its videos.
        """
        here = (sample.video.name, sample.start_s, sample.end_s)
        found = stat_of(sample.video)
        same = found is None or (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)
        return same and here == (Path(self.source).name, self.start_s, self.end_s)


@dataclass(frozen=True)
class Shard:
    """One finished file of frames."""

    name: str
    bytes: int
    sha256: str
    frames: int
    videos: tuple[Entry, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Shard:
        return cls(**{**fields, "videos": tuple(Entry(**v) for v in fields["videos"])})

    def damage(self, folder: Path, hashed: bool = False) -> str | None:
        """What is wrong with the file; its hash is looked at only when asked."""
        path = folder / self.name
        try:
            size = path.stat().st_size
            if size != self.bytes:
                return f"{self.name} has {size} bytes and not {self.bytes}"
            return f"the hash of {self.name} is not the stored one" if hashed and sha256(path) != self.sha256 else None
        except OSError as e:
            return f"{self.name} cannot be read ({e.strerror})"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_manifest(folder: Path) -> tuple[CacheRecipe, list[Shard]]:
    """The recipe and the shards whose line is complete. Raises ClipreelError for what is no cache of this schema."""
    path = folder / MANIFEST
    try:
        *lines, _unfinished = path.read_bytes().split(b"\n")
        head, *rest = (json.loads(line) for line in lines)
        if head["clipreel_cache"] != SCHEMA:
            raise ClipreelError(
                f"{folder} is a frame cache of schema {head['clipreel_cache']} and this clipreel reads {SCHEMA}; "
                "make it again with clipreel prepare --renew"
            )
        return CacheRecipe(**head["recipe"]), [Shard.from_json(fields) for fields in rest]
    except FileNotFoundError as e:
        raise ClipreelError(
            f"there is no frame cache at {folder}; make it: clipreel prepare DATA --cache {folder}"
        ) from e
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ClipreelError(f"{path} is not a readable manifest ({e}); clipreel prepare --renew makes it again") from e


def stat_of(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def live(shards: list[Shard]) -> list[Shard]:
    """The shards that hold the newest frames of at least one video."""
    newest = {v.id: s.name for s in shards for v in s.videos}
    return [s for s in shards if s.name in newest.values()]


class Writer:
    """Collects frames in memory and writes them shard by shard."""

    def __init__(self, folder: Path, recipe: CacheRecipe, per_shard: int) -> None:
        self.folder, self.recipe, self.per_shard = folder, recipe, per_shard
        self.shards: list[Shard] = []
        self.waiting: list[tuple[Entry, Pixels]] = []

    def add(self, entry: Entry, pixels: Pixels) -> None:
        first = sum(len(p) for _, p in self.waiting)
        self.waiting.append((replace(entry, first=first, count=len(pixels)), pixels))
        if len(self.waiting) >= self.per_shard:
            self.seal()

    def seal(self) -> None:
        """Write what waits as a shard: first its file, then its line in the manifest."""
        if not self.waiting:
            return
        videos, self.waiting = self.waiting, []
        name = f"shard-{1 + max((int(s.name[6:-4]) for s in self.shards), default=-1):05d}.npy"
        frames = sum(len(p) for _, p in videos)
        header = io.BytesIO()
        shape = (frames, *videos[0][1].shape[1:])
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with self.atomic(name) as f:
            digest = hashlib.sha256()
            for piece in (header.getvalue(), *(p.tobytes() for _, p in videos)):
                digest.update(piece)
                f.write(piece)
            size = f.tell()
        shard = Shard(name, size, digest.hexdigest(), frames, tuple(e for e, _ in videos))
        with self.on_disk(self.folder / MANIFEST, "ab") as f:
            f.write(shard.to_json().encode() + b"\n")
        self.shards.append(shard)

    def keep(self, shards: list[Shard]) -> None:
        """Make a manifest of these shards alone, then remove every other file of frames."""
        head = {"clipreel_cache": SCHEMA, "fingerprint": self.recipe.fingerprint, "recipe": asdict(self.recipe)}
        with self.atomic(MANIFEST) as f:
            f.write("".join(line + "\n" for line in (json.dumps(head), *(s.to_json() for s in shards))).encode())
        self.shards = list(shards)
        named = {s.name for s in shards}
        for path in self.folder.glob("shard-*.npy*"):
            if path.name not in named:
                path.unlink()

    @contextmanager
    def atomic(self, name: str) -> Iterator[IO[bytes]]:
        """A file that appears whole or not at all."""
        part = self.folder / f"{name}.part"
        with self.on_disk(part, "wb") as f:
            yield f
        part.replace(self.folder / name)
        if hasattr(os, "O_DIRECTORY"):  # a rename survives a power cut only once its folder is on disk
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(handle)
            os.close(handle)

    @contextmanager
    def on_disk(self, path: Path, mode: str) -> Iterator[IO[bytes]]:
        """An open file whose bytes are on disk at the end; ClipreelError where they do not fit."""
        try:
            with open(path, mode) as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise ClipreelError(
                f"writing {path} failed ({e.strerror}); {len(self.shards)} finished shards are safe: make room, and "
                "the same command goes on from there"
            ) from e


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keeps a second writer out while the first lives, or lets it `wait`; readers are not concerned."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+")  # noqa: SIM115
    except OSError as e:
        raise ClipreelError(
            f"the frame cache cannot be written to {folder} ({e.strerror}); name another --cache"
        ) from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as e:
            raise ClipreelError(f"another process is writing the frame cache at {folder}; wait for it") from e
        yield
