"""The shapes world: fixed by its seed, opposites frame by frame, splits apart, files that decode."""

import hashlib
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest

from clipreel.data.shapes import MIRRORED, OPPOSED, PHRASES, Scene, ShapesWorld, Thing, held_out, random_scene
from clipreel.data.shapes_render import COLOURS, SHAPES, draw
from clipreel.data.shapes_stills import ATTRIBUTES, questions, stills
from clipreel.errors import ClipreelError
from clipreel.video.decode import read_frames
from clipreel.video.sampling import Sampling


def test_everything_follows_from_the_seed() -> None:
    assert ShapesWorld(0).fingerprint("test") == ShapesWorld(0).fingerprint("test")
    assert ShapesWorld(0).fingerprint("test") != ShapesWorld(1).fingerprint("test")
    a, b = (list(islice(stills(5, 32), 40)) for _ in range(2))
    assert [s.caption for s in a] == [s.caption for s in b]
    assert all(np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", list(PHRASES))
def test_an_opposite_is_the_same_film_backwards(kind: str) -> None:
    rng = Random(3)
    for _ in range(5):
        scene = random_scene(rng, kind)
        film, other = scene.render(32, 24), scene.opposite()
        assert film.shape == (24, 32, 32, 3)
        if kind in MIRRORED:
            assert other is None
            continue
        assert np.array_equal(film, other.render(32, 24)[::-1])
        assert other.opposite() == scene
        assert film[0].tobytes() != film[-1].tobytes() or kind == "spin"
        captions = {scene.caption(Random(n)) for n in range(50)}, {other.caption(Random(n)) for n in range(50)}
        assert not captions[0] & captions[1]


def test_eight_sampled_frames_are_the_same_set_both_ways() -> None:
    scene = random_scene(Random(0), "across")
    times = np.arange(24) / 12
    shown = np.searchsorted(times, Sampling("uniform", 8).times(0, 2.0) + 1e-6, "right") - 1
    assert sorted(23 - shown) == sorted(shown)
    assert scene.render(16, 24)[shown].shape[0] == 8


def test_splits_share_no_scene_and_hold_out_pairs() -> None:
    world = ShapesWorld()
    said = {split: {item.scene.said for item in world.videos(split)} for split in world.COUNTS}
    assert not said["test"] & said["val"]
    assert not said["test"] & said["train"]
    assert not said["val"] & said["train"]

    def pairs(split: str) -> set[Thing]:
        scenes = [i.scene for i in world.videos(split)]
        return {t for s in scenes for t in (*s.actors, *([s.bystander[0]] if s.bystander else []))}

    assert not any(held_out(t) for t in pairs("train"))
    assert sum(held_out(t) for t in pairs("test")) >= 8
    assert len({(t.shape, t.colour) for t in pairs("test") if held_out(t)}) == 8


def test_opposites_and_groups_agree() -> None:
    for split in ("train", "test"):
        items = {i.id: i for i in ShapesWorld().videos(split)}
        for item in items.values():
            if item.opposite is None:
                assert item.scene.kind in MIRRORED
                continue
            other = items[item.opposite]
            assert (other.opposite, other.group) == (item.id, item.group)
            assert other.scene == item.scene.opposite()
    assert {i.scene.kind for i in ShapesWorld().videos("test")} == {*OPPOSED, *MIRRORED}


def test_stills_use_every_word_of_the_films() -> None:
    words = {w for s in islice(stills(0, 16), 6000) for w in s.caption.split()}
    films = [i for split in ("train", "val", "test") for i in ShapesWorld().videos(split)]
    assert {w for i in films for c in i.captions for w in c.split()} <= words


@pytest.mark.parametrize("shape", list(SHAPES))
def test_shapes_are_drawn_in_their_colour_and_differ(shape: str) -> None:
    images = {s: draw([Thing(s, "red", "large").mark(0, 0)], np.zeros(3, np.float32), 64, 64) for s in SHAPES}
    mine = images[shape]
    assert (mine == np.array(COLOURS["red"])).all(-1).sum() > 150
    for other, image in images.items():
        if other != shape:
            assert np.abs(image.astype(int) - mine).mean() > 2


def test_things_stand_where_the_caption_says() -> None:
    film = Scene("across", (Thing("square", "red", "small"),)).render(64, 8)[..., 0] > 128
    centres = [np.argwhere(f)[:, 1].mean() for f in film]
    assert (np.diff(centres) > 0).all()
    rising = Scene("upright", (Thing("square", "red", "small"),)).render(64, 8)[..., 0] > 128
    assert (np.diff([np.argwhere(f)[:, 0].mean() for f in rising]) < 0).all()
    growing = Scene("scale", (Thing("square", "red", "small"),)).render(64, 8)[..., 0] > 128
    areas = growing.sum((1, 2))
    assert (np.diff(areas) >= 0).all()
    assert areas[-1] > 4 * areas[0]


def test_films_are_written_as_video_files(tmp_path: Path) -> None:
    samples = ShapesWorld().write_videos(tmp_path, "test", count=3)
    assert len((tmp_path / "annotations.jsonl").read_text().splitlines()) == 3
    for sample, item in zip(samples, ShapesWorld().videos("test")[:3], strict=True):
        found = read_frames(sample.video, Sampling("middles", 24))
        assert found.info.codec == "h264"
        wanted = item.scene.render(128, 24)
        assert np.abs(found.pixels.numpy().astype(int) - wanted).mean() < 3
    stamp = hashlib.sha256(samples[0].video.read_bytes()).hexdigest()
    ShapesWorld().write_videos(tmp_path, "test", count=3)
    assert hashlib.sha256(samples[0].video.read_bytes()).hexdigest() == stamp


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_questions_differ_in_one_attribute(attribute: str) -> None:
    for q in questions(attribute, 20, 0, 32):
        assert len(set(q.captions)) == len(q.captions) == {"shape": 8, "colour": 8, "size": 2, "relation": 4}[attribute]


def test_unknown_split() -> None:
    with pytest.raises(ClipreelError, match="train, val, test"):
        ShapesWorld().videos("dev")
