"""Every script under examples/ runs and does what its first line says."""

import asyncio
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from clipreel.data.shapes import ShapesWorld

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    ShapesWorld().write_videos(folder, "test", count=4)
    return folder


def run(name: str, *args: Any, **options: Any) -> Any:
    return runpy.run_path(str(EXAMPLES / name))["main"](*args, **options)


def test_encode_prefers_what_is_in_the_film(films: Path) -> None:
    bar, cross = run("encode.py", str(films / "test-across-000a.mp4"), "a yellow bar", "a blue cross")
    assert bar > cross


def test_search_folder_finds_the_yellow_bar_and_indexes_once(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("4 new, 0 unchanged", "0 new, 4 unchanged"):
        hits = run("search_folder.py", str(films), str(tmp_path / "index"), "a yellow bar")
        assert Path(hits[0].path).name.startswith("test-across-000")
        assert said in capsys.readouterr().out


def test_evaluate_counts_the_tie_as_half(capsys: pytest.CaptureFixture[str]) -> None:
    result = run("evaluate.py")
    assert result.t2v["R@1"] == pytest.approx(100 * (3 * 0.5 + 1) / 4)
    assert result.t2v["pessimistic"]["R@1"] == 25
    assert "three films" in capsys.readouterr().out


def test_own_method_learns() -> None:
    losses = run("own_method.py", steps=6)
    assert losses[-1] < losses[0]


def test_client_asks_a_server_and_cuts_what_it_finds(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("search_folder.py", str(films), str(tmp_path / "index"), "a yellow bar")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "clipreel", "serve", "--index", "index", "--port", "0", "--cache", "cache"]
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert server.stdout is not None
        address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        (hit,) = asyncio.run(run("client.py", address, "a yellow bar"))
    finally:
        server.terminate()
        server.wait(20)
    assert hit["name"].startswith("test-across-000")
    with zipfile.ZipFile("moments.zip") as cuts:
        assert [n.rpartition(".")[2] for n in cuts.namelist()] == ["mp4", "csv"]


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text("utf-8")
    assert [e.name for e in EXAMPLES.glob("*.py") if f'run("{e.name}"' not in text] == []
