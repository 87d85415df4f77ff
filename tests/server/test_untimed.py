"""Films in which no moment can be sought, as raw streams: they are read from the start, for pictures and for cuts."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import av
import pytest
from PIL import Image

from clipreel.exports.cut import cut_all
from clipreel.exports.lists import Place
from clipreel.exports.remake import remake
from clipreel.server.decoding import answer
from clipreel.video.packets import DecodeError, open_video
from tests.video.make import level, write


@pytest.fixture
def raw(tmp_path: Path) -> tuple[Path, float]:
    """A raw stream of 28 frames, and how many a second its reader takes it to have."""
    path = write(tmp_path / "raw.h264", frames=28, rate=2, container="h264", gop=4)
    container, stream = open_video(path)
    with container, pytest.raises(av.FFmpegError):
        container.seek(10, stream=stream)
    return path, float(stream.average_rate or stream.guessed_rate or 25)


def greys(data: bytes, pictures: int) -> list[int]:
    sheet = Image.open(io.BytesIO(data)).convert("L")
    each = sheet.width // pictures
    return [int(str(sheet.getpixel((each // 2 + each * n, sheet.height // 2)))) for n in range(pictures)]


def test_pictures_of_any_moment(raw: tuple[Path, float]) -> None:
    path, rate = raw
    for frame in (0, 1, 13, 27):
        said, data = answer({"task": "thumbnail", "path": str(path), "at_s": frame / rate, "width": 64}, b"")
        assert said["ok"], said
        assert abs(greys(data, 1)[0] - level(frame)) < 5
    asked = {"task": "strip", "path": str(path), "n": 2, "start_s": 0.0, "end_s": 28 / rate, "width": 64}
    said, data = answer(asked, b"")
    assert said["ok"], said
    for found, frame in zip(greys(data, 2), (7, 21), strict=True):
        assert abs(found - level(frame)) < 5


@pytest.mark.parametrize("how", ["encode", "copy"])
def test_a_moment_of_it_can_be_cut(raw: tuple[Path, float], tmp_path: Path, how: str) -> None:
    path, rate = raw
    out = tmp_path / "cuts.zip"
    place = Place(str(path), 8 / rate, 20 / rate, 28 / rate)
    assert cut_all([place], out, "copy" if how == "copy" else "encode") == []
    with zipfile.ZipFile(out) as archive:
        name, table = sorted(archive.namelist(), key=lambda n: n.endswith(".csv"))
        (row,) = csv.DictReader(io.StringIO(archive.read(table).decode()))
        with av.open(io.BytesIO(archive.read(name))) as container:
            shown = [f.to_ndarray(format="rgb24").mean() for f in container.decode(video=0)]
    assert row["how"] == "encoded, exact"
    assert float(row["starts_at_s"]) == pytest.approx(8 / rate, abs=0.01)
    assert [min(range(28), key=lambda n: abs(level(n) - x)) for x in shown] == list(range(8, 20))


def test_copying_it_is_refused_with_a_reason(raw: tuple[Path, float], tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="no keyframe in it can be found"):
        remake(raw[0], tmp_path / "out.mp4", "copy", start_s=0.1)


def test_what_cannot_be_decoded_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise av.error.PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("clipreel.server.decoding.open_video", refused)
    said, _ = answer({"task": "probe", "path": str(tmp_path / "a.mp4")}, b"")
    assert said["code"] == "corrupt"
    assert said["message"].startswith("it cannot be decoded (Operation not permitted); copy it again")
    assert "Error" not in said["message"]
    said, _ = answer({"task": "image", "pixels": 100}, b"no image")
    assert said["message"] == "no readable image; send PNG, JPEG or WebP"
