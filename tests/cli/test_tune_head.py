"""A head trained with a method, or alone: one folder, measured by the scores of the head, and taken by the search."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clipreel
from clipreel.adapter import read_config, with_adapter
from clipreel.cli import main
from clipreel.data.cache import FrameCache
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import load_features
from clipreel.head_files import read_head, with_head
from clipreel.heads import unit
from clipreel.training.measuring import look
from clipreel.training.settings import read_config as read_tune_config
from clipreel.training.tuning import read_pairs
from tests.cli.test_tune import cache, films, tune

__all__ = ["cache", "films"]
ALONE = ("x_pool", "seqTransf")


@pytest.fixture(scope="module", params=ALONE)
def alone(
    request: pytest.FixtureRequest, films: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A head over the base as it is: its scores are no cosines of vectors, and it pools."""
    out = tmp_path_factory.mktemp("runs") / "head"
    assert tune(films, out, cache, "--method", "frozen", "--head", request.param, changes=("head.lr=1e-3",)) == 0
    return request.param, out


def test_a_head_alone_lies_in_a_folder_that_leaves_the_base_alone(alone: tuple[str, Path]) -> None:
    name, out = alone
    folder = out / "adapter"
    config, (head, about) = read_config(folder), read_head(folder)
    assert (config.method, about.adapter) == ("frozen", "none")
    assert head.name == {"x_pool": "x_pool", "seqTransf": "seq_transf"}[name]
    assert not load_file(folder / "adapter_model.safetensors")
    report = json.loads((out / "report.json").read_text())
    assert report["costs"]["trainable"] == sum(p.numel() for p in head.parameters())
    assert report["costs"]["head"] == head.name
    assert report["config"]["head"]["lr"] == 1e-3
    assert f"frozen with {head.name} on shapes-tiny" in (out / "report.html").read_text()
    base = clipreel.load("shapes-tiny", device="cpu")
    # the head moved away from its start, the vectors below it did not
    fresh = clipreel.heads.build_head(head.name, base.clip)
    assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), head.parameters(), strict=True))
    loaded = with_adapter(base, folder)
    assert loaded.adapter == "none"
    for model in (base, loaded):
        assert with_head(model, folder).head.fingerprint() == head.fingerprint()


def test_before_and_after_are_the_base_and_the_scores_of_the_head(alone: tuple[str, Path], cache: Path) -> None:
    _, out = alone
    report = json.loads((out / "report.json").read_text())
    config = read_tune_config(out / "config.yaml")
    held_out = read_pairs(config.data, cache).held_out
    frames = FrameCache(next(cache.glob("frames-*-2")))
    model = with_head(clipreel.load("shapes-tiny", out / "adapter", device="cpu"), out / "adapter")
    found = look(model, held_out, frames, 2, "again")
    captions = [c for s in held_out for c in s.captions]
    stack = torch.stack([torch.from_numpy(frames[s.id].copy()) for s in held_out])
    raw = model.encode_frames(model.preprocess.normalise(stack), normalize=False)
    wanted = model.head.score(model.encode_text(captions, normalize=False), raw)
    torch.testing.assert_close(found.scores(captions), wanted, atol=1e-4, rtol=1e-4)
    after = report["compared"]["after"]
    assert (found.result.t2v, found.result.v2t) == (after["t2v"], after["v2t"])
    assert after["stamp"]["adapter"] == f"none {model.head.name} {model.head.fingerprint()[:6]}"
    assert report["compared"]["before"]["stamp"]["adapter"] == "none"
    mean = unit(model.encode_text(captions)) @ unit(unit(raw).mean(1)).T
    assert not torch.allclose(mean, wanted, atol=1e-3)


