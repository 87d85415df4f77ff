"""Batches: pure in (seed, step), the same for any number of processes, each order as it promises."""

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipreel.data.cache import FrameCache, prepare
from clipreel.data.readers import read_samples
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.retriever import load
from clipreel.training.batches import Augment, Batch, Loader
from clipreel.training.order import Order
from clipreel.video.sampling import Sampling

SIZE, KEPT = 8, 6


def world(captions: list[int], kept: int | list[int] = KEPT) -> tuple[list[Sample], dict[str, np.ndarray]]:
    """Samples with so many captions each; frame t of sample n < 15 shows 10 n + t, its left half 100 more."""
    counts = [kept] * len(captions) if isinstance(kept, int) else kept
    samples = [
        Sample(f"s{n}", Path(f"{n}.mp4"), tuple(f"{n} {c}" for c in range(many))) for n, many in enumerate(captions)
    ]
    frames = {}
    for n, count in enumerate(counts):
        films = np.zeros((count, 3, SIZE, SIZE), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
        films += 10 * (n % 15)
        films[..., : SIZE // 2] += 100
        frames[f"s{n}"] = films
    return samples, frames


def words(texts: list[str]) -> torch.Tensor:
    """Ids that spell sample and caption."""
    return torch.tensor([[int(w) for w in t.split()] for t in texts])


def loader(captions: list[int], batch: int = 4, kind: str = "pairs", seed: int = 0, **options: object) -> Loader:
    kept = options.pop("kept", KEPT)
    opposite_of = options.pop("opposite_of", None)
    drop_last = options.pop("drop_last", False)
    samples, frames = world(captions, kept)
    order = Order(samples, kind, batch=batch, seed=seed, opposite_of=opposite_of, drop_last=drop_last)
    return Loader(order, frames, words, **options)


def equal(a: Batch, b: Batch) -> bool:
    masks = (a.frame_mask is None) == (b.frame_mask is None)
    if masks and a.frame_mask is not None:
        masks = torch.equal(a.frame_mask, b.frame_mask)
    tensors = all(torch.equal(x, y) for x, y in ((a.frames, b.frames), (a.ids, b.ids), (a.groups, b.groups)))
    return masks and tensors and a.names == b.names


def joined(parts: list[Batch]) -> Batch:
    masks = [p.frame_mask for p in parts if p.frame_mask is not None]
    return Batch(
        torch.cat([p.frames for p in parts]),
        torch.cat([p.ids for p in parts]),
        torch.cat([p.groups for p in parts]),
        tuple(name for p in parts for name in p.names),
        torch.cat(masks) if masks else None,
    )


many = st.lists(st.integers(1, 4), min_size=1, max_size=20)
EVERYTHING = {"augment": Augment((0.3, 1.0), flip=0.5), "sampling": Sampling("tsn_random_index", 3)}


@settings(max_examples=30, deadline=None)
@given(many, st.integers(1, 7), st.integers(0, 3), st.integers(0, 2))
def test_pairs_show_every_caption_once_an_epoch(captions: list[int], batch: int, seed: int, epoch: int) -> None:
    made = loader(captions, batch, seed=seed)
    steps = range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch)
    seen = [tuple(row) for step in steps for row in made.batch(step).ids.tolist()]
    assert sorted(seen) == sorted((n, c) for n, count in enumerate(captions) for c in range(count))
    assert [made.batch_rows(s) for s in steps] == [len(made.batch(s)) for s in steps]


@settings(max_examples=30, deadline=None)
@given(many, st.integers(1, 7), st.integers(0, 3), st.integers(0, 2))
def test_distinct_shows_every_video_once_and_never_twice_in_a_batch(
    captions: list[int], batch: int, seed: int, epoch: int
) -> None:
    made = loader(captions, batch, "distinct", seed)
    seen: list[str] = []
    for step in range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch):
        b = made.batch(step)
        assert len(set(b.groups.tolist())) == len(b)
        assert all(n == f"s{i}" and c < captions[i] for n, (i, c) in zip(b.names, b.ids.tolist(), strict=True))
        seen += b.names
    assert sorted(seen) == sorted(f"s{n}" for n in range(len(captions)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.sampled_from([2, 4, 6, 8]), st.integers(0, 3))
def test_opposites_stand_side_by_side_in_one_batch(couples: int, singles: int, batch: int, seed: int) -> None:
    count = 2 * couples + singles
    if not count:
        return
    names = list(np.random.default_rng(seed).permutation(count))
    opposite_of = {
        f"s{a}": f"s{b}" for a, b in zip(names[0 : 2 * couples : 2], names[1 : 2 * couples : 2], strict=True)
    }
    opposite_of |= {b: a for a, b in opposite_of.items()} | {"elsewhere": "s0"}
    made = loader([2] * count, batch, "opposites", seed, opposite_of=opposite_of)
    assert made.steps_per_epoch == -(-count // batch)
    seen: list[str] = []
    for step in range(made.steps_per_epoch):
        names_in = made.batch(step).names
        assert len(set(names_in)) == len(names_in)
        for row, name in enumerate(names_in):
            if name in opposite_of:
                assert opposite_of[name] in names_in[max(row - 1, 0) : row + 2]
        seen += names_in
    assert sorted(seen) == sorted(f"s{n}" for n in range(count))


@settings(max_examples=25, deadline=None)
@given(many, st.integers(1, 9), st.sampled_from(["pairs", "distinct"]), st.sampled_from([2, 3]))
def test_all_processes_in_turn_are_the_batch_of_one(captions: list[int], batch: int, kind: str, world: int) -> None:
    kept = [2 + n % 3 for n in range(len(captions))]
    options = {"kept": kept, **EVERYTHING}
    alone = loader(captions, batch, kind, **options)
    ranks = [loader(captions, batch, kind, rank=r, world=world, **options) for r in range(world)]
    for step in range(2 * alone.steps_per_epoch):
        parts = [r.batch(step) for r in ranks]
        assert equal(joined(parts), alone.batch(step))
        assert {r.batch_rows(step) for r in ranks} == {alone.batch_rows(step)}
        sizes = [len(p) for p in parts]
        assert max(sizes) - min(sizes) <= 1


def test_any_order_of_asking_and_a_restart_give_the_same_batches() -> None:
    captions = [1, 3, 2, 5, 1, 2, 4]
    first = loader(captions, 3, **EVERYTHING)
    steps = list(range(3 * first.steps_per_epoch))
    straight = [first.batch(s) for s in steps]
    again = loader(captions, 3, **EVERYTHING)
    for s in [5, 0, 11, 5, *reversed(steps)]:
        assert equal(again.batch(s), straight[s])
    streamed = {s: b for s, b, _ in loader(captions, 3, ahead=4, **EVERYTHING).stream(4, 9)}
    assert list(streamed) == [4, 5, 6, 7, 8]
    assert all(equal(b, straight[s]) for s, b in streamed.items())


def test_epochs_and_seeds_differ_and_captions_are_drawn_evenly() -> None:
    made = loader([4] * 50, 50, "distinct")
    orders = [made.batch(s).names for s in range(3)]
    assert len(set(orders)) == 3
    assert loader([4] * 50, 50, "distinct", seed=1).batch(0).names != orders[0]
    drawn = Counter(int(c) for step in range(40) for c in made.batch(step).ids[:, 1])
    assert all(400 < drawn[c] < 600 for c in range(4))  # 2000 draws


def test_the_last_batch_is_kept_unless_it_is_dropped() -> None:
    assert [loader([1] * 7, 3).batch_rows(s) for s in range(4)] == [3, 3, 1, 3]
    made = loader([1] * 7, 3, drop_last=True)
    assert (made.steps_per_epoch, made.batch_rows(1)) == (2, 3)
    few = loader([1, 1], 8, rank=0, world=3)
    assert (few.batch_rows(0), len(few.batch(0))) == (2, 0)
    assert few.batch(0).frames.shape == (0, KEPT, 3, SIZE, SIZE)


def test_captions_of_one_part_of_a_video_are_one_group() -> None:
    samples = [
        Sample("a", Path("v.mp4"), ("0 0",)),
        Sample("b", Path("v.mp4"), ("1 0",)),
        Sample("part", Path("v.mp4"), ("2 0",), 0.0, 1.0),
    ]
    frames = dict.fromkeys(("a", "b", "part"), np.zeros((1, 3, SIZE, SIZE), np.uint8))
    pairs = Loader(Order(samples, "pairs", batch=3), frames, words).batch(0)
    group = dict(zip(pairs.names, pairs.groups.tolist(), strict=True))
    assert group["a"] == group["b"] != group["part"]
    distinct = Loader(Order(samples, batch=3), frames, words)
    assert {len(distinct.batch(s)) for s in range(16)} == {1}
    assert {n for s in range(16) for n in distinct.batch(s).names} == {"a", "b", "part"}


def test_parts_that_share_time_never_meet() -> None:
    """0-3 s and 1-3 s of one film show the same things, so the caption of one is no wrong answer to the other."""
    times = {"a": (0.0, 3.0), "b": (1.0, 3.0), "c": (2.5, 6.0), "d": (6.0, 9.0), "e": (8.0, None)}
    samples = [Sample(name, Path("v.mp4"), (f"{n} 0",), *part) for n, (name, part) in enumerate(times.items())]
    samples.append(Sample("f", Path("w.mp4"), ("5 0",), 0.0, 3.0))
    frames = dict.fromkeys([*times, "f"], np.zeros((1, 3, SIZE, SIZE), np.uint8))
    distinct = Loader(Order(samples, batch=6), frames, words)
    seen = set()
    for step in range(30):
        names = distinct.batch(step).names
        assert [len(set(names) & part) for part in ({"a", "b", "c"}, {"d", "e"}, {"f"})] == [1, 1, 1]
        seen |= set(names)
    assert seen == {*times, "f"}
    pairs = Loader(Order(samples, "pairs", batch=6), frames, words).batch(0)
    assert len(set(pairs.groups.tolist())) == 6


def test_frames_are_those_of_the_sample_and_short_ones_are_masked() -> None:
    made = loader([1, 1, 1], 3, kept=[6, 2, 4], sampling=Sampling("middles", 3))
    b = made.batch(0)
    shown = {n: f[:, 0, 0, -1].tolist() for n, f in zip(b.names, b.frames, strict=True)}
    assert shown == {"s0": [0, 2, 4], "s1": [10, 11, 11], "s2": [20, 21, 22]}
    assert b.frame_mask is not None
    masks = dict(zip(b.names, b.frame_mask.tolist(), strict=True))
    assert masks == {"s0": [True] * 3, "s1": [True, True, False], "s2": [True] * 3}
    assert loader([1], kept=[3]).batch(0).frame_mask is None
    # one process's rows may all be long: it still has a mask, as the others do
    assert all(loader([1, 1], 2, kept=[1, 2], rank=r, world=2).batch(0).frame_mask is not None for r in (0, 1))


def test_random_frames_come_one_of_each_part() -> None:
    made = loader([1], 1, sampling=Sampling("tsn_random_index", 3))
    drawn = [tuple(made.batch(s).frames[0, :, 0, 0, -1].tolist()) for s in range(60)]
    assert set(drawn) == {(a, b, c) for a in (0, 1) for b in (2, 3) for c in (4, 5)}


def test_rows_and_device_of_a_batch() -> None:
    b = loader([2] * 4, 5, kept=[1, 2, 3, 4]).batch(0)
    part = b.rows(1, 4).to("cpu")
    assert len(part) == 3
    assert part.names == b.names[1:4]
    assert torch.equal(part.frames, b.frames[1:4])
    assert equal(joined([b.rows(0, 1), b.rows(1, 5)]), b)
    assert b.frames.dtype == torch.uint8
    assert b.ids.dtype == b.groups.dtype == torch.int64


# ---------------------------------------------------------------------- changes of the pixels


def test_a_flip_is_for_all_frames_and_for_about_half_of_the_videos() -> None:
    made = loader([1] * 4, 4, augment=Augment(flip=0.5))
    plain = loader([1] * 4, 4)
    flips = []
    for s in range(50):
        for changed, same in zip(made.batch(s).frames, plain.batch(s).frames, strict=True):
            flips.append(torch.equal(changed, same.flip(-1)))
            assert flips[-1] or torch.equal(changed, same)
    assert 60 < sum(flips) < 140


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 40), st.integers(4, 40), st.floats(0.05, 1), st.integers(0, 99))
def test_crops_lie_inside_and_have_the_area_and_shape_asked_for(
    height: int, width: int, least: float, seed: int
) -> None:
    cut = Augment((least, 1.0))
    top, left, h, w = cut.box(height, width, np.random.default_rng(seed))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert min(h, w) > 0
    assert (w - 0.5) / (h + 0.5) <= 4 / 3
    assert (w + 0.5) / (h - 0.5) >= 3 / 4
    if 3 / 4 <= width / height <= 4 / 3:  # else the largest part of legal shape may be smaller
        assert (h + 0.5) * (w + 0.5) >= least * height * width


