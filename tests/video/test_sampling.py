"""The samplers of the papers against values worked out by hand, and properties of ours."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipreel.errors import ClipreelError
from clipreel.video import sampling as s
from clipreel.video.sampling import Sampling

RNG = np.random.default_rng


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (s.clip_vip, [0, 14, 28, 42, 56, 70, 84, 99]),
        (s.middles, [5, 18, 30, 43, 55, 68, 80, 93]),
        (s.mv_adapter, [0, 12, 25, 37, 50, 62, 75, 87]),
        (s.clip4clip, [0, 14, 28, 42, 56, 70, 84, 99]),
        (s.alpro, [0, 12, 24, 36, 48, 60, 72, 84]),
    ],
)
def test_eight_of_a_hundred(rule, wanted: list[int]) -> None:
    assert rule(100, 8).tolist() == wanted


def test_short_videos() -> None:
    assert s.middles(3, 8).tolist() == [0, 1, 2]
    assert s.mv_adapter(3, 8).tolist() == [0, 1, 2]
    assert s.alpro(7, 16).tolist() == [0] * 16
    assert s.clip_vip(1, 4).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="two frames"):
        s.xpool_random(15, 8, RNG(0))
    with pytest.raises(ValueError, match="16 different frames"):
        s.alpro_random(7, 16, RNG(0))


def test_clip4clip_extraction_and_positions() -> None:
    assert s.clip4clip_seconds(360, 23.976).tolist() == list(range(0, 360, 23))
    assert len(s.clip4clip_seconds(420, 29.97)) == 15
    assert s.clip4clip_seconds(100, 10.0, rate=2).tolist()[:5] == [0, 5, 10, 15, 20]
    assert s.clip4clip_seconds(1000, 10.0, start=2, end=4).tolist() == [20, 30, 40]
    assert s.clip4clip(20, 4, 0).tolist() == [0, 1, 2, 3]
    assert s.clip4clip(20, 4, 1).tolist() == [16, 17, 18, 19]
    with pytest.raises(ValueError, match="at least 1 frame a second"):
        s.clip4clip_seconds(10, 0.5)
    with pytest.raises(ValueError, match="position 3"):
        s.clip4clip(20, 4, 3)


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 5))
def test_random_samplers_stay_in_their_intervals(n: int, frames: int, seed: int) -> None:
    edges = np.linspace(0, n, frames + 1)
    drawn = s.tsn_random(n, frames, RNG(seed))
    assert ((drawn >= np.floor(edges[:-1])) & (drawn <= np.ceil(edges[1:]))).all()
    assert (drawn < n).all()
    assert (np.diff(drawn) >= 0).all()
    jittered = s.clip_vip(n, frames, RNG(seed))
    assert ((jittered >= 0) & (jittered < n)).all()


def test_every_frame_can_be_drawn() -> None:
    drawn = {int(i) for seed in range(200) for i in s.tsn_random(9, 3, RNG(seed))}
    assert drawn == set(range(9))
    released = {int(i) for seed in range(200) for i in s.xpool_random(9, 3, RNG(seed))}
    assert released == {0, 1, 3, 4, 6, 7}


def test_times() -> None:
    assert Sampling("uniform", 4).times(0, 8).tolist() == [1, 3, 5, 7]
    assert Sampling("rate", 0, 2.0).times(1, 2.2).tolist() == [1, 1.5, 2]
    assert len(Sampling("rate", 3, 2.0).times(0, 10)) == 3
    assert len(Sampling("cover", 8, 1.0).times(0, 2)) == 8
    assert len(Sampling("cover", 8, 1.0).times(0, 20)) == 20
    drawn = Sampling("tsn_random", 5).times(0, 10, RNG(0))
    assert ((drawn // 2) == np.arange(5)).all()


def test_wrong_values_name_the_allowed_ones() -> None:
    with pytest.raises(ClipreelError, match="allowed are uniform"):
        Sampling("evenly")
    with pytest.raises(ClipreelError, match="at least 1"):
        Sampling("uniform", 0)
    with pytest.raises(ClipreelError, match="above 0"):
        Sampling("rate", 0, 0.0)
    with pytest.raises(ValueError, match="give rng"):
        Sampling("xpool_random", 4).indices(50)


def test_fingerprint_follows_the_fields() -> None:
    assert Sampling().fingerprint() == Sampling("uniform", 12).fingerprint()
    assert Sampling().fingerprint() != Sampling("uniform", 8).fingerprint()
    assert json.dumps(Sampling().to_dict())
