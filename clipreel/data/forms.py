"""The forms in which annotations were published: each reader takes the files of a split and gives its captions.

Specification core.md 4, clip_vip.md 4.2, mv_adapter.md. What comes out is always video ids in the order of the file
that lists them, each with its captions in file order; blank captions are left out. sets.yaml says which data set was
published in which form under which file names. The content is checked, and a file of another form is named as such.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipreel.data.pickled import read_plain
from clipreel.data.readers import Row, decoded, json_rows, rows_of, short
from clipreel.errors import ClipreelError

ENDING = re.compile(r"\.(3gp|[A-Za-z]\w{0,4})$")
LSMDC_COLUMNS = 6
LSMDC_LEFT_OUT = "1012_Unbreakable_00.05.16.065-00.05.21.941"  # by X-Pool


@dataclass
class Annotated:
    """Captions by video id. `names` are files as the annotations write them where that is not the id; `blank` are
    videos of which a caption was blank."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)

    def add(self, id: str, captions: Iterable[Any], where: str) -> None:
        kept = self.captions.setdefault(id, [])
        for caption in captions:
            if not isinstance(caption, str):
                raise ClipreelError(f"{where}: the caption of {id!r} is {short(caption)} and not a text")
            if caption.strip():
                kept.append(caption.strip())
            else:
                self.blank.append(id)


Reader = Callable[[list[Path]], Annotated]


# ---------------------------------------------------------------------- files


def text_of(file: Path) -> str:
    try:
        return decoded(file, file.read_bytes())
    except OSError as e:
        raise ClipreelError(f"{file} cannot be read ({e.strerror}); check the path and its rights") from e


def json_of(file: Path, kind: type, holds: str) -> Any:
    """The JSON of a file. ClipreelError where it is not a dict or list as promised."""
    try:
        found = json.loads(text_of(file))
    except (ValueError, RecursionError) as e:
        raise ClipreelError(f"{file} is not JSON ({e}); is it cut short?") from e
    if not isinstance(found, kind):
        words = {"dict": "an object", "list": "a list"}
        seen, wanted = (words.get(k.__name__, f"a {k.__name__}") for k in (type(found), kind))
        raise ClipreelError(f"{file} holds {seen}, and {wanted} is expected: {holds}; is it of another --form?")
    return found


def ids_of(file: Path) -> list[str]:
    """A list of ids: CSV with a column video_id, a JSON list, or one id a line. ClipreelError for one that is twice."""
    if file.suffix == ".json":
        found = [str(i) for i in json_of(file, list, "video ids")]
    elif file.suffix == ".csv":
        found = [cells["video_id"] for _, cells in table(file, ("video_id",))]
    else:
        found = [line.strip() for line in text_of(file).splitlines() if line.strip()]
    first: dict[str, int] = {}
    for number, id in enumerate(found, 1):
        if first.setdefault(id, number) != number:
            raise ClipreelError(f"{file}: the video {id!r} is there twice (entries {first[id]} and {number}); keep one")
    if not found:
        raise ClipreelError(f"{file} lists no videos; is it cut short?")
    return found