def test_crops_cover_the_whole_range() -> None:
    cut, rng = Augment((0.5, 1.0)), np.random.default_rng(0)
    boxes = np.asarray([cut.box(224, 224, rng) for _ in range(2000)])
    area = boxes[:, 2] * boxes[:, 3] / 224**2
    shape = np.log(boxes[:, 3] / boxes[:, 2])
    assert 0.49 < area.min() < 0.52
    assert 0.95 < area.max() <= 1.0
    assert abs(shape.mean()) < 0.02
    assert boxes[:, :2].min() == 0


def test_a_crop_is_the_same_for_all_frames_and_resizes() -> None:
    still = np.random.default_rng(0).integers(0, 255, (1, 3, 20, 20), np.uint8).repeat(4, 0)
    samples = [Sample("s", Path("v"), ("0 0",))]
    made = Loader(Order(samples, batch=1), {"s": still}, words, size=12, augment=Augment((0.3, 0.6), flip=0.5))
    crops = [made.batch(s).frames for s in range(6)]
    assert crops[0].shape == (1, 4, 3, 12, 12)
    assert all(torch.equal(c[0, 0], frame) for c in crops for frame in c[0])
    assert not torch.equal(crops[0], crops[1])
    whole = torch.from_numpy(still)
    assert torch.equal(Augment((1.0, 1.0), (1.0, 1.0))(whole, 20, np.random.default_rng(0)), whole)


