"""From a folder of captioned videos to an adapter, its report, its care, its export and a table: as a user runs it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clipreel
from clipreel.adapter import read_config, write_config
from clipreel.cli import main
from clipreel.cli.tune import usage
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.bootstrap import Interval
from clipreel.evaluation.features import load_features
from clipreel.search.index import Index
from clipreel.search.indexer import check_space
from clipreel.training.comparing import Spread
from clipreel.training.pairs import read_pairs
from clipreel.training.settings import read_config as read_tune_config

SHORT = (
    "frames=2",
    "batch=8",
    "train.steps=4",
    "train.select.every_steps=2",
    "data.validation_share=0.3",
    "data.held_out_share=0.4",
)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    ShapesWorld().write_videos(folder, "val", count=32)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frames")


def tune(films: Path, out: Path, cache: Path, *more: str, changes: tuple[str, ...] = ()) -> int:
    arguments = [str(films), *SHORT, *changes, "--on", "shapes-tiny", "--out", str(out), "--cache", str(cache)]
    return main(["tune", *arguments, "--device", "cpu", *more])


@pytest.fixture(scope="module")
def lora(films: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lora"
    assert tune(films, out, cache, "--method", "lora", changes=("lr=1e-2", "options.rank=2")) == 0
    return out


def test_an_adapter_and_a_report_that_says_what_changed(lora: Path, films: Path) -> None:
    config = read_config(lora / "adapter")
    assert (config.method, config.options["rank"], config.base_name) == ("lora", 2, "shapes-tiny")
    assert config.licence == {"base": "shapes-tiny", "data": config.trained_on["config"]["data"]["path"]}
    report = json.loads((lora / "report.json").read_text())
    compared = report["compared"]
    assert set(report["validation"]) == {f"{way} R@{k}" for way in ("t2v", "v2t") for k in (1, 5, 10)}
    assert compared["helped"] == config.helped
    assert compared["before"]["stamp"]["selection"] == compared["after"]["stamp"]["selection"]
    for way in ("t2v", "v2t"):
        for name, gain in compared["gains"][way].items():
            before, after = (compared["intervals"][f"{when} {way}"][name] for when in ("before", "after"))
            assert gain["value"] == pytest.approx(after["value"] - before["value"])
            assert gain["low"] <= gain["value"] <= gain["high"]
            assert before["value"] == pytest.approx(compared["before"][way][name])
    tensors = load_file(lora / "adapter" / "adapter_model.safetensors")
    assert report["costs"]["trainable"] == sum(t.numel() for t in tensors.values())
    assert report["costs"]["adapter_bytes"] == (lora / "adapter" / "adapter_model.safetensors").stat().st_size
    listed = read_pairs(read_tune_config(lora / "config.yaml").data, lora).train
    assert compared["after"]["stamp"]["trained_on"].startswith(f"{films.name}: {len(listed)} videos (")
    assert compared["before"]["stamp"]["trained_on"] == "none"
    assert load_features(lora / "features").bank is not None
    page = (lora / "report.html").read_text()
    for part in ("before", "after", "gain", "text to video R@1", "trainable numbers"):
        assert part in page
    assert (lora / "config.yaml").is_file()
    assert (lora / "run" / "log.jsonl").is_file()


def test_the_command_that_is_told_is_taken() -> None:
    assert usage("tiny", "tuned/a", None) == "use it: clipreel index FOLDER --model tiny --adapter tuned/a"
    assert usage("tiny", "tuned/a", False).endswith(" --adapter tuned/a --unhelpful")  # else it is refused


def test_the_same_command_again_trains_nothing_and_says_the_same(lora: Path, films: Path, cache: Path) -> None:
    first = (lora / "adapter" / "adapter_model.safetensors").read_bytes()
    log = (lora / "run" / "log.jsonl").read_bytes()
    assert tune(films, lora, cache, "--method", "lora", changes=("lr=1e-2", "options.rank=2")) == 0
    assert (lora / "adapter" / "adapter_model.safetensors").read_bytes() == first
    assert (lora / "run" / "log.jsonl").read_bytes() == log


def test_the_adapter_is_what_was_measured(lora: Path, films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loaded again it gives other vectors than the base, and the exported model the same as the adapter."""
    base, tuned = clipreel.load("shapes-tiny", device="cpu"), clipreel.load("shapes-tiny", lora / "adapter")
    assert base.space != tuned.space
    assert tuned.sampling.frames == 2
    texts = ["a red circle moves to the left", "a blue square"]
    assert not torch.allclose(base.encode_text(texts), tuned.encode_text(texts), atol=1e-4)
    out = lora.parent / "merged"
    assert main(["export", str(lora / "adapter"), "--out", str(out)]) == 0
    assert "vectors differ by at most" in capsys.readouterr().out
    merged = clipreel.load(out, device="cpu")
    torch.testing.assert_close(merged.encode_text(texts), tuned.encode_text(texts), atol=1e-5, rtol=0)
    assert merged.sampling == tuned.sampling
    assert merged.preprocess == tuned.preprocess
    assert main(["export", str(lora / "adapter"), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_answers_marked_wrong_teach_and_are_counted(
    films: Path, lora: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (films / "annotations.jsonl").read_text().splitlines()]
    marked = films / "marked.jsonl"
    for row in rows:
        others = [o for o in rows if not set(row["captions"]) & set(o["captions"])][:6]
        row["not"] = [{"video": o["video"]} for o in others]
    marked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, how = tmp_path / "run", ("lr=1e-2", "options.rank=2")
    assert tune(marked, out, cache, "--method", "lora", changes=how) == 0
    found = json.loads((out / "report.json").read_text())["misses"]
    assert 0 < found["trained"] < found["marked"]
    assert 0 < found["held_out"] >= max(found["before"], found["after"])
    said = f"Answers marked wrong: {found['trained']} of {found['marked']} were trained on; of {found['held_out']} held"
    assert said in capsys.readouterr().out
    assert said in (out / "report.html").read_text()
    assert read_config(out / "adapter").trained_on["misses"] == found["trained"]
    with_, without = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (out, lora))
    assert not all(torch.equal(x, without[n]) for n, x in with_.items())
    assert "misses" not in json.loads((lora / "report.json").read_text())
    assert tune(marked, tmp_path / "no", tmp_path / "none", "--method", "lora", changes=(*how, "loss=triplet")) == 2
    assert "loss 'triplet' has no place for answers that were judged wrong" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def together(films: Path, out: Path, cache: Path, *more: str) -> list[tuple[str, str]]:
    """What two processes, which torchrun would start, print of one run, and say beside it."""
    arguments = ["tune", str(films), *SHORT, *more, "--on", "shapes-tiny"]
    arguments += ["--out", str(out), "--cache", str(cache), "--device", "cpu"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "clipreel", *arguments]
    both = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    return said


def test_two_processes_make_the_adapter_of_one(films: Path, lora: Path, cache: Path, tmp_path: Path) -> None:
    said = together(films, tmp_path / "run", cache, "lr=1e-2", "options.rank=2", "--method", "lora")
    assert "text to video R@1" in said[0][0]
    assert said[1][0] == ""
    one, two = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (lora, tmp_path / "run"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)


def test_full_tuning_in_shares_makes_the_adapter_of_one_process(
    films: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("shard=true", "lr=1e-3", "train.optim.name=adamw")
    assert tune(films, tmp_path / "one", cache, "--method", "full", changes=changes) == 0
    said = together(films, tmp_path / "two", cache, *changes, "--method", "full")
    assert "each of 2 processes holds a share of what is trained" in said[0][1]
    one, two = (load_file(tmp_path / f / "adapter" / "adapter_model.safetensors") for f in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    found = [json.loads((tmp_path / f / "report.json").read_text()) for f in ("one", "two")]
    assert found[0]["costs"]["trainable"] == found[1]["costs"]["trainable"]
    assert found[0]["validation"] == found[1]["validation"]
    assert found[0]["compared"]["after"]["t2v"] == found[1]["compared"]["after"]["t2v"]
    base = clipreel.load("shapes-tiny", device="cpu").clip
    assert any(not torch.equal(x, base.get_parameter(n.split(".")[-1].replace("/", "."))) for n, x in two.items())
    assert tune(films, tmp_path / "no", cache, "--method", "bias", changes=("shard=true",)) == 2
    assert "it is for the method full" in capsys.readouterr().err


def test_care_for_adapters(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(lora / "adapter", folder / "mine")
    assert main(["adapters", "list", str(folder)]) == 0
    line = capsys.readouterr().out
    assert all(part in line for part in ("mine", "lora", "on shapes-tiny", "MB"))
    assert main(["adapters", "show", str(folder / "mine")]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "lora"
    assert main(["adapters", "verify", str(folder / "mine"), "--model", "shapes-tiny"]) == 0
    assert "fits shapes-tiny" in capsys.readouterr().out
    weights = folder / "mine" / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert main(["adapters", "verify", str(folder / "mine")]) == 2
    assert "another fingerprint" in capsys.readouterr().err
    (folder / "odd").mkdir()
    (folder / "odd" / "adapter_config.json").write_text('{"schema": 99}')
    assert main(["adapters", "list", str(folder)]) == 1
    assert "has schema 99" in capsys.readouterr().err
    assert main(["adapters", "remove", str(folder / "mine")]) == 0
    assert not (folder / "mine").exists()
    assert main(["adapters", "remove", str(tmp_path)]) == 2


def test_weights_chosen_on_the_held_out_part_are_marked(films: Path, cache: Path, tmp_path: Path) -> None:
    """As the papers choose them; validation and held-out part differ in size, so the measurements tell which it was."""
    changes = ("lr=1e-2", "options.rank=2", "train.select.split=test")
    assert tune(films, tmp_path / "run", cache, "--method", "lora", changes=changes) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    rule = "best t2v R@1 on the test split"
    assert report["compared"]["after"]["stamp"]["selection"] == rule
    assert report["validation"]["t2v R@1"] == pytest.approx(report["compared"]["after"]["t2v"]["R@1"])
    assert json.loads((tmp_path / "run" / "run" / "outcome.json").read_text())["on_test"] is True
    assert rule in (tmp_path / "run" / "report.html").read_text()


def test_a_second_set_is_measured_too(
    films: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    ShapesWorld().write_videos(other, "test", count=6)
    code = tune(films, tmp_path / "run", cache, "--method", "vop_p", "--general", str(other), "--json")
    assert code == 0
    assert json.loads(capsys.readouterr().out)["costs"]["method"] == "vop_p"
    metrics = read_config(tmp_path / "run" / "adapter").metrics
    assert set(metrics["general"]["gains"]) == {"t2v", "v2t"}
    assert "Other videos" in (tmp_path / "run" / "report.html").read_text()


def test_a_method_that_cannot_be_merged_is_not_exported(
    films: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(films, tmp_path / "run", cache, "--method", "vop") == 0
    assert main(["export", str(tmp_path / "run" / "adapter"), "--out", str(tmp_path / "merged")]) == 2
    assert "cannot be merged" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("learning_rate=1",), "unknown key learning_rate"),
        (("options.joint_layer=2",), "did you mean options.joint_layers?"),
        (("options.frames=4",), "options.frames=4: as many positions are learned as there are frames; say frames=4"),
        (("options.general=2.5",), "general 2.5: give a whole number"),
        (("lr=fast",), "lr = 'fast' is not a number"),
        (("data.train=train",), "name all of data.train, data.validation and data.held_out"),
        (("data.held_out_share=0.99",), "give more videos, or other shares"),
        (("data.train=a", "data.validation=b", "data.held_out=c"), "a"),
        (("data.train=a", "data.validation=b", "data.held_out=b"), "are not three splits"),
        (("train.optim.lr=0.5",), "takes its rate from lr; give lr=0.5"),
        (("order=opposites",), "only the shapes world says so"),
        (("train.select.metric=t2v R@2",), "what is measured is t2v R@1"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_decoded(
    films: Path, tmp_path: Path, changes: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(films, tmp_path / "run", tmp_path / "cache", "--method", "vop_f", changes=changes) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("clipreel: ")
    assert said in last
    assert not (tmp_path / "cache").exists()


def test_unknown_methods_and_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "nowhere.jsonl", "--method", "vopf", "--on", "shapes-tiny", "--out", str(tmp_path / "r")]) == 2
    assert "did you mean vop_f?" in capsys.readouterr().err
    assert (
        main(["tune", "nowhere.jsonl", "--method", "vop_f", "--on", "shapes-tiny", "--out", str(tmp_path / "r")]) == 2
    )
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert main(["tune", "--method", "vop_f", "--on", "shapes-tiny", "--out", str(tmp_path / "r")]) == 2
    assert "there is no data to tune on" in capsys.readouterr().err


def test_a_table_of_methods_and_seeds(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = {
        "model": "shapes-tiny",
        "frames": 2,
        "batch": 8,
        "data": {"path": str(films), "validation_share": 0.3, "held_out_share": 0.4},
        "train": {"steps": 2},
    }
    configs = []
    for name, method in (("coop", "coop"), ("bias", "bias")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({**shared, "method": method}))  # JSON is YAML
        configs.append(str(path))
    out = tmp_path / "compared"
    assert main(["compare", *configs, "--seeds", "2", "--jobs", "2", "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == (out / "table.md").read_text().strip()
    assert "zero-shot" in printed
    assert "t2v R@1, last step" in printed
    table = json.loads((out / "table.json").read_text())
    assert [row["name"] for row in table["rows"]] == ["coop", "bias"]
    for row in table["rows"]:
        reports = [json.loads((out / row["name"] / f"seed-{s}" / "report.json").read_text()) for s in (0, 1)]
        found = [r["compared"]["after"]["t2v"]["R@1"] for r in reports]
        assert row["recalls"]["t2v R@1"] == {"mean": sum(found) / 2, "low": min(found), "high": max(found)}
    times = [p.stat().st_mtime_ns for p in sorted(out.rglob("report.json"))]
    assert main(["compare", *configs, "--seeds", "2", "--jobs", "2", "--out", str(out), "--device", "cpu"]) == 0
    assert [p.stat().st_mtime_ns for p in sorted(out.rglob("report.json"))] == times
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps({**shared, "frames": 3}))
    assert main(["compare", *configs, str(other), "--out", str(tmp_path / "no")]) == 2
    assert "differs from the other configs in frames" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_spreads_and_intervals_are_written_shortly() -> None:
    assert str(Spread.of([1.0, 3.0])) == "2.0 (1.0-3.0)"
    assert str(Spread.of([2.0])) == "2.0"
    assert str(Interval(1.25, -0.5, 3.0)) == "1.2 (-0.5 to 3.0)"


def test_counts_of_methods_on_a_model_and_an_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of specification vop.md 6, in full and by the rule of the paper."""
    assert main(["info", "ViT-B/32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    paper = {"vop": 0.103, "vop_p": 0.441, "vop_c": 11.898, "vop_f": 0.103, "vop_fp": 0.328, "vop_fc": 11.908}
    paper |= {"bias": 0.104, "proj": 0.547, "partial": 6.410, "adapter_attn": 1.655, "full": 100.0}
    assert {n: round(found[n]["paper_share"], 3) for n in paper} == paper
    true = {"vop": 0.081, "vop_f": 0.087, "vop_fc": 9.439, "bias": 0.113, "partial": 6.769}
    assert {n: round(found[n]["share"], 3) for n in true} == true
    assert found["full"]["paper"] == 119_826_432
    assert main(["info", "shapes-tiny", "--methods"]) == 0
    assert "by the paper" in capsys.readouterr().out


def test_an_index_with_an_adapter(lora: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The index remembers it, the base does not meet its vectors, and one that did not help waits to be asked for."""
    place, adapter = str(tmp_path / "index"), tmp_path / "adapter"
    shutil.copytree(lora / "adapter", adapter)
    harmful = replace(read_config(adapter), helped=False, metrics={"overall_gain": {"value": -1.5}})
    write_config(adapter, harmful)
    command = ["index", str(films), "--model", "shapes-tiny", "--adapter", str(adapter), "--index", place]
    assert main(command) == 2
    assert "did not help on its held-out pairs (-1.5 points" in capsys.readouterr().err
    assert main([*command, "--unhelpful"]) == 0
    assert main(["index", str(films), "--index", place]) == 0
    assert "unchanged 32" in capsys.readouterr().out
    assert main(["search", "a red circle moves to the left", "--index", place, "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert Path(first["path"]).parent == films
    assert main(["status", "--index", place]) == 0
    assert f"with {adapter}" in capsys.readouterr().out
    assert main(["index", str(films), "--index", place, "--model", "shapes-tiny", "--adapter", str(lora / "none")]) == 2
    assert "is no adapter" in capsys.readouterr().err
    assert main(["evaluate", str(films), "--model", "shapes-tiny", "--adapter", str(adapter)]) == 0
    assert "shapes-tiny + lora" in capsys.readouterr().out
    shutil.rmtree(adapter)
    assert main(["search", "a red circle", "--index", place]) == 2
    assert "is no adapter" in capsys.readouterr().err
    assert main(["search", "a red circle", "--index", place, "--adapter", str(lora / "adapter")]) == 0
    with pytest.raises(ClipreelError, match=r"use --model shapes-tiny --adapter"):
        check_space(Index(place), clipreel.load("shapes-tiny", device="cpu"))