def table(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where and what: the rows of a CSV with a header. ClipreelError for missing columns or cells."""
    lines = csv.reader(io.StringIO(text_of(file), newline=""))
    try:
        names = [c.strip() for c in next(lines, [])]
        absent = [c for c in columns if c not in names]
        if absent:
            marks = {";": "semicolons", "\t": "tabs", "|": "pipes"}
            other = [word for mark, word in marks.items() if names and mark in names[0]]
            hint = f"it is separated by {other[0]}: write it with commas" if other else "is it of another --form?"
            raise ClipreelError(f"{file} has no column {absent[0]!r} (its header: {short(','.join(names))}); {hint}")
        for cells in lines:
            if not cells:
                continue
            where = f"{file}, line {lines.line_num}"
            if len(cells) != len(names):
                raise ClipreelError(f"{where} has {len(cells)} cells and the header {len(names)}; quote its captions")
            row = dict(zip(names, cells, strict=True))
            blank = next((c for c in columns if not row[c].strip() and c in ID_COLUMNS), None)
            if blank is not None:
                raise ClipreelError(f"{where}: the row has no video ({blank} is blank); take it out")
            yield where, row
    except csv.Error as e:
        raise ClipreelError(f"{file}, line {lines.line_num} is not readable as CSV ({e}); check its quotes") from e


ID_COLUMNS = ("video_id", "videoid")


def chosen(ids: Iterable[str], captions: Mapping[str, list[Any]], of: Path, listed: Path) -> Annotated:
    """The listed videos with their captions. ClipreelError for a video without any."""
    found = Annotated()
    for id in ids:
        if id not in captions:
            raise ClipreelError(
                f"{listed} lists the video {id!r}, and {of} has no caption of it; do they fit together?"
            )
        found.add(id, captions[id], str(of))
    return found


def grouped(rows: Any, id: str, text: str, file: Path, what: str) -> dict[str, list[str]]:
    """Captions by video of a list of objects."""
    if not isinstance(rows, list):
        raise ClipreelError(f"{file}: {what} is {short(rows)} and not a list; is it of another --form?")
    found: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        try:
            found.setdefault(row[id], []).append(row[text])
        except (KeyError, TypeError) as e:
            raise ClipreelError(f"{file}, {what} {number}: {short(row)} has no {id!r} and {text!r}") from e
    return found


# ---------------------------------------------------------------------- MSR-VTT


def msrvtt_captions(file: Path) -> dict[str, list[str]]:
    data = json_of(file, dict, "videos and sentences of MSR-VTT")
    return grouped(data.get("sentences"), "video_id", "caption", file, "sentences")


def msrvtt_list(files: list[Path]) -> Annotated:
    """A list of ids, and MSRVTT_data.json (CLIP4Clip, X-Pool)."""
    listed, data = files
    return chosen(ids_of(listed), msrvtt_captions(data), data, listed)


def msrvtt_official(split: str) -> Reader:
    """MSRVTT_data.json alone, whose videos name their split."""

    def read(files: list[Path]) -> Annotated:
        (file,) = files
        videos = json_of(file, dict, "videos and sentences of MSR-VTT").get("videos")
        belongs = grouped(videos, "video_id", "split", file, "videos")
        return chosen([i for i, s in belongs.items() if s[0] == split], msrvtt_captions(file), file, file)

    return read


def caption_table(files: list[Path]) -> Annotated:
    """MSRVTT_JSFUSION_test.csv: one row with one sentence a video."""
    found = Annotated()
    rows: dict[str, str] = {}
    for where, row in table(files[0], ("video_id", "sentence")):
        id = row["video_id"].strip()
        if rows.setdefault(id, where) != where:
            raise ClipreelError(f"{where}: the video {id!r} is there twice (the first: {rows[id]}); keep one")
        found.add(id, [row["sentence"]], where)
    return found


def frozen_msrvtt(files: list[Path]) -> Annotated:
    """A list of ids, MSR_VTT.json, and for 1k-A the number of the caption of each video, which is a pickle."""
    listed, data, *numbers = files
    rows = json_of(data, dict, "annotations of MSR-VTT").get("annotations")
    found = chosen(ids_of(listed), grouped(rows, "image_id", "caption", data, "annotations"), data, listed)
    if numbers:
        which = read_plain(numbers[0])
        for id, captions in found.captions.items():
            number = which.get(id)
            if not isinstance(number, int) or not 0 <= number < len(captions):
                raise ClipreelError(f"{numbers[0]}: {short(number)} is no number of a caption of {id!r}")
            found.captions[id] = [captions[number]]
    return found


# ---------------------------------------------------------------------- MSVD, LSMDC, DiDeMo, ActivityNet, VATEX, WebVid


def list_and_captions(files: list[Path]) -> Annotated:
    """A list of ids, and captions by id: captions_msvd.json of X-Pool, or raw-captions.pkl with split words."""
    listed, data = files
    pickled = data.suffix == ".pkl"
    captions = read_plain(data) if pickled else json_of(data, dict, "captions by video id")
    for id, texts in captions.items():
        if not isinstance(texts, list):
            raise ClipreelError(
                f"{data}: the captions of {id!r} are {short(texts)} and not a list of texts; get the file again, or "
                "give the --form that it is of"
            )
    if pickled:
        captions = {id: [t if isinstance(t, str) else joined(t, id, data) for t in c] for id, c in captions.items()}
    return chosen(ids_of(listed), captions, data, listed)


def joined(words: Any, id: str, file: Path) -> str:
    if not isinstance(words, (list, tuple)) or not all(isinstance(w, str) for w in words):
        raise ClipreelError(f"{file} is a pickle that is not captions: of {id!r} it holds {short(words)}; get it again")
    return " ".join(words)


def lsmdc(files: list[Path]) -> Annotated:
    """Six columns separated by tabs without a header: clip, four times, sentence. Every row is kept (CLIP4Clip)."""
    found = Annotated()
    (file,) = files
    for number, line in enumerate(text_of(file).split("\n"), 1):
        cells = line.rstrip("\r").split("\t")
        if cells == [""]:
            continue
        if len(cells) != LSMDC_COLUMNS:
            mark = max(",;|", key=line.count)
            hint = (
                f"; it seems to be separated by {mark!r}: write it with tabs"
                if len(cells) == 1 and line.count(mark) > 4
                else ""
            )
            raise ClipreelError(
                f"{file}, line {number} has {len(cells)} cells; LSMDC has {LSMDC_COLUMNS} separated by tabs, whatever "
                f"its name says{hint}"
            )
        id = cells[0].strip()
        if not id:
            raise ClipreelError(f"{file}, line {number}: the row has no video; take it out")
        found.add(id, [cells[5]], f"{file}, line {number}")
        found.names[id] = f"{id.split('.')[0][:-3]}/{id}.avi"  # the film, without the hour that begins behind it
    return found


def lsmdc_last(files: list[Path]) -> Annotated:
    """The same as X-Pool reads it: the last sentence of each clip, and one clip left out."""
    found = lsmdc(files)
    found.captions = {i: c[-1:] for i, c in found.captions.items() if i != LSMDC_LEFT_OUT}
    return found


def didemo(files: list[Path]) -> Annotated:
    """A list of file names, and a list of {video, description}: all descriptions, in file order."""
    listed, data = files
    rows = json_of(data, list, "{video, description}")
    names = {ENDING.sub("", n): n for n in ids_of(listed)}
    captions: dict[str, list[str]] = {}
    for name, texts in grouped(rows, "video", "description", data, "entry").items():
        captions.setdefault(ENDING.sub("", name), []).extend(texts)
    in_order = [id for id in captions if id in names]  # queries stand in the order of the descriptions
    found = chosen([*in_order, *(i for i in names if i not in captions)], captions, data, listed)
    found.names = names
    return found


def activitynet(files: list[Path]) -> Annotated:
    """A list of ids "v_...", and {id: {sentences}}; files are named without the v_."""
    listed, data = files
    rows = json_of(data, dict, "sentences by video id")
    captions = {}
    for id, row in rows.items():
        if not isinstance(row, dict) or not isinstance(row.get("sentences"), list):
            raise ClipreelError(f"{data}: {id!r} is {short(row)}; an object with a list of sentences is expected")
        captions[id] = row["sentences"]
    found = chosen(ids_of(listed), captions, data, listed)
    found.names = {id: id.removeprefix("v_") for id in found.captions}
    return found


def vatex(files: list[Path]) -> Annotated:
    """A list of {videoID, enCap}, and where the owner's split was halved also a list of ids before it."""
    *listed, data = files
    captions: dict[str, list[Any]] = {}
    for number, row in enumerate(json_of(data, list, "{videoID, enCap}"), 1):
        texts = row.get("enCap") if isinstance(row, dict) else None
        if not isinstance(texts, list) or not isinstance(row.get("videoID"), str):
            raise ClipreelError(f"{data}, entry {number}: {short(row)} has no videoID and list enCap")
        if row["videoID"] in captions:
            raise ClipreelError(f"{data}, entry {number}: the video {row['videoID']!r} is there twice; keep one")
        captions[row["videoID"]] = texts
    return chosen(ids_of(listed[0]) if listed else captions, captions, data, listed[0] if listed else data)


def webvid(files: list[Path]) -> Annotated:
    """CSV of videoid, name (the caption) and page_dir; videos lie at page_dir/videoid.mp4."""
    found = Annotated()
    for where, row in table(files[0], ("videoid", "name", "page_dir")):
        id = row["videoid"].strip()
        if id in found.names:
            raise ClipreelError(f"{where}: the video {id!r} is there twice; keep one")
        found.add(id, [row["name"]], where)
        found.names[id] = f"{row['page_dir']}/{id}.mp4"
    return found


# ---------------------------------------------------------------------- forms of one file


def rows_with(id: str, text: str, like: str) -> Reader:
    """JSON lines of a video and its caption or captions; a video may come in several rows."""

    def read(files: list[Path]) -> Annotated:
        (file,) = files
        return told(
            ((row, row.fields) for row in json_rows(file, text_of(file), f"{like}, a line each,")), id, text, like
        )

    return read


def json_list_with(id: str, text: str, like: str) -> Reader:
    """The same as one JSON list."""

    def read(files: list[Path]) -> Annotated:
        (file,) = files
        found = json_of(file, list, like)
        return told(((Row(f"{file}, entry {n}", {}), fields) for n, fields in enumerate(found, 1)), id, text, like)

    return read


def told(rows: Iterable[tuple[Row, Any]], id: str, text: str, like: str) -> Annotated:
    found = Annotated()
    for row, fields in rows:
        name = fields.get(id) if isinstance(fields, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise row.error(f"there is no video, {id!r} is {short(name)}; {like} is expected. Is it of another --form?")
        said = fields.get(text)
        if said is None:
            raise row.error(f"there is no {text!r} of the video {name!r}; {like} is expected")
        last = ENDING.sub("", name.strip().rsplit("/", 1)[-1])
        if found.names.setdefault(last, name.strip()) != name.strip():
            raise row.error(f"the videos {found.names[last]!r} and {name!r} have one id, {last!r}; rename one")
        found.add(last, said if isinstance(said, list) else [said], row.where)
    return found


def questions(files: list[Path]) -> Annotated:
    """Questions by video; `data.questions.read_questions` gives them with their answers."""
    found = Annotated()
    for row in rows_of(files[0]):
        name = row.fields.get("video") or row.fields.get("video_id")
        if not isinstance(name, str) or not isinstance(row.fields.get("question"), str):
            raise row.error("a question and the video_id it is about are expected")
        found.add(ENDING.sub("", name), [row.fields["question"]], row.where)
    return found


READERS: dict[str, Reader] = {
    "msrvtt list": msrvtt_list,
    "msrvtt train": msrvtt_official("train"),
    "msrvtt validate": msrvtt_official("validate"),
    "msrvtt test": msrvtt_official("test"),
    "caption table": caption_table,
    "frozen msrvtt": frozen_msrvtt,
    "list and captions": list_and_captions,
    "lsmdc": lsmdc,
    "lsmdc last": lsmdc_last,
    "didemo": didemo,
    "activitynet": activitynet,
    "vatex": vatex,
    "webvid": webvid,
    "clip_id": rows_with("clip_id", "text", '{"clip_id", "text"}'),
    "vid": json_list_with("vid", "caption", '[{"vid", "caption"}, ...]'),
    "clip_name": rows_with("clip_name", "caption", '{"clip_name", "caption"}'),
    "questions": questions,
}