# ---------------------------------------------------------------------- the look-ahead


def test_the_look_ahead_is_bounded_and_ends_with_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loader([1] * 40, 1, ahead=3)
    asked: list[int] = []
    real = made.batch

    def noted(step: int) -> Batch:
        asked.append(step)
        return real(step)

    monkeypatch.setattr(made, "batch", noted)
    stream = made.stream(0, 40)
    assert next(stream)[0] == 0
    deadline = time.monotonic() + 30
    while len(asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert sorted(asked) == [0, 1, 2, 3]
    stream.close()
    assert max(asked) == 3
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_waiting_is_measured_and_an_error_arrives_at_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loader([1] * 4, 1)
    real = made.batch

    def slow(step: int) -> Batch:
        if step == 2:
            raise ClipreelError("a broken shard")
        time.sleep(0.1)
        return real(step)

    monkeypatch.setattr(made, "batch", slow)
    stream = made.stream(0, 4)
    waits = [next(stream)[2], next(stream)[2]]
    assert waits[0] > 0.05
    with pytest.raises(ClipreelError, match="a broken shard"):
        next(stream)
    assert list(made.stream(3, 3)) == []


# ---------------------------------------------------------------------- mistakes


def test_mistakes_say_what_is_allowed() -> None:
    samples, frames = world([1, 1, 1])
    for change, said in [
        ({"kind": "random"}, "order 'random': allowed are distinct, pairs, opposites"),
        ({"batch": 0}, "a batch of 0"),
        ({"seed": -1}, "seed -1"),
        ({"batch": 4, "drop_last": True}, "an epoch has 3 rows, less than a batch of 4"),
        ({"kind": "opposites"}, "needs opposite_of"),
        ({"kind": "opposites", "opposite_of": {}, "batch": 3}, "give an even number"),
        ({"kind": "opposites", "opposite_of": {"s0": "s0"}}, "itself or more than one"),
        ({"kind": "opposites", "opposite_of": {"s0": "s1", "s2": "s1"}}, "itself or more than one"),
    ]:
        with pytest.raises(ClipreelError, match=said):
            Order(samples, **{"batch": 2, **change})
    with pytest.raises(ClipreelError, match="no samples"):
        Order([], batch=2)
    with pytest.raises(ClipreelError, match="'m' has no caption"):
        Order([Sample("m", Path("m"), ())], batch=2)
    order = Order(samples, batch=2)
    for given_frames, change, said in [
        (frames, {"rank": 2, "world": 2}, "rank 2 of 2"),
        (frames, {"sampling": Sampling("uniform", 2)}, "goes by time"),
        (frames, {"size": 4}, "needs a crop"),
        ({"s0": frames["s0"]}, {}, r"2 of 3 samples have no frames \(the first: 's1'\)"),
        ({**frames, "s1": frames["s1"][:, :, :4]}, {}, r"the frames of 's1' have shape \(6, 3, 4, 8\)"),
        ({**frames, "s1": frames["s1"][:0]}, {}, r"have shape \(0, "),
    ]:
        with pytest.raises(ClipreelError, match=said):
            Loader(order, given_frames, words, **change)
    for wrong in ({"crop": (0.5, 1.5)}, {"crop": (0.9, 0.5)}, {"flip": 2.0}, {"ratio": (0.0, 1.0)}):
        with pytest.raises(ClipreelError, match=next(iter(wrong))):
            Augment(**wrong)
    with pytest.raises(ClipreelError, match=r"xpool_random needs two frames .*--frames, or draw with tsn_random_index"):
        Loader(order, frames, words, sampling=Sampling("xpool_random", 6)).batch(0)


def test_from_videos_to_batches_of_the_shapes_world(tmp_path: Path) -> None:
    model, videos = load("shapes-tiny", device="cpu"), tmp_path / "videos"
    items = ShapesWorld().videos("train")[:8]
    ShapesWorld().write_videos(videos, "train", count=8)
    samples = read_samples(videos)
    prepare(samples, tmp_path / "cache", preprocess=model.preprocess, sampling=model.sampling)
    cache = FrameCache(tmp_path / "cache")
    cache.require(samples, model.preprocess, model.sampling)
    opposite_of = {i.id: i.opposite for i in items if i.opposite}
    order = Order(samples, "opposites", batch=4, opposite_of=opposite_of)
    assert model.tokenizer is not None
    read = model.tokenizer
    made = Loader(order, cache, lambda texts: read(texts, model.context), sampling=cache.pick(model.sampling.frames))
    b = made.batch(0)
    assert b.frames.shape == (4, 8, 3, 64, 64)
    assert opposite_of[b.names[0]] == b.names[1]
    assert torch.equal(b.frames[0], torch.tensor(cache[b.names[0]]))
    assert set(b.names) <= {i.id for i in items}
    v, t = model.encode_video(model.preprocess.normalise(b.frames)), model.encode_text(b.ids)
    assert v.shape == t.shape == (4, model.embed_dim)
