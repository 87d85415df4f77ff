"""Captioned videos from JSON lines, CSV or Parquet, or one clear line on what is wrong with the file and where.

A row names a `video` and its `caption` or `captions`; `start` and `end` (seconds), `id`, `split` and `not` (see
misses.py) are optional, other columns are left alone. Rows of the same part of a video are one sample with several
captions.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipreel.data.many import all_kept
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.video.quarantine import read_quarantine

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
IN_A_FOLDER = ("annotations.jsonl", "annotations.csv", "annotations.parquet")
FILE_ENDING = re.compile(r"\.[A-Za-z]\w{0,4}$")  # names such as 00.05.16.065 have no ending
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
NEWLINE = b"\n"


@dataclass(frozen=True)
class Row:
    """One row as it was written, and the words that say where that is."""

    where: str
    fields: dict[str, Any]

    def error(self, problem: str) -> ClipreelError:
        return ClipreelError(f"{self.where}: {problem}")


@all_kept()
def read_samples(
    path: str | Path,
    videos: str | Path | None = None,
    *,
    split: str | None = None,
    check_files: bool = True,
    quarantine: str | Path | Literal[False] | None = None,
) -> list[Sample]:
    """The samples of an annotation file, in its order.

    `path` is a .jsonl, .csv, .tsv or .parquet file, or a folder with annotations.jsonl (or .csv, .parquet). Video paths
    count from `videos`, else from the folder of the file. Without an id a sample is named by its video as written,
    without the file ending, and by its part: "cats/7", "cats/7@2-5.5". `split` takes the rows of one split;
    `check_files` False leaves it to the reader of the videos to find that one is missing. Videos of the list
    `quarantine` (default: quarantine.jsonl beside the file; False: none) are left out.

    Raises ClipreelError with the line for a column that is missing, a blank caption, a video that is not there, an id
    that names two things, a video in two splits, an end before the start, a split without rows, and text that is not
    UTF-8.

    >>> from tempfile import mkdtemp
    >>> file = Path(mkdtemp()) / "pairs.csv"
    >>> _ = file.write_text("video,caption\\na.mp4,a dog runs\\na.mp4,a running dog\\n")
    >>> read_samples(file, check_files=False)[0].captions
    ('a dog runs', 'a running dog')
    """
    file = annotation_file(Path(path))
    folder = file.parent if videos is None else Path(videos)
    place = os.path.abspath(folder)
    rows = list(rows_of(file))
    if not rows:
        raise ClipreelError(f'{file} holds no rows; one per video is expected, as {{"video": ..., "captions": [...]}}')
    parts: dict[tuple[str, float | None, float | None], tuple[Row, Sample, str | None]] = {}
    owner: dict[str, Row] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        name, start_s, end_s = part_of(row)
        part = os.path.normpath(os.path.join(place, name)), start_s, end_s  # ./a.mp4 is a.mp4
        belongs = split_of(row)
        counts[belongs or ""] += 1
        sample = Sample(id_of(row, name, start_s, end_s), folder / name, captions_of(row), start_s, end_s)
        if part in parts:
            first, known, where = parts[part]
            check_same(row, first, sample.id, known.id, belongs, where)
            sample = Sample(known.id, known.video, known.captions + sample.captions, start_s, end_s)
            parts[part] = first, sample, where
            continue
        if sample.id in owner:
            raise row.error(f"the id {sample.id!r} is taken by {owner[sample.id].where}; give each video its own id")
        owner[sample.id] = row
        parts[part] = row, sample, belongs
    chosen = [(row, s) for row, s, belongs in parts.values() if split is None or belongs == split]
    if not chosen:
        raise no_rows_in(file, str(split), counts)
    chosen = usable(chosen, file.parent if quarantine is None else quarantine)
    if check_files:
        check_videos(chosen, folder)
    return [s for _, s in chosen]


def usable(chosen: list[tuple[Row, Sample]], quarantine: str | Path | Literal[False]) -> list[tuple[Row, Sample]]:
    """Those that no quarantine list names."""
    bad = read_quarantine(quarantine)
    kept = [(row, s) for row, s in chosen if not bad or os.path.abspath(s.video) not in bad]
    if not kept:
        raise ClipreelError(f"all {len(chosen)} videos are in the quarantine list at {quarantine}; repair some")
    return kept


def check_same(row: Row, first: Row, id: str, known: str, belongs: str | None, where: str | None) -> None:
    """Rows of one part of a video agree on its id, where this one states it, and on its split."""
    if id != known and "id" in row.fields:
        raise row.error(f"this part of the video has the id {id!r} here and {known!r} on {first.where}; keep one")
    if belongs != where:
        raise row.error(f"the video is in split {belongs!r} here and in {where!r} on {first.where}; keep one")


def no_rows_in(file: Path, split: str, counts: Counter[str]) -> ClipreelError:
    if set(counts) == {""}:
        return ClipreelError(f"{file} has no column 'split', so there is no split {split!r}; leave it out or add one")
    found = ", ".join(f"{name or '(none)'} ({n} rows)" for name, n in counts.most_common())
    return ClipreelError(f"{file}: split {split!r} is empty; the file has {found}")


def check_videos(chosen: list[tuple[Row, Sample]], folder: Path) -> None:
    missing = [(row, s.video) for row, s in chosen if not os.path.isfile(s.video)]
    if missing:
        row, video = missing[0]
        more = f" ({len(missing)} of {len(chosen)} are missing)" if len(missing) > 1 else ""
        raise row.error(f"there is no video {str(video)!r}{more}; names count from {folder}: is that the right folder?")


def annotation_file(path: Path) -> Path:
    """The file that a path means."""
    if path.is_dir():
        found = [path / name for name in IN_A_FOLDER if (path / name).is_file()]
        if len(found) != 1:
            seen = ", ".join(f.name for f in found) or "none of them"
            raise ClipreelError(f"{path} should hold one of {', '.join(IN_A_FOLDER)} and has {seen}; name the file")
        return found[0]
    if path.suffix.lower() not in SUFFIXES:
        raise ClipreelError(f"{path}: annotations are {', '.join(SUFFIXES)} files, or a folder with one")
    if not path.is_file():
        raise ClipreelError(f"there is no file {path}; check the path")
    return path


# ---------------------------------------------------------------------- three kinds of file


def rows_of(file: Path) -> Iterator[Row]:
    """Every row that is not blank."""
    kind = file.suffix.lower()
    if kind == ".parquet":
        return parquet_rows(file)
    try:
        text = decoded(file, file.read_bytes())
    except OSError as e:
        raise ClipreelError(f"{file} cannot be read ({e.strerror}); check its rights") from e
    return csv_rows(file, text) if kind in (".csv", ".tsv") else json_rows(file, text)


def decoded(file: Path, raw: bytes) -> str:
    """UTF-8 text, a byte order mark taken off; ClipreelError with the command that repairs another encoding."""
    if raw.startswith(UTF16_MARKS) or b"\0" in raw[:1000]:
        name = "UTF-16" if raw.startswith(UTF16_MARKS) else "UTF-16LE" if raw[1:2] == b"\0" else "UTF-16BE"
        raise ClipreelError(
            f"{file} is {name} text, not UTF-8; repair: iconv -f {name} -t UTF-8 {file} > new{file.suffix}"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        before, after = e.object[: e.start], e.object[e.start :]  # without the mark
        said = f"{file}, line {before.count(NEWLINE) + 1}: byte 0x{after[0]:02x} is not UTF-8"
        repair = f"iconv -f %s -t UTF-8 {file} > new{file.suffix}"
        try:
            raw.decode("cp1252")
        except UnicodeDecodeError:
            raise ClipreelError(f"{said}; repair: {repair % 'ENCODING'}, with the name of its own ENCODING") from e
        # Latin-1 is a part of it, and other encodings often pass for it, so the reader has to judge
        place = (before.split(NEWLINE)[-1][-20:] + after.split(NEWLINE)[0][:20]).decode("cp1252")
        raise ClipreelError(
            f"{said}. If {short(place.strip())} reads right, repair: {repair % 'WINDOWS-1252'}; else the same with the "
            "name of its own encoding"
        ) from e


def json_rows(file: Path, text: str, like: str = '{"video": ...}') -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut at U+2028 inside captions
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ClipreelError(f"{where} is not JSON ({e}); each line is one object") from e
        if not isinstance(fields, dict):
            raise ClipreelError(f"{where} is not a JSON object but {line.strip()[:40]!r}; {like} is expected")
        yield Row(where, fields)


def csv_rows(file: Path, text: str) -> Iterator[Row]:
    header = text.lstrip().split("\n", 1)[0]
    table = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    names: list[str] = []
    before = 0
    try:
        for cells in table:
            where, before = f"{file}, line {before + 1}", table.line_num
            if not any(c.strip() for c in cells):
                continue
            if not names:
                names = [c.strip() for c in cells]
                check_columns(names, Row(where, {}))
                continue
            if len(cells) != len(names):
                raise ClipreelError(
                    f"{where} has {len(cells)} cells and the header {len(names)}; quote captions that hold a separator"
                )
            yield Row(where, {n: c for n, c in zip(names, cells, strict=True) if c.strip()})
    except csv.Error as e:
        raise ClipreelError(f"{file}, line {before + 1} is not readable as CSV ({e}); check its quotes") from e


def parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as e:
        raise ClipreelError(f"{file} is not readable as Parquet ({str(e).splitlines()[0]}); write it again") from e
    check_columns(table.column_names, Row(str(file), {}))
    known = ("video", "caption", "captions", "start", "end", "id", "split", "not")
    wanted = [n for n in known if n in table.column_names]
    for number, fields in enumerate(table.select(wanted).to_pylist(), 1):
        yield Row(f"{file}, row {number}", {k: v for k, v in fields.items() if v is not None})


def check_columns(names: list[str], row: Row) -> None:
    found = listing(names)
    if "video" not in names:
        pipes = "; it is separated by '|': write it with commas" if len(names) == 1 and "|" in names[0] else ""
        raise row.error(f"there is no column 'video'; found: {found}{pipes}")
    if "caption" not in names and "captions" not in names:
        raise row.error(f"there is no column 'caption' or 'captions'; found: {found}")
    twice = [n for n, count in Counter(names).items() if count > 1]
    if twice:
        raise row.error(f"the column {twice[0]!r} is there twice; keep one")


# ---------------------------------------------------------------------- the fields of a row


def part_of(row: Row) -> tuple[str, float | None, float | None]:
    """The video as written, and start and end in seconds."""
    name = row.fields.get("video")
    if name is None:
        raise row.error(f"there is no 'video'; found: {listing(row.fields)}. Name its file, or take the row out")
    if not isinstance(name, str) or not name.strip() or "\0" in name or lone_surrogate(name):
        raise row.error(f"the video {short(name)} is not a file name; write its name, or take the row out")
    start_s, end_s = (second(row, key) for key in ("start", "end"))
    if end_s is not None and end_s <= (start_s or 0.0):
        raise row.error(f"end {end_s:g} is not after start {start_s or 0:g}; both are seconds from the beginning")
    return name.strip(), start_s, end_s


def second(row: Row, key: str) -> float | None:
    value = row.fields.get(key)
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise row.error(f"{key} {short(value)} is not a number of seconds from 0 on")
    return seconds


def id_of(row: Row, name: str, start_s: float | None, end_s: float | None) -> str:
    id = row.fields.get("id")
    if id is None:
        part = "" if start_s is None and end_s is None else f"@{start_s or 0:g}-{'' if end_s is None else f'{end_s:g}'}"
        return FILE_ENDING.sub("", name) + part
    if isinstance(id, bool) or not isinstance(id, str | int) or not str(id).strip():
        raise row.error(f"the id {short(id)} is neither a text nor a whole number")
    return str(id).strip()


def split_of(row: Row) -> str | None:
    split = row.fields.get("split")
    if split is not None and (not isinstance(split, str) or not split.strip()):
        raise row.error(f"the split {short(split)} is not a name such as train, val or test")
    return None if split is None else split.strip()


def captions_of(row: Row) -> tuple[str, ...]:
    """The captions of a row; a cell of `captions` may hold a JSON list."""
    one, many = row.fields.get("caption"), row.fields.get("captions")
    if one is not None and many is not None:
        raise row.error("there is a 'caption' and 'captions'; keep one of them")
    if isinstance(many, str):
        many = listed(many)
    captions = [one] if many is None else many
    if (one is None and not captions) or captions == [None]:
        raise row.error(f"the video has no caption (missing or blank); found: {listing(row.fields)}")
    if not isinstance(captions, list):
        raise row.error(f"captions {short(captions)} is not a list of texts")
    for number, caption in enumerate(captions, 1):
        which = "the caption" if len(captions) == 1 else f"caption {number} of {len(captions)}"
        if not isinstance(caption, str):
            raise row.error(f"{which} is {short(caption)} and not a text")
        if not caption.strip():
            raise row.error(f"{which} is blank; write it or take the row out")
        if lone_surrogate(caption):
            raise row.error(f"{which} holds half of a character (a lone surrogate); write it again")
    return tuple(captions)


def lone_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


def short(value: object) -> str:
    """A value on one line of a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def listing(names: Iterable[str]) -> str:
    """Names of columns, on one line."""
    return ", ".join(n if n.isprintable() else repr(n) for n in names) or "none"


def listed(cell: str) -> list[Any]:
    """The JSON list in a cell, else the cell as the only caption."""
    try:
        found = json.loads(cell) if cell.lstrip().startswith("[") else None
    except ValueError:
        found = None
    return found if isinstance(found, list) else [cell]
