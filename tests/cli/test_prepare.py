"""clipreel prepare as a user runs it."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from clipreel.cli import app, main
from clipreel.cli.prepare import prepare
from clipreel.data.cache import FrameCache
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shards import KINDS
from clipreel.training.decoding import FrameSampling


@pytest.fixture
def films(tmp_path: Path) -> Path:
    ShapesWorld().write_videos(tmp_path / "films", "test", count=4)
    return tmp_path / "films"


def run(films: Path, cache: Path, *more: str) -> int:
    return main(["prepare", str(films), "--model", "shapes-tiny", "--cache", str(cache), *more])


def test_a_folder_becomes_a_cache_and_the_second_run_has_nothing_to_do(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(films, tmp_path / "c", "--frames", "24") == 0
    said = capsys.readouterr()
    assert "4 of 4 videos to decode: 1.1 MiB to write, " in said.err
    assert said.out.startswith("decoded 4 videos (1.1 MiB, 0 of them had changed), kept 0; cache at ")
    assert FrameCache(tmp_path / "c")["test-across-000a"].shape == (24, 3, 64, 64)
    assert run(films, tmp_path / "c", "--frames", "24", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["made"], report["kept"], report["skipped"]) == (0, 4, [])


def test_skipped_videos_are_the_last_lines_and_exit_is_1(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (films / "test-across-000b.mp4").write_text("no video")
    (films / "test-across-000a.mp4").unlink()
    assert run(films, tmp_path / "c") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-3] == "skipped 2:"
    assert lines[-2] == f"  {films}/test-across-000a.mp4: missing"
    assert lines[-1] == f"  {films}/test-across-000b.mp4: not-video"
    for film in films.glob("*.mp4"):
        film.unlink()
    assert run(films, tmp_path / "new") == 2


def test_another_size_is_refused_until_it_is_renewed(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(films, tmp_path / "c") == 0
    assert run(films, tmp_path / "c", "--size", "80") == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"clipreel: the frame cache at {tmp_path / 'c'} holds 8 frames (uniform) of 64 pixels")
    assert run(films, tmp_path / "c", "--size", "80", "--renew") == 0
    assert FrameCache(tmp_path / "c").recipe.size == 80
    assert run(films, tmp_path / "c", "--size", "80", "--verify") == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--split", "val"], "has no column 'split'"),
        (["--workers", "0"], "0 workers: give at least 1"),
        (["--frames", "0"], "0 frames"),
        (["--size", "0"], "a size of 0 pixels"),
        (["--time-limit", "0"], "0 seconds"),
    ],
)
def test_mistakes_are_one_line(
    films: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(films, tmp_path / "c", *more) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "c" / "manifest.jsonl").exists()


def test_every_sampling_that_a_cache_can_keep_may_be_named_here_and_in_a_config() -> None:
    stated = get_type_hints(prepare)["sampling"]
    assert {*get_args(get_args(stated)[0])} == {*get_args(FrameSampling)} == {*KINDS}


def test_help_explains_every_parameter_and_gives_an_example() -> None:
    command = app["prepare"]
    assert "Try `clipreel prepare" in (command.default_command.__doc__ or "")
    silent = [a.names[0] for a in command.assemble_argument_collection(parse_docstring=True) if not a.parameter.help]
    assert silent == []
