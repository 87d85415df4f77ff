"""Annotation files: three kinds that say the same, and one line on whatever is wrong with them."""

import csv
import gc
import json
import math
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreel.data.readers import csv_rows, read_samples
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError

ROWS = [
    {"video": "a.mp4", "caption": 'he says "hi", twice', "split": "train"},
    {"video": "a.mp4", "caption": "Grüße\u2028aus Köln", "split": "train"},
    {"video": "sub/b.mkv", "caption": "two\nlines", "start": 1.0, "end": 2.5, "split": "train"},
    {"video": "sub/b.mkv", "caption": "the end", "start": 2.5, "split": "val"},
    {"video": "00.05.16.065", "caption": "no ending", "id": "own", "split": "val"},
]


def test_the_collector_is_back_after_reading(tmp_path: Path) -> None:
    (tmp_path / "annotations.jsonl").write_text("{}\n")
    assert gc.isenabled()
    with pytest.raises(ClipreelError):
        read_samples(tmp_path)
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(ClipreelError):
            read_samples(tmp_path)
        assert not gc.isenabled()
    finally:
        gc.enable()


def write(folder: Path, kind: str, rows: list[dict] = ROWS) -> Path:
    path = folder / f"annotations.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif kind == "parquet":
        names = dict.fromkeys(n for r in rows for n in r)
        pq.write_table(pa.Table.from_pydict({n: [r.get(n) for r in rows] for n in names}), path)
    else:
        with open(path, "w", newline="", encoding="utf-8-sig") as f:
            names = list(dict.fromkeys(n for r in rows for n in r))
            table = csv.DictWriter(f, names, delimiter="\t" if kind == "tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return path


def film(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_samples(tmp_path: Path, kind: str) -> None:
    film(tmp_path, "a.mp4", "sub/b.mkv", "00.05.16.065")
    path = write(tmp_path, kind)
    expected = [
        Sample("a", tmp_path / "a.mp4", ('he says "hi", twice', "Grüße\u2028aus Köln")),
        Sample("sub/b@1-2.5", tmp_path / "sub/b.mkv", ("two\nlines",), 1.0, 2.5),
        Sample("sub/b@2.5-", tmp_path / "sub/b.mkv", ("the end",), 2.5),
        Sample("own", tmp_path / "00.05.16.065", ("no ending",)),
    ]
    assert read_samples(path) == expected
    assert read_samples(path, split="val") == expected[2:]
    if kind != "tsv":
        assert read_samples(tmp_path) == expected
    elsewhere = read_samples(path, tmp_path / "films", check_files=False)
    assert elsewhere[0].video == tmp_path / "films" / "a.mp4"


def test_the_shapes_world_reads_what_it_wrote(tmp_path: Path) -> None:
    written = ShapesWorld().write_videos(tmp_path, "train", count=3)
    assert read_samples(tmp_path / "annotations.jsonl") == read_samples(tmp_path) == written


def test_lists_of_captions(tmp_path: Path) -> None:
    film(tmp_path, "a.mp4", "b.mp4")
    path = tmp_path / "x.jsonl"
    path.write_text('\n{"video": "a.mp4", "captions": ["x", "y"], "more": 1}\r\n{"video": "b.mp4", "captions": "z"}')
    assert [s.captions for s in read_samples(path)] == [("x", "y"), ("z",)]
    path = tmp_path / "x.csv"
    path.write_text('video;captions\na.mp4;"[""x"", ""y""]"\nb.mp4;[not a list\n')
    assert [s.captions for s in read_samples(path)] == [("x", "y"), ("[not a list",)]


def test_encodings(tmp_path: Path) -> None:
    film(tmp_path, "a.mp4")
    line = '{"video": "a.mp4", "caption": "Gr\u00fc\u00dfe"}'
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line.encode())
    assert read_samples(path)[0].captions == ("Gr\u00fc\u00dfe",)
    for encoding, said in [
        ("utf-16", "is UTF-16 text, not UTF-8; repair: iconv -f UTF-16 "),
        ("utf-16-le", "iconv -f UTF-16LE "),
        ("utf-16-be", "iconv -f UTF-16BE "),
        ("latin-1", 'line 2: byte 0xfc is not UTF-8. If \'mp4", "caption": "Gr\u00fc\u00dfe"}\' reads right, repair: '),
    ]:
        path.write_bytes(("{}\n" + line).encode(encoding))
        with pytest.raises(ClipreelError) as e:
            read_samples(path)
        assert said in str(e.value)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("caption", "encoding", "said"),
    [
        (
            "he says \u201chi\u201d",
            "cp1252",
            "0x93 is not UTF-8. If 'a.mp4,he says \u201chi\u201d' reads right, repair: iconv -f W",
        ),
        ("\u3053\u3093", "shift-jis", "0x82 is not UTF-8. If 'a.mp4,\u201a\u00b1\u201a\u00f1' reads right, repair"),
        ("\u72ac\u3001\u732b", "shift-jis", "0x8c is not UTF-8; repair: iconv -f ENCODING -t UTF-8 "),
    ],
)
def test_a_guess_at_an_encoding_shows_what_it_reads(tmp_path: Path, caption: str, encoding: str, said: str) -> None:
    path = tmp_path / "x.csv"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + f"video,caption\na.mp4,{caption}\n".encode(encoding))
        with pytest.raises(ClipreelError) as e:
            read_samples(path)
        assert f"{path}, line 2: byte {said}" in str(e.value)


