"""The check-up of a data set: what is wrong with files and captions, the list that commands heed, and the forecast."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from clipreel.cli import main
from clipreel.data.doctor import (
    Checkup,
    Finding,
    Seen,
    caption_problems,
    costs,
    look_at,
    problems,
    read_log,
    same,
)
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.data.sets import Part
from clipreel.data.shapes import ShapesWorld
from clipreel.data.sources import notes
from clipreel.errors import ClipreelError
from clipreel.video.quarantine import read_quarantine, write_quarantine
from tests.data import published
from tests.video.make import write, write_audio


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """A folder with one file of every kind that can be made here."""
    folder = tmp_path / "ward"
    ShapesWorld().write_videos(folder, "test", 2)
    write(folder / "good.mp4", frames=24)
    shutil.copy(folder / "good.mp4", folder / "twin.mp4")
    write(folder / "cousin.mkv", frames=24, codec="mpeg4")
    write(folder / "one.mp4", frames=1)
    write(folder / "late.mp4", frames=6, times=[0, 1, 2, 9, 10, 20])
    write_audio(folder / "sound.m4a")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no film")
    whole = write(folder / "cut.mkv", frames=120, gop=5).read_bytes()
    (folder / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    names = [
        "good.mp4",
        "twin.mp4",
        "cousin.mkv",
        "one.mp4",
        "late.mp4",
        "sound.m4a",
        "empty.mp4",
        "text.mp4",
        "cut.mkv",
    ]
    rows = [{"video": n, "caption": f"a film, {n}"} for n in [*names, "gone.mp4"]]
    with open(folder / "annotations.jsonl", "a") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)
    return folder


EXPECTED = {
    "gone.mp4": {"missing"},
    "sound.m4a": {"broken"},
    "empty.mp4": {"broken"},
    "text.mp4": {"broken"},
    "cut.mkv": {"truncated"},
    "one.mp4": {"one frame"},
    "late.mp4": {"variable rate"},
    "twin.mp4": {"same file"},
    "cousin.mkv": {"same pictures"},
}


def test_every_illness_is_found_and_nothing_else(ward: Path, tmp_path: Path) -> None:
    paths = [s.video for s in read_samples(ward, check_files=False)]
    seen = look_at(paths, tmp_path / "out" / "seen.jsonl")
    found: dict[str, set[str]] = {}
    for f in problems(seen):
        found.setdefault(f.name, set()).add(f.kind)
    assert found == EXPECTED
    assert seen[str(ward / "good.mp4")].frames == 24
    listed = Checkup(seen, problems(seen)).quarantine(("missing", "broken"))
    assert [p.name for p, _ in listed] == ["sound.m4a", "empty.mp4", "text.mp4", "gone.mp4"]
    assert dict(listed)[ward / "empty.mp4"] == "broken: empty"


def test_a_film_that_is_cut_off_is_to_be_copied_again(tmp_path: Path) -> None:
    film = write(tmp_path / "a.mp4", frames=6)
    film.write_bytes(film.read_bytes()[:200])
    (found,) = problems(look_at([film], tmp_path / "seen.jsonl"))
    assert (found.kind, found.says.split(" ")[0]) == ("broken", "incomplete")
    assert "copy it again" in found.says


def test_a_second_run_looks_only_at_what_changed(ward: Path, tmp_path: Path) -> None:
    log = tmp_path / "seen.jsonl"
    paths = [ward / "good.mp4", ward / "one.mp4", ward / "text.mp4"]
    first = look_at(paths[:2], log)
    with open(log, "a") as f:
        f.write('{"path": "cut sho')  # the run was killed here
    done: list[tuple[int, int]] = []
    second = look_at(paths, log, progress=lambda n, total: done.append((n, total)))
    assert done == [(1, 1)]
    assert second[str(paths[0])] == first[str(paths[0])]
    assert second[str(paths[2])].reason == "not-video"
    write(ward / "text.mp4", frames=3)
    assert look_at(paths, log)[str(paths[2])].frames == 3
    assert len(list(read_log(log))) >= 3


def test_what_shows_the_same_needs_the_same_length_and_something_to_see() -> None:
    import base64

    import numpy as np

    def seen(name: str, value: int, seconds: float, flat: bool = False) -> Seen:
        grey = np.full(512, value, np.uint8)
        if not flat:
            grey[::2] += 40
        return Seen(name, 1, 1, duration_s=seconds, frames=9, mark=name, look=base64.b64encode(grey.tobytes()).decode())

    pair = [seen("a", 50, 10.0), seen("b", 51, 10.05)]
    assert [(f.kind, f.name, f.says) for f in same(pair)] == [("same pictures", "b", "as a")]
    assert not list(same([pair[0], seen("b", 51, 12.0)]))
    assert not list(same([pair[0], seen("b", 60, 10.0)]))
    assert not list(same([seen("a", 50, 10.0, True), seen("b", 50, 10.0, True)]))
    twins = [replace(pair[0], mark="m"), replace(pair[1], mark="m")]
    assert [f.kind for f in same(twins)] == ["same file"]
    assert [f.kind for f in same(twins, {"a": "train", "b": "train"})] == ["same file"]
    for found, kind in ((twins, "same file"), (pair, "same pictures")):
        split = list(same(found, {"a": "train", "b": "test"}))
        assert [f.kind for f in split] == [kind, "in two splits"]
        assert split[1].says == f"{kind} in test as a in train"


def test_captions_are_looked_at() -> None:
    samples = [
        Sample("a", Path("a"), ("A man  runs", "a man runs")),
        Sample("b", Path("b"), ("a man runs",)),
        Sample("c", Path("c"), ("one two three four",)),
    ]
    parts = {"test": Part("x", samples, "all", 3, blank=["c"])}
    assert caption_problems(parts, 6) == [
        Finding("caption repeated", "a man runs", "test: a, b"),
        Finding("caption blank", "c", "test"),
    ]
    long = caption_problems(parts, 5, lambda caption: 2 + len(caption.split()))[-1]
    assert long == Finding("caption too long", "c", "test: 6 tokens, 5 are read")
    twice = {"train": Part("x", [Sample("a", Path("a"), ("A man", "a man", "A man"))], "all", 1)}
    assert caption_problems(twice, 6) == [Finding("caption doubled", "A man", "train: a")]
    assert notes(twice) == ["x: 1 captions stand again with the same video, the first with a"]
    assert notes(parts) == ["x: 1 blank captions are left out, the first is of c"]


def test_the_forecast_is_what_the_measurements_multiply_to() -> None:
    seen = {n: Seen(n, 1, 1, duration_s=3600, decode_s=1800, look="x") for n in "ab"} | {
        "c": Seen("c", 1, 1, "corrupt")
    }
    c = costs(Checkup(seen), pairs=100, video_bytes=1000, workers=1, epochs=2, pair_s=36)
    assert (c.videos, c.cache_bytes, c.cache_hours, c.training_hours) == (2, 2000, 1.0, 2.0)
    assert costs(Checkup(seen), 100, 1000, 1, 2).training_hours is None


def test_the_command_writes_a_list_that_the_others_heed(
    ward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = ["doctor", str(ward), "--model", "shapes-tiny", "--out", str(out), "--also", "same file", "--frames", "8"]
    assert main(run) == 1
    said = capsys.readouterr()
    assert "ward: 11 of 12 listed videos have a file" in said.out
    assert "missing: 1, the first: gone.mp4" in said.out
    assert "A frame cache takes 768.0 KiB and at most " in said.out
    assert "rounds of 12 pairs on this machine: about" in said.out
    assert "give --model" not in said.out
    assert said.err.splitlines()[-6] == "skipped 5:"
    page = (out / "doctor.html").read_text()
    assert "variable rate: 1" in page
    pictures = [tag for tag in re.findall(r"<img [^>]*>", page) if tag.startswith('<img src="data:image/jpeg;base64,')]
    assert len(pictures) == page.count("<img ") == 5  # what can be decoded
    assert '<p class="small">gone.mp4</p>' in page
    assert "<th>ward</th><td>11</td><td>12</td><td>1</td><td>0</td><td>12</td>" in page
    report = json.loads((out / "doctor.json").read_text())
    assert report["quarantined"] == 5
    # reading leaves them out, also after the log was read again
    assert len(read_samples(ward)) == 12 - 5
    assert main([*run[:-4], "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["quarantined"] == 4
    left = {s.video.name for s in read_samples(ward)}
    assert left.isdisjoint({"gone.mp4", "sound.m4a", "empty.mp4", "text.mp4"})
    assert main(["prepare", str(ward), "--model", "shapes-tiny", "--cache", str(tmp_path / "c"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["made"] == len(left)
    assert "note: partial: 8 of 12 (ward): 4 videos are quarantined, the first is sound (broken: not-video" in said.err
    assert main(["index", str(ward), "--model", "shapes-tiny", "--index", str(tmp_path / "i")]) == 1
    assert f"  {ward / 'text.mp4'}: quarantined (broken: not-video" in capsys.readouterr().err


def test_a_look_at_one_split_leaves_the_others_in_quarantine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("good", "bad", "worse")
    write(tmp_path / "good.mp4")
    for name in names[1:]:
        (tmp_path / f"{name}.mp4").write_text("no film")
    rows = [
        {"video": f"{n}.mp4", "caption": n, "split": s} for n, s in zip(names, ("train", "train", "test"), strict=True)
    ]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = ["doctor", str(tmp_path), "--out", str(tmp_path / "out"), "--split"]

    def listed() -> list[str]:
        return sorted(Path(p).stem for p in read_quarantine(tmp_path))

    assert main([*run, "test"]) == 1
    assert listed() == ["worse"]
    assert main([*run, "train"]) == 1
    said = capsys.readouterr().out
    assert listed() == ["bad", "worse"]
    assert "1 files and 1 from before, which this did not look at in " in said
    assert "give --model for the hours of training and for tokens instead of words" in said
    write(tmp_path / "worse.mp4")
    assert main([*run, "train"]) == 1
    assert listed() == ["bad"]  # it was repaired
    (tmp_path / "quarantine.jsonl").write_text("{}\n")  # which is then written again
    assert main([*run, "train"]) == 1
    assert listed() == ["bad"]


def test_missing_videos_of_a_set_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "video7020.mp4")
    rows = "key,vid_key,video_id,sentence\nret0,msr7020,video7020,a film\nret1,msr7021,video7021,none\n"
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(rows)
    assert main(["doctor", "msrvtt1ka", "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "0 files in " in said
    assert "1 videos without a file have no name to list; every command leaves them out and says so" in said


def test_a_repaired_file_leaves_the_quarantine(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("bad")
    write_quarantine(tmp_path / "quarantine.jsonl", [(tmp_path / "a.mp4", "broken"), (tmp_path / "b.mp4", "missing")])
    assert list(read_quarantine(tmp_path).values()) == ["broken", "missing"]
    write(tmp_path / "a.mp4")
    write(tmp_path / "b.mp4")
    assert read_quarantine(tmp_path) == {}
    assert read_quarantine(tmp_path / "none") == read_quarantine(False) == {}
    (tmp_path / "quarantine.jsonl").write_text('{"video": "a.mp4"}\n')
    with pytest.raises(ClipreelError, match=r"line 1: .* has no video, reason, size and mtime_ns"):
        read_quarantine(tmp_path)


def test_a_set_that_is_all_in_quarantine_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "annotations.jsonl").write_text('{"video": "a.mp4", "caption": "x"}\n')
    write_quarantine(tmp_path / "quarantine.jsonl", [(tmp_path / "a.mp4", "broken")])
    with pytest.raises(ClipreelError, match="all 1 videos are in the quarantine list"):
        read_samples(tmp_path)


def test_wrong_words_are_one_line(ward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(ward), "--also", "ugly"]) == 2
    assert "--also 'ugly': allowed are missing, broken, truncated" in capsys.readouterr().err
    assert main(["doctor", str(ward), "--form", "clip4clip"]) == 2
    assert "--form goes with a published data set by its name" in capsys.readouterr().err


def test_a_missing_video_of_a_set_is_named_with_its_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films = ShapesWorld().write_videos(tmp_path / "videos", "train", count=4)
    published.xpool_msvd(tmp_path, {"train": films[:1], "validation": films[1:2], "test": films[2:]})
    films[2].video.unlink()
    command = ["doctor", "msvd", "--root", str(tmp_path), "--form", "x-pool", "--split", "test"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    assert f"missing: 1, the first: {films[2].id}: no file (split test)" in capsys.readouterr().out
