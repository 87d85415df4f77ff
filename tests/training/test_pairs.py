"""The three parts of a user's own videos: never empty by chance, never swapped behind his back."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.training.pairs import DataConfig, Pairs, draw, read_pairs, some


def parts(folder: Path, names: list[str], **shares: float) -> tuple[set[str], set[str], set[str]]:
    """Which of the videos of these names are trained on, used for validation, and held out."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        rows += [json.dumps({"video": name, "caption": f"{name} {n}"}) for n in range(2)]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    found: Pairs = read_pairs(DataConfig(path=str(folder / "pairs.jsonl"), **shares), folder)
    sides = [
        {s.video.relative_to(folder).as_posix() for s in p} for p in (found.train, found.validation, found.held_out)
    ]
    assert sum(map(len, sides)) == len(set(names))
    return sides[0], sides[1], sides[2]


def left_to_train_on(names: list[str], held_out_share: float = DataConfig.held_out_share) -> int:
    """How many videos the other parts leave: each takes those below its share, and at least the two lowest."""
    top = held_out_share + DataConfig.validation_share
    draws = sorted(map(draw, names))
    rest = draws[max(2, sum(d < held_out_share for d in draws)) :]
    return len(rest[max(2, sum(d < top for d in rest)) :])


def test_a_set_that_draws_leave_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    names = [f"{n}.mp4" for n in (12, 13, 14, 2523, 15848, 20637, 29571, 69321)]
    assert left_to_train_on(names) == 1
    with pytest.raises(ClipreelError, match=r"holds 8 videos, and 1 of them would be trained on: give more videos"):
        parts(tmp_path, names)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 99999), min_size=8, max_size=30, unique=True))
def test_small_sets_are_not_refused_by_chance(tmp_path_factory: pytest.TempPathFactory, numbers: list[int]) -> None:
    names = [f"{n}.mp4" for n in numbers]
    assume(left_to_train_on(names, 0.1) >= 2)
    sides = parts(tmp_path_factory.mktemp("small"), names, held_out_share=0.1)
    assert min(map(len, sides)) >= 2


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 99999), min_size=20, max_size=40, unique=True), st.integers(8, 19))
def test_a_video_that_was_trained_on_is_never_measured_later(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], few: int
) -> None:
    folder, names = tmp_path_factory.mktemp("grown"), [f"{n}.mp4" for n in numbers]
    assume(left_to_train_on(names[:few]) >= 2)
    train, validation, held_out = parts(folder, names[:few])
    more_train, more_validation, more_held_out = parts(folder, names)
    assert train <= more_train
    assert not validation & more_held_out
    assert held_out | validation | train == (more_train | more_validation | more_held_out) & set(names[:few])


def test_a_limit_takes_videos_of_every_kind_whatever_their_order(tmp_path: Path) -> None:
    world = ShapesWorld().videos("train")
    assert {i.scene.kind for i in world[:400]} < {i.scene.kind for i in world}  # the first ones stand for some only
    for limit in (160, 400):
        chosen = some(world, limit, lambda item: item.group)
        counts = Counter(i.scene.kind for i in chosen)
        assert sum(counts.values()) == limit
        for kind, whole in Counter(i.scene.kind for i in world).items():
            assert counts[kind] > 0.4 * limit * whole / len(world), kind
        ids = {i.id for i in chosen}
        assert sum(i.opposite is not None and i.opposite not in ids for i in chosen) <= 1  # a cut group
        turned = some(world[::-1], limit, lambda item: item.group)
        assert {i.group for i in turned} == {i.group for i in chosen}
    rows = [json.dumps({"video": f"{n}.mp4", "caption": f"{n // 50}"}) + "\n" for n in range(200)]
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    for n in range(200):
        (tmp_path / f"{n}.mp4").touch()
    config = DataConfig(path=str(tmp_path / "pairs.jsonl"))
    every, part = (read_pairs(replace(config, limit=n), tmp_path) for n in (None, 40))
    assert {s.captions for s in part.train} == {s.captions for s in every.train}
    assert [s for s in every.train if s in part.train] == part.train
    assert part.notes == [f"40 of {len(every.train)} videos are trained on (data.limit), drawn by their names"]
    assert every.notes == []


def test_large_sets_are_cut_by_their_shares_and_keep_their_sides(tmp_path: Path) -> None:
    names = [f"{n}.mp4" for n in range(400)]
    train, validation, held_out = parts(tmp_path, names)
    assert 60 < len(held_out) < 100
    assert 25 < len(validation) < 55
    less = parts(tmp_path, names[:300])
    for whole, part in zip((train, validation, held_out), less, strict=True):
        assert part == whole & set(names[:300])


def test_films_of_one_name_in_many_folders(tmp_path: Path) -> None:
    names = [f"{n:03}/video.mp4" for n in range(60)]
    sides = parts(tmp_path / "a", names)
    assert min(map(len, sides)) >= 2
    assert len(sides[0]) > 30
    assert parts(tmp_path / "elsewhere" / "b", names) == sides  # where the folder lies does not count


def test_a_file_written_in_several_ways_is_on_one_side(tmp_path: Path) -> None:
    names = [f"{n}.mp4" for n in range(9)]
    once = parts(tmp_path, names)
    ways = [str(tmp_path / "{}"), f"../{tmp_path.name}/{{}}", "./{}"]
    rows = [{"video": way.format(n), "caption": f"{k} {n}"} for k, way in enumerate(ways) for n in names]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_pairs(DataConfig(path=str(tmp_path / "pairs.jsonl")), tmp_path)
    for part, same in zip((found.train, found.validation, found.held_out), once, strict=True):
        assert {s.video.name: len(s.captions) for s in part} == {n: len(ways) for n in same}


def test_what_cannot_be_cut_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClipreelError, match="holds 5 videos, and 1 of them would be trained on: give more videos"):
        parts(tmp_path, [f"{n}.mp4" for n in range(5)])
    with pytest.raises(ClipreelError, match=r"20 videos, and 0 of them would be trained on: .* other shares"):
        parts(tmp_path, [f"{n}.mp4" for n in range(20)], held_out_share=1.0)


def test_splits_of_one_name_are_refused(tmp_path: Path) -> None:
    parts(tmp_path, [f"{n}.mp4" for n in range(20)])
    config = DataConfig(path=str(tmp_path / "pairs.jsonl"), train="train", validation="val", held_out="val")
    with pytest.raises(ClipreelError, match=r"data.validation val and data.held_out val are not three splits"):
        read_pairs(config, tmp_path)
