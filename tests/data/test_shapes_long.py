"""Long films: known times, no scene twice, the same from every run, and what is written can be read."""

import json
from pathlib import Path

import numpy as np
import pytest

from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_long import long_films, write_films
from clipreel.errors import ClipreelError
from clipreel.video.decode import read_frames
from clipreel.video.sampling import Sampling


def test_scenes_follow_each_other_and_none_comes_twice() -> None:
    films = long_films(4, 6)
    assert films == long_films(4, 6) != long_films(4, 6, seed=1)
    for film in films:
        assert film.parts[0].start_s == 0
        assert all(a.end_s == b.start_s for a, b in zip(film.parts[:-1], film.parts[1:], strict=True))
        assert all(2 <= p.end_s - p.start_s <= 6 for p in film.parts)
    said = [p.scene.said for film in films for p in film.parts]
    assert len(set(said)) == len(said) == 24
    with pytest.raises(ClipreelError, match="0 films of 3 scenes"):
        long_films(0, 3)


def test_each_scene_is_seen_at_its_time(tmp_path: Path) -> None:
    film = long_films(1, 2)[0]
    shown = film.render(32)
    assert len(shown) == film.duration_s * ShapesWorld.FPS
    border = round(film.parts[1].start_s * ShapesWorld.FPS)
    np.testing.assert_array_equal(shown[border:], film.parts[1].scene.render(32, len(shown) - border))
    (path,) = write_films(tmp_path, [film])
    frames = read_frames(path, Sampling("uniform", 2))
    assert frames.info.duration_s == pytest.approx(film.duration_s, abs=0.05)
    rows = [json.loads(line) for line in (tmp_path / "moments.jsonl").read_text().splitlines()]
    assert [(r["start_s"], r["end_s"], r["caption"]) for r in rows] == [
        (p.start_s, p.end_s, p.caption) for p in film.parts
    ]
