"""What happens around the training of `clipreel tune`: its frames, verdict and lineage, and what stops it early."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clipreel.adapter import read_config, write_config
from clipreel.cli import main
from clipreel.cli import tune as command
from clipreel.data.cache import FrameCache
from clipreel.data.shapes import ShapesWorld
from clipreel.evaluation.bootstrap import Interval
from clipreel.licences import lineage, state
from clipreel.training import tuning
from clipreel.training.pairs import DataConfig, read_pairs
from clipreel.training.starting import before_that, origin
from tests.cli.test_tune import cache, films, lora, tune

__all__ = ["cache", "films", "lora"]
LORA = ("lr=1e-2", "options.rank=2")
WEIGHTS = "adapter_model.safetensors"


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("part", "what"), [("train", "for training"), ("validation", "for validation"), ("held_out", "held out")]
)
def test_a_part_without_readable_videos_names_them_before_anything_is_trained(
    part: str, what: str, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "films"
    shutil.copytree(films, own)
    pairs = read_pairs(DataConfig(str(own), validation_share=0.3, held_out_share=0.4), tmp_path)
    _, *broken = (s.video for s in getattr(pairs, part))
    for path in broken:
        path.write_text("no video")
    assert tune(own, tmp_path / "run", tmp_path / "cache", "--method", "lora", changes=LORA) == 2
    said = last_line(capsys)
    assert said.startswith(f"clipreel: 1 of {len(broken) + 1} videos {what} can be read")
    assert f"{broken[0]} (not-video)" in said
    assert not (tmp_path / "run" / "run").exists()


def test_a_general_set_that_is_not_there_is_told_at_once(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--method", "lora", "--general", str(tmp_path / "nowhere.jsonl"))
    assert tune(films, tmp_path / "run", tmp_path / "cache", *more, changes=LORA) == 2
    assert "nowhere.jsonl" in last_line(capsys)
    assert not (tmp_path / "cache").exists()


def test_a_report_that_cannot_be_written_is_one_line(
    lora: Path, films: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(lora, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    assert tune(films, tmp_path / "run", cache, "--method", "lora", changes=LORA) == 2
    assert "report.html cannot be written" in last_line(capsys)


def test_what_prepare_made_is_taken_and_what_tune_made_is_added_to(
    films: Path, lora: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, prepare = tmp_path / "made", ["prepare", str(films), "--model", "shapes-tiny", "--json", "--cache"]
    assert main([*prepare, str(made), "--frames", "6"]) == 0  # three times as many, with the two among them
    before = {p.name: p.stat().st_mtime_ns for p in made.iterdir()}
    assert tune(films, tmp_path / "run", made, "--method", "lora", changes=LORA) == 0
    assert {p.name: p.stat().st_mtime_ns for p in made.iterdir()} == before
    ours, theirs = (load_file(f / "adapter" / WEIGHTS) for f in (tmp_path / "run", lora))
    assert all((ours[n] == x).all() for n, x in theirs.items())
    capsys.readouterr()
    assert tune(films, tmp_path / "no", made, "--method", "lora", changes=(*LORA, "frames=3")) == 2
    assert "among which 3 frames cannot be chosen" in last_line(capsys)
    assert main([*prepare, str(cache), "--frames", "2"]) == 0  # the folder of several caches, which tune made
    report = json.loads(capsys.readouterr().out)
    assert (report["made"], report["kept"]) == (0, 32)
    assert FrameCache(report["cache"]).recipe.frames == 2


def test_videos_that_a_prepared_cache_lacks_are_decoded_into_it_with_progress(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int, int]] = []

    class Recorded:
        def __init__(self, what: str, visible: bool) -> None:
            self.what = what

        def __call__(self, done: int, total: int, extra: str = "") -> None:
            calls.append((self.what, done, total))

    few = tmp_path / "few.jsonl"
    few.write_text("".join((films / "annotations.jsonl").read_text().splitlines(True)[:20]))
    made = tmp_path / "made"
    arguments = ["--videos", str(films), "--model", "shapes-tiny", "--frames", "2", "--cache", str(made)]
    assert main(["prepare", str(few), *arguments]) == 0
    monkeypatch.setattr(command, "Progress", Recorded)
    assert tune(films, tmp_path / "run", made, "--method", "lora", changes=(*LORA, "train.steps=1")) == 0
    assert calls == [("decoding", n, 12) for n in range(1, 13)]
    assert len(FrameCache(made)) == 32


def test_a_loss_on_the_general_set_is_the_verdict_and_each_frame_count_has_its_folder(
    films: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other, place = tmp_path / "other", tmp_path / "frames"
    ShapesWorld().write_videos(other, "test", count=6)
    compare = tuning.compare

    def judged(before: object, after: object, samples: list) -> object:
        found = compare(before, after, samples)
        gained = Interval(-4.0, -6.0, -1.0) if len(samples) == 6 else Interval(5.0, 2.0, 7.0)
        return replace(found, overall=gained, helped=gained.low > 0)

    monkeypatch.setattr(tuning, "compare", judged)
    more = ("--method", "lora", "--general", str(other))
    one = (*LORA, "train.steps=1")
    assert tune(films, tmp_path / "run", place, *more, changes=one) == 0
    said = capsys.readouterr().out
    assert "On other videos the adapter is worse, beyond chance; search will not use it" in said
    assert f"on {other}: The mean of the six recalls changed by -4.0" in said
    assert "--unhelpful" in said
    assert "weights of step 1 (best t2v R@1 on the validation split); of the last step, 1: t2v R@1 " in said
    adapter = tmp_path / "run" / "adapter"
    assert read_config(adapter).helped is False
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["helped"], report["compared"]["helped"]) == (False, True)
    assert "This is worse, beyond chance." in (tmp_path / "run" / "report.html").read_text()
    index = ["index", str(films), "--model", "shapes-tiny", "--adapter", str(adapter), "--index", str(tmp_path / "i")]
    assert main(index) == 2
    assert "is worse on the videos that it must not get worse on (-4.0 points" in last_line(capsys)
    assert tune(films, tmp_path / "three", place, *more, changes=(*one, "frames=3")) == 0
    assert len(list(place.glob("frames-general-*"))) == 2


def test_the_data_of_the_start_are_in_the_lineage(lora: Path, films: Path, cache: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(films, second)
    change = (*LORA, "train.steps=1", f"start={lora / 'adapter'}")
    assert tune(second, tmp_path / "run", cache, "--method", "lora", changes=change) == 0
    found = lineage(tmp_path / "run" / "adapter")
    assert [(x.what, x.name) for x in found] == [("base", "shapes-tiny"), ("data", str(films)), ("data", str(second))]
    start, tuned = (read_config(d / "adapter") for d in (lora, tmp_path / "run"))
    said = {when: tuned.metrics[when]["stamp"]["trained_on"] for when in ("before", "after")}
    assert said["before"] == "none"
    assert said["after"].endswith(f") after lora {start.tensors[:12]} ({films.name})")
    assert " after " not in start.metrics["after"]["stamp"]["trained_on"]
    assert "Whether the start has seen them" in (tmp_path / "run" / "report.html").read_text()
    assert "Whether the start has seen them" not in (lora / "report.html").read_text()
    assert before_that("files/released.pt") == "released.pt"


def test_what_owners_stated_of_the_start_goes_on_where_it_holds(lora: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(lora / "adapter", adapter)
    write_config(adapter, replace(read_config(adapter), licence={"base": "b", "data": "films"}))
    state(adapter, "base", "free", True)
    state(adapter, "data", "ours", True)
    stated = {"base_licence": "free", "base_commercial": "yes"}
    allowed = {"data_licence": "ours", "data_commercial": "yes"}
    assert origin("b", "films", str(adapter)) == {"base": "b", "data": "films", **stated, **allowed}
    assert origin("b", "more", str(adapter)) == {"base": "b", "data": "films, more", **stated}
    state(adapter, "data", "ours", False)
    assert origin("b", "more", str(adapter))["data_commercial"] == "no"
    assert origin("b", "more", "released.pt") == {"base": "b", "data": "released.pt, more"}


def test_frames_are_chosen_as_the_config_says(
    films: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = (*LORA, "train.steps=1", "sampling=middles")
    assert tune(films, tmp_path / "run", cache, "--method", "lora", changes=change) == 0
    (place,) = cache.glob("frames-*-middles-2")
    assert FrameCache(place).recipe.sampling == "middles"
    compared = json.loads((tmp_path / "run" / "report.json").read_text())["compared"]
    for when in ("before", "after"):
        assert "middles" in compared[when]["stamp"]["frames"]
    assert read_config(tmp_path / "run" / "adapter").sampling["kind"] == "middles"
    assert tune(films, tmp_path / "no", cache, "--method", "lora", changes=(*change, "random_frames=true")) == 2
    assert "random_frames draws among equal times, not middles" in last_line(capsys)
    assert tune(films, tmp_path / "no", cache, "--method", "lora", changes=("sampling=middle",)) == 2
    assert "is not one of uniform, middles" in last_line(capsys)


def test_crops_are_cut_from_larger_frames_and_measured_on_plain_ones(
    films: Path, cache: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    own = ["--model", "shapes-tiny", "--cache", str(made), "--frames", "2", "--sampling", "middles", "--size", "96"]
    assert main(["prepare", str(films), *own]) == 0
    change = (*LORA, "train.steps=1", "sampling=middles", "crop_from=96")
    assert tune(films, tmp_path / "no", made, "--method", "lora", changes=change) == 2
    assert "crop_from 96: give at least the 64 pixels that the model sees, and augment.crop" in last_line(capsys)
    change = (*change, "augment.crop=[0.5, 1.0]")
    assert tune(films, tmp_path / "run", made, "--method", "lora", changes=change) == 0
    assert FrameCache(made).recipe.size == 96
    (place,) = made.glob("frames-*-middles-2")
    measured_on = FrameCache(place)
    assert (measured_on.recipe.size, len(measured_on)) == (64, 19)  # without those that are trained on
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["compared"]["before"]["stamp"]["resolution"] == 64
    assert tune(films, tmp_path / "no", made, "--method", "lora", changes=(*change, "crop_from=32")) == 2
