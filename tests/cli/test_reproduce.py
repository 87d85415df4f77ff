"""`clipreel reproduce`: every frozen config by name, what is missing for one, and one run from end to end."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from clipreel import load
from clipreel.cli import main
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import load_features
from clipreel.evaluation.protocol import Stamp
from clipreel.training.catalogue import Entry, catalogue, chosen, committed, configs_folder, entries
from clipreel.training.cells import TOLERANCE
from clipreel.training.chains import Link
from clipreel.training.reproducing import ARCHITECTURES, Reproduced, collected, markdown_row, on_base, verdict
from clipreel.training.stage_runs import Judged
from tests.data import published

SHORT = ("train.steps=2", "frames=2", "batch=8")


@pytest.fixture(scope="module")
def known() -> dict[str, Entry]:
    return catalogue()


def test_every_frozen_config_has_a_name(known: dict[str, Entry]) -> None:
    files = {e.file.relative_to(configs_folder()) for e in known.values()}
    there = {p.relative_to(configs_folder()) for p in configs_folder().glob("*/*.yaml") if p.stem != "default"}
    assert files == there
    assert {e.verb for e in known.values()} == {"tune", "train", "post-pretrain"}
    fc = known["vop/vop_fc/msrvtt9k-b32"]
    assert (fc.headline, fc.tolerance, fc.backbone) == (("t2v R@1", 44.6), TOLERANCE, "b32")
    assert known["alpro/retrieval/msrvtt-b16"].headline == ("t2v R@1", 33.9)
    assert known["alpro/qa/msvd-b16"].headline is not None
    assert known["alpro/prompter/webvid2m-b16"].headline is None
    assert [e.name for e in known.values() if not e.source] == []


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("vop_fc/msrvtt9k-b32", "vop/vop_fc/msrvtt9k-b32"),
        ("vop/vop_fc/msrvtt9k-b32/", "vop/vop_fc/msrvtt9k-b32"),
        ("clip_vip/msrvtt9k-b16", "clip_vip/clip_vip/msrvtt9k-b16"),
        ("full/msrvtt9k-b32", "vop/full/msrvtt9k-b32"),
        ("full/msrvtt9k-b16", "mv_adapter/full/msrvtt9k-b16"),
        ("vop_fc/shapes-tiny", "shapes/vop_fc/shapes-tiny"),
    ],
)
def test_short_names(known: dict[str, Entry], said: str, meant: str) -> None:
    assert chosen(said, known).name == meant


def test_names_that_are_wrong_or_several(known: dict[str, Entry]) -> None:
    with pytest.raises(ClipreelError, match=r"no cell 'vop_fc/msrvtt-b32'; near ones: .*vop/vop_fc/msrvtt9k-b32"):
        chosen("vop_fc/msrvtt-b32", known)
    with pytest.raises(ClipreelError, match="several cells: mv_adapter/released/msrvtt9k-b16, mv_adapter/paper"):
        chosen("mv_adapter/msrvtt9k-b16", known)
    with pytest.raises(ClipreelError, match="clipreel reproduce --list"):
        chosen("?", known)


def test_the_list_and_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) > 130
    assert {"cell", "data_set", "backbone", "printed", "tolerance", "source", "config", "verb"} <= set(rows[0])
    assert main(["reproduce", "--list", "msrvtt9k", "vop_fc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["cell", "data", "set", "backbone", "printed", "tolerance", "source"]
    assert lines[1].split()[:6] == ["vop/vop_fc/msrvtt9k-b32", "msrvtt9k", "b32", "t2v", "R@1", "44.6"]
    assert main(["reproduce", "clip_vip/msrvtt9k-b32", "--out", str(tmp_path / "no")]) == 2
    said = capsys.readouterr().err
    assert "MSR-VTT" in said
    assert "GB" in said
    assert "videos: MSRVTT.zip" in said
    assert "pretrain_clipvip_base_32.pt" in said
    assert not (tmp_path / "no").exists()
    assert main(["reproduce", "vop_fc/shapes-tiny", "train.stepz=2", "--out", str(tmp_path / "no")]) == 2
    assert "did you mean train.steps?" in capsys.readouterr().err
    assert main(["reproduce"]) == 2
    assert not (tmp_path / "no").exists()


def test_a_cell_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ShapesWorld, "COUNTS", {"train": (8, 2), "val": (6, 2), "test": (8, 2)})
    out = tmp_path / "out"
    command = ["reproduce", "coop/shapes-tiny", *SHORT, "--seeds", "2", "--out", str(out), "--device", "cpu"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "not the frozen config (train.steps=2" in printed
    assert "seeds 0, 1" in printed
    data = json.loads((out / "result.json").read_text())
    assert (data["cell"], data["seeds"], data["within"]) == ("shapes/coop/shapes-tiny", [0, 1], None)
    assert data["changes"] == list(SHORT)
    assert data["stamp"]["seeds"] == [0, 1]
    reports = [json.loads((out / f"seed-{s}" / "report.json").read_text()) for s in (0, 1)]
    found = [r["compared"]["after"]["t2v"]["R@1"] for r in reports]
    assert data["ours"]["t2v"]["R@1"] == {"mean": sum(found) / 2, "low": min(found), "high": max(found)}
    interval = data["intervals"]["t2v"]["R@1"]
    assert interval["value"] == pytest.approx(sum(found) / 2)
    assert interval["low"] < interval["value"] < interval["high"]
    assert (out / "row.md").read_text().strip() == markdown_row(data)
    kept = load_features(out / "seed-0" / "features")
    assert kept.stamp.selection == "best t2v R@1 on the validation split"
    assert kept.result().to_dict()["t2v"] == reports[0]["compared"]["after"]["t2v"]
    times = [p.stat().st_mtime_ns for p in sorted(out.rglob("report.json"))]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == data
    assert [p.stat().st_mtime_ns for p in sorted(out.rglob("report.json"))] == times


def test_a_cell_on_a_part_of_its_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Films of the shapes world in the place of MSVD: what is there is used and named for what it is."""
    films = ShapesWorld().write_videos(tmp_path / "msvd" / "videos", "val", 20)
    splits = {"train": films[:8], "validation": films[8:14], "test": films[14:]}
    gone = Sample("gone", Path("gone.mp4"), ("no film",))
    published.xpool_msvd(tmp_path / "msvd", {**splits, "train": [*splits["train"], gone]})
    command = [
        "reproduce",
        "adapt_par/msvd-b16",
        "data.form=x-pool",
        "--model",
        "shapes-tiny",
        "train.steps=2",
        "batch=4",
        "frames=2",
    ]
    command += ["--data", str(tmp_path / "msvd"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    cache = ["--cache", str(tmp_path / "cache")]
    prepare = ["prepare", "msvd", "--form", "x-pool", "--root", str(tmp_path / "msvd"), "--model", "shapes-tiny"]
    assert main([*prepare, "--frames", "2", *cache]) == 0
    assert "20 of 20 videos to decode" in capsys.readouterr().err
    assert main([*command, *cache]) == 0
    said = capsys.readouterr()
    assert "decoding" not in said.err
    assert "note: partial: 8 of 1200 (MSVD train): 1 videos are missing, the first is gone" in said.err
    assert not list((tmp_path / "out").glob("frames*"))
    printed = said.out
    assert re.search(r"^t2v R@1 +48\.3 ", printed, re.M)
    assert "nothing follows for the printed figure" in printed
    data = json.loads((tmp_path / "out" / "result.json").read_text())
    assert data["stamp"]["split"].startswith("partial: 6 of 670 (MSVD test")
    assert data["printed"]["t2v"]["R@1"] == 48.3
    # where the data lie changes nothing; a base that is built otherwise than B/16 does
    assert data["changes"] == ["train.steps=2", "batch=4", "frames=2", "model=shapes-tiny"]
    assert data["config"]["model"] == "shapes-tiny"
    assert data["parts"]["adapt_par train"] == "partial: 8 of 1200 (MSVD train)"
    assert data["difference"]["t2v"]["R@1"] == pytest.approx(data["ours"]["t2v"]["R@1"]["mean"] - 48.3)
    assert data["within"] is None
    (tmp_path / "msvd" / "captions_msvd.json").unlink()
    assert main(command) == 2
    assert "there is no captions_msvd.json below" in capsys.readouterr().err


def test_a_verdict_needs_all_parts_and_the_base_that_was_printed(known: dict[str, Entry], tmp_path: Path) -> None:
    entry = known["vop/vop_fc/msrvtt9k-b32"]
    link = Link(entry, entry.config, tmp_path)
    ours = {"t2v": {"R@1": 44.5}}
    whole = {"train": "MSR-VTT 9k train", "development": "MSR-VTT 9k development"}
    stamps = {"t2v": Stamp(split="MSR-VTT 1k-A test")}

    def found(parts: dict[str, str], earlier: dict[str, str] | None = None) -> Reproduced:
        run = Judged(ours, stamps, {"t2v": "as printed"}, {"step": 1}, parts)
        return collected(link, entry.config, [0], [run], earlier or {})

    assert found(whole).within is True
    made = found({**whole, "train": "partial: 8000 of 9000 (MSR-VTT 9k train)"})
    assert made.within is None
    assert "the data are not the whole set (partial: 8000 of 9000 (MSR-VTT 9k train))" in verdict(made)
    made = found(whole, {"pretrain webvid/train": "partial: 1 of 9 (WebVid-2M train)"})
    assert made.within is None
    assert "(partial: 1 of 9 (WebVid-2M train))" in verdict(made)
    tiny = load("shapes-tiny", device="cpu")
    changed = on_base(link, "elsewhere/tiny", tiny)
    assert changed.changes == ("model=elsewhere/tiny",)
    assert changed.config.model == "elsewhere/tiny"
    own = known["shapes/vop_fc/shapes-tiny"]
    assert on_base(Link(own, own.config, tmp_path), "copied", tiny).changes == ()
    sizes = [ARCHITECTURES[f"openai/clip-vit-base-patch{n}"] for n in (32, 16)]
    b32, b16 = (tiny.adapted(tiny.tuner, adapter="none") for _ in sizes)
    for model, size in ((b32, sizes[0]), (b16, sizes[1])):
        model.clip = SimpleNamespace(config=replace(size, eos_id=2))
    assert on_base(link, "copied", b32).changes == ()
    assert on_base(link, "copied", b16).changes == ("model=copied",)


def test_the_committed_table_is_the_target_of_the_study(tmp_path: Path) -> None:
    spread = {"mean": 60.0, "low": 58.0, "high": 61.5}
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"rows": [{"name": "vop", "recalls": {"t2v R@1": spread, "v2t R@1": spread}}]}))
    assert committed(table, "vop") == ({"t2v": {"R@1": 60.0}, "v2t": {"R@1": 60.0}}, 3.5)
    assert committed(table, "lora") == ({}, TOLERANCE)
    assert committed(tmp_path / "none.json", "vop") == ({}, TOLERANCE)
    table.write_text("{}")
    with pytest.raises(ClipreelError, match="is no table of clipreel compare"):
        committed(table, "vop")


