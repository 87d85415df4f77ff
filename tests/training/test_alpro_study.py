"""The study of ALPRO's parts: its start, its runs, what is kept, its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from clipreel.alpro.start import take_vit
from clipreel.alpro.timesformer import TimeSformer, VisionConfig
from clipreel.clip import Clip
from clipreel.data.shapes import ShapesWorld
from clipreel.retriever import load
from clipreel.training import alpro_study, alpro_world
from clipreel.training.alpro_study import BY_NAME, RUNS, Run, Sizes, Study, estimate, everything, one, prepared
from clipreel.training.alpro_tables import tables

TINY = Sizes(reading=2, prompter=1, pretrain=1, qa=1, batch=4, test=6)


class Small(ShapesWorld):
    COUNTS: ClassVar = {"train": (6, 2), "val": (2, 1), "test": (2, 2)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A world of a few films."""
    folder = tmp_path_factory.mktemp("study")
    made = Study(folder, TINY)
    made.__dict__["world"] = alpro_world.AlproWorld(folder / "world", Small(), TINY.reading)
    return made


def test_the_start_sees_stills_as_the_clip_does() -> None:
    base = load("shapes-tiny", device="cpu")
    assert isinstance(base.clip, Clip)
    world = alpro_world.AlproWorld(Path("unused"))
    films = np.stack([i.scene.render(64, 1)[0].transpose(2, 0, 1) for i in world.world.videos("test")[:6]])
    pixels = base.preprocess.normalise(torch.from_numpy(films))
    vit = alpro_world.clip_as_vit(base.clip, pixels)
    video = TimeSformer(VisionConfig(64, 8, 2, 96, 4, 3, 384)).eval()
    take_vit(video, vit)
    with torch.no_grad():
        ours = video(pixels[:, None])[:, 0] @ base.clip.vision.head
        theirs = base.clip.encode_video(pixels[:, None])[:, 0]
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.9


def test_the_start_reads_what_the_bert_has_read(study: Study) -> None:
    model = study.world.new_model(0, 4).model
    again = alpro_world.AlproWorld(study.world.folder, study.world.world, TINY.reading)  # from its file
    for name, tensor in again.reader.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert torch.equal(model.text.words.weight, study.world.new_model(1, 4).model.text.words.weight)


def test_the_bert_learns_from_what_it_reads(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpro_world, "READ", 8)
    monkeypatch.setattr(alpro_world, "WARM_UP", 10)
    world, texts = study.world, ["a red circle moves left", "a green star is here"] * 16

    def missed(reader: alpro_world.Reader) -> float:
        """Share of the words "circle" and "star" that are guessed wrong when hidden."""
        ids = world.tokenizer(texts[:2], alpro_world.TOKENS)
        at = torch.tensor([3, 3])  # behind the start, "a", and a colour
        shown = ids.clone()
        shown[torch.arange(2), at] = world.tokenizer.mask
        with torch.no_grad():
            tokens = reader.text.run(reader.text.embed(shown), ids != 0, range(len(reader.text.layers)))
            guessed = reader.mlm(tokens[torch.arange(2), at], reader.text.words).argmax(1)
        return (guessed != ids[torch.arange(2), at]).float().mean().item()

    torch.manual_seed(0)
    reader = alpro_world.Reader(world.text)
    assert missed(reader) == 1
    reader.learn(texts, world.tokenizer, 60)
    assert missed(reader) == 0


def test_the_runs_are_those_of_the_issue() -> None:
    assert len({r.name for r in RUNS}) == len(RUNS)
    assert {r.entities for r in RUNS} == {0, 10, 50, 200}
    assert {r.frames for r in RUNS if r.stage == "pretrain"} == {2, 4, 8}
    assert all(BY_NAME[r.after].stage != r.stage for r in RUNS if r.after)


