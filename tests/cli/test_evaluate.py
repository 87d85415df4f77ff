"""`clipreel evaluate` reads data as every verb does, and its stamp says what was evaluated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipreel.cli import main
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.evaluation.features import load_features
from clipreel.video.quarantine import write_quarantine
from tests.data import published

Seen = tuple[dict[str, Any], str]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    ShapesWorld().write_videos(tmp_path / "own", "test", count=4)
    return tmp_path / "own"


@pytest.fixture
def seen(capsys: pytest.CaptureFixture[str]) -> Callable[..., Seen]:
    """The result of an evaluation with two frames, and what it said on standard error."""

    def run(*words: object, code: int = 0) -> Seen:
        capsys.readouterr()
        assert main(["evaluate", *map(str, words), "--frames", "2", "--json"]) == code
        said = capsys.readouterr()
        return (json.loads(said.out) if said.out else {}), said.err

    return run


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "annotations.jsonl").read_text().splitlines()]


def put(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def test_a_quarantined_video_makes_a_part_and_is_told(own: Path, tmp_path: Path, seen: Callable[..., Seen]) -> None:
    broken = own / rows_of(own)[0]["video"]
    broken.write_bytes(b"no video")
    whole, said = seen(own, code=1)
    assert (whole["t2v"]["gallery"], whole["stamp"]["split"], whole["non_finite"] > 0) == (4, "own", True)
    assert "note" not in said
    write_quarantine(tmp_path / "elsewhere.jsonl", [(broken, "broken: not-video")])
    part, said = seen(own, "--quarantine", tmp_path / "elsewhere.jsonl")
    assert (part["t2v"]["gallery"], part["stamp"]["split"]) == (3, "partial: 3 of 4 (own)")
    assert f"1 videos are quarantined, the first is {broken.stem} (broken: not-video)" in said
    assert part["stamp"]["split_hash"] != whole["stamp"]["split_hash"]
    write_quarantine(own / "quarantine.jsonl", [(broken, "broken: not-video")])
    assert seen(own)[0]["stamp"] == part["stamp"]


def test_splits_and_words_of_sets_hold_for_files_too(own: Path, seen: Callable[..., Seen]) -> None:
    rows = rows_of(own)
    put(own / "annotations.jsonl", [{**r, "split": "test" if n < 3 else "train"} for n, r in enumerate(rows)])
    assert seen(own)[0]["t2v"]["gallery"] == 4
    result, _ = seen(own, "--split", "test")
    assert (result["t2v"]["gallery"], result["stamp"]["split"]) == (3, "own test")
    assert (
        "split 'nonsense' is empty; the file has test (3 rows), train (1 rows)"
        in seen(own, "--split", "nonsense", code=2)[1]
    )
    for word in ("--form", "--root", "--captions"):
        said = seen(own, word, "single", code=2)[1]
        assert f"{word} goes with a published data set by its name" in said


def test_labels_and_another_folder_of_videos(own: Path, tmp_path: Path, seen: Callable[..., Seen]) -> None:
    pairs = put(tmp_path / "pairs.jsonl", rows_of(own))
    assert seen(pairs, "--videos", own)[0]["stamp"]["split"] == "pairs.jsonl"
    assert seen(own / "annotations.jsonl")[0]["stamp"] == seen(own)[0]["stamp"]


def test_rows_of_one_video_are_one_video_however_it_is_written(own: Path, seen: Callable[..., Seen]) -> None:
    rows = rows_of(own)[:3]
    name = rows[0]["video"]
    ways = (name, f"./{name}", f"../own/{name}", str(own / name))
    put(own / "annotations.jsonl", [*rows[1:], *({"video": w, "caption": f"it is {n}"} for n, w in enumerate(ways))])
    result, _ = seen(own, "--v2t", "video")
    assert (result["t2v"]["gallery"], result["t2v"]["queries"]) == (3, sum(len(r["captions"]) for r in rows[1:]) + 4)


def test_a_set_is_meant_by_its_name_where_a_folder_has_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Callable[..., Seen]
) -> None:
    films = ShapesWorld().write_videos(tmp_path / "msvd" / "videos", "train", count=4)
    published.xpool_msvd(tmp_path / "msvd", {"train": films[:1], "validation": films[1:2], "test": films[2:]})
    monkeypatch.chdir(tmp_path)
    result, _ = seen("msvd", "--root", "msvd", "--form", "x-pool")
    assert result["stamp"]["split"].startswith("partial: 2 of 670 (MSVD test")
    (tmp_path / "msvd" / "videos").rename(tmp_path / "films")
    said = seen("msvd", "--root", "msvd", "--form", "x-pool", code=2)[1]
    assert "name their folder with --videos" in said
    again, _ = seen("msvd", "--root", "msvd", "--form", "x-pool", "--videos", "films")
    assert again["stamp"] == result["stamp"]


def test_the_shapes_world_by_name(
    tmp_path: Path, seen: Callable[..., Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = seen("shapes")
    assert (result["stamp"]["split"], "order_blind_bound" in result) == ("shapes test", True)
    for more in (("--split", "train"), ("--videos", "x"), ("--captions", "all")):
        assert "shapes is evaluated on its test split as it is" in seen("shapes", *more, code=2)[1]
        assert "shapes is evaluated on its test split as it is" in seen(*more, code=2)[1]
    for command in (["prepare", "shapes", "--cache", str(tmp_path)], ["doctor", "shapes", "--out", str(tmp_path)]):
        assert main(command) == 2
        assert "name their folder, demo-output/shapes/test" in capsys.readouterr().err


def test_how_captions_became_texts(tmp_path: Path, seen: Callable[..., Seen]) -> None:
    films = ShapesWorld().write_videos(tmp_path / "videos", "train", count=5)
    several = [Sample(s.id, s.video, ("it begins", "it ends")) for s in films]
    published.didemo(tmp_path, {"test": several[:3], "train": several[3:4], "validation": several[4:]})
    kept = tmp_path / "kept"
    result, _ = seen("didemo", "--root", tmp_path, "--store", kept)
    assert (result["t2v"]["queries"], result["stamp"]["caption_mode"]) == (3, "paragraph")
    assert load_features(kept).result(dual_softmax="softmax").stamp.caption_mode == "paragraph"
    assert seen("didemo", "--root", tmp_path, "--captions", "single")[0]["stamp"]["caption_mode"] == "single"
    result, _ = seen("didemo", "--root", tmp_path, "--captions", "all", "--v2t", "video")
    assert result["stamp"]["caption_mode"] == "multiple, v2t by video"


def test_parts_of_videos_are_stamped(own: Path, seen: Callable[..., Seen]) -> None:
    """The same ids, so the same hash of the list."""
    rows = [{**r, "id": str(n)} for n, r in enumerate(rows_of(own))]
    stamps = []
    for end in (None, 1.0, 1.5):
        put(own / "annotations.jsonl", [{**r, "end": end} for r in rows])
        stamps.append(seen(own)[0]["stamp"])
    assert [s["part"] == "whole videos" for s in stamps] == [True, False, False]
    assert len({s["part"] for s in stamps}) == 3
    assert len({s["split_hash"] for s in stamps}) == 1
    put(own / "annotations.jsonl", [{**r, "start": 0} for r in rows])
    assert seen(own)[0]["stamp"]["part"] == "whole videos"


def test_a_bank_for_stored_vectors(own: Path, tmp_path: Path, seen: Callable[..., Seen]) -> None:
    (tmp_path / "bank.txt").write_text("a red circle moves\na blue square\n")
    bank = ("--bank", tmp_path / "bank.txt")
    seen(own, "--store", tmp_path / "bare")
    wanted, _ = seen(own, *bank, "--query-bank")
    assert "evaluate with --bank FILE" in seen("--features", tmp_path / "bare", "--query-bank", code=2)[1]
    page = tmp_path / "page.html"
    assert seen("--features", tmp_path / "bare", *bank, "--query-bank", "--gallery", page)[0] == wanted
    assert "A query bank is missing" not in page.read_text()
    seen("--features", tmp_path / "bare", "--gallery", page)
    assert "give other captions with --bank FILE, with --features beside their --model" in page.read_text()
    assert "leave out the data" in seen("--features", tmp_path / "bare", "--split", "test", code=2)[1]
