"""Many files: in order, ahead within bounds, and whatever a codec does, the next file is read."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clipreel.video import many, worker
from clipreel.video.decode import Stream, read_frames, stream_frames
from clipreel.video.many import read_many, stream_many
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling
from tests.video.hang import stuck
from tests.video.make import numbers, write

ALL = Sampling("rate", 0, 12.0)
SIX = Sampling("uniform", 6)


def test_many_files_in_order_with_errors_in_place(tmp_path: Path) -> None:
    good = [write(tmp_path / f"{i}.mp4", frames=4) for i in range(4)]
    paths = [good[0], tmp_path / "gone.mp4", *good[1:]]
    found = list(read_many(paths, lambda p: read_frames(p, SIX), workers=2, ahead=3))
    assert [p for p, _ in found] == paths
    assert isinstance(found[1][1], DecodeError)
    assert all(len(f.pixels) == 6 for _, f in found[:1] + found[2:])


def test_look_ahead_is_bounded() -> None:
    started: list[int] = []
    lock = threading.Lock()

    def slow(n: int) -> int:
        with lock:
            started.append(n)
        time.sleep(0.01)
        return n

    results = read_many(range(50), slow, workers=2, ahead=4)  # any items and reader will do
    next(results)
    time.sleep(0.1)
    assert len(started) <= 6
    results.close()


def result(video: Stream | DecodeError) -> list[int] | str:
    """The numbers of the frames, or what went wrong."""
    if isinstance(video, DecodeError):
        return video.reason
    try:
        return [numbers(pixels, 24)[0] for _, pixels in video.frames]
    except DecodeError as e:
        return e.reason


def test_other_processes_give_what_this_one_reads(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.mp4"), tmp_path / "gone.mp4", write(tmp_path / "b.mkv", frames=90)]
    read = partial(stream_frames, sampling=ALL)
    for path, video in stream_many(paths, read):
        if path.name == "gone.mp4":
            assert isinstance(video, DecodeError)
            assert "missing" in str(video)
            continue
        assert isinstance(video, Stream)
        found = list(video.frames)
        wanted = read_frames(path, ALL)
        np.testing.assert_array_equal(np.concatenate([p for _, p in found]), wanted.pixels)
        assert [t for t, _ in found] == wanted.times_s.tolist()
        assert (video.info, video.warnings, video.count) == (wanted.info, wanted.warnings, len(found))


@pytest.mark.parametrize("busy_s", [0.0, 0.4])  # while the next files are decoded, and fail, already
def test_a_decoder_that_hangs_or_crashes_costs_its_file_only(tmp_path: Path, busy_s: float) -> None:
    source = write(tmp_path / "source.mp4", frames=24).read_bytes()
    names = ("1", "2-hangs", "3", "4-crashes", "5-never-opens", "6", "7")
    paths = [tmp_path / f"{name}.mp4" for name in names]
    for path in paths:
        path.write_bytes(source)
    started = time.monotonic()
    found = []
    for _, video in stream_many(paths, stuck, workers=2, limit_s=0.5):
        time.sleep(busy_s)
        found.append(result(video))
    whole = list(range(24))
    assert found == [whole, "timeout", whole, "crash", "timeout", whole, whole]
    assert time.monotonic() - started < 120
    assert all(w.alive for w in many.IDLE)


def test_processes_live_on_from_file_to_file_and_call_to_call(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.mp4", frames=4) for i in range(5)]
    read = partial(stream_frames, sampling=SIX)

    def used() -> set[int]:
        assert len([result(v) for _, v in stream_many(paths, read)]) == 5
        return {w.process.pid for w in many.IDLE}

    assert used() == used()


def test_what_is_not_read_is_thrown_away(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.mp4", frames=90) for i in range(3)]
    read = partial(stream_frames, sampling=ALL)
    firsts = []
    for _, video in stream_many(paths, read, workers=1):
        assert isinstance(video, Stream)
        firsts.append(next(video.frames)[0])
    assert firsts == [0.0, 0.0, 0.0]
    videos = stream_many(paths, read)
    next(videos)
    videos.close()  # in the middle: those at work are ended
    assert all(w.alive for w in many.IDLE)
    assert [result(v)[:3] for _, v in stream_many(paths, read)] == [[0, 1, 2]] * 3


def test_a_mistake_of_ours_is_no_broken_file(tmp_path: Path) -> None:
    path = write(tmp_path / "wrong.mp4")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        [result(v) for _, v in stream_many([path], stuck)]


def test_a_process_that_ended_while_it_waited_is_replaced(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.mp4")]
    read = partial(stream_frames, sampling=SIX)
    assert len([result(v) for _, v in stream_many(paths, read)]) == 1
    for w in many.IDLE:
        w.process.kill()
        w.process.wait()
    assert [len(result(v)) for _, v in stream_many(paths, read)] == [6]


def test_pieces_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PIECE", 10)
    path = write(tmp_path / "a.mp4", frames=24)
    messages = list(worker.answers(partial(stream_frames, sampling=ALL), path))
    assert [m[0] for m in messages] == ["head", "frames", "frames", "frames", "end"]
    assert [len(m[2]) for m in messages[1:-1]] == [10, 10, 4]


def test_the_time_limit_does_not_count_what_is_done_with_the_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=30)

    def slowly() -> Iterator[float]:
        for t, _ in stream_frames(path, ALL, timeout_s=2.0).frames:
            time.sleep(0.1)
            yield t

    assert len(list(slowly())) == 30


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from functools import partial; from pathlib import Path\n"
        "from clipreel.video.decode import stream_frames; from clipreel.video.sampling import Sampling\n"
        "from clipreel.video import many\n"
        "read = partial(stream_frames, sampling=Sampling())\n"
        "for _, v in many.stream_many([Path(sys.argv[1])], read): list(v.frames)\n"
        "print(*[w.process.pid for w in many.IDLE], flush=True); time.sleep(100)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(write(tmp_path / "a.mp4"))], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    pids = [int(p) for p in child.stdout.readline().split()]
    assert pids
    child.kill()
    child.wait()
    end = time.monotonic() + 20
    while any(alive(p) for p in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(p) for p in pids)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
