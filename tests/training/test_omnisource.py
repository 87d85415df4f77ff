"""Post-pretraining: four views of a video, several corpora, where training goes on from, and a whole small run."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import clipreel
from clipreel import load_official
from clipreel.adapter import read_config, save_adapter, trained
from clipreel.checkpoints import to_hf
from clipreel.cli import main
from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.data.captions import captioned, read_captions
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_talk import still_captions, subtitles
from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.losses import FOUR
from clipreel.official.clip_vip import CLIP_VIP
from clipreel.retriever import Retriever
from clipreel.training.batches import Batch, Batches, Loader
from clipreel.training.microbatch import Passes, gradients
from clipreel.training.mixed import Mixed
from clipreel.training.mixture import Beside, Middle, Mixture
from clipreel.training.omnisource import OmnisourceRecipe
from clipreel.training.order import Order
from clipreel.training.starting import start_from
from clipreel.tuners import build, options
from clipreel.tuners.clip_vip import ClipVip, resampled
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

ROWS, T, SIZE = 6, 3, 16


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(ClipConfig(SIZE, 8, TowerConfig(2, 64, 1, 64), TowerConfig(2, 64, 1, 64), 16, 60, 16, "quick_gelu"))


def tuner(clip: Clip, **changes: object) -> ClipVip:
    torch.manual_seed(1)
    return build("clip_vip", clip, {"frames": T, "log_scale": 2.0, **changes})


def views(rows: int, frames: int, seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (rows, frames, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    ids = torch.randint(1, 58, (rows, 8), generator=g)
    ids[:, 7] = 59
    return Batch(pixels, ids, torch.arange(rows), tuple(f"r{i}" for i in range(rows)))


def four_views(rows: int = ROWS) -> Batch:
    return replace(views(rows, T, 0), beside=views(rows, 1, 1))


def recipe(clip: Clip, loss: str = "v-sc+f-c", **changes: object) -> OmnisourceRecipe:
    return OmnisourceRecipe(clip, tuner(clip, **changes), Preprocess(SIZE), loss=loss)


# ------------------------------------------------------------------ the recipe


@pytest.mark.parametrize("loss", ["v-sc+f-c", "vf-sc", "v-s+v-c", "v-s", "NCELearnableTempLoss_vs_vc_fc"])
def test_losses_are_those_of_the_four_views(clip: Clip, loss: str) -> None:
    made, batch = recipe(clip, loss), four_views()
    losses, report = made(batch)
    t, pre = made.tuner, Preprocess(SIZE)
    v, f = (unit(clip.encode_video(pre.normalise(b.frames), t)[:, 0]) for b in (batch, batch.beside))
    s, c = (unit(clip.encode_text(b.ids, t)) for b in (batch, batch.beside))
    scale = torch.tensor(2.0).exp()
    assert list(losses) == list(made.terms)
    for name, value in losses.items():
        torch.testing.assert_close(value, FOUR[name](v, s, f, c, scale))
    assert report["scale"].item() == pytest.approx(scale.item())


def test_what_no_term_asks_for_is_not_computed(clip: Clip) -> None:
    batch = four_views()
    assert recipe(clip, "v-sc").encode(batch).keys() == {"video", "text", "caption"}
    assert recipe(clip, "v-s").encode(batch).keys() == {"video", "text"}
    assert recipe(clip).encode(batch).keys() == {"video", "text", "frame", "caption"}


def test_a_corpus_of_pairs_is_trained_on_its_pairs(clip: Clip) -> None:
    for frames in (T, 1):
        batch = views(ROWS, frames, 3)
        losses, _ = recipe(clip)(batch)
        wanted, _ = recipe(clip, "v-s")(batch)
        assert losses.keys() == wanted.keys() == {"v-s"}
        torch.testing.assert_close(losses["v-s"], wanted["v-s"])


def test_micro_batches_give_the_gradient_of_the_whole_batch(clip: Clip) -> None:
    found = []
    for micro in (2, ROWS):
        made = recipe(clip)
        params = made.trained()
        gradients(made, four_views(), 0, Passes(list(params.values()), torch.device("cpu"), micro, nullcontext))
        found.append({n: p.grad for n, p in params.items()})
    assert "base.tensors.logit_scale" in found[0]
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=1e-6 + 1e-4 * float(grad.abs().max()), rtol=1e-4)


def test_the_scale_stays_between_one_and_its_greatest(clip: Clip) -> None:
    made = recipe(clip)
    for value, kept in ((-1.0, 0.0), (9.0, np.log(200)), (3.0, 3.0)):
        with torch.no_grad():
            made.log_scale.fill_(value)
        made.after_step()
        assert made.log_scale.item() == pytest.approx(kept)
    assert made.log_scale is made.tuner.overrides["logit_scale"]


# ------------------------------------------------------------------ sources


def world(many: int = 7, stored: int = 5) -> tuple[list[Sample], dict[str, np.ndarray]]:
    """Frame t of sample n shows 10 n + t; its caption is its number."""
    samples = [Sample(f"s{n}", Path(f"{n}.mp4"), (f"{n}", f"{n}")) for n in range(many)]
    frames = {f"s{n}": np.full((stored, 3, 4, 4), 10 * n, np.uint8) for n in range(many)}
    for films in frames.values():
        films += np.arange(stored, dtype=np.uint8)[:, None, None, None]
    return samples, frames


def words(texts: list[str]) -> Tensor:
    return torch.tensor([[int(t)] for t in texts])


def loader(batch: int = 3, stills: bool = False, kind: str = "distinct", many: int = 7, **place: int) -> Loader:
    samples, frames = world(many)
    if stills:
        samples, frames = [replace(s, captions=(f"1{s.id[1:]}",)) for s in samples], Middle(frames)
    order = Order(samples, kind, batch=batch, seed=4)
    return Loader(order, frames, words, sampling=Sampling("middles", 1 if stills else 2), **place)


def test_a_frame_and_its_caption_stand_beside_their_video() -> None:
    both = Beside(loader(), loader(stills=True))
    seen = []
    for step, batch, _ in both.stream(0, both.steps_per_epoch):
        assert len(batch) == len(batch.beside) == both.batch_rows(step)
        for row, name in enumerate(batch.names):
            n = int(name[1:])
            seen.append(n)
            assert batch.ids[row].item() == n
            assert batch.beside.ids[row].item() == int(f"1{n}")
            assert batch.beside.names[row] == name
            assert batch.beside.frames.shape[1] == 1
            assert batch.beside.frames[row].unique().tolist() == [10 * n + 2]  # of frames 0..4, number 2
    assert sorted(seen) == list(range(7))


def test_rows_and_processes_keep_what_stands_beside() -> None:
    whole = Beside(loader(), loader(stills=True)).batch(0)
    halves = [Beside(*(loader(stills=s, rank=r, world=2) for s in (False, True))).batch(0) for r in (0, 1)]
    assert torch.equal(torch.cat([h.beside.frames for h in halves]), whole.beside.frames)
    part = whole.rows(1, 3)
    assert torch.equal(part.beside.ids, whole.beside.ids[1:3])
    assert part.beside.names == whole.names[1:3]
    assert whole.to("cpu").beside is not None


def test_sources_that_do_not_go_together() -> None:
    for other, said in (
        (loader(batch=2, stills=True), "batch 3, the other 2"),
        (loader(stills=True, kind="pairs"), "order distinct, the other pairs"),
        (loader(stills=True, many=4), "steps in an epoch 3, the other 2"),
        (loader(stills=True, rank=1, world=2), "share of processes"),
    ):
        with pytest.raises(ClipreelError, match=said):
            Beside(loader(), other)
    with pytest.raises(ClipreelError, match="draws captions, not videos"):
        Beside(loader(kind="pairs"), loader(kind="pairs"))


class Numbered(Batches):
    """A source whose batch is known by its step."""

    def __init__(self, steps: int, rows: int) -> None:
        self.steps_per_epoch, self.rows = steps, rows

    def batch_rows(self, step: int) -> int:
        return self.rows

    def batch(self, step: int) -> Batch:
        return Batch(
            torch.zeros(self.rows), torch.full((self.rows,), step), torch.arange(self.rows), ("x",) * self.rows
        )


def test_a_mixture_gives_every_source_its_share_in_its_own_order() -> None:
    made = Mixture({"a": Numbered(4, 2), "b": Numbered(7, 3)}, {"a": 1, "b": 2}, seed=5)
    assert made.steps_per_epoch == 3 * 4  # b needs four rounds
    counted = {"a": 0, "b": 0}
    orders = set()
    for round_ in range(20):
        turns = [made.turn(3 * round_ + i) for i in range(3)]
        orders.add(tuple(name for name, _ in turns))
        for name, own in turns:
            assert own == counted[name]
            counted[name] += 1
        assert counted == {"a": round_ + 1, "b": 2 * (round_ + 1)}
    assert len(orders) == 3
    for step, batch, _ in made.stream(5, 9):
        name, own = made.turn(step)
        assert len(batch) == made.batch_rows(step) == {"a": 2, "b": 3}[name]
        assert batch.ids[0].item() == own
    for sources, shares in (({}, {}), ({"a": Numbered(1, 1)}, {"b": 1}), ({"a": Numbered(1, 1)}, {"a": 0})):
        with pytest.raises(ClipreelError):
            Mixture(sources, shares)


def test_mixed_data_is_built_ahead() -> None:
    asked: list[int] = []
    last = threading.Event()

    class Slow(Numbered):
        def batch(self, step: int) -> Batch:
            asked.append(step)
            if len(asked) == 2:
                last.set()
            return super().batch(step)

    mixed = Mixed([Slow(4, 2)])
    stream = mixed.stream(0, 3)
    assert next(stream)[0] == 0
    assert last.wait(10)  # the next batch, though nobody asked for it
    assert [s for s, _, _ in stream] == [1, 2]
    assert isinstance(mixed, Batches)


def test_stored_captions(tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    file.write_text('[{"image_id": "s0", "caption": "a dog"}, {"image_id": "s1", "caption": "a cat"}]')
    lines = tmp_path / "captions.jsonl"
    lines.write_text('{"id": "s0", "caption": "a dog", "model": "x"}\n{"id": "s1", "caption": "a cat"}\n')
    assert read_captions(file) == read_captions(lines) == {"s0": "a dog", "s1": "a cat"}
    samples = world(3)[0]
    with pytest.raises(ClipreelError, match=r"none for 1 of 3 samples \(the first: 's2'\)"):
        captioned(samples, read_captions(file))
    assert [s.captions for s in captioned(samples, read_captions(file), "None")] == [("a dog",), ("a cat",), ("None",)]
    for wrong, said in (
        ('[{"image_id": "s0"}]', "entry 1"),
        ('{"id": "s0", "caption": " "}', "entry 1"),
        ('{"id": "a", "caption": "x"}\n{"id": "a", "caption": "y"}', "entry 2: 'a' has another caption"),
        ("[", "cannot be read"),
        ("[1]", "entry 1: 1 is not"),
    ):
        file.write_text(wrong)
        with pytest.raises(ClipreelError, match=said):
            read_captions(file)


def test_the_shapes_world_talks_as_badly_as_the_web() -> None:
    films = ShapesWorld().videos("test")
    said, seen = subtitles(films), still_captions(films)
    assert said.keys() == seen.keys() == {f.id for f in films}
    assert subtitles(films) == said
    right = [any(a.colour in said[f.id] and a.shape in said[f.id] for a in f.scene.actors[:1]) for f in films]
    assert 0.4 < sum(right) / len(right) < 0.75
    films = [f for f in ShapesWorld().videos("train") if f.scene.kind == "scale"]
    said = subtitles(ShapesWorld().videos("train"))
    own = [f for f in films if f.scene.actors[0].colour in said[f.id] and f.scene.actors[0].shape in said[f.id]]
    shrinks = [any(w in said[f.id] for w in ("shrink", "smaller")) for f in own]
    other_way = sum(f.scene.backwards != way for f, way in zip(own, shrinks, strict=True))
    assert 0.3 < other_way / len(own) < 0.7  # shifted in time
    films = ShapesWorld().videos("test")
    assert all(f.scene.actors[0].shape in seen[f.id] for f in films)


# ------------------------------------------------------------------ where training goes on from


def retriever(clip: Clip) -> Retriever:
    return Retriever(clip, tokenizer=None, preprocess=Preprocess(SIZE), sampling=Sampling("uniform", T), name="tiny")


def released(clip: Clip, vip: ClipVip, folder: Path) -> Path:
    state = {f"clipmodel.{n}": t for n, t in to_hf(clip.state_dict(), clip.config).items()}
    state |= {f"clipmodel.{CLIP_VIP['proxies']}": vip.proxies.detach()}
    state |= {f"clipmodel.{CLIP_VIP['temporal']}": vip.temporal.detach()[None]}
    torch.save(state, folder / "pretrain_clipvip.pt")
    return folder / "pretrain_clipvip.pt"


def test_tuning_starts_from_a_released_checkpoint(clip: Clip, tmp_path: Path) -> None:
    torch.manual_seed(3)
    other = Clip(clip.config)  # post-pretraining moved every tensor
    vip = tuner(other, frames=5)
    torch.nn.init.normal_(vip.temporal)
    file = released(other, vip, tmp_path)
    new = tuner(clip)
    start_from(new, retriever(clip), "clip_vip", str(file))
    torch.testing.assert_close(new.temporal, resampled(vip.temporal, T)[0])
    assert new.overrides["logit_scale"].item() == other.logit_scale.item()
    official = {"temporal_size": T, "vision_heads": 1, "text_heads": 1}
    model = load_official("clip-vip", file, official, device="cpu")
    frames, ids = torch.randn(2, T, 3, SIZE, SIZE), views(2, T, 0).ids
    torch.testing.assert_close(clip.encode_video(frames, new), model.clip.encode_video(frames, model.tuner))
    torch.testing.assert_close(clip.encode_text(ids, new), model.clip.encode_text(ids, model.tuner))


def test_starts_that_do_not_fit(clip: Clip, tmp_path: Path) -> None:
    file = released(clip, tuner(clip), tmp_path)
    base = retriever(clip)
    for changes, said in (
        ({"proxies": 2}, r"proxies is \(3, 64\) instead of \(1, 64\)"),
        ({"text": "frozen"}, "tensors of CLIP that this tuner keeps"),
        ({"temporal": False}, "1 unexpected, first temporal"),
    ):
        with pytest.raises(ClipreelError, match=said):
            start_from(tuner(clip, **changes), base, "clip_vip", str(file))
    finer = Clip(replace(clip.config, patch=4))
    with pytest.raises(ClipreelError, match="CLIP of another size"):
        start_from(tuner(finer), retriever(finer), "clip_vip", str(file))
    with pytest.raises(ClipreelError, match="there is no checkpoint"):
        start_from(tuner(clip), base, "clip_vip", str(tmp_path / "none.pt"))
    with pytest.raises(ClipreelError, match="lora has no released checkpoints"):
        start_from(build("lora", clip), base, "lora", str(file))
    made = base.adapted(tuner(clip), adapter="x")
    folder = save_adapter(tmp_path / "a", made, "clip_vip", options("clip_vip", {"frames": T}))
    new = tuner(clip)
    with torch.no_grad():
        new.proxies.zero_()
    start_from(new, base, "clip_vip", str(folder))
    assert all(torch.equal(t, trained(made.tuner)[n]) for n, t in trained(new).items())
    with pytest.raises(ClipreelError, match="is an adapter of clip_vip on tiny"):
        start_from(build("clip_vip_joint", clip), base, "clip_vip_joint", str(folder))


# ------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films with subtitles and captions of stills, and a second corpus of single images."""
    folder = tmp_path_factory.mktemp("corpus")
    films = ShapesWorld().videos("val")[:12]
    ShapesWorld().write_videos(folder / "films", "val", count=12)
    seen = still_captions(films)
    (folder / "captions.jsonl").write_text("".join(json.dumps({"id": i, "caption": c}) + "\n" for i, c in seen.items()))
    from PIL import Image

    rows = []
    for film in films[:6]:
        Image.fromarray(film.scene.render(64, 3)[1]).save(folder / f"{film.id}.png")
        rows.append(json.dumps({"video": f"{film.id}.png", "captions": [seen[film.id]]}) + "\n")
    (folder / "images.jsonl").write_text("".join(rows))
    config = {
        "model": "shapes-tiny",
        "sources": {
            "films": {"path": str(folder / "films"), "captions": str(folder / "captions.jsonl"), "share": 2},
            "images": {"path": str(folder / "images.jsonl"), "frames": 1},
        },
        "validation": {"path": str(folder / "films")},
        "frames": 2,
        "batch": 4,
        "train": {"steps": 4, "optim": {"lr": 1e-4}},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def test_from_two_corpora_to_an_adapter_that_tuning_starts_from(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["post-pretrain", str(corpus / "config.yaml"), "--out", str(out), "--device", "cpu", "--json"]
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["step"] == 4
    assert 0 <= said["t2v R@1"] <= 100
    config = read_config(out / "adapter")
    assert (config.method, config.options["frames"], config.helped) == ("clip_vip", 2, None)
    log = [json.loads(line) for line in (out / "run" / "log.jsonl").read_text().splitlines()]
    assert any("loss/f-c" in row for row in log)
    first = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert main(command) == 0
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == first
    before, after = (clipreel.load("shapes-tiny", a, device="cpu") for a in (None, out / "adapter"))
    text = ["a red circle"]
    assert not torch.allclose(before.encode_text(text), after.encode_text(text), atol=1e-4)
    assert main([*command, "train.steps=5"]) == 2
    assert "run of another config" in capsys.readouterr().err
    tune = ["tune", str(corpus / "films"), f"start={out / 'adapter'}", "loss=v-s", "frames=2", "batch=4", "lr=1e-9"]
    tune += ["train.steps=1", "data.validation_share=0.3", "data.held_out_share=0.4", "--method", "clip_vip"]
    assert main([*tune, "--on", "shapes-tiny", "--out", str(tmp_path / "tuned"), "--device", "cpu"]) == 0
    assert "What the proxies look at" in (tmp_path / "tuned" / "report.html").read_text()
    tuned = clipreel.load("shapes-tiny", tmp_path / "tuned" / "adapter", device="cpu")
    torch.testing.assert_close(tuned.encode_text(text), after.encode_text(text), atol=1e-5, rtol=0)


def test_two_processes_make_the_adapter_of_one(corpus: Path, tmp_path: Path) -> None:
    command = ["post-pretrain", str(corpus / "config.yaml"), "--device", "cpu", "--cache", str(tmp_path / "frames")]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "clipreel", *command, "--out", str(tmp_path / "two")],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert said[1][0] == ""
    one, two = (load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)


def test_runs_that_cannot_be(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["post-pretrain", str(corpus / "config.yaml"), "--out", str(tmp_path), "--device", "cpu"]
    (tmp_path / "short.jsonl").write_text((corpus / "captions.jsonl").read_text().split("\n")[0])
    for change, message in (
        (f"sources.films.captions={tmp_path / 'short.jsonl'}", "none for 11 of 12 samples"),
        ("loss=v-x", "add up different ones of"),
        ("pixels={geometri: squash}", "unknown key pixels.geometri; did you mean pixels.geometry?"),
        ("sources.films.share=0", "share: 0 is not allowed; give 1 or more"),
        ("sources.films.captions=shards", "shards have some, pairs take a file"),
        ("sources.films.frames=0", "frames: 0 is not allowed"),
        ("sources.films.buffer=0", "buffer: 0 is not allowed"),
        ("sources.films.path=''", "a source has no path"),
        ("snapshots=-1", "snapshots: -1 is not allowed"),
        ("max_scale=0.1", "max_scale: 0.1 is not allowed"),
        ("batch=1", "batch: 1 is not allowed; give 2 or more"),
        ("method=vip", "there is no method"),
    ):
        assert main([*command, change]) == 2, change
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("frames-*"))  # nothing was decoded before it was told


def test_what_a_run_leaves_out_of_its_config_is_told(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("sources.films.limit=3", "train.steps=1")
    command = [
        "post-pretrain",
        str(corpus / "config.yaml"),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        *changes,
    ]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "source films: 3 videos, drawn by their names (limit: 3)" in said
    assert "source films: an epoch has 3 rows and a batch 4, so every step takes the same 3 rows" in said
    assert "source images has no captions, so its steps take v-s in place of v-sc+f-c" in said
    assert "source films has no captions" not in said
    (tmp_path / "one.jsonl").write_text((corpus / "images.jsonl").read_text().splitlines()[0])
    for image in corpus.glob("*.png"):
        shutil.copy(image, tmp_path)
    assert main([*command[:2], f"sources.images.path={tmp_path / 'one.jsonl'}", "--out", str(tmp_path / "two")]) == 2
    assert "sources.images: 1 videos can be read and at least 2 are needed" in capsys.readouterr().err
