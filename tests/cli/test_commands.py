"""The commands as a user runs them: output, exit codes, one clear line on every mistake."""

import json
import os
from pathlib import Path

import pytest

from clipreel.cli import app, main, output
from clipreel.cli.output import clock, shown
from clipreel.data.shapes import ShapesWorld


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    ShapesWorld().write_videos(folder, "test", count=6)
    return folder


@pytest.fixture(scope="module")
def place(films: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    index = str(tmp_path_factory.mktemp("index") / "i")
    assert main(["index", str(films), "--model", "shapes-tiny", "--index", index]) == 0
    return index


def test_index_and_search_print_what_they_found(films: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(films), "--index", place]) == 0
    assert "unchanged 6" in capsys.readouterr().out
    assert main(["search", "a yellow bar moves to the left", "--index", place, "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[0] == "1"
    assert lines[0].endswith(".mp4")


def test_json_is_one_object_a_line_and_nothing_else(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "a white moon", "--index", place, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 6
    assert {"path", "start_s", "end_s", "score"} <= set(rows[0])
    assert [r["score"] for r in rows] == sorted((r["score"] for r in rows), reverse=True)
    assert main(["status", "--index", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 6


def test_skipped_inputs_are_the_last_lines_and_exit_is_1(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, index = tmp_path / "v", str(tmp_path / "i")
    folder.mkdir()
    (folder / "a.mp4").write_bytes(next(films.glob("*.mp4")).read_bytes())
    (folder / "bad\nname.mp4").write_text("no video")
    assert main(["index", str(folder), "--model", "shapes-tiny", "--index", index]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.strip() == f"{folder}/bad\\nname.mp4: not-video"
    assert main(["status", "--index", index]) == 1
    (folder / "a.mp4").unlink()
    (folder / "bad\nname.mp4").unlink()
    assert main(["index", str(folder), "--index", index]) == 0


def test_forget(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, one = str(tmp_path / "i"), sorted(films.glob("*.mp4"))[0]
    assert main(["index", str(films), "--model", "shapes-tiny", "--index", index]) == 0
    assert main(["forget", str(one), "--index", index]) == 0
    assert "forgot 1" in capsys.readouterr().out
    assert main(["forget", str(one), "--index", index]) == 2
    assert one.exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["index"], "name a folder to index"),
        (["index", "/none/here", "--model", "shapes-tiny"], "does not exist"),
        (["index", ".", "--model", "no-such-model"], "no model at no-such-model"),
        (["search", "x", "--index", "/none/here"], "there is no index"),
        (["search", "", "--index", "PLACE"], "query is empty"),
        (["search", "   ", "--index", "PLACE"], "query is empty"),
        (["search", "x", "-k", "0", "--index", "PLACE"], "at least 1"),
        (["search", "x", "-k", "-3", "--index", "PLACE"], "at least 1"),
        (["search", "word " * 10000, "--index", "PLACE"], "10000 words"),
        (["search", "x", "--image", "none.png", "--index", "PLACE"], "no readable image"),
        (["search", "x", "--video", "none.mp4", "--index", "PLACE"], "missing"),
        (["search", "x", "--under", "/none", "--index", "PLACE"], "nothing in the index passes"),
        (["status", "--index", "/none/here"], "there is no index"),
        (["forget", "/none", "--index", "PLACE"], "nothing in the index lies at"),
        (["evaluate", "/none/here"], "or a folder with one"),
        (["demo", "--videos", "/none/here"], "is no folder"),
        (["info", "shapes-tiny", "--device"], ""),
        (["serch", "x"], ""),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    args: list[str], said: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [place if a == "PLACE" else a for a in args]
    if given[0] == "index":
        given += ["--index", str(tmp_path / "new")]
    assert main(given) == 2
    out = capsys.readouterr()
    assert said in out.err
    assert "Traceback" not in out.err + out.out


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="there is no index"):
        main(["search", "x", "--index", "/none/here", "--debug"])


def test_without_the_default_model_nothing_is_downloaded(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["index", str(films), "--index", str(tmp_path / "i")]) == 2
    said = capsys.readouterr().err
    assert "needs one download" in said
    assert "--download" in said
    assert "--model FOLDER" in said
    assert not os.path.exists(tmp_path / "i")


def test_every_verb_has_a_short_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = [name for name in app if not name.startswith("-")]
    assert {"demo", "evaluate", "forget", "index", "info", "search", "status"} <= set(verbs)
    for verb in verbs:
        assert main([verb, "--help"]) == 0
        said = capsys.readouterr().out
        assert f"clipreel {verb}" in " ".join(said.split()), verb
        assert len(said.splitlines()) < 60


def test_evaluate_own_folder(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(films), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["t2v"]["queries"] == 6
    assert result["stamp"]["frames"] == "8 uniform"
    assert main(["evaluate", str(films), "--dual-softmax", "softmax"]) == 0
    assert "transductive" in capsys.readouterr().out


def test_evaluate_counts_a_broken_video_as_missed(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"video": p.name, "caption": p.stem} for p in sorted(films.glob("*.mp4"))[:3]]
    for row in rows:
        (tmp_path / str(row["video"])).write_bytes((films / str(row["video"])).read_bytes())
    rows.append({"video": "gone.mp4", "caption": "nothing"})
    (tmp_path / "annotations.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    assert main(["evaluate", str(tmp_path), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["t2v"]["queries"], result["t2v"]["gallery"]) == (4, 4)
    assert result["non_finite"] == 4  # its scores with every caption
    assert result["skipped"] == [[str(tmp_path / "gone.mp4"), "missing"]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        ("{}", "line 1"),
        ('{"video": "a.mp4"}', "line 1"),
        ("not json", "is not JSON"),
    ],
)
def test_bad_annotations(tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "annotations.jsonl").write_text(text)
    assert main(["evaluate", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"]["all"] < 3_000_000
    assert main(["info"]) == 0


def test_times_and_names_on_one_line() -> None:
    assert (clock(65), clock(7205)) == ("1:05", "2:00:05")
    assert shown("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert shown(os.fsdecode(b"x\xff")) == "x\\xff"


@pytest.mark.parametrize("verb", ["demo", "index", "search", "status", "forget", "evaluate", "info"])
def test_help_explains_every_parameter_and_gives_an_example(verb: str) -> None:
    command = app[verb]
    assert f"Try `clipreel {verb}" in (command.default_command.__doc__ or "")
    silent = [a.names[0] for a in command.assemble_argument_collection(parse_docstring=True) if not a.parameter.help]
    assert silent == []


def test_progress_counts_the_rate_from_its_first_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a resumed run found done, and the time before the first step, are in neither rate nor time left."""
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(output.sys.stderr, "isatty", lambda: True, raising=False)
    line = output.Progress("step")
    for done, now[0] in ((5001, 1000.0), (5003, 1060.0)):
        line(done, 5005, "loss 1")
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert shown[1:] == ["step 5001/5005  loss 1", "step 5003/5005  30.0 s each  1:00 left  loss 1"]
