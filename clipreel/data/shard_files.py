"""Makes tar shards of captioned videos, and checks or indexes those that are there (tar_shards.py reads them).

Videos go in as they are. A shard is renamed into place before its line of the index is written, so a killed run goes on
with the same command. Checking reads every byte once and names what was lost; an index that is made while videos are
decoded leaves out those that give no frame.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import fsspec

from clipreel.data.sample import Sample
from clipreel.data.shards import sha256
from clipreel.data.tar_shards import (
    INDEX,
    MANIFEST,
    SCHEMA,
    TEXTS,
    VIDEOS,
    Contents,
    Damaged,
    ShardFile,
    Span,
    ending,
    get,
    joined,
    on_disk,
    parse,
    read_manifest,
    size_of,
    system,
    texts_of,
)
from clipreel.errors import ClipreelError
from clipreel.video.decode import probe
from clipreel.video.packets import DecodeError, check_file

BLOCK = tarfile.BLOCKSIZE
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
NAMED = 3  # of many samples that a problem names
Progress = Callable[[int, int], None]


@dataclass
class Made:
    """What a run did: shards made and kept from before, the samples in them, and (path, reason) of those left out."""

    made: int = 0
    kept: int = 0
    samples: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Checked:
    """What there is: shards, whole samples, samples known to be lost, and (shard or sample, reason) of all that is
    wrong. `indexed` says whether an index was written."""

    shards: int = 0
    samples: int = 0
    lost: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    indexed: bool = False


# ---------------------------------------------------------------------- making


def make_shards(
    samples: Sequence[Sample],
    folder: Path,
    *,
    per_shard: int = 256,
    generated: Mapping[str, str] | None = None,
    progress: Progress = lambda done, total: None,
) -> Made:
    """Write shards of `per_shard` samples each, in the order of the samples; `generated` are captions by id.

    Shards of the same samples are kept. Raises ClipreelError for a sample without a generated caption where others
    have one, and for a folder that holds other shards.
    """
    if per_shard < 1:
        raise ClipreelError(f"{per_shard} samples in a shard: give at least 1")
    absent = [] if generated is None else [s.id for s in samples if s.id not in generated]
    if absent:
        raise ClipreelError(
            f"the captions have none for {len(absent)} of {len(samples)} samples (the first: {absent[0]!r}); caption "
            "those too, or leave --captions out"
        )
    found = Made()
    good = []
    for s in samples:
        try:
            check_file(s.video)
            good.append(s)
        except DecodeError as e:
            found.skipped.append((str(s.video), e.reason))
    new_folder(folder)
    old = known_files(folder)
    parts = [good[i : i + per_shard] for i in range(0, len(good), per_shard)]
    names = [f"shard-{i:06d}.tar" for i in range(len(parts))]
    strange = sorted({p.name for p in folder.glob("*.tar")} - set(names))
    if strange:
        raise ClipreelError(f"{folder} holds {strange[0]}, which is none of these shards; name an empty --out folder")
    files = []
    for done, (name, part) in enumerate(zip(names, parts, strict=True), 1):
        identity = made_of(part, generated)
        before, path = old.get(name), folder / name
        if before and before.made_of == identity and path.is_file() and path.stat().st_size == before.bytes:
            files.append(before)
            found.kept += 1
        else:
            files.append(write_shard(path, part, generated, identity))
            found.made += 1
            write_manifest(folder, [*files, *(f for n, f in old.items() if n > name)])
        progress(done, len(parts))
    write_manifest(folder, files)
    found.samples = sum(f.samples for f in files)
    return found


def new_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ClipreelError(f"{folder} cannot be made ({e.strerror}); name another folder") from e


def known_files(folder: Path) -> dict[str, ShardFile]:
    """The shards of the index in a folder by name; none where there is no index."""
    return {f.name: f for f in read_manifest(str(folder))} if (folder / MANIFEST).exists() else {}


def made_of(samples: Sequence[Sample], generated: Mapping[str, str] | None) -> str:
    """Identity of what goes into a shard."""
    rows = []
    for s in samples:
        stat = s.video.stat()
        said = None if generated is None else generated[s.id]
        rows.append((s.id, s.video.name, stat.st_size, stat.st_mtime_ns, s.captions, s.start_s, s.end_s, said))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def write_shard(path: Path, samples: Sequence[Sample], generated: Mapping[str, str] | None, identity: str) -> ShardFile:
    part = path.with_name(f".{path.name}.part")
    ids, spans = [], []
    try:
        with part.open("wb") as out, tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for number, s in enumerate(samples):
                start = tar.offset
                said = {"id": s.id, "captions": s.captions, "start_s": s.start_s, "end_s": s.end_s}
                said["generated"] = None if generated is None else generated[s.id]
                text = json.dumps({k: v for k, v in said.items() if v is not None}, ensure_ascii=False).encode()
                add(tar, f"{number:06d}.json", text)
                add(tar, f"{number:06d}{s.video.suffix.lower()}", s.video.read_bytes())
                ids.append(s.id)
                spans.append((start, tar.offset))
        index = path.with_name(path.name + INDEX)
        put(index, Contents(tuple(ids), tuple(spans)).to_json())
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ClipreelError(
            f"writing {path} failed ({e.strerror}); the shards before it are safe: repair that, and the same command "
            "goes on from there"
        ) from e
    count = len(samples) if generated is not None else 0
    return ShardFile(path.name, path.stat().st_size, sha256(path), len(samples), count, made_of=identity)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member without time or owner, so that the same samples give the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def put(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)


def write_manifest(folder: Path, files: Sequence[ShardFile]) -> None:
    lines = [json.dumps({"clipreel_shards": SCHEMA}), *(json.dumps(asdict(f)) for f in files)]
    try:
        put(folder / MANIFEST, "".join(line + "\n" for line in lines))
    except OSError as e:
        raise ClipreelError(f"{folder / MANIFEST} cannot be written ({e.strerror}); name another folder") from e


# ---------------------------------------------------------------------- checking


def check_shards(
    place: str,
    *,
    index: Path | None = None,
    decode: bool = False,
    renew: bool = False,
    progress: Progress = lambda done, total: None,
) -> Checked:
    """Read every shard at a folder, a URL or a pattern (* or {000..012}), and say what is whole and what is lost.

    Where there is no index, one is written: beside the shards, or into the folder `index`, which then stands for them.
    `decode` decodes a frame of every video too, and an index that is written then leaves out videos without one;
    `renew` writes the index of what is there now. Raises ClipreelError where there are no shards.
    """
    home = str(index or place)
    there = not renew and size_of(joined(home, MANIFEST)) is not None
    before = {f.name: f for f in read_manifest(home)} if there else {}
    urls = [joined(home, name) for name in before] or tars(place)
    names = list(before) or [Path(u).name if index is None else u for u in urls]
    if not before and index is None and not Path(place).is_dir():
        raise ClipreelError(f"{place} has no index, and one cannot be written beside it; say --index FOLDER")
    if len({Path(n).name for n in names}) < len(names):
        raise ClipreelError(f"two shards of {place} have the same name in different folders; index them one by one")
    found, files = Checked(shards=len(urls)), []
    if not before:
        new_folder(Path(home))
    for done, (name, url) in enumerate(zip(names, urls, strict=True), 1):
        old = before.get(name)
        if old is not None and size_of(url) is None:
            found.lost += old.samples
            found.problems.append((url, f"is not there: all of its {old.samples} samples are lost"))
            continue
        file, contents, problems = scan(url, name)
        lost = file.lost
        if old is not None and old.sha256 == file.sha256:
            file, lost, problems = old, old.lost, list(old.problems)
            contents = Contents.from_json(get(joined(home, Path(name).name + INDEX)).decode())
        elif old is not None:
            lost = max(lost, old.samples - file.samples)
            cut = f"has {file.bytes} bytes and not {old.bytes}: {lost} of {old.samples} samples lost"
            problems.append(cut if old.bytes != file.bytes else "has other bytes than when it was indexed")
        found.problems += [(url, p) for p in problems]
        if decode:
            bad = undecodable(url, contents)
            found.problems += [(f"{url}/{contents.ids[row]}", reason) for row, (reason, _) in bad.items()]
            if old is None and bad:
                lost += len(bad)
                problems.append(f"{len(bad)} samples are left out, whose videos give no frame")
                file, contents = without(file, contents, bad)
        found.samples, found.lost = found.samples + file.samples, found.lost + lost
        if old is None:
            files.append(replace(file, problems=tuple(problems)))
            put(Path(home) / (Path(name).name + INDEX), contents.to_json())
        progress(done, len(urls))
    if files:
        write_manifest(Path(home), files)
        found.indexed = True
    return found


def tars(place: str) -> list[str]:
    """The tar files that a place means."""
    braces = BRACES.search(place)
    if braces:
        first, last = braces.groups()
        width = len(first)
        numbers = range(int(first), int(last) + 1)
        return [f"{place[: braces.start()]}{i:0{width}d}{place[braces.end() :]}" for i in numbers]
    fs, path = system(place)
    try:
        wanted = path if "*" in path or path.endswith(".tar") else f"{path.rstrip('/')}/*.tar"
        found = sorted(fs.glob(wanted))
    except (OSError, NotImplementedError) as e:
        raise ClipreelError(f"{place} cannot be listed ({e}); name its shards as {place}/NAME-{{000..012}}.tar") from e
    if not found:
        raise ClipreelError(f"there are no .tar files at {place}; make some: clipreel shards DATA --out {place}")
    return [str(fs.unstrip_protocol(p)) if "://" in place else str(p) for p in found]


class Counted(io.RawIOBase):
    """A file that is read once, front to back: how many bytes came, and their hash."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.count, self.digest = file, 0, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.count += len(data)
        self.digest.update(data)
        return data