def test_evaluate_scores_with_the_head(
    alone: tuple[str, Path], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What tune measured on the held-out part comes out again; the scores are kept, with those of a bank."""
    _, out = alone
    head, _ = read_head(out / "adapter")
    after = json.loads((out / "report.json").read_text())["compared"]["after"]
    held_out = read_pairs(read_tune_config(out / "config.yaml").data, cache).held_out
    rows = [{"video": str(s.video), "captions": s.captions} for s in held_out]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "bank.txt").write_text("a red circle moves\na blue square\n")
    kept, given = tmp_path / "kept", ["--model", "shapes-tiny", "--frames", "2", "--device", "cpu", "--json"]
    command = ["evaluate", str(tmp_path / "held.jsonl"), "--adapter", str(out / "adapter"), *given]
    bank, page = ["--bank", str(tmp_path / "bank.txt")], tmp_path / "page.html"
    assert main([*command, *bank, "--store", str(kept), "--gallery", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["t2v"], found["v2t"]) == (after["t2v"], after["v2t"])
    for item in ("adapter", "trained_on", "pixels", "part", "base", "base_name"):
        assert found["stamp"][item] == after["stamp"][item] != "unstated"
    assert f"What shapes-tiny + frozen with {head.name} misses" in page.read_text()
    assert main(["evaluate", "--features", str(kept), "--query-bank", "--json"]) == 0
    assert "query bank (t2v by 2 texts" in json.loads(capsys.readouterr().out)["stamp"]["post_processing"]
    stored, tuned = load_features(kept), load_features(out / "features")
    assert (stored.scores is None) == (tuned.scores is None) == (head.name == "seq_transf")
    assert tuned.result().t2v == after["t2v"]
    wrong = ["evaluate", "--features", str(kept), *bank, "--model", "shapes-tiny"]
    assert main(wrong) == 2
    said = capsys.readouterr().err
    assert ("name theirs with --model and --adapter" if stored.scores is None else "needs the videos to judge") in said
    if stored.scores is None:
        assert main([*wrong, "--adapter", str(out / "adapter")]) == 0


def test_an_index_that_keeps_frames_is_searched_with_the_head(
    alone: tuple[str, Path], films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the folder as adapter of the index, and without: the vectors are those of the base."""
    folder = str(alone[1] / "adapter")
    for n, own in enumerate(([], ["--adapter", folder, "--unhelpful"])):
        place = str(tmp_path / str(n))
        assert main(["index", str(films), "--model", "shapes-tiny", *own, "--frames", "--index", place]) == 0
        capsys.readouterr()
        command = ["search", "a red circle moves to the left", "--index", place, "--json", "-k", "3"]
        found = []
        for more in ([], ["--rerank", folder, "--candidates", "5"]):
            assert main([*command, *more]) == 0
            found.append([json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()])
        assert found[1] == sorted(found[1], reverse=True)
        assert found[0] != found[1]


@pytest.mark.parametrize(
    ("method", "head"),
    [("bias", "seqLSTM"), ("lora", "tightTransf"), ("full", "soft_frames"), ("mv_adapter", "X-Pool")],
)
def test_a_head_on_top_of_a_method(method: str, head: str, films: Path, cache: Path, tmp_path: Path) -> None:
    small = ("options.width=8",) if method == "mv_adapter" else ()
    changes = (f"head.name={head}", "train.steps=2", *small)
    assert tune(films, tmp_path / "run", cache, "--method", method, changes=changes) == 0
    folder, base = tmp_path / "run" / "adapter", clipreel.load("shapes-tiny", device="cpu")
    tuned = with_head(with_adapter(base, folder), folder)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    count = sum(p.numel() for part in (tuned.tuner, tuned.head) for p in part.parameters())
    assert report["costs"]["trainable"] == count
    with pytest.raises(ClipreelError, match="trained on the adapter"):
        with_head(base, folder)


def test_mean_is_no_head_and_runs_go_on_from_both_parts(films: Path, cache: Path, tmp_path: Path) -> None:
    one, mean = ("train.steps=1",), ("train.steps=1", "lr=1e-2")
    assert tune(films, tmp_path / "a", cache, "--method", "lora", changes=mean) == 0
    assert tune(films, tmp_path / "b", cache, "--method", "lora", "--head", "meanP", changes=mean) == 0
    weights = [(tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in "ab"]
    assert weights[0] == weights[1]
    assert not (tmp_path / "b" / "adapter" / "head_config.json").exists()
    first = ["--method", "frozen", "--head", "x_pool"]
    assert tune(films, tmp_path / "c", cache, *first, changes=(*one, "head.lr=1e-2")) == 0
    start = f"start={tmp_path / 'c' / 'adapter'}"
    assert tune(films, tmp_path / "d", cache, *first, changes=(*one, start, "head.lr=1e-12")) == 0
    heads = [dict(read_head(tmp_path / run / "adapter")[0].named_parameters()) for run in "cd"]
    for name, p in heads[0].items():
        torch.testing.assert_close(heads[1][name], p, atol=1e-6, rtol=1e-6)
    other = (*one, start, "head.options.dropout=0.1")
    assert tune(films, tmp_path / "e", cache, *first, changes=other) == 2


@pytest.mark.parametrize(
    ("more", "changes", "said"),
    [
        (("--head", "seqTranf"), (), "did you mean seqTransf?"),
        (("--head", "x_pool"), ("head.options.layers=2",), "unknown key head.options.layers"),
        (("--head", "x_pool"), ("head.options.heads=3",), "must divide the width"),
        (("--head", "seq_transf"), ("head.options.positions=1",), "learned 1 positions; take fewer frames"),
        (("--head", "seq_transf"), ("loss=dual_softmax",), "a head is trained by contrastive alone"),
        (("--method", "frozen"), (), "trains nothing below a head"),
    ],
)
def test_mistakes_are_told_before_anything_is_decoded(
    films: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    changes: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    method = () if "--method" in more else ("--method", "bias")
    assert tune(films, tmp_path / "run", tmp_path / "cache", *method, *more, changes=changes) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "cache").exists()


def test_methods_that_make_one_vector_of_a_video_take_no_head(
    films: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(films, tmp_path / "run", cache, "--method", "clip_vip", "--head", "seq_lstm") == 2
    assert "makes 1 vector of 2 frames" in capsys.readouterr().err.splitlines()[-1]


def test_heads_in_a_table(films: Path, tmp_path: Path) -> None:
    stated = {
        "model": "shapes-tiny",
        "method": "frozen",
        "head": {"name": "x_pool"},
        "frames": 2,
        "batch": 8,
        "data": {"path": str(films), "validation_share": 0.3, "held_out_share": 0.4},
        "train": {"steps": 1},
    }
    config, out = tmp_path / "alone.yaml", tmp_path / "out"
    config.write_text(json.dumps(stated))  # JSON is YAML
    assert main(["compare", str(config), "--seeds", "1", "--out", str(out), "--device", "cpu"]) == 0
    (row,) = json.loads((out / "table.json").read_text())["rows"]
    head, _ = read_head(out / "alone" / "seed-0" / "adapter")
    assert row["trainable"] == sum(p.numel() for p in head.parameters())


def test_care_for_an_adapter_with_a_head(
    alone: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept" / "mine"
    shutil.copytree(alone[1] / "adapter", folder)
    assert main(["adapters", "list", str(tmp_path / "kept")]) == 0
    assert f"frozen with {read_head(folder)[0].name}  on shapes-tiny" in capsys.readouterr().out
    assert main(["adapters", "verify", str(folder), "--model", "shapes-tiny"]) == 0
    capsys.readouterr()
    assert main(["export", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert "the head in" in capsys.readouterr().err
    weights = folder / "head_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert main(["adapters", "verify", str(folder)]) == 2
    assert "another fingerprint" in capsys.readouterr().err
    assert main(["adapters", "remove", str(folder)]) == 0
    assert not folder.exists()
