"""Stored vectors are scored again without the model, and the page of failures shows what they got wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from clipreel.cli import main
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation import failures
from clipreel.evaluation.features import ABOUT, TENSORS, Features, load_features, save_features
from clipreel.evaluation.protocol import Stamp
from clipreel.video.sampling import Sampling
from tests.data import published


def vectors(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def made() -> Features:
    """Four videos with one to three captions, two with the same file, one that could not be read."""
    said = (("a",), ("b", "bb", "bbb"), ("c", "cc"), ("ü",))
    samples = [Sample(f"v{i}", Path(f"{i // 2}.mp4"), c, 0.5 * i, 0.5 * i + 1) for i, c in enumerate(said)]
    videos = vectors(4, 0)
    videos[2] = torch.nan
    stamp = Stamp(split="four", frames="3 uniform", seeds=(1,))
    return Features(samples, vectors(7, 1), videos, stamp, vectors(5, 2), [("1.mp4", "broken")], Sampling("middles", 3))


def test_what_is_stored_is_scored_alike(made: Features, tmp_path: Path) -> None:
    save_features(tmp_path / "f", made)
    again = load_features(tmp_path / "f")
    assert again.truth.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert (again.samples, again.stamp, again.failed, again.sampling) == (
        made.samples,
        made.stamp,
        made.failed,
        made.sampling,
    )
    assert again.queries() == made.queries()
    for how in ({}, {"v2t": "video"}, {"dual_softmax": "softmax"}, {"by_bank": True}):
        assert again.result(**how).to_dict() == made.result(**how).to_dict()
    assert made.result().failed_videos == (2,)
    assert "query bank" in made.result(by_bank=True).stamp.post_processing
    save_features(tmp_path / "f", made, made.stamp.having(selection="best"))
    assert load_features(tmp_path / "f").stamp.selection == "best"


def test_other_captions_are_other_queries(made: Features) -> None:
    changed = [replace(made.samples[0], captions=("z",)), *made.samples[1:]]
    assert replace(made, samples=changed).queries() != made.queries()


def test_wrong_folders_and_wishes_are_named(made: Features, tmp_path: Path) -> None:
    with pytest.raises(ClipreelError, match="holds no features"):
        load_features(tmp_path)
    with pytest.raises(ClipreelError, match="no query bank"):
        replace(made, bank=None).result(by_bank=True)
    with pytest.raises(ClipreelError, match="choose one"):
        made.result(by_bank=True, dual_softmax="softmax")
    save_features(tmp_path, made)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**about, "samples": about["samples"][:2]}))
    with pytest.raises(ClipreelError, match=r"names .'texts': 4, 'videos': 2"):
        load_features(tmp_path)
    (tmp_path / ABOUT).write_text(json.dumps({**about, "schema": 7}))
    with pytest.raises(ClipreelError, match="schema 7"):
        load_features(tmp_path)
    (tmp_path / ABOUT).write_text(json.dumps(about))
    (tmp_path / TENSORS).write_bytes(b"no tensors")
    with pytest.raises(ClipreelError, match="no readable features"):
        load_features(tmp_path)


def test_misses_confusions_and_hubs_by_hand() -> None:
    """Texts 0 and 1 find each other's video, text 2 finds video 0, text 3 its own."""
    videos = torch.eye(4)
    texts = torch.tensor([[0.6, 0.8, 0, 0], [0.9, 0.1, 0, 0], [0.7, 0.2, 0.1, 0], [0, 0, 0, 1.0]])
    samples = [Sample(f"v{i}", Path(f"{i}.mp4"), (f"t{i}",)) for i in range(4)]
    f = Features(samples, texts, videos, Stamp(split="four"))
    assert failures.misses(f.result(), f) == [2, 0, 1]
    found = failures.confusions(f)
    assert [c.videos for c in found] == [(0, 1), (0, 2)]
    assert found[0].texts == (1, 0)  # the wider margin first
    assert failures.hubs(f) == [(0, 2), (1, 1)]
    best, score = failures.firsts(f)
    assert best[2].tolist() == [0, 1]
    assert score[2].tolist() == pytest.approx([0.7, 0.2])


@pytest.mark.parametrize("missing", [False, True])
def test_the_page_shows_the_frames_that_were_decoded(tmp_path: Path, missing: bool) -> None:
    samples = ShapesWorld().write_videos(tmp_path / "v", "test", count=4)
    if missing:
        samples[0].video.unlink()
    f = Features(samples, vectors(4, 3), vectors(4, 4), Stamp(split="four"), vectors(6, 5), (), Sampling("middles", 3))
    text = failures.page(f, "What it misses", tmp_path / "page.html").read_text()
    plain = f.result()
    assert plain.ranks is not None
    worst = failures.misses(plain, f)[0]
    ways = ", ".join(f"{way} {failures.rank_of(r, worst):g}" for way, r in failures.results(f).items())
    assert [w.split(" ")[0] for w in ways.split(", ")] == ["plain", "query", "dual"]
    assert f"rank: {ways}" in text
    assert all(part in text for part in ("Worst misses", "Confusions", "protocol: "))
    # 24 frames, 12 a second: the middles of three parts
    assert text.count("<span>0.25</span><span>0.92</span><span>1.58</span>") == text.count('class="strip"') > 0
    assert ("<span>missing</span>" in text) == missing


def test_stored_and_scored_again_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films, kept = tmp_path / "films", tmp_path / "kept"
    ShapesWorld().write_videos(films, "test", count=5)
    (tmp_path / "bank.txt").write_text("a red circle moves\n\na blue square\n")
    options = ["--frames", "2", "--bank", str(tmp_path / "bank.txt")]
    assert main(["evaluate", str(films), *options, "--store", str(kept), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["stamp"]["post_processing"] == "none"
    assert main(["evaluate", "--features", str(kept), "--model", "nowhere", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert load_features(kept).bank is not None
    page = tmp_path / "page.html"
    assert main(["evaluate", "--features", str(kept), "--query-bank", "--gallery", str(page)]) == 0
    assert "post-processing: query bank (t2v by 2 texts" in capsys.readouterr().out
    assert "query bank" in page.read_text()
    assert main(["evaluate", str(films), "--features", str(kept)]) == 2
    assert "leave out the data" in capsys.readouterr().err
    assert main(["evaluate", str(films), "--bank", str(tmp_path / "none.txt")]) == 2
    assert "cannot be read as text" in capsys.readouterr().err


def test_a_published_set_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films = ShapesWorld().write_videos(tmp_path / "videos", "train", count=6)
    published.xpool_msvd(tmp_path, {"train": films[:2], "validation": films[2:3], "test": films[3:]})
    command = ["evaluate", "msvd", "--root", str(tmp_path), "--form", "x-pool", "--frames", "2", "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stamp"]["split"].startswith("partial: 3 of 670 (MSVD test")
    assert result["t2v"]["queries"] == sum(len(s.captions) for s in films[3:]) > 3
    assert main([*command, "--captions", "single", "--split", "train", "--v2t", "video"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["t2v"]["queries"], result["stamp"]["caption_mode"]) == (2, "single")
    assert "captions: single" in result["stamp"]["split"]
    capsys.readouterr()
    films[4].video.unlink()
    assert main(command) == 0
    assert f"1 videos are missing, the first is {films[4].id}" in capsys.readouterr().err
    assert main(["evaluate", "msvd", "--root", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