A = '{"video": "a.mp4", "caption": "x"}\n'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", A + "not json", "line 2 is not JSON"),
        ("a.jsonl", A + "[1]", "line 2 is not a JSON object but '[1]'; {\"video\": ...} is expected"),
        (
            "a.jsonl",
            A + '{"film": "a.mp4", "caption": "x"}',
            "line 2: there is no 'video'; found: film, caption. Name its",
        ),
        ("a.jsonl", '{"video": 3, "caption": "x"}', "the video 3 is not a file name; write its name, or take the"),
        ("a.jsonl", A + '{"video": "b.mp4", "text": "x"}', "line 2: the video has no caption (missing or blank)"),
        ("a.jsonl", '{"video": "a.mp4", "captions": []}', "line 1: the video has no caption"),
        ("a.jsonl", '{"video": "a.mp4", "caption": " "}', "line 1: the caption is blank"),
        ("a.jsonl", '{"video": "a.mp4", "captions": ["x", ""]}', "caption 2 of 2 is blank"),
        ("a.jsonl", '{"video": "a.mp4", "captions": {"a": 1}}', "is not a list of texts"),
        ("a.jsonl", '{"video": "a.mp4", "caption": 5}', "the caption is 5 and not a text"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "x", "captions": ["y"]}', "keep one of them"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "\\ud83d"}', "half of a character"),
        ("a.jsonl", A + '{"video": "none.mp4", "caption": "x"}', "line 2: there is no video"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "x", "start": 3, "end": 3}', "end 3 is not after start 3"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "x", "start": -1}', "start -1 is not a number of seconds"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "x", "end": "1:20"}', "end '1:20' is not a number of seconds"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "x", "end": NaN}', "end nan is not a number"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "x", "id": [1]}', "the id [1] is neither"),
        ("a.jsonl", '{"video": "a.mp4", "caption": "x", "split": ""}', "the split '' is not a name"),
        ("a.csv", "film,caption\na.mp4,x\n", "line 1: there is no column 'video'; found: film, caption"),
        ("a.csv", "video|caption\na.mp4|x\n", "found: video|caption; it is separated by '|': write it with commas"),
        ("a.csv", "video,text\na.mp4,x\n", "there is no column 'caption' or 'captions'; found: video, text"),
        ("a.csv", "video,caption,caption\na.mp4,x,y\n", "the column 'caption' is there twice"),
        ("a.csv", 'video,caption\na.mp4,"two\nlines"\na.mp4,one,two\n', "line 4 has 3 cells and the header 2"),
        ("a.csv", 'video,caption\na.mp4,"open\n', "not readable as CSV"),
        ("a.csv", "video,caption\na.mp4,\n", "line 2: the video has no caption"),
        ("a.csv", "video,caption\n", "holds no rows"),
        ("a.parquet", "PAR1", "is not readable as Parquet"),
        ("a.txt", "x", "annotations are .jsonl"),
    ],
)
def test_mistakes_are_one_line_that_says_where(tmp_path: Path, name: str, text: str, said: str) -> None:
    film(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(ClipreelError) as e:
        read_samples(tmp_path / name)
    assert said in str(e.value)
    assert str(e.value).startswith(str(tmp_path / name))
    assert "\n" not in str(e.value)


def rows(*given: dict) -> str:
    return "".join(json.dumps({"caption": "x", **r}) + "\n" for r in given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (rows({"video": "a.mp4", "id": "k"}, {"video": "b.mp4", "id": "k"}), "the id 'k' is taken by"),
        (rows({"video": "a.mp4", "id": "k"}, {"video": "a.mp4", "id": "k", "end": 1}), "the id 'k' is taken by"),
        (rows({"video": "a.mp4", "id": "k"}, {"video": "a.mp4", "id": "l"}), "has the id 'l' here and 'k' on"),
        (rows({"video": "a.mp4", "split": "t"}, {"video": "a.mp4", "split": "v"}), "split 'v' here and in 't' on"),
        (rows({"video": "a.mp4"}, {"video": "a.avi"}), "the id 'a' is taken by"),
    ],
)
def test_an_id_names_one_thing_in_one_split(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ClipreelError) as e:
        read_samples(tmp_path / "x.jsonl", check_files=False)
    assert "line 2: " in str(e.value)
    assert said in str(e.value)


