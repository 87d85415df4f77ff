"""The demo and its page: film strips inside, nothing from the network, names escaped, true ranks."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipreel.adapter import load
from clipreel.cli import demo_run, main
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.evaluation import gallery
from clipreel.evaluation.gallery import Card, Section, Shown
from clipreel.evaluation.metrics import evaluate
from clipreel.training.pairs import DataConfig
from clipreel.training.settings import TuneConfig
from clipreel.video.packets import DecodeError


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return ShapesWorld().write_videos(tmp_path_factory.mktemp("films"), "test", count=4)


def test_page_stands_alone_and_escapes_what_it_shows(tmp_path: Path, films: list[Sample]) -> None:
    odd = tmp_path / 'a<b>&" #1.mp4'
    odd.write_bytes(films[0].video.read_bytes())
    card = Card("<script>", [Shown(odd, odd.name, 1, 0.5, True, 0.5, 1.0)])
    content = gallery.page("Title <1>", "lead", [Section("Answers", "&", gallery.cards([card], tmp_path))])
    assert "data:image/jpeg;base64," in content
    assert "<script>" not in content
    assert "a&lt;b&gt;&amp;&quot; #1.mp4" in content
    assert 'href="a%3Cb%3E%26%22%20%231.mp4#t=0.5"' in content
    assert "http" not in content
    assert "prefers-color-scheme: dark" in content


def test_page_says_when_a_video_is_gone(tmp_path: Path) -> None:
    gone = Shown(tmp_path / "gone.mp4", "gone", 1, 0.5)
    with pytest.raises(DecodeError):
        gallery.strip(gone)
    assert "missing" in gallery.cards([Card("q", [gone])], tmp_path)


def test_page_takes_names_that_are_no_text(tmp_path: Path, films: list[Sample]) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    odd.write_bytes(films[0].video.read_bytes())
    content = gallery.cards([Card("q", [Shown(odd, odd.name, 1, 0.5)])], tmp_path)
    assert content.encode("utf-8")
    assert "caf\\xe9.mp4" in content
    assert 'href="caf%E9.mp4"' in content


def test_numbers_are_those_of_the_table() -> None:
    result = evaluate(torch.eye(4), torch.eye(4))
    assert gallery.numbers({"x": result}).count("<td>100.0</td>") == 6


def test_a_miss_is_shown_with_its_true_rank(films: list[Sample]) -> None:
    scores = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    result = evaluate(scores, torch.eye(4))
    measured = demo_run.Measured(films, scores, result)
    assert result.ranks is not None
    answers = demo_run.card(measured, result.ranks[0].expected(), 0).answers
    assert [(a.rank, a.right) for a in answers] == [(1, False), (4, True)]


def test_demo_on_own_videos(tmp_path: Path, films: list[Sample], capsys: pytest.CaptureFixture[str]) -> None:
    out, videos = tmp_path / "out", films[0].video.parent
    command = ["demo", "--videos", str(videos), "--model", "shapes-tiny", "--out", str(out)]
    assert main(command) == 0
    assert "4 new" in capsys.readouterr().out
    assert (out / "report.html").read_text("utf-8").count('<section class="card">') == len(demo_run.OWN_QUERIES)
    assert main(command) == 0
    assert "0 new, 4 unchanged" in capsys.readouterr().out


def test_the_command_that_the_demo_ends_with_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index is made with an adapter: a search of its own finds it in the index."""
    rows = [{"video": str(s.video), "caption": s.captions[0]} for s in ShapesWorld().write_videos(tmp_path, "test", 8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"data": DataConfig(str(tmp_path / "pairs.jsonl")), "order": TuneConfig.order, "batch": 2}
    short = replace(demo_run.DEMO, train=replace(demo_run.DEMO.train, steps=1), **own)
    monkeypatch.setattr(demo_run, "DEMO", short)
    tuned = demo_run.tuned_live(load("shapes-tiny", device="cpu"), tmp_path)
    index, report = demo_run.indexed(tuned.after.model, tmp_path, tmp_path)
    assert report.indexed == 8
    capsys.readouterr()
    assert main(["search", "a red circle", "--index", str(index.place)]) == 0
    assert ".mp4" in capsys.readouterr().out


def test_demo_without_videos_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_text("no video")
    for folder in ("v", "nowhere"):
        out = str(tmp_path / "out")
        assert main(["demo", "--videos", str(tmp_path / folder), "--model", "shapes-tiny", "--out", out]) == 2
        assert "give a folder of videos" in capsys.readouterr().err
