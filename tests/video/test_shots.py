"""Cuts and segments."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.video.decode import Frames, VideoInfo
from clipreel.video.shots import Segments, cuts


def film(colours: list[int], fps: float = 1.0) -> Frames:
    pixels = torch.stack([torch.full((3, 16, 16), c, dtype=torch.uint8) for c in colours])
    times = np.arange(len(colours)) / fps
    info = VideoInfo(Path("x"), len(colours) / fps, fps, 16, 16, "x", 0.0, len(colours), True)
    return Frames(pixels, times, info)


def test_hard_cuts_are_found_and_slow_changes_are_not() -> None:
    assert cuts(film([10] * 6 + [200] * 6 + [90] * 5).pixels) == [6, 12]
    assert cuts(film(list(range(0, 240, 12))).pixels) == []
    assert cuts(film([10]).pixels) == []


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


def test_wrong_values() -> None:
    with pytest.raises(ClipreelError, match="allowed are windows"):
        Segments("scenes")
    with pytest.raises(ClipreelError, match="above 0"):
        Segments(seconds=0)
