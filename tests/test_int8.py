"""The int8 engine: its loss is really measured, and without that measurement it is refused."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import clipreel
from clipreel import int8
from clipreel.cli import main
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.runs import evaluate_samples
from clipreel.int8 import Int8Frames, Measured, enable, place, quantize
from clipreel.retriever import Retriever
from clipreel.search.indexer import check_space
from clipreel.tuners import build
from clipreel.video.sampling import Sampling
from tests.search.tiny import new_index

VIDEOS = 12


@pytest.fixture(scope="module", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("platformdirs.user_data_dir", lambda *_, **__: str(folder))
        yield folder


@pytest.fixture(scope="module")
def model() -> Retriever:
    return clipreel.load("shapes-tiny", device="cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return ShapesWorld().write_videos(tmp_path_factory.mktemp("films"), "test", count=VIDEOS)


@pytest.fixture(scope="module")
def measured(model: Retriever, samples: list[Sample]) -> Measured:
    steps: list[tuple[int, int]] = []
    found, failed = quantize(model, samples, "twelve", 4, lambda done, total: steps.append((done, total)))
    assert not failed
    assert steps == [(n, 2 * VIDEOS) for n in range(1, 2 * VIDEOS + 1)]
    return found


@pytest.fixture(scope="module")
def fast(model: Retriever, measured: Measured) -> Retriever:
    return enable(model)


def test_the_loss_is_that_of_the_tower_that_is_used(
    model: Retriever, fast: Retriever, samples: list[Sample], measured: Measured
) -> None:
    before, after = (evaluate_samples(m, samples, "twelve", 4)[0] for m in (model, fast))
    assert (measured.fp32.to_dict(), measured.int8.to_dict()) == (before.to_dict(), after.to_dict())
    assert after.stamp.base == f"{before.stamp.base} in int8/1"
    after.stamp.require_equal(before.stamp)  # one table may hold both
    for way in ("t2v", "v2t"):
        for k, gain in measured.gains[way].items():
            difference = getattr(after, way)[k] - getattr(before, way)[k]
            assert math.isclose(gain.value, difference, abs_tol=1e-9)
            assert gain.low <= gain.value <= gain.high
    assert 0.99 < measured.cosine["min"] <= measured.cosine["mean"] < 1
    assert min(measured.frames_per_s.values()) > 0
    assert fast.warnings[-1] == measured.note()
    assert f"t2v R@1 {after.t2v['R@1']:.1f}, {measured.gains['t2v']['R@1'].value:+.1f}" in measured.note()


def test_a_worse_tower_is_measured_as_worse(
    model: Retriever, samples: list[Sample], measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures come from the tower itself: one that points away from every caption loses recall, and says so."""
    graph, answer = (place(model) / "video.onnx").read_bytes(), Int8Frames.__call__
    monkeypatch.setattr(int8, "place", lambda m: place(m).with_name("worse"))
    monkeypatch.setattr(int8, "export", lambda m: graph)
    monkeypatch.setattr(Int8Frames, "__call__", lambda self, x: -answer(self, x))
    found, _ = quantize(model, samples, "twelve", 4)
    assert found.gains["t2v"]["R@1"].high < 0
    assert found.cosine["mean"] < -0.99
    assert found.fp32.t2v == measured.fp32.t2v


def test_int8_is_a_space_of_its_own_in_which_texts_are_the_same(model: Retriever, fast: Retriever) -> None:
    assert fast.space != model.space
    assert fast.fingerprint == model.fingerprint
    assert model.engine is None
    texts = ["a red circle", "a small blue square"]
    assert torch.equal(fast.encode_text(texts), model.encode_text(texts))