def test_a_chain_of_runs_is_trained_measured_and_kept(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prompter", "pem", "qa-question-only"):
        one(study, name, 0)
    reports = {name: study.report(BY_NAME[name], 0) for name in ("prompter", "pem", "qa-question-only")}
    assert all(reports.values())
    assert {"tag 10 single prompt", "tag 200 ensemble", "cosine R@1"} <= set(reports["prompter"]["metrics"])
    assert {"cosine R@5", "matching R@1", "matching ms per query"} <= set(reports["pem"]["metrics"])
    assert {"accuracy", "accuracy colour"} <= set(reports["qa-question-only"]["metrics"])
    assert set(reports["pem"]["log"]) >= {"loss/pem", "loss/mlm", "loss/vtm", "loss/vtc", "kept"}
    assert 0.2e6 < reports["pem"]["parameters"] < 2e6
    assert study.report(replace(BY_NAME["pem"], frames=8), 0) is None
    assert Study(study.folder, replace(TINY, pretrain=2)).report(BY_NAME["pem"], 0) is None
    assert Study(study.folder, replace(TINY, prompter=2)).report(BY_NAME["pem"], 0) is None  # of another prompter

    asked: list[str] = []

    def fail(study: Study, run: Run, seed: int, jobs: int) -> str:
        asked.append(run.name)
        return "it broke"

    monkeypatch.setattr(alpro_study, "in_process", fail)
    data = everything(study, 1, 1)
    assert set(asked) == {r.name for r in RUNS} - set(reports)  # what is done is kept
    assert data["failed"]["qa/0"] == data["failed"]["vtc-vtm-mlm/0"] == "it broke"
    assert json.loads((study.folder / "table.json").read_text())["runs"].keys() == set(reports)
    assert "- failed: pem-8-frames/0: it broke" in (study.folder / "table.md").read_text()


def test_what_goes_on_from_a_failed_run_is_not_tried(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpro_study, "in_process", lambda study, run, seed, jobs: "it broke")
    other = Study(study.folder, replace(TINY, batch=5))
    other.__dict__["world"] = study.world
    data = everything(other, 1, 1)
    assert data["failed"]["pem/0"] == "it goes on from prompter, which failed"


def test_question_only_sees_nothing_and_one_frame_sees_one(study: Study) -> None:
    model = study.world.new_model(0, 4)
    blind = prepared(study, BY_NAME["qa-question-only"], 0, model).loader.batch(0)
    assert not blind.frames.any()
    single = prepared(study, BY_NAME["qa-one-frame"], 0, model).loader.batch(0)
    assert single.frames.shape[1] == 1
    assert single.frames.any()


def test_the_estimate_counts_all_runs(study: Study, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(alpro_study, "RUNS", RUNS[:1])
    assert estimate(study, 3, 2, steps=1) > 3 / 2 * alpro_study.OVERHEAD_S["prompter"]
    assert "all runs: about" in capsys.readouterr().err


def test_tables_give_mean_and_range_and_say_what_is_told() -> None:
    def report(value: float, **log: float) -> dict:
        measures = {"matching R@1": value, "cosine R@1": value - 1}
        return {"metrics": measures, "seconds": 10.0, "parameters": 5, "log": log}

    facts = {"seeds": 2, "batch": 4, "prompter": 1, "pretrain": 1, "qa": 1, "judged": 20, "bound": {"R@1": 52.5}}
    reports = {
        "vtc-vtm-mlm": [report(10), report(14)],
        "pem": [report(13, kept=0.5), report(17, kept=0.7)],
        "pem-8-frames": [report(30)],
    }
    data, text = tables(reports, facts, {"qa/1": "it broke"})
    assert "| VTC + VTM + MLM | 11.0 (9.0-13.0) |  | 12.0 (10.0-14.0) |  |  |\n" in text  # it judges no entities
    assert "| 15.0 (13.0-17.0) |  | 60.0 (50.0-70.0) |\n" in text
    assert data["told"] == [
        "vtc-vtm-mlm: matching against cosine, R@1 +1.0; the ranges overlap, so the seeds do not tell them apart",
        "pem: matching against cosine, R@1 +1.0; the ranges overlap, so the seeds do not tell them apart",
        "pem against vtc-vtm-mlm: matching R@1 +3.0; the ranges overlap, so the seeds do not tell them apart",
        "pem-8-frames against pem: matching R@1 +15.0; the ranges lie apart",
    ]
    alone, _ = tables({k: v[:1] for k, v in reports.items()}, {**facts, "seeds": 1}, {})
    assert alone["told"][0].endswith("one seed tells nothing")
    assert data["runs"]["pem"]["matching R@1"] == {"mean": 15.0, "low": 13.0, "high": 17.0}
    assert "- failed: qa/1: it broke" in text