def test_an_empty_split_says_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(rows({"video": "a.mp4", "split": "train"}, {"video": "b.mp4", "split": "train"}))
    with pytest.raises(ClipreelError, match=r"split 'test' is empty; the file has train \(2 rows\)"):
        read_samples(path, split="test", check_files=False)
    path.write_text(rows({"video": "a.mp4"}))
    with pytest.raises(ClipreelError, match="has no column 'split'"):
        read_samples(path, split="test", check_files=False)


def test_missing_videos_are_counted_and_only_those_of_the_split(tmp_path: Path) -> None:
    film(tmp_path, "a.mp4")
    path = tmp_path / "x.jsonl"
    path.write_text(rows(*({"video": f"{n}.mp4", "split": "v" if n == "a" else "t"} for n in "abc")))
    with pytest.raises(ClipreelError, match=r"line 2: there is no video .*b.mp4' \(2 of 3 are missing\)"):
        read_samples(path)
    assert len(read_samples(path, split="v")) == 1


def test_a_folder_holds_one_annotation_file(tmp_path: Path) -> None:
    with pytest.raises(ClipreelError, match="has none of them; name the file"):
        read_samples(tmp_path)
    for kind in ("jsonl", "csv"):
        write(tmp_path, kind)
    with pytest.raises(ClipreelError, match=r"has annotations.jsonl, annotations.csv; name the file"):
        read_samples(tmp_path)
    with pytest.raises(ClipreelError, match="there is no file"):
        read_samples(tmp_path / "none.csv")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1))
def test_any_caption_survives_csv(captions: list[str]) -> None:
    import io

    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(["video", "caption"])
    table.writerows(["a.mp4", c] for c in captions)
    found = list(csv_rows(Path("x.csv"), out.getvalue()))
    assert [r.fields.get("caption", "") for r in found] == [c if c.strip() else "" for c in captions]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ("video", "caption", "captions", "start", "end", "id", "split")
made_up = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, values)) | st.fixed_dictionaries(
    {"video": st.text(st.characters(), max_size=4), "caption": st.text(min_size=1, max_size=4)},
    optional=dict.fromkeys(FIELDS[3:], values),
)


def attempt(path: Path, check_files: bool) -> list[Sample] | str:
    """The samples, or what the user is told."""
    try:
        return read_samples(path, check_files=check_files)
    except ClipreelError as e:
        return str(e)


@settings(max_examples=300, deadline=None)
@given(st.lists(made_up, min_size=1, max_size=3), st.booleans())
def test_any_rows_give_samples_or_one_clear_line(rows: list[dict], check_files: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        found = attempt(path, check_files)
    if isinstance(found, str):
        assert found.isprintable()
        assert len(found) < 400
        return
    assert all(s.captions and all(c.strip() for c in s.captions) for s in found)
    assert len({s.id for s in found}) == len(found)
    assert all((s.end_s or math.inf) > (s.start_s or 0) >= 0 for s in found)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60),
    st.sampled_from([b"", b"video,caption\n", b'{"video": "a", "caption": "b"}\n']),
    st.sampled_from(["jsonl", "csv", "tsv", "parquet"]),
)
def test_any_bytes_give_samples_or_one_clear_line(raw: bytes, head: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.{kind}"
        path.write_bytes(head + raw)
        found = attempt(path, False)
    assert found if not isinstance(found, str) else found.isprintable()