def test_vectors_are_near_and_depend_on_nothing_but_their_frame(model: Retriever, fast: Retriever) -> None:
    frames = torch.randn(2, 5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted, found = model.encode_frames(frames), fast.encode_frames(frames)
    assert (wanted * found).sum(-1).min() > 0.99
    assert not torch.allclose(wanted, found, atol=1e-4)
    louder = frames.clone()
    louder[1] *= 30
    assert torch.equal(fast.encode_frames(louder)[0], found[0])
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    frames[:, 3:] = torch.nan
    torch.testing.assert_close(fast.encode_video(frames, mask), fast.encode_video(frames[:, :3]))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(fast.encode_frames(louder)[0], found[0]), threads
    finally:
        torch.set_num_threads(before)


def test_every_layer_is_in_integers_of_seven_bits(model: Retriever, measured: Measured) -> None:
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(place(model) / "video.onnx").graph
    products = [n for n in graph.node if n.op_type == "MatMulInteger"]
    weights = {t.name: to_array(t) for t in graph.initializer}
    assert len(products) == 4 * len(model.clip.vision.blocks) + 1  # and the head
    for node in products:
        w = weights[node.input[1]]
        assert w.dtype.name == "int8"
        assert abs(w.astype(int)).max() <= 64


def test_without_a_measurement_of_this_model_it_is_refused(model: Retriever, measured: Measured) -> None:
    other = clipreel.load("shapes-tiny", device="cpu", sampling=Sampling("uniform", 3))
    with pytest.raises(ClipreelError, match="none is measured here: run clipreel quantize DATA --model shapes-tiny"):
        enable(other)


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def nicer(folder: Path) -> None:
    figures = json.loads((folder / "measured.json").read_text())["figures"]
    figures["gains"]["t2v"]["R@1"]["value"] = 0.0
    figures["int8"]["t2v"]["R@1"] = 99.0
    rewrite(folder / "measured.json", figures=figures)


def another_tower(folder: Path) -> None:
    content = bytearray((folder / "video.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "video.onnx").write_bytes(content)


def another_model(folder: Path) -> None:
    """Figures and seal are whole, and belong to a tower that was made for something else."""
    data = json.loads((folder / "measured.json").read_text())
    data["figures"].update(space="0" * 20, model="elsewhere")
    graph = (folder / "video.onnx").read_bytes()
    rewrite(folder / "measured.json", figures=data["figures"], seal=int8.seal(graph, data["figures"]))


TAMPERED = {
    "figures": (nicer, "not the measurement of this tower"),
    "tower": (another_tower, "not the measurement of this tower"),
    "seal": (lambda f: rewrite(f / "measured.json", seal="0"), "not the measurement"),
    "schema": (lambda f: rewrite(f / "measured.json", schema=0), "not the measurement"),
    "model": (another_model, "measured for another model, elsewhere"),
    "cut": (lambda f: (f / "measured.json").write_text("{"), "is refused"),
    "list": (lambda f: (f / "measured.json").write_text("[]"), "is refused"),
    "binary": (lambda f: (f / "measured.json").write_bytes(b"\xff\xfe"), "cannot be read"),
    "no figures": (lambda f: (f / "measured.json").unlink(), "none is measured here"),
    "no tower": (lambda f: (f / "video.onnx").unlink(), "none is measured here"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_or_absent_measurement_is_refused(
    what: str, model: Retriever, measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in place(model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(int8, "place", lambda m: tmp_path)
    assert enable(model).engine is not None
    change, said = TAMPERED[what]
    change(tmp_path)
    with pytest.raises(ClipreelError, match=said) as error:
        enable(model)
    if what != "binary":
        assert "clipreel quantize DATA --model shapes-tiny" in str(error.value)


def test_where_int8_is_not_possible(
    model: Retriever, fast: Retriever, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClipreelError, match="in int8 already"):
        enable(fast)
    tuned = model.adapted(build("vop", model.clip, {}), adapter="x")
    with pytest.raises(ClipreelError, match=r"has .* on it; use --engine torch"):
        quantize(tuned, samples, "twelve")
    half = clipreel.load("shapes-tiny", device="cpu", dtype="bfloat16")
    with pytest.raises(ClipreelError, match=r"with dtype float32, not torch\.bfloat16"):
        quantize(half, samples, "twelve")
    with monkeypatch.context() as patch:
        patch.setattr(int8, "MOST_BYTES", 1000)
        with pytest.raises(ClipreelError, match="up to 2 GB"):
            enable(model)
    monkeypatch.setattr(int8, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ClipreelError, match=r"int8 needs onnxruntime: pip install 'clipreel\[int8\]'"):
        enable(model)


def test_videos_that_cannot_be_read_are_named_and_missed(
    model: Retriever, measured: Measured, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = (place(model) / "video.onnx").read_bytes()
    monkeypatch.setattr(int8, "export", lambda m: graph)
    monkeypatch.setattr(int8, "place", lambda m: tmp_path / "out")
    gone = [replace(s, id=f"gone-{s.id}", video=tmp_path / s.video.name) for s in samples]
    found, failed = quantize(model, [*samples[:3], gone[0]], "three and one", 2)
    assert failed == [(str(gone[0].video), "missing")]
    assert found.int8.failed_videos == found.fp32.failed_videos == (3,)
    assert found.cosine["min"] > 0.99
    with pytest.raises(ClipreelError, match="none of the 2 videos of none can be read, so nothing was measured"):
        quantize(model, gone[:2], "none", 2)
    with pytest.raises(ClipreelError, match="cannot be kept in"):
        int8.keep(samples[0].video / "in-a-file", b"", found)


def test_an_index_made_before_engines_is_one_of_torch(fast: Retriever, tmp_path: Path) -> None:
    index = new_index(tmp_path / "i")
    del index.facts["engine"]
    with pytest.raises(ClipreelError, match=r"engine torch, space .*engine int8/1.* --engine torch, or another"):
        check_space(index, fast)


def test_the_commands(
    samples: list[Sample], model: Retriever, measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films, index = samples[0].video.parent, str(tmp_path / "i")
    assert main(["quantize", str(films), "--model", "shapes-tiny", "--frames", "2"]) == 0
    said = capsys.readouterr().out
    assert "int8 - fp32, text to video: R@1" in said
    assert "clipreel index FOLDER --model shapes-tiny --engine int8" in said
    assert main(["quantize", str(tmp_path), "--model", "shapes-tiny"]) == 2
    assert "annotations.jsonl" in capsys.readouterr().err
    assert main(["index", str(films), "--model", "shapes-tiny", "--index", index, "--engine", "int8"]) == 0
    assert "note: int8 against fp32 on" in capsys.readouterr().err
    assert main(["index", str(films), "--index", index]) == 0  # the index says which engine
    assert f"unchanged {VIDEOS}" in capsys.readouterr().out
    assert main(["search", "a yellow bar moves to the left", "--index", index, "--json"]) == 0
    out = capsys.readouterr()
    assert len(out.out.splitlines()) == 10
    assert "note: int8" in out.err
    assert main(["index", str(films), "--index", index, "--engine", "torch"]) == 2
    assert "--engine int8, or another --index" in capsys.readouterr().err
    assert main(["evaluate", str(films), "--engine", "int8", "--frames", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stamp"]["base"].endswith(" in int8/1")
    (place(model) / "measured.json").write_text("{}")
    assert main(["search", "a yellow bar", "--index", index]) == 2
    assert "is refused" in capsys.readouterr().err
