"""The frame cache: the frames of a fresh decode, whatever happened on the way, or a clear refusal."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from clipreel.data import shards
from clipreel.data.cache import Forecast, FrameCache, Prepared, prepare
from clipreel.data.sample import Sample
from clipreel.data.shards import MANIFEST, locked
from clipreel.errors import ClipreelError
from clipreel.video.decode import read_frames
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess
from tests.video import make

SMALL, EVEN = Preprocess(size=16), Sampling("uniform", 4)
ONE_VIDEO = 4 * 3 * 16 * 16


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for n in range(5):
        make.write(folder / f"{n}.mp4", 6 + 2 * n)
    return folder


@pytest.fixture
def films(originals: Path, tmp_path: Path) -> list[Sample]:
    shutil.copytree(originals, tmp_path / "films")
    return [Sample(f"film {n}", tmp_path / "films" / f"{n}.mp4", ("x",)) for n in range(5)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def run(samples: list[Sample], folder: Path, **options: Any) -> Prepared:
    return prepare(
        samples,
        folder,
        **{"preprocess": SMALL, "sampling": EVEN, "shard_bytes": 2 * ONE_VIDEO, **options},
    )


def fresh(sample: Sample, sampling: Sampling = EVEN) -> np.ndarray:
    return read_frames(
        sample.video, sampling, start_s=sample.start_s, end_s=sample.end_s, transform=SMALL.pixels
    ).pixels.numpy()


def check(samples: list[Sample], folder: Path) -> None:
    cache = FrameCache(folder)
    cache.require(samples, SMALL, EVEN)
    assert cache.verify() == []
    for s in samples:
        assert np.array_equal(cache[s.id], fresh(s))
    named = {s.name for s in cache.shards}
    assert {p.name for p in folder.iterdir()} == named | {MANIFEST, "writer.lock"}


def test_it_holds_the_frames_of_a_fresh_decode(films: list[Sample], place: Path) -> None:
    part = Sample("part", films[4].video, ("x",), 0.5, 0.9)
    said: list[Forecast] = []
    report = run([*films, part], place, forecast=said.append)
    assert (report.made, report.kept, report.renewed, report.skipped) == (6, 0, 0, [])
    assert report.bytes == said[0].bytes == 6 * ONE_VIDEO
    check([*films, part], place)
    cache = FrameCache(place)
    assert len(cache) == 6
    assert list(cache) == [*(s.id for s in films), "part"]
    assert cache["part"].shape == (4, 3, 16, 16)
    assert not cache["part"].flags.writeable
    assert len(cache.shards) == 3
    assert np.load(place / "shard-00000.npy").shape == (8, 3, 16, 16)
    with pytest.raises(KeyError):
        cache["none"]


def test_the_next_run_decodes_only_what_is_new_or_changed(films: list[Sample], place: Path) -> None:
    run(films[:3], place)
    report = run(films, place)
    assert (report.made, report.kept, report.renewed) == (2, 3, 0)
    for n in (0, 1):
        make.write(films[n].video, 20)
    report = run(films, place)
    assert (report.made, report.kept, report.renewed) == (2, 3, 2)
    check(films, place)
    assert "shard-00000.npy" not in {s.name for s in FrameCache(place).shards}  # nothing in it was of use any more
    assert run(films, place).made == 0


def test_a_moved_folder_of_videos_is_the_same(films: list[Sample], place: Path, tmp_path: Path) -> None:
    run(films, place)
    (tmp_path / "films").rename(tmp_path / "moved")
    moved = [Sample(s.id, tmp_path / "moved" / s.video.name, s.captions) for s in films]
    assert run(moved, place).kept == 5
    assert run(films, place).kept == 5  # and a cache is of use without its videos
    FrameCache(place).require(films, SMALL, EVEN)


@pytest.mark.parametrize(
    "other",
    [
        {"preprocess": Preprocess(size=32)},
        {"preprocess": Preprocess(size=16, resize="uint8")},
        {"preprocess": Preprocess(size=16, geometry="squash")},
        {"sampling": Sampling("uniform", 5)},
        {"sampling": Sampling("clip_vip", 4)},
    ],
)
def test_another_recipe_is_refused_and_changes_nothing(films: list[Sample], place: Path, other: dict[str, Any]) -> None:
    run(films[:2], place)
    before = (place / MANIFEST).read_bytes()
    with pytest.raises(ClipreelError, match=r"holds 4 frames \(uniform\) of 16 pixels \(pil, crop\) and .*--renew"):
        run(films, place, **other)
    assert (place / MANIFEST).read_bytes() == before
    with pytest.raises(ClipreelError, match="prepare another --cache folder"):
        FrameCache(place).require(films[:2], **{"preprocess": SMALL, "sampling": EVEN, **other})
    assert run(films[2:], place, renew=True, **other).made == 3
    assert list(FrameCache(place)) == [s.id for s in films[2:]]


def test_mean_and_std_are_no_part_of_the_recipe(films: list[Sample], place: Path) -> None:
    run(films[:1], place)
    assert run(films[:1], place, preprocess=Preprocess(size=16, mean=(0.0, 0.0, 0.0))).kept == 1


def test_what_cannot_be_decoded_is_named_with_its_reason(films: list[Sample], place: Path) -> None:
    films[1].video.write_text("no video")
    films[2].video.unlink()
    late = Sample("late", films[4].video, ("x",), 50.0)
    report = run([*films, late], place)
    assert [(Path(p).name, why) for p, why in report.skipped] == [
        ("1.mp4", "not-video"),
        ("2.mp4", "missing"),
        ("4.mp4", "ends at 1.17 s, before start 50"),
    ]
    check([films[0], films[3], films[4]], place)
    with pytest.raises(ClipreelError, match=r"3 of 6 samples are not in the frame cache .* 'film 1'"):
        FrameCache(place).require([*films, late], SMALL, EVEN)


def test_a_changed_file_is_refused_by_training(films: list[Sample], place: Path) -> None:
    run(films, place)
    os.utime(films[3].video)
    with pytest.raises(ClipreelError, match=r"1 of 5 videos changed .* 'film 3'"):
        FrameCache(place).require(films, SMALL, EVEN)
    moved_part = [*films[:3], Sample("film 4", films[4].video, ("x",), 0.5)]
    with pytest.raises(ClipreelError, match=r"1 of 4 videos changed .* 'film 4'"):
        FrameCache(place).require(moved_part, SMALL, EVEN)


# ---------------------------------------------------------------------- interruptions and damage

KILLED = """
import sys, time
from pathlib import Path
from clipreel.data.cache import prepare
from clipreel.data.sample import Sample
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess
folder = Path(sys.argv[1])
samples = [Sample(f"film {n}", folder / f"{n}.mp4", ("x",)) for n in range(5)]
size, frames = Preprocess(size=16), Sampling("uniform", 4)
slow = lambda done, total: time.sleep(0.3)
prepare(samples, sys.argv[2], preprocess=size, sampling=frames, shard_bytes=1, progress=slow)
"""


def test_kill_9_loses_only_the_shard_under_way(films: list[Sample], place: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(films[0].video.parent), str(place)])
    deadline = time.monotonic() + 60
    while not (place / MANIFEST).exists() or (place / MANIFEST).read_bytes().count(b"\n") < 3:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = len(FrameCache(place))
    assert 2 <= done < 5
    report = run(films, place)
    assert (report.made, report.kept) == (5 - done, done)
    check(films, place)


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_half_a_line_of_the_manifest_does_not_count(films: list[Sample], place: Path, cut: int) -> None:
    run(films, place)
    whole = (place / MANIFEST).read_bytes()
    (place / MANIFEST).write_bytes(whole[:-cut])
    (place / "shard-00009.npy.part").write_bytes(b"left over")
    assert len(FrameCache(place)) == 4
    assert run(films, place).made == 1
    check(films, place)


def test_stopping_by_hand_keeps_what_is_decoded(films: list[Sample], place: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(films, place, shard_bytes=100 * ONE_VIDEO, progress=stop)
    assert len(FrameCache(place)) == 3
    assert run(films, place).made == 2
    check(films, place)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("harm", [shorten, Path.unlink])
def test_a_shard_that_is_cut_or_gone_is_seen_and_made_again(
    films: list[Sample], place: Path, harm: Callable[[Path], None]
) -> None:
    run(films, place)
    harm(place / "shard-00001.npy")
    with pytest.raises(ClipreelError, match=r"shard-00001.npy .*; clipreel prepare makes what is missing again"):
        FrameCache(place)
    assert run(films, place).made == 2
    check(films, place)


def test_a_flipped_bit_is_found_by_its_hash(films: list[Sample], place: Path) -> None:
    run(films, place)
    path = place / "shard-00001.npy"
    raw = bytearray(path.read_bytes())
    raw[500] ^= 1
    path.write_bytes(raw)
    assert FrameCache(place).verify() == ["the hash of shard-00001.npy is not the stored one"]
    assert run(films, place).made == 0
    report = run(films, place, verify=True)
    assert report.made == 2
    assert report.warnings == [
        (str(place), "the hash of shard-00001.npy is not the stored one; what it held is made again")
    ]
    check(films, place)


def test_a_disk_that_is_too_small_stops_before_anything_is_written(
    films: list[Sample], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(place.parent)._replace(free=5 * ONE_VIDEO - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ClipreelError, match=r"5 videos at 4 frames .* need 15.0 KiB and 15.0 KiB are free at .*"):
        run(films, place)
    assert [p.name for p in place.iterdir()] == ["writer.lock"]
    assert run(films[:4], place).made == 4


def test_a_disk_that_fills_up_keeps_the_finished_shards(
    films: list[Sample], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def fill(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(shards.os, "fsync", fill)
    with pytest.raises(ClipreelError, match=r"No space left on device.*; 1 finished shards are safe: make room"):
        run(films, place)
    monkeypatch.setattr(shards.os, "fsync", real)
    assert len(FrameCache(place)) in (2, 4)
    assert run(films, place).made in (1, 3)
    check(films, place)


def test_one_writer_at_a_time(films: list[Sample], place: Path) -> None:
    with locked(place), pytest.raises(ClipreelError, match="another process is writing the frame cache"):
        run(films, place)
    assert run(films, place).made == 5


def test_folders_that_are_no_cache(films: list[Sample], place: Path, tmp_path: Path) -> None:
    with pytest.raises(ClipreelError, match=r"there is no frame cache at .*; make it: clipreel prepare"):
        FrameCache(place)
    with pytest.raises(ClipreelError, match="is no frame cache and holds"):
        run(films, films[0].video.parent)
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipreelError, match="cannot be written to"):
        run(films, tmp_path / "file")
    run(films[:1], place)
    head, rest = (place / MANIFEST).read_text().split("\n", 1)
    for wrong, said in [
        (json.dumps({**json.loads(head), "clipreel_cache": 9}), "schema 9"),
        ("{}", "not a readable manifest"),
        ("gibberish", "not a readable manifest"),
    ]:
        (place / MANIFEST).write_text(wrong + "\n" + rest)
        for use in (lambda: FrameCache(place), lambda: run(films, place)):
            with pytest.raises(ClipreelError, match=said):
                use()
    assert run(films, place, renew=True).made == 5
    check(films, place)


def test_ids_and_samplings_that_cannot_be_cached(films: list[Sample], place: Path) -> None:
    with pytest.raises(ClipreelError, match="2 samples have 1 ids"):
        run([films[0], films[0]], place)
    for kind in ("tsn_random", "keyframes", "rate", "xpool_random"):
        with pytest.raises(ClipreelError, match=f"frames of sampling '{kind}': allowed are uniform, middles"):
            run(films, place, sampling=Sampling(kind, 4))


@pytest.mark.parametrize("factor", [1, 3, 5])
def test_of_three_times_the_frames_the_plain_choice_is_the_same(films: list[Sample], place: Path, factor: int) -> None:
    kept = Sampling("uniform", 4 * factor)
    run(films, place, sampling=kept)
    cache = FrameCache(place)
    cache.require(films, SMALL, EVEN)
    chosen = cache.pick(4).indices(4 * factor)
    for s in films:
        assert np.array_equal(cache[s.id][chosen], fresh(s))
    drawn = cache.pick(4, random=True).indices(4 * factor, np.random.default_rng(0))
    assert (drawn // factor == np.arange(4)).all()
    with pytest.raises(ClipreelError, match=rf"keeps {4 * factor} of each video: clipreel prepare --frames 63"):
        cache.pick(21)


def test_float_resizes_are_rounded(films: list[Sample], place: Path) -> None:
    recipe = Preprocess(size=16, resize="tensor")
    run(films[:1], place, preprocess=recipe)
    exact = read_frames(films[0].video, EVEN, transform=recipe.pixels).pixels
    stored = torch.tensor(FrameCache(place)["film 0"]).float() / 255
    assert (stored - exact.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6


def test_a_second_writer_can_wait_for_the_first(films: list[Sample], place: Path) -> None:
    order: list[str] = []
    with locked(place):
        second = Thread(target=lambda: (run(films, place, wait=True), order.append("second")))
        second.start()
        second.join(0.3)
        order.append("first")
    second.join(60)
    assert order == ["first", "second"]
    check(films, place)
