"""Moments out of scores, and the frames that sharpen them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipreel.search.ask import Asker, Request
from clipreel.search.index import Index
from clipreel.search.indexer import facts_of, update
from clipreel.search.rerank import FACT, FrameStore
from clipreel.search.spans import Span, greatest_sum, sharpened, spans
from clipreel.video.shots import Segments
from tests.search.tiny import library, tiny_model


def windows(scores: list[float], seconds: float = 8.0, step: float = 4.0) -> list[Span]:
    start = np.arange(len(scores), dtype=np.float32) * step
    return spans(start, start + seconds, np.array(scores, np.float32))


def test_neighbours_that_fit_become_one_moment() -> None:
    first, second = windows([0.1, 0.1, 0.50, 0.48, 0.1, 0.1, 0.1, 0.3, 0.1])[:2]
    assert (first.start_s, first.end_s, first.best) == (8.0, 20.0, 2)
    assert first.score == pytest.approx(0.5)
    assert (second.start_s, second.end_s) == (28.0, 36.0)


def test_equal_scores_do_not_make_one_long_moment() -> None:
    assert [(s.start_s, s.end_s) for s in windows([0.2] * 4)] == [(0.0, 8.0), (8.0, 16.0)]


def test_what_is_left_out_is_in_no_moment() -> None:
    assert windows([-np.inf, -np.inf]) == []
    assert [s.best for s in windows([-np.inf, 0.3, -np.inf])] == [1]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30))
def test_moments_never_overlap_and_the_best_comes_first(scores: list[float]) -> None:
    found = windows(scores)
    assert found[0].score == np.float32(max(scores))
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
    ordered = sorted(found, key=lambda s: s.start_s)
    assert all(a.end_s <= b.start_s + 1e-3 for a, b in itertools.pairwise(ordered))


def plain_spans(start_s: np.ndarray, end_s: np.ndarray, scores: np.ndarray, most: int = 8) -> list[tuple[float, ...]]:
    """`spans` without lists: over arrays, with what is free as a mask."""
    found: list[tuple[float, ...]] = []
    free = np.isfinite(scores)
    usual = np.median(scores[free]) if free.any() else 0.0
    while free.any() and len(found) < most:
        best = first = last = int(np.argmax(np.where(free, scores, -np.inf)))
        belongs = free & (scores >= usual + 0.7 * (scores[best] - usual)) & (scores[best] > usual)
        joined = start_s[1:] <= end_s[:-1] + 1e-3
        while first > 0 and belongs[first - 1] and joined[first - 1]:
            first -= 1
        while last + 1 < len(scores) and belongs[last + 1] and joined[last]:
            last += 1
        begin, end = start_s[first], end_s[first : last + 1].max()
        found.append((begin, end, scores[best], best))
        free[first : last + 1] = False
        free &= (end_s <= begin + 1e-3) | (start_s >= end - 1e-3)
    return found


@given(st.lists(st.one_of(st.integers(-5, 5), st.just(-np.inf)), max_size=30), st.sampled_from([3.0, 4.0, 8.0, 12.0]))
def test_moments_are_those_of_the_plain_way(scores: list[float], seconds: float) -> None:
    start, asked = np.arange(len(scores), dtype=np.float32) * 4, np.array(scores, np.float32)
    found = [(s.start_s, s.end_s, s.score, s.best) for s in spans(start, start + seconds, asked)]
    assert found == plain_spans(start, start + seconds, asked)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=12).filter(lambda x: max(x) > 0))
def test_the_greatest_sum_is_that_of_all_runs(gain: list[int]) -> None:
    first, last = greatest_sum(np.array(gain, np.float32))
    best = max(sum(gain[i : j + 1]) for i in range(len(gain)) for j in range(i, len(gain)))
    assert sum(gain[first : last + 1]) == best


def test_frames_sharpen_a_moment_and_one_weak_frame_does_not_end_it() -> None:
    times = np.arange(16.0)
    scores = np.array([0.1] * 5 + [0.5, 0.5, 0.25, 0.6, 0.5] + [0.1] * 6, np.float32)
    start, end, matched = sharpened(Span(4.0, 12.0, 0.4, 0), times, scores)
    assert (start, end) == (4.5, 9.5)
    assert matched[0].at_s == 8.0
    assert sharpened(Span(4.0, 12.0, 0.4, 0), times, np.full(16, 0.2, np.float32))[:2] == (4.0, 12.0)


def test_answers_show_the_frames_that_matched(tmp_path: Path) -> None:
    folder = library(tmp_path / "v")
    index = Index.create(tmp_path / "i", facts_of(tiny_model(), Segments("windows", 0.5, 0.5, 8.0)) | FACT)
    update(index, tiny_model(), [str(folder)])
    asker = Asker(index, tiny_model())
    kept = asker.answer(Request("a red circle")).hits
    for hit in kept:
        assert 1 <= len(hit.matched) <= 3
        assert all(hit.start_s <= m.at_s <= hit.end_s for m in hit.matched)
        assert hit.matched == tuple(sorted(hit.matched, key=lambda m: -m.score))
    file = asker.first.catalog.files[0]
    times, vectors = FrameStore(index).between([(file.id, 0.0, 1.0)])[0]
    assert (np.diff(times) > 0).all()
    query = asker._vectors([asker.first], Request("a red circle"))[0]
    again, decoded = asker.first.frames.decoded(file, 0.0, 1.0)
    near = np.abs(times[:, None] - again).argmin(0)
    same = np.abs(times[near] - again) < 1e-3
    assert same.any()
    np.testing.assert_allclose((vectors[near] @ query)[same], (decoded @ query)[same], atol=2e-3)


def test_without_stored_frames_they_are_decoded_when_asked(tmp_path: Path) -> None:
    folder = library(tmp_path / "v", ("a.mp4", "b.mp4"))
    index = Index.create(tmp_path / "i", facts_of(tiny_model(), Segments("windows", 0.5, 0.5, 8.0)))
    update(index, tiny_model(), [str(folder)])
    asker = Asker(index, tiny_model())
    assert all(h.matched == () for h in asker.answer(Request("x")).hits)
    (folder / "a.mp4").unlink()
    found = {h.name: len(h.matched) for h in asker.answer(Request("x", refine="decode")).hits}
    assert found["a.mp4"] == 0
    assert found["b.mp4"] > 0
