"""The miniature studies: which runs they are made of, what comes out of them, and how long they would take."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import clipreel
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import Features, save_features
from clipreel.evaluation.protocol import Stamp
from clipreel.training import vip_studies
from clipreel.training.config import as_dict, read, to_yaml
from clipreel.training.post_pretraining import PostPretrainConfig
from clipreel.training.settings import TuneConfig, read_config
from clipreel.training.vip_studies import (
    LOSSES,
    Leg,
    Lengths,
    estimate,
    loss_legs,
    main,
    parts,
    proxy_configs,
    scale_legs,
)
from clipreel.tuners import build, options

SHORT = Lengths(10, 8, 6)


def test_the_proxies_study_compares_what_the_paper_does(tmp_path: Path) -> None:
    configs = proxy_configs(SHORT)
    assert list(configs) == ["mean_pool", "full_attention", "proxies_1", "proxies_2", "proxies_4", "proxies_8"]
    assert {c.order for c in configs.values()} == {"opposites"}
    assert configs["proxies_8"].options == {"proxies": 8, "log_scale": None}
    for name, config in configs.items():
        (tmp_path / f"{name}.yaml").write_text(to_yaml(config))
        again = read_config(tmp_path / f"{name}.yaml")
        assert (again.method, again.train) == (config.method, config.train)


def test_every_run_of_a_study_begins_with_the_scale_of_the_base(tmp_path: Path) -> None:
    clip = clipreel.load(vip_studies.MODEL, device="cpu").clip
    legs = [*loss_legs(tmp_path, 0, SHORT, "said.jsonl"), *scale_legs(tmp_path, 0, SHORT)]
    for config in (*proxy_configs(SHORT).values(), *(leg.config for leg in legs)):
        tuner = build(config.method, clip, options(config.method, config.options))
        scale = tuner.overrides.get("logit_scale", clip.logit_scale)
        assert torch.equal(scale.detach(), clip.logit_scale.detach()), config


def test_every_run_goes_on_from_one_before_it(tmp_path: Path) -> None:
    losses, scale = loss_legs(tmp_path, 2, SHORT, "said.jsonl"), scale_legs(tmp_path, 2, SHORT)
    assert [leg.row for leg in losses if leg.row] == ["no post-pretraining", *LOSSES]
    assert [(leg.row, leg.at) for leg in scale if leg.row] == [
        (row, step) for row in vip_studies.CORPORA for step in (0,)
    ] + [(row, step) for row in vip_studies.CORPORA for step in (3, 6, 8)]
    for legs in (losses, scale):
        made = set()
        for leg in legs:
            assert leg.config.train.seed == 2
            if isinstance(leg.config, PostPretrainConfig):
                made |= {
                    str(tmp_path / leg.folder / name) for name in ("adapter", *(f"adapter-{s:06d}" for s in (3, 6, 8)))
                }
                assert leg.steps == 8
            elif leg.config.start is not None:
                assert leg.config.start in made
            text = to_yaml(leg.config)
            (tmp_path / "c.yaml").write_text(text)
            assert read(type(leg.config), tmp_path / "c.yaml") == leg.config
    assert {leg.config.sources["films"].captions for leg in losses if not leg.row} == {"said.jsonl"}
    assert {leg.config.sources["films"].captions for leg in scale if not leg.row} == {None}


def test_only_the_same_run_counts_as_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(vip_studies, "tune", lambda config, *_, **__: asked.append(config))
    monkeypatch.setattr(vip_studies, "post_pretrain", lambda config, *_, **__: asked.append(config))
    base = clipreel.load("shapes-tiny", device="cpu")
    for leg in loss_legs(tmp_path, 0, SHORT, "shapes")[:2]:
        folder, config = tmp_path / leg.folder, json.loads(json.dumps(as_dict(leg.config)))
        (folder / "adapter").mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps({"config": config}))
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"trained_on": {"config": config}}))
        vip_studies.run(leg, tmp_path, tmp_path, base)
        assert asked == []
        other = replace(leg, config=replace(leg.config, batch=7))
        vip_studies.run(other, tmp_path, tmp_path, base)
        assert asked.pop() == other.config


def blind(seen: int = 0) -> Features:
    """Vectors that tell every scene from the others but never which way it runs, save in the first `seen` films."""
    films = ShapesWorld().videos("test")
    names = list(dict.fromkeys(i.group for i in films))
    vectors = torch.eye(len(names) + 1)[[names.index(i.group) for i in films]]
    for row, film in enumerate(films[:seen]):
        vectors[row, -1] = 0.5 if film.id.endswith("a") else -0.5
    samples = [Sample(i.id, Path(f"{i.id}.mp4"), i.captions) for i in films]
    return Features(samples, vectors, vectors.clone(), Stamp(split="shapes held out"))


def test_r_at_1_is_taken_apart_into_scene_and_order() -> None:
    most = vip_studies.bound()
    assert most["t2v R@1"] == pytest.approx(100 * (110 + 20) / 240)
    assert parts(blind()) == {"t2v scene": most["t2v scene"], "t2v order": most["t2v order"]}
    seen = parts(blind(22))
    assert seen["t2v scene"] == 100
    assert seen["t2v order"] == pytest.approx(50 + 50 * 22 / 220)
    lost = blind()
    lost.videos[:12] = 0
    assert parts(lost)["t2v scene"] == pytest.approx(100 * 228 / 240)
    assert "t2v scene" in vip_studies.MEASURES
    assert set(most) == set(vip_studies.MEASURES)


def fake(leg: Leg, root: Path, scratch: Path, base: object) -> None:
    """A run whose recall is its seed and the steps of post-pretraining."""
    folder = root / leg.folder
    (folder / "run").mkdir(parents=True, exist_ok=True)
    rows = [{"kind": "train", "step": 5, "steps_per_s": 2.0}]
    (folder / "run" / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if isinstance(leg.config, TuneConfig):
        value = leg.at + leg.config.train.seed
        save_features(folder / "features", blind(leg.at))
        both = {way: {"R@1": value, "R@5": value + 10, "R@10": value + 20} for way in ("t2v", "v2t")}
        (folder / "report.json").write_text(json.dumps({"compared": {"after": both}}))


@pytest.mark.parametrize("study", ["losses", "scale"])
def test_a_table_over_seeds(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vip_studies, "run", fake)
    main([study, "--out", str(tmp_path), "--seeds", "3", "--steps", "8"])
    found = json.loads((tmp_path / "table.json").read_text())
    last = found["rows"][-1]
    assert found["bound"]["t2v R@1"] == pytest.approx(54.17, abs=0.01)
    assert "| order-blind bound | | 54.2 | 100.0 | 50.0 | 100.0 |" in (tmp_path / "table.md").read_text()
    assert last["t2v scene"]["mean"] == 100
    assert last["steps"] == 8
    assert last["t2v R@1"] == {"mean": 9, "low": 8, "high": 10}
    assert last["t2v mean"]["mean"] == pytest.approx(19)
    assert "9.0 (8.0-10.0)" in (tmp_path / "table.md").read_text()
    assert "9.0 (8.0-10.0)" in capsys.readouterr().out
    assert (tmp_path / "curve.png").is_file() == (study == "scale")


def test_an_estimate_counts_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vip_studies, "run", fake)
    base = clipreel.load("shapes-tiny", device="cpu")
    wall, cpu = estimate(loss_legs(tmp_path, 0, SHORT, "shapes"), tmp_path, tmp_path, 3, base)
    steps = 6 + len(LOSSES) * (8 + 6)
    assert wall == pytest.approx(3 * steps * 0.5 / 60, rel=0.1)
    assert cpu > 0


def test_the_gap_of_subtitles_and_captions(tmp_path: Path) -> None:
    main(["gap", "--out", str(tmp_path), "--seeds", "1"])
    found = json.loads((tmp_path / "table.json").read_text())
    assert {g["first"] for g in found["gaps"]} | {g["second"] for g in found["gaps"]} == {
        "subtitles",
        "generated captions",
        "test captions",
    }
    assert (tmp_path / "clusters.png").is_file()
    for wrong in (["--seeds", "0"], ["--steps", "0"]):
        with pytest.raises(ClipreelError, match="at least one seed and one step"):
            main(["losses", "--out", str(tmp_path), *wrong])
