"""Smaller copies: they show what the originals show, and no original goes before that was seen."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipreel.cli import main
from clipreel.data import shrink as module
from clipreel.data.cache import amount
from clipreel.data.readers import read_samples
from clipreel.data.shapes import ShapesWorld
from clipreel.video.decode import probe, read_frames
from clipreel.video.sampling import Sampling
from tests.video.make import write


@pytest.fixture
def films(tmp_path: Path) -> Path:
    ShapesWorld().write_videos(tmp_path / "films", "test", count=2)
    return tmp_path / "films"


def run(films: Path, into: Path, *more: str) -> int:
    return main(["prepare", str(films), "--shrink", "64", "--into", str(into), *more])


def test_copies_show_the_same_and_originals_stay_unless_asked(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(films / "late.mkv", frames=6, size=(200, 100), times=[0, 1, 2, 9, 10, 20])
    with open(films / "annotations.jsonl", "a") as f:
        f.write('{"video": "late.mkv", "captions": ["x", "y"], "end": 1.5, "id": "own"}\n')
    into = tmp_path / "small"
    before = read_samples(films)
    assert run(films, into) == 0
    said = capsys.readouterr()
    assert "made 3 smaller videos, kept 0: " in said.out
    originals = amount(sum(s.video.stat().st_size for s in before))
    assert re.search(
        rf"^3 videos to copy \({re.escape(originals)}\): about \S+ KiB to write, \S+ GiB free at ", said.err
    )
    assert [s.video.exists() for s in before] == [True] * 3
    after = read_samples(into)
    assert [(s.id, s.captions, s.end_s) for s in after] == [(s.id, s.captions, s.end_s) for s in before]
    old, new = probe(films / "late.mkv"), probe(into / "late.mp4")
    assert (new.width, new.height, new.frames, new.codec) == (128, 64, 6, "h264")
    assert new.duration_s == pytest.approx(old.duration_s, abs=0.1)
    for s, small in zip(before, after, strict=True):
        times = [read_frames(v, Sampling("uniform", 5)).times_s.tolist() for v in (s.video, small.video)]
        assert times[1] == pytest.approx(times[0], abs=0.02)
    assert run(films, into, "--drop-originals", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["made"], report["kept"], report["dropped"]) == (0, 3, 3)
    assert not any(s.video.exists() for s in before)
    assert run(films, into, "--json") == 0  # goes on where it was: there is nothing to do
    assert json.loads(capsys.readouterr().out)["kept"] == 3
    assert read_samples(into) == after


def test_a_copy_that_differs_is_refused_and_its_original_stays(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = module.encode

    def careless(video: Path, part: Path, side: int):
        looks, times = honest(video, part, side)
        return [255 - look for look in looks], times

    monkeypatch.setattr(module, "encode", careless)
    assert run(films, tmp_path / "small", "--drop-originals") == 2
    assert "a frame differs by" in capsys.readouterr().err
    assert all(s.video.exists() for s in read_samples(films))
    assert not list((tmp_path / "small").glob("*.mp4*"))

    def short(video: Path, part: Path, side: int):
        looks, times = honest(video, part, side)
        return [*looks, looks[-1]], [*times, 99.0]

    monkeypatch.setattr(module, "encode", short)
    assert run(films, tmp_path / "small", "--drop-originals") == 2
    assert "frames and the original" in capsys.readouterr().err
    assert all(s.video.exists() for s in read_samples(films))


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    big = write(films / "test-across-000a.mp4", frames=60, size=(320, 240))
    info, size = probe(big), big.stat().st_size
    wanted = min(size, round(info.width * info.height * (64 / 240) ** 2 * 60 * module.BITS / 8))
    assert module.expected({big: size}, 64) == wanted
    assert module.expected({big: size, tmp_path / "gone.mp4": 0}, 64) == wanted
    assert module.expected({}, 64) == 0
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1024))
    assert run(films, tmp_path / "small") == 2
    said = capsys.readouterr().err
    assert "2 copies need about " in said
    assert "and 1.0 KiB are free at " in said
    assert [p.name for p in (tmp_path / "small").iterdir()] == []
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2 * size))
    monkeypatch.setattr(module, "expected", lambda sizes, side: 100 * size)
    assert run(films, tmp_path / "small") == 2
    assert run(films, tmp_path / "small", "--drop-originals", "--workers", "1") == 0  # each one makes room


def test_a_damaged_original_is_left_alone(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write(films / "cut.mkv", frames=120, gop=5).read_bytes()
    (films / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    (films / "annotations.jsonl").write_text('{"video": "cut.mkv", "caption": "x"}\n')
    assert run(films, tmp_path / "small", "--drop-originals") == 2
    assert "the original is damaged" in capsys.readouterr().err
    assert (films / "cut.mkv").exists()


def test_wrong_use_is_one_line(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(films, tmp_path / "more")
    for arguments, said in [
        (["--shrink", "64"], "name a folder for the smaller videos"),
        (["--shrink", "63", "--into", str(tmp_path / "x")], "is an even number of at least 16"),
        (["--shrink", "64", "--into", str(films)], "holds the original"),
        (["--drop-originals"], "go with --shrink"),
        ([], "name a folder for the frames: --cache DIR"),
    ]:
        assert main(["prepare", str(films), *arguments]) == 2
        assert said in capsys.readouterr().err