def test_what_the_row_says() -> None:
    stamp = {"frames": "12 uniform", "tokens": 77, "selection": "best", "split": "1k-A", "split_hash": "ab"}
    data = {
        "cell": "vop/vop_fc/msrvtt9k-b32",
        "printed": {"t2v": {"R@1": 44.6}},
        "ours": {"t2v": {"R@1": {"mean": 44.0, "low": 43.5, "high": 44.5}}},
        "difference": {"t2v": {"R@1": -0.6}},
        "within": True,
        "changes": [],
        "seeds": [0, 1],
        "stamp": stamp,
    }
    wanted = "| vop/vop_fc/msrvtt9k-b32 (t2v R@1) | 44.6 | 44.0 (43.5-44.5) | -0.6 | 0, 1 | yes | "
    assert markdown_row(data) == wanted + "12 uniform, 77, best, 1k-A (ab) |"


def test_a_table_states_its_tolerance(tmp_path: Path) -> None:
    file = tmp_path / "vop" / "few.yaml"
    file.parent.mkdir()
    data = yaml.safe_load((configs_folder() / "vop" / "didemo.yaml").read_text())
    file.write_text(yaml.safe_dump({**data, "tolerance": 2.5}))
    assert {e.tolerance for e in entries(file)} == {2.5}


def test_configs_are_found_where_the_package_is_installed(tmp_path: Path) -> None:
    """As a wheel lays them: clipreel/configs inside the package, and no `configs` beside it."""
    root = Path(__file__).parent.parent.parent
    build = f"import runpy, sys; sys.argv = ['setup.py', '-q', 'build_py', '-d', {str(tmp_path / 'lib')!r}]"
    build += "; runpy.run_path('setup.py', run_name='__main__')"
    subprocess.run([sys.executable, "-c", build], cwd=root, check=True, capture_output=True)
    ask = "from clipreel.training.catalogue import *; print(configs_folder(), len(catalogue()))"
    environment = {"PYTHONPATH": str(tmp_path / "lib"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    folder, count = done.stdout.split()
    assert Path(folder) == tmp_path / "lib" / "clipreel" / "configs"
    assert int(count) == len(catalogue())
