"""Batches out of shards: every sample once an epoch, the same from any step on any process, and what is left out."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipreel.cli import main
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_talk import still_captions
from clipreel.data.shard_files import make_shards
from clipreel.data.tar_shards import open_shards
from clipreel.errors import ClipreelError
from clipreel.training.batches import Batch
from clipreel.training.engine import fit
from clipreel.training.log import read_log
from clipreel.training.mixed import Mixed
from clipreel.training.mixture import Middle, Mixture
from clipreel.training.snapshots import Snapshots
from clipreel.training.streaming import Streamed
from clipreel.video.decode import read_frames
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess
from tests.training.tiny import tiny_config, tiny_recipe, weights
from tests.video.make import write

COUNT, SIZE = 11, 16


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return ShapesWorld().write_videos(tmp_path_factory.mktemp("films"), "train", count=COUNT)


@pytest.fixture
def place(films: list[Sample], tmp_path: Path) -> Path:
    make_shards(films, tmp_path / "s", per_shard=4, generated={s.id: f"still {s.id}" for s in films})
    return tmp_path / "s"


def words(texts: list[str]) -> Tensor:
    return torch.tensor([[sum(map(ord, t)), len(t)] for t in texts])


def stream(place: Path, **changes: object) -> Streamed:
    sampling = changes.pop("sampling", Sampling("uniform", 2))
    options = {"batch": 3, "seed": 5, "buffer": 4, "captions": "shards", **changes}
    return Streamed(open_shards(place), words, Preprocess(SIZE), sampling, **options)


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a, b), *([(a.beside, b.beside)] if a.beside else [])]
    return all(x.names == y.names and torch.equal(x.frames, y.frames) and torch.equal(x.ids, y.ids) for x, y in pairs)


def test_an_epoch_has_every_sample_once_with_its_four_views(place: Path, films: list[Sample]) -> None:
    made = stream(place)
    by_id = {s.id: s for s in films}
    assert made.steps_per_epoch == 4
    epochs = []
    for epoch in range(2):
        seen: list[str] = []
        for step in range(4 * epoch, 4 * epoch + 4):
            batch = made.batch(step)
            assert len(batch) == made.batch_rows(step) == (2 if step % 4 == 3 else 3)
            assert batch.groups.unique().numel() == len(batch)
            for row, name in enumerate(batch.names):
                sample = by_id[name]
                pixels = Preprocess(SIZE).pixels
                frames = read_frames(sample.video, Sampling("uniform", 2), transform=pixels).pixels
                assert torch.equal(batch.frames[row], frames)
                assert any(torch.equal(batch.ids[row], words([c])[0]) for c in sample.captions)
                assert torch.equal(batch.beside.ids[row], words([f"still {name}"])[0])
            seen += batch.names
        assert sorted(seen) == sorted(by_id)
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_the_still_is_the_frame_of_the_middle(place: Path, films: list[Sample]) -> None:
    batch = stream(place).batch(0)
    name = batch.names[0]
    sample = next(s for s in films if s.id == name)
    stored = read_frames(sample.video, Sampling("middles", 24), transform=Preprocess(SIZE).pixels).pixels
    assert len(stored) == ShapesWorld.FRAMES
    assert torch.equal(batch.beside.frames[0], torch.from_numpy(Middle({name: stored.numpy()})[name]))


def test_any_step_anywhere_is_the_same(place: Path) -> None:
    steps = {step: batch for step, batch, _ in stream(place).stream(0, 9)}
    random = stream(place, sampling=Sampling("tsn_random", 2))
    later = {step: batch for step, batch, _ in stream(place).stream(5, 9)}  # from the middle of a shard
    assert all(same(steps[s], later[s]) for s in later)
    assert same(random.batch(2), stream(place, sampling=Sampling("tsn_random", 2)).batch(2))
    assert not same(random.batch(2), steps[2])
    for step in (0, 3):
        parts = [stream(place, rank=r, world=3).batch(step) for r in range(3)]
        assert sum((p.names for p in parts), ()) == steps[step].names
        assert torch.equal(torch.cat([p.beside.frames for p in parts]), steps[step].beside.frames)
        assert torch.equal(torch.cat([p.groups for p in parts]), steps[step].groups)
    assert not same(stream(place, seed=6).batch(0), steps[0])


def test_a_process_reads_only_its_rows_and_neighbours_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import clipreel.data.tar_shards as module

    read: list[tuple[str, int]] = []
    get = module.get

    def counted(url: str, start: int | None = None, end: int | None = None) -> bytes:
        data = get(url, start, end)
        if url.endswith(".tar"):
            read.append((url, len(data)))
        return data

    monkeypatch.setattr(module, "get", counted)
    monkeypatch.setattr(module, "NEAR", 0)
    whole = stream(place, buffer=COUNT)
    assert len(whole.fetch(0, 0)) == COUNT
    assert len(read) == 3  # each shard in one piece
    total = sum(n for _, n in read)
    read.clear()
    half = stream(place, buffer=COUNT, world=2).fetch(0, 0)
    assert len(half) == 1 + 1 + 1 + 1  # of rows 3, 3, 3 and 2
    assert sum(n for _, n in read) < 0.6 * total


def test_what_cannot_be_used_is_left_out_counted_and_named(films: list[Sample], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    samples = [*films[:5], Sample("bad", broken, ("a caption",)), *films[5:]]
    make_shards(samples, tmp_path / "s", per_shard=4)
    log = tmp_path / "log.jsonl"
    made = stream(tmp_path / "s", captions=None, log=log)
    lengths = [(len(b), made.batch_rows(s)) for s, b, _ in made.stream(0, 8)]  # two epochs
    assert sum(wanted - got for got, wanted in lengths) == 2
    [(name, why)] = made.skipped.items()
    assert name.endswith("shard-000001.tar/bad")
    assert why == "not-video"
    assert [json.loads(line) for line in log.read_text().splitlines()] == [{"sample": name, "reason": why}]
    assert stream(tmp_path / "s", captions=None, log=log).skipped == made.skipped  # a later run knows
    make_shards([samples[5], *films[:1]], tmp_path / "two", per_shard=1)
    alone = stream(tmp_path / "two", captions=None, batch=2)
    assert len(alone.batch(0)) == 1
    assert sorted(len(b) for _, b, _ in stream(tmp_path / "two", captions=None, batch=1).stream(0, 2)) == [0, 1]


@pytest.mark.parametrize("stop", [3, 7])
def test_a_run_over_a_wholly_damaged_part_ends_and_resumes_exactly(
    films: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Five steps of an epoch of eight are empty, in whichever order its shards come."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    bad = [Sample(f"bad{n}", broken, ("a caption",)) for n in range(10)]
    make_shards([*films[:5], *bad], tmp_path / "s", per_shard=5)

    def ids(texts: list[str]) -> Tensor:
        return torch.tensor([[1 + len(t) % 30, 1 + ord(t[-1]) % 30, 39, *[0] * 5] for t in texts])

    def run(folder: str, until: int = 16) -> tuple[dict[str, Tensor], list[str], list[dict]]:
        told: list[str] = []
        made = Streamed(
            open_shards(tmp_path / "s"), ids, Preprocess(SIZE), Sampling("uniform", 2), batch=2, seed=5, buffer=1
        )
        rows = made.batch

        def batch(step: int) -> Batch:
            if step == until:
                raise KeyboardInterrupt
            return rows(step)

        monkeypatch.setattr(made, "batch", batch)
        recipe = tiny_recipe()
        fit(recipe, made, tiny_config(steps=16, checkpoint_every=1), tmp_path / folder, say=told.append)
        log = [{k: row.get(k) for k in ("step", "loss", "lr")} for row in read_log(tmp_path / folder)]
        return weights(recipe), told, log

    whole, told, log = run("whole")
    assert len(log) == 16
    empty = [row["step"] for row in log if row["loss"] is None]
    assert len(empty) >= 8
    assert len([t for t in told if "change nothing" in t]) == sum(n - 1 not in empty for n in empty)
    with pytest.raises(KeyboardInterrupt):
        run("killed", until=stop)
    again, _, other = run("killed")
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    assert other == log


def test_an_epoch_that_fills_no_batch_is_told_once(place: Path) -> None:
    assert stream(place, batch=COUNT).told() == []
    said = f"an epoch has {COUNT} rows and a batch 64, so every step takes the same {COUNT} rows"
    short = stream(place, batch=64)
    assert short.told() == [said]
    mixed = Mixture({"films": short, "more": stream(place)}, {"films": 1, "more": 1})
    assert Snapshots(mixed, 1, lambda step: None).told() == [f"source films: {said}"]
    assert Mixed([stream(place), short]).told() == [f"data 2: {said}"]


def test_a_video_of_one_frame_is_that_frame_again(tmp_path: Path) -> None:
    write(tmp_path / "short.mp4", frames=1)
    write(tmp_path / "long.mp4", frames=20)
    samples = [Sample(n, tmp_path / f"{n}.mp4", (n,)) for n in ("short", "long")]
    make_shards(samples, tmp_path / "s")
    batch = stream(tmp_path / "s", captions=None, batch=2, sampling=Sampling("uniform", 4)).batch(0)
    short, long = (batch.frames[batch.names.index(n)] for n in ("short", "long"))
    assert all(torch.equal(frame, short[0]) for frame in short)
    assert not torch.equal(long[0], long[-1])


def test_a_shard_that_shrinks_while_it_is_read(place: Path) -> None:
    made = stream(place, buffer=COUNT, batch=COUNT)
    shard = place / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:20_000])
    batch = made.batch(0)
    assert len(batch) == COUNT - len(made.skipped) < COUNT
    assert set(made.skipped.values()) == {"the shard ends before it"}


def test_streams_that_cannot_be(place: Path, films: list[Sample], tmp_path: Path) -> None:
    for changes, said in (
        ({"batch": 0}, "batch 0: give at least 1"),
        ({"buffer": 0}, "buffer 0"),
        ({"sampling": Sampling("middles", 2)}, "goes by index"),
        ({"captions": {films[0].id: "x"}}, f"10 of {COUNT} samples have no generated caption"),
    ):
        with pytest.raises(ClipreelError, match=said):
            stream(place, **changes)
    make_shards(films, tmp_path / "plain")
    with pytest.raises(ClipreelError, match=f"{COUNT} of {COUNT} samples have no generated"):
        stream(tmp_path / "plain")
    assert torch.equal(stream(tmp_path / "plain", missing="None").batch(0).beside.ids[0], words(["None"])[0])
    said = stream(tmp_path / "plain", captions={films[0].id: "x"}, missing="y", batch=COUNT).batch(0)
    assert sorted(said.beside.ids[:, 0].tolist()) == sorted([ord("x"), *[ord("y")] * (COUNT - 1)])


def test_snapshots_are_taken_between_steps(place: Path) -> None:
    taken: list[int] = []
    done: list[int] = []

    def keep(step: int) -> None:
        assert done == list(range(len(done)))
        assert len(done) == step - first
        taken.append(step)

    first = 0
    for step, _, _ in Snapshots(stream(place, captions=None), 3, keep).stream(0, 7):
        done.append(step)
    assert taken == [3, 5, 7]
    first, taken, done = 5, [], []
    for step, _, _ in Snapshots(stream(place, captions=None), 3, keep).stream(5, 7):
        done.append(step - 5)
    assert taken == [5, 7]
    with pytest.raises(ClipreelError, match="snapshots: -1"):
        Snapshots(stream(place), -1, keep)


def test_post_pretraining_from_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films = ShapesWorld().write_videos(tmp_path / "films", "val", count=9)
    seen = still_captions(ShapesWorld().videos("val"))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    samples = [*films, Sample("bad", broken, ("a caption",))]
    make_shards(samples, tmp_path / "s", per_shard=4, generated=seen | {"bad": "x"})
    config = {
        "model": "shapes-tiny",
        "sources": {"films": {"path": str(tmp_path / "s"), "source": "shards", "captions": "shards", "buffer": 4}},
        "frames": 2,
        "batch": 4,
        "snapshots": 2,
        "train": {"steps": 4, "optim": {"lr": 1e-4}, "checkpoint_every": 1},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    command = ["post-pretrain", str(tmp_path / "config.yaml"), "--device", "cpu", "--out", str(tmp_path / "one")]
    assert main(command) == 1  # one sample was left out
    assert "shard-000002.tar/bad: not-video" in capsys.readouterr().err
    whole = (tmp_path / "one" / "adapter" / "adapter_model.safetensors").read_bytes()
    kept = sorted(p.name for p in (tmp_path / "one").glob("adapter-*"))
    assert kept == ["adapter-000002", "adapter-000004"]
    assert (tmp_path / "one" / "adapter-000004" / "adapter_model.safetensors").read_bytes() == whole
    # killed after two steps, in the middle of a shard: the same in the end
    run = tmp_path / "one" / "run"
    for path in (run / "checkpoints").iterdir():
        if "00000004" in path.name:
            path.unlink()
    assert main(command) == 1
    assert "going on after step 3" in capsys.readouterr().err
    assert (tmp_path / "one" / "adapter" / "adapter_model.safetensors").read_bytes() == whole
    for change, said in (
        ("sources.films.split=train", "shards have no split"),
        ("sources.films.limit=1", "limit: 1 is not allowed; give 2 or more"),
        (f"sources.films.path={tmp_path / 'none'}", "there is no shards.jsonl"),
        ("sources.films.source=tars", "is not one of pairs, shards"),
    ):
        assert main([*command[:-1], str(tmp_path / "two"), change]) == 2
        assert said in capsys.readouterr().err, change
    shard = tmp_path / "s" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    assert main([*command[:-1], str(tmp_path / "three"), "train.steps=1"]) == 1
    assert "4 of 4 samples lost" in capsys.readouterr().err
