"""Cuts and segments."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.video.decode import Frames
from clipreel.video.packets import VideoInfo
from clipreel.video.sampling import Sampling
from clipreel.video.shots import NEAR, Cutter, Segments


def film(colours: list[int], fps: float = 1.0) -> Frames:
    pixels = torch.stack([torch.full((3, 16, 16), c, dtype=torch.uint8) for c in colours])
    times = np.arange(len(colours)) / fps
    info = VideoInfo(Path("x"), len(colours) / fps, fps, 16, 16, "x", 0.0, len(colours), True)
    return Frames(pixels, times, info)


def cuts(colours: list[int]) -> list[float]:
    """Where shots begin."""
    return [start for start, _, _ in Segments("shots", 1000.0, 0.0).cut(film(colours))][1:]


def test_hard_cuts_are_found_and_slow_changes_are_not() -> None:
    assert cuts([10] * 6 + [200] * 6 + [90] * 5) == [6, 12]
    assert cuts([10] * 30 + [200] * 30) == [30]
    assert cuts(list(range(0, 240, 12))) == []
    assert cuts([10]) == []


def at_once(how: Segments, film: Frames, borders: list[float]) -> list[tuple[float, float, list[int]]]:
    """Segments of a whole video between borders that are known."""
    parts = []
    for start, end in pairwise([0.0, *borders, film.info.duration_s]):
        while True:
            stop = min(start + how.seconds, end)
            parts.append((start, stop, [i for i, t in enumerate(film.times_s) if start <= t < stop]))
            if stop >= end - 1e-6:
                break
            start += how.seconds * (1 - how.overlap)
    parts = [p for p in parts if p[2]]
    return parts if len(parts) > 1 else []


@pytest.mark.parametrize("seconds", [0.7, 3.0, 8.0, 100.0])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("lengths", [[1], [3], [40], [9, 1, 30], [5, 5, 5, 5], [2, 60, 2]])
def test_segments_that_come_one_by_one_are_those_of_the_whole(
    seconds: float, overlap: float, lengths: list[int]
) -> None:
    made = film([colour for n, k in enumerate(lengths) for colour in [10 + 150 * (n % 2)] * k], fps=2.0)
    borders = [sum(lengths[: n + 1]) / 2 for n in range(len(lengths) - 1)]
    for mode, known in (("windows", []), ("shots", borders)):
        how = Segments(mode, seconds, overlap, 2.0)
        wanted = at_once(how, made, known)
        assert [(pytest.approx(a), pytest.approx(b), i) for a, b, i in wanted] == how.cut(made)
        cutter, held = Cutter(how, made.info.duration_s), 0
        for n, (t, pixels) in enumerate(zip(made.times_s, made.pixels, strict=True)):
            oldest = cutter.oldest
            assert all(i >= oldest for _, _, inside in cutter.push(float(t), pixels) for i in inside)
            held = max(held, n + 1 - cutter.oldest)
        assert held <= 2 * 2 * seconds * (2 - overlap) + NEAR + 2


def test_windows_cover_the_video_and_overlap() -> None:
    parts = Segments("windows", 8.0, 0.5, 1.0).cut(film([0] * 30))
    assert parts[0][:2] == (0.0, 8.0)
    assert parts[1][:2] == (4.0, 12.0)
    assert parts[-1][1] == 30.0
    assert sorted({i for _, _, inside in parts for i in inside}) == list(range(30))


def test_shots_are_segments_and_long_ones_are_windows() -> None:
    parts = Segments("shots", 8.0, 0.0, 1.0).cut(film([10] * 6 + [200] * 20))
    assert [p[:2] for p in parts] == [(0.0, 6.0), (6.0, 14.0), (14.0, 22.0), (22.0, 26.0)]


def test_a_short_video_has_no_segments() -> None:
    assert Segments().cut(film([0] * 3)) == []
    assert Segments("none").cut(film([0] * 100)) == []


def test_intervals_of_keyframes_are_segments_and_short_ones_are_joined() -> None:
    how = Segments("keyframes", 3.0)
    assert how.sampling(Sampling("uniform", 12)) == Sampling("keyframes", 0)
    shown = film([0] * 8)
    times = np.array([0.0, 1.0, 4.0, 9.0, 10.0, 11.0, 20.0, 23.0])
    parts = how.cut(replace(shown, times_s=times, info=replace(shown.info, duration_s=24.0)))
    assert [p[:2] for p in parts] == [(0.0, 4.0), (4.0, 9.0), (9.0, 20.0), (20.0, 23.0), (23.0, 24.0)]
    assert [p[2] for p in parts] == [[0, 1], [2], [3, 4, 5], [6], [7]]


def test_wrong_values() -> None:
    with pytest.raises(ClipreelError, match="allowed are windows"):
        Segments("scenes")
    with pytest.raises(ClipreelError, match="above 0"):
        Segments(seconds=0)