def scan(url: str, name: str) -> tuple[ShardFile, Contents, list[str]]:
    """A shard read once from front to back: its line of the index, its whole samples, and what is wrong."""
    members: list[tuple[str, int, int, Any]] = []
    problems: list[str] = []
    try:
        with fsspec.open(url, "rb") as raw:
            file = Counted(raw)
            try:
                with tarfile.open(fileobj=file, mode="r|") as tar:
                    for m in tar:
                        end = m.offset_data + -(-m.size // BLOCK) * BLOCK
                        members.append((m.name, m.offset, end, None))
                        if ending(m.name) == "json":
                            inside = tar.extractfile(m)
                            members[-1] = (m.name, m.offset, end, inside.read() if inside else b"")
            except (tarfile.TarError, EOFError) as e:
                here = members[-1][2] if members else 0
                problems.append(f"cut or damaged: no tar from byte {here} on ({e}), so what came there is lost")
            while file.read(1 << 20):
                pass
    except (OSError, ImportError, ValueError) as e:
        raise ClipreelError(f"{url} cannot be read ({e}); check the address") from e
    whole_end = members[-1][2] if members else 0
    if not problems and get(url, whole_end, whole_end + BLOCK) != bytes(BLOCK):
        what = "cut: its end mark is missing" if file.count <= whole_end else f"damaged at byte {whole_end}"
        problems.append(f"{what}; what came after its {len(members)} members is lost, and how many is not known")
    ids, spans, generated = [], [], 0
    bad: list[str] = []
    for key, id, span, reason, has_generated in grouped(members, file.count):
        if reason:
            bad.append(f"{id if id else key!r} ({reason})")
        else:
            ids.append(id)
            spans.append(span)
            generated += has_generated
    if bad:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        problems.append(f"{len(bad)} samples are left out: {', '.join(bad[:NAMED])}{more}")
    line = ShardFile(name, file.count, file.digest.hexdigest(), len(ids), generated, len(bad))
    return line, Contents(tuple(ids), tuple(spans)), problems


def grouped(
    members: Sequence[tuple[str, int, int, Any]], size: int
) -> Iterator[tuple[str, str, Span, str | None, bool]]:
    """Samples of neighbouring members: name, id, bytes, why it cannot be used, and whether a caption was generated."""
    start = 0
    while start < len(members):
        key = stem(members[start][0])
        stop = start + 1
        while stop < len(members) and stem(members[stop][0]) == key:
            stop += 1
        group = members[start:stop]
        span = (group[0][1], group[-1][2])
        endings = {ending(m[0]) for m in group}
        id, reason, has = key, None, False
        if span[1] > size:
            reason = f"cut {span[1] - size} bytes before its end"
        elif not endings & set(VIDEOS):
            reason = "no video"
        elif not endings & set(TEXTS):
            reason = "no text"
        else:
            text = next((m[3] for m in group if m[3] is not None), None)
            try:
                said = {"caption": "in txt"} if text is None else json.loads(text)
                id, has = str(said.get("id", key)), bool(said.get("generated"))
                reason = None if texts_of(said) else "no caption"
            except (ValueError, AttributeError) as e:
                reason = f"its json is damaged: {e}"
        yield key, id, span, reason, has
        start = stop


def stem(name: str) -> str:
    """What the members of one sample share."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}" if folder else last.partition(".")[0]


def undecodable(url: str, contents: Contents) -> dict[int, tuple[str, bool]]:
    """The samples of a shard whose video gives no frame: why, by row, and whether one has a generated caption."""
    found = {}
    for row, (id, (start, end)) in enumerate(zip(contents.ids, contents.spans, strict=True)):
        said = False
        try:
            film = parse(get(url, start, end), id)
            said = bool(film.generated)
            with on_disk(film) as path:
                probe(path)
        except DecodeError as e:
            found[row] = e.reason, said
        except Damaged as e:
            found[row] = str(e), said
    return found


def without(file: ShardFile, contents: Contents, bad: Mapping[int, tuple[str, bool]]) -> tuple[ShardFile, Contents]:
    """The line and the samples of a shard without some rows."""
    kept = [row for row in range(len(contents.ids)) if row not in bad]
    rest = Contents(tuple(contents.ids[row] for row in kept), tuple(contents.spans[row] for row in kept))
    said = file.generated - sum(generated for _, generated in bad.values())
    return replace(file, samples=len(kept), generated=said, lost=file.lost + len(bad)), rest
