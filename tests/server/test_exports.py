"""Hits as files: every format says the same moments."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import av
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from clipreel.errors import ClipreelError
from clipreel.exports.cut import cut_all
from clipreel.exports.lists import Place, known_rate, listed, timecode
from clipreel.exports.remake import remake
from clipreel.search.index import Index
from tests.server.conftest import API, Serve, code, ids
from tests.video.make import level, write

PLACES = [
    Place("/films/a & b.mp4", 1.0, 3.5, 60.0, 25.0, 1920, 1080, 0.31),
    Place("/films/=cmd.mp4", 3600.0, 3601.0, 4000.0, 25.0),
]


def test_csv_and_json() -> None:
    rows = list(csv.DictReader(io.StringIO(listed("csv", PLACES))))
    assert [r["start_s"] for r in rows] == ["1.000", "3600.000"]
    assert rows[1]["name"] == "'=cmd.mp4"  # no formula for a spreadsheet
    found = json.loads(listed("json", PLACES))
    assert found["version"] == 1
    assert [(h["source"], h["start_s"], h["end_s"]) for h in found["hits"]] == [
        ("/films/a & b.mp4", 1.0, 3.5),
        ("/films/=cmd.mp4", 3600.0, 3601.0),
    ]


def test_edl() -> None:
    lines = listed("edl", PLACES, "found").split("\r\n")
    assert lines[:2] == ["TITLE: found", "FCM: NON-DROP FRAME"]
    assert lines[3] == "001  AX       V     C        00:00:01:00 00:00:03:13 00:00:00:00 00:00:02:13"
    assert lines[4] == "* FROM CLIP NAME: a & b.mp4"
    assert lines[5] == "* TIME CODES COUNT 25 FRAMES A SECOND"
    assert lines[7] == "002  AX       V     C        01:00:00:00 01:00:01:00 00:00:02:13 00:00:03:13"
    assert "NOTE" not in "".join(lines)


def test_fcpxml() -> None:
    root = ElementTree.fromstring(listed("fcpxml", PLACES))
    assert [a.get("name") for a in root.iter("asset")] == ["a & b.mp4", "=cmd.mp4"]
    assert next(root.iter("media-rep")).get("src") == "file:///films/a%20%26%20b.mp4"
    cuts = list(root.iter("asset-clip"))
    assert [c.get("start") for c in cuts] == ["1s", "3600s"]
    assert cuts[0].get("duration") == "63/25s" or cuts[0].get("duration") == "62/25s"
    assert cuts[1].get("offset") == cuts[0].get("duration")
    assert next(root.iter("format")).get("frameDuration") == "1/25s"


MIXED = [
    Place("/films/ntsc.mp4", 1.0, 3.0, 60.0, 29.97, 1080, 1920),
    Place("/films/pal.mp4", 1.0, 2.0, 10.0, 25.0, 1920, 1080),
    Place("/films/pal.mp4", 9.5, 10.0, 10.0, 25.0, 1920, 1080),
    Place("/films/film.mp4", 18.5, 20.0, 20.0, 23.976),
]


def test_an_edl_says_its_rate_and_which_sources_have_another() -> None:
    events = listed("edl", MIXED).split("\r\n\r\n")[1:]
    assert events[0].endswith("* NOTE: THIS SOURCE HAS 29.97 FRAMES A SECOND, TIME CODES COUNT 25 FRAMES A SECOND")
    assert [("NOTE" in e) for e in events] == [True, False, False, True]
    assert "* NOTE: THIS SOURCE HAS 23.976 FRAMES A SECOND" in events[3]


def test_every_source_in_fcpxml_has_its_own_rate_and_size() -> None:
    root = ElementTree.fromstring(listed("fcpxml", MIXED))
    formats = {f.get("id"): f for f in root.iter("format")}
    assets = {a.get("name"): a for a in root.iter("asset")}
    known = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(known) == len(set(known)) == 1 + 2 * 3
    found = {name: formats[a.get("format")] for name, a in assets.items()}
    assert {name: f.get("frameDuration") for name, f in found.items()} == {
        "ntsc.mp4": "1001/30000s",
        "pal.mp4": "1/25s",
        "film.mp4": "1001/24000s",
    }
    sizes = {name: (f.get("width"), f.get("height")) for name, f in found.items()}
    assert sizes == {"ntsc.mp4": ("1080", "1920"), "pal.mp4": ("1920", "1080"), "film.mp4": (None, None)}
    (sequence,) = root.iter("sequence")
    assert formats[sequence.get("format")].get("frameDuration") == "1/25s"
    assert formats[sequence.get("format")].get("width") == "1920"
    end = Fraction(0)
    for cut, place in zip(root.iter("asset-clip"), MIXED, strict=True):
        offset, start, length = (Fraction(str(cut.get(n)).rstrip("s")) for n in ("offset", "start", "duration"))
        assert offset == end
        assert (length * 25).denominator == (start * known_rate(place.rate)).denominator == 1
        assert start == pytest.approx(place.start_s, abs=0.5 / place.rate)
        assert length == pytest.approx(place.end_s - place.start_s, abs=1 / 25 + 1 / place.rate)
        assert start + length <= Fraction(str(assets[cut.get("name")].get("duration")).rstrip("s"))
        end += length


def test_rates_are_those_that_editors_know() -> None:
    known = [known_rate(r) for r in (23.976, 29.97, 30.0, 25.0, 59.94, 0.0, float("nan"))]
    assert known == [Fraction(24000, 1001), Fraction(30000, 1001), 30, 25, Fraction(60000, 1001), 25, 25]
    assert timecode(30 * 3661 + 7, Fraction(30000, 1001)) == "01:01:01:07"


@given(st.text(max_size=40), st.floats(0, 80000), st.floats(0.04, 1000), st.sampled_from([23.976, 25.0, 29.97, 60.0]))
def test_any_name_and_time_gives_whole_files(name: str, start: float, length: float, rate: float) -> None:
    place = Place(f"folder/{name}", start, start + length, 100_000.0, rate)
    for format in ("csv", "json", "edl"):
        assert listed(format, [place])
    root = ElementTree.fromstring(listed("fcpxml", [place]))
    assert len(list(root.iter("asset-clip"))) == 1
    assert len(list(csv.reader(io.StringIO(listed("csv", [place]), newline="")))) == 2


def test_wrong_places_and_formats() -> None:
    with pytest.raises(ClipreelError, match="no moment"):
        Place("a", 2.0, 2.0, 10.0)
    with pytest.raises(ClipreelError, match="allowed are csv"):
        listed("avi", PLACES)
    with pytest.raises(ClipreelError, match="at least one"):
        listed("csv", [])
    with pytest.raises(ClipreelError, match="999"):
        listed("edl", PLACES * 500)


def frames(data: bytes) -> list[int]:
    with av.open(io.BytesIO(data)) as container:
        found = [f.to_ndarray(format="rgb24").mean() for f in container.decode(video=0)]
    return [min(range(30), key=lambda n: abs(level(n) - x)) for x in found]


@pytest.mark.parametrize(("how", "first", "start"), [("encode", 15, 1.25), ("copy", 12, 1.0)])
def test_cut_files_hold_the_moment(tmp_path: Path, how: str, first: int, start: float) -> None:
    video = write(tmp_path / "v.mp4", frames=30, gop=12)
    out = tmp_path / "cuts.zip"
    assert cut_all([Place(str(video), 1.25, 2.0, 2.5)], out, "copy" if how == "copy" else "encode") == []
    with zipfile.ZipFile(out) as archive:
        name, table = sorted(archive.namelist(), key=lambda n: n.endswith(".csv"))
        shown = frames(archive.read(name))
        row = next(csv.DictReader(io.StringIO(archive.read(table).decode())))
    assert shown == list(range(first, 24))
    assert float(row["starts_at_s"]) == pytest.approx(start, abs=0.01)
    assert row["how"].startswith("encoded, exact" if how == "encode" else "copied from the keyframe")


def test_what_cannot_be_cut_is_named(tmp_path: Path) -> None:
    video = write(tmp_path / "v.mp4", frames=12)
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    out = tmp_path / "cuts.zip"
    assert cut_all([Place(str(video), 0, 0.5, 1), Place(str(bad), 0, 1, 1)], out) == [(str(bad), "not-video")]
    with zipfile.ZipFile(out) as archive:
        assert "failed: not-video" in archive.read("cuts.csv").decode()
    with pytest.raises(ClipreelError, match="none of the 1"):
        cut_all([Place(str(bad), 0, 1, 1)], out)
    assert not out.exists()


def test_sound_stays_beside_the_picture(tmp_path: Path) -> None:
    """A film with sound, cut both ways: the sound lasts as long as the picture."""
    import numpy as np

    film = tmp_path / "film.mkv"
    with av.open(str(film), "w") as out:
        picture = out.add_stream("libx264", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        voice = out.add_stream("pcm_s16le", rate=8000)
        voice.layout = "mono"
        for n in range(40):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), n, np.uint8), format="rgb24")))
            sound = av.AudioFrame.from_ndarray(np.full((1, 800), 1000, np.int16), format="s16", layout="mono")
            sound.sample_rate, sound.pts = 8000, 800 * n
            out.mux(voice.encode(sound))
        out.mux(picture.encode(None))
        out.mux(voice.encode(None))
    for how in ("copy", "encode"):
        done = tmp_path / f"{how}.mp4"
        made = remake(film, done, "copy" if how == "copy" else "encode", start_s=0.0, end_s=2.0)
        with av.open(str(done)) as container:
            (heard,) = container.streams.audio
            assert heard.codec_context.name == "aac"
            seconds = sum(f.samples for f in container.decode(audio=0)) / 48_000
        assert made.duration_s == pytest.approx(2.0, abs=0.11)
        assert seconds == pytest.approx(2.0, abs=0.15)


def test_export_over_http(client: TestClient, archive: tuple[Path, str]) -> None:
    known = ids(client)
    hits = [{"video": known[n], "start_s": 0.5, "end_s": 1.5} for n in ("a.mp4", "c.avi")]
    for format, kind in (("csv", "text/csv"), ("json", "application/json"), ("edl", "text/plain")):
        answer = client.post(f"{API}/export", json={"format": format, "hits": hits})
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-disposition"] == f'attachment; filename="clipreel.{format}"'
        assert "c.avi" in answer.text
    xml = client.post(f"{API}/export", json={"format": "fcpxml", "hits": hits}).text
    assert next(ElementTree.fromstring(xml).iter("format")).get("frameDuration") == "1/12s"
    answer = client.post(f"{API}/export", json={"format": "mp4", "hits": hits})
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as cuts:
        shown = [frames(cuts.read(n)) for n in sorted(cuts.namelist()) if n.endswith(".mp4")]
    assert shown == [list(range(6, 18))] * 2
    assert Index(archive[1]).place == archive[1]


@pytest.mark.parametrize(
    ("hits", "expected"),
    [
        ([], (422, "invalid")),
        ([{"video": "none", "start_s": 0, "end_s": 1}], (404, "no-such-video")),
        ([{"video": "a.mp4", "start_s": 1, "end_s": 1}], (422, "no-moment")),
        ([{"video": "a.mp4", "start_s": 500, "end_s": 600}], (422, "no-moment")),
        ([{"video": "a.mp4", "start_s": 0, "end_s": 1}] * 51, (413, "too-large")),
    ],
)
def test_wrong_exports(client: TestClient, hits: list[dict], expected: tuple[int, str]) -> None:
    known = ids(client)
    sent = [{**h, "video": known.get(h["video"], h["video"])} for h in hits]
    assert code(client.post(f"{API}/export", json={"format": "mp4", "hits": sent})) == expected


def test_others_do_not_learn_where_files_lie(serve: Serve, archive: tuple[Path, str]) -> None:
    client = serve(archive[1], token="t", loopback=False)
    client.headers["authorization"] = "Bearer t"
    client.headers["host"] = "10.0.0.1"
    hits = [{"video": ids(client)["c.avi"], "start_s": 0.5, "end_s": 1.5}]
    for format in ("csv", "json", "edl", "fcpxml"):
        text = client.post(f"{API}/export", json={"format": format, "hits": hits}).text
        assert "c.avi" in text
        assert str(archive[0]) not in text
