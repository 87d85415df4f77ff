"""Bad input of `index` and `search`: one clear line, a fitting exit code, and nothing that was stored is lost."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipreel.cli import main
from clipreel.retriever import BUILT_IN
from clipreel.search.index import Index
from tests.video.make import write, write_audio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "v").mkdir()
    write(tmp_path / "v" / "good.mp4")
    return tmp_path / "v"


@pytest.fixture
def place(folder: Path, tmp_path: Path) -> str:
    index = str(tmp_path / "i")
    assert main(["index", str(folder), "--model", "shapes-tiny", "--index", index]) == 0
    return index


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out = capsys.readouterr()
    assert out.out == ""
    assert len(out.err.splitlines()) == 1, out.err
    assert out.err.startswith("clipreel: ")
    return out.err


def test_without_bad_input_nothing_is_said(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["index", str(folder), "--model", "shapes-tiny", "--index", str(tmp_path / "i")]) == 0
    assert main(["search", "a circle", "--index", str(tmp_path / "i")]) == 0
    assert capfd.readouterr().err == ""  # also not by the store itself


def test_bad_files_are_entries_and_the_rest_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "good.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "renamed.mp4").write_text("no video at all")
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    os.mkfifo(folder / "endless.mp4")
    write_audio(tmp_path / "sound.m4a").rename(folder / "audio.mp4")
    write(folder / "one-frame.mp4", frames=1)
    write(folder / "no-rate.avi", codec="mpeg4", frames=8)
    raw = bytearray((folder / "no-rate.avi").read_bytes())
    at = raw.index(b"strh") + 8 + 20
    raw[at : at + 8] = bytes(8)  # scale and rate of the stream: 0 / 0
    (folder / "no-rate.avi").write_bytes(raw)
    index = str(tmp_path / "i")
    assert main(["index", str(folder), "--model", "shapes-tiny", "--index", index, "--json"]) == 1
    out = capsys.readouterr()
    report = json.loads(out.out)
    reasons = {Path(p).name: r.split(" ")[0] for p, r in report["skipped"]}
    wanted = {"empty.mp4": "empty", "gone.mp4": "missing", "endless.mp4": "not-video", "audio.mp4": "not-video"}
    assert reasons == wanted | {"truncated.mp4": "incomplete", "renamed.mp4": "not-video"}
    assert "truncated.mp4: incomplete; copy it again" in out.err
    assert len(out.err.splitlines()[-6:]) == 6
    assert all(name in out.err for name in wanted)
    assert {Path(f.path).name for f in Index(index).moments().files} == {"good.mp4", "one-frame.mp4", "no-rate.avi"}


def test_folders_without_rights(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "closed").mkdir()
    write(folder / "closed" / "x.mp4")
    assert main(["index", "--index", place]) == 0
    scandir, access = os.scandir, os.access
    capsys.readouterr()

    def refused(path: str) -> object:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as m:
        m.setattr(os, "scandir", refused)
        assert main(["index", "--index", place]) == 1
        assert capsys.readouterr().err.splitlines()[-1].strip() == f"{folder}/closed: no-access (Permission denied)"
    with monkeypatch.context() as m:
        m.setattr(os, "access", lambda p, mode: False if os.fspath(p) == str(folder) else access(p, mode))
        assert main(["index", "--index", place]) == 2
        assert "cannot be read by this user; nothing was changed" in one_line(capsys)
    assert len(Index(place).moments().files) == 2  # what cannot be seen now is not forgotten


def test_a_full_disk(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lancedb.table import LanceTable

    def full(*_: object, **__: object) -> None:
        raise OSError("LanceError(IO): Generic LocalFileSystem error: No space left on device (os error 28)")

    write(folder / "new.mp4", frames=12)
    capsys.readouterr()
    with monkeypatch.context() as m:
        m.setattr(LanceTable, "merge_insert", full)
        assert main(["index", "--index", place]) == 2
    assert "is full; what was stored before is safe" in one_line(capsys)
    assert len(Index(place).moments().files) == 1
    assert main(["index", "--index", place]) == 0
    assert len(Index(place).moments().files) == 2


@pytest.mark.parametrize("verb", ["index", "search", "status", "forget"])
@pytest.mark.parametrize("harm", ["bytes", "a table is gone", "no index"])
def test_a_corrupt_index(verb: str, harm: str, folder: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    if harm == "bytes":
        for path in Path(place).rglob("*"):
            if path.is_file() and path.name != "writer.lock":
                path.write_bytes(b"damage")
    elif harm == "a table is gone":
        shutil.rmtree(Path(place) / "vectors.lance")
    else:
        shutil.rmtree(place)
        Path(place).write_text("a file")
    before = sorted(p for p in Path(place).rglob("*"))
    args = {"index": [str(folder)], "search": ["a circle"], "status": [], "forget": [str(folder)]}[verb]
    capsys.readouterr()
    assert main([verb, *args, "--index", place, *(["--model", "shapes-tiny"] if verb == "index" else [])]) == 2
    said = one_line(capsys)
    assert place in said
    assert any(step in said for step in ("index again", "another --index", "clipreel index FOLDER"))
    assert sorted(p for p in Path(place).rglob("*")) == before


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], Path]:
    def harm(model: Path) -> Path:
        found = load_file(model / "model.safetensors")
        change(found)
        save_file(found, model / "model.safetensors", metadata={"format": "pt"})
        return model

    return harm


def activation(model: Path) -> Path:
    config = json.loads((model / "config.json").read_text())
    config["vision_config"]["hidden_act"] = config["text_config"]["hidden_act"] = "swish-9"
    (model / "config.json").write_text(json.dumps(config))
    return model


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["BOMB"],)


def bomb(model: Path) -> Path:
    (model / "bomb.pt").write_bytes(pickle.dumps({"visual.conv1.weight": Bomb()}, protocol=2))
    return model / "bomb.pt"


def climbing(model: Path) -> Path:
    with zipfile.ZipFile(model / "up.pt", "w") as z:
        z.writestr("archive/constants.pkl", b"")
        z.writestr("archive/code/x.py", b"")
        z.writestr("archive/../../evil", b"x")
    return model / "up.pt"


LAST, EXTRA = "visual_projection.weight", "vision_model.encoder.layers.0.more.weight"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (tensors(lambda t: t.pop(LAST)), "visual"),
        (tensors(lambda t: t.update({EXTRA: torch.zeros(2)})), EXTRA),
        (tensors(lambda t: t.update({LAST: t[LAST][:-1].clone()})), ""),
        (activation, "swish-9"),
        (bomb, "bomb.pt"),
        (climbing, ".."),
    ],
    ids=["missing", "extra", "mis-shaped", "activation", "pickle-bomb", "zip-with-.."],
)
def test_a_bad_checkpoint_makes_no_index(
    harm: Callable[[Path], Path],
    said: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "went-off"))
    model = harm(Path(shutil.copytree(BUILT_IN["shapes-tiny"], tmp_path / "model")))
    assert main(["index", str(folder), "--model", str(model), "--index", str(tmp_path / "i")]) == 2
    assert said in one_line(capsys)
    assert not (tmp_path / "i").exists()
    assert not (tmp_path / "went-off").exists()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "the query is empty"),
        (" \t\n ", "the query is empty"),
        ("\x00\x07\x1b", "the query is empty"),
        ("<|endoftext|>", "the query is empty"),
        ("<|startoftext|> <|endoftext|>", "the query is empty"),
        ("&lt;|endoftext|&gt;", "the query is empty"),
        (" -people", "the query is empty"),
        ("word " * 10_000, "10000 words"),
    ],
    ids=["empty", "blank", "control", "end-token", "special-tokens", "written-as-entity", "only-minus", "long"],
)
def test_queries_that_say_nothing(place: str, query: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["search", query, "--index", place]) == 2
    assert said in one_line(capsys)


def test_control_characters_and_special_tokens_do_not_change_a_query(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for query in ("a red circle", "a\x07 red <|endoftext|>circle\x00", "a red circle\ud800"):
        capsys.readouterr()
        assert main(["search", query, "--index", place, "--json"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-k", "0"], "at least 1"),
        (["-k", "-3"], "at least 1"),
        (["--after", "inf"], "nothing in the index passes"),
        (["--before", "-1"], "nothing in the index passes"),
        (["--min-duration", "nan"], "nothing in the index passes"),
    ],
)
def test_numbers_that_cannot_be(place: str, args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "a circle", *args, "--index", place]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--time-limit", "0"], ["--time-limit", "nan"], ["--workers", "0"]])
def test_limits_that_cannot_be(
    folder: Path, tmp_path: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(folder), "--model", "shapes-tiny", "--index", str(tmp_path / "i"), *args]) == 2
    assert "must be above 0" in one_line(capsys)
