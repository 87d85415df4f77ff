"""NMI and k-means by hand, the gap of corpora that are far and near, and the command on the shapes world."""

import json
from pathlib import Path

import numpy as np
import pytest

from clipreel.cli import main
from clipreel.data.gap import MADE, gaps, kmeans, nmi, plane, read_corpus, spread_seeds
from clipreel.errors import ClipreelError


def test_nmi_by_hand() -> None:
    u, v = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 1])
    # I = 1/3 ln 2 + 1/6 ln(1/2) + 1/2 ln(3/2); H(U) = ln 2; H(V) = ln 3 - 2/3 ln 2
    shared = np.log(2) / 3 - np.log(2) / 6 + np.log(1.5) / 2
    assert nmi(u, v) == pytest.approx(shared / ((np.log(2) + np.log(3) - np.log(4) / 3) / 2))
    assert nmi(u, v) == pytest.approx(nmi(v, u)) == pytest.approx(nmi(1 - u, v))
    assert nmi(u, np.array([0, 1, 0, 1, 0, 1])) < 0.1
    assert nmi(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0, abs=1e-12)
    assert nmi(u, np.zeros(6, int)) == 0
    assert nmi(np.zeros(3, int), np.ones(3, int)) == 1


def test_kmeans_finds_the_best_split() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 2)) + np.repeat([[0, 0], [2, 1], [-2, 2]], 3, 0)

    def cost(labels: np.ndarray) -> float:
        return sum(((x[labels == j] - x[labels == j].mean(0)) ** 2).sum() for j in np.unique(labels))

    splits = (np.array([i >> bit & 1 for bit in range(9)]) for i in range(1, 2**8))  # all of them
    assert cost(kmeans(x, 2)) == pytest.approx(min(cost(s) for s in splits))
    assert np.array_equal(kmeans(x, 2, seed=3), kmeans(x, 2, seed=3))
    assert len(set(kmeans(x, 9))) == 9
    assert len(set(kmeans(np.zeros((4, 2)), 2))) == 1  # equal texts cannot be told apart
    with pytest.raises(ClipreelError, match="3 clusters of 2 texts"):
        kmeans(x[:2], 3)


def test_seeds_are_spread() -> None:
    x = np.concatenate([np.zeros((50, 1)), np.full((1, 1), 9.0)])
    assert all(sorted(spread_seeds(x, 2, np.random.default_rng(s))[:, 0]) == [0, 9] for s in range(20))


def features(texts: list[str]) -> np.ndarray:
    """Texts that begin alike point alike."""
    rng = np.random.default_rng(1)
    towards = {"a": np.eye(4)[0], "b": np.eye(4)[1]}
    return np.stack([3 * towards[t[0]] + 0.3 * rng.normal(size=4) for t in texts])


def test_far_corpora_have_a_gap_and_equal_ones_have_none() -> None:
    corpora = {
        "far": [f"b{i}" for i in range(40)],
        "one": [f"a{i}" for i in range(60)],
        "two": [f"a{i + 60}" for i in range(50)],
    }
    panels = gaps(corpora, features, texts=50, seeds=3)
    found = {(p.gap.first, p.gap.second): p.gap for p in panels}
    assert found["far", "one"].nmi == found["far", "two"].nmi == (1.0, 1.0, 1.0)
    assert found["far", "one"].texts == 40  # as many as both have
    near = found["one", "two"]
    assert near.texts == 50
    assert near.mean < 0.2
    assert near.std == pytest.approx(np.std(near.nmi))
    assert len(set(near.nmi)) > 1
    assert panels[0].points.shape == (80, 2)
    assert [p.gap for p in gaps(corpora, features, texts=50, seeds=3)] == [p.gap for p in panels]
    with pytest.raises(ClipreelError, match="1 corpora"):
        gaps({"far": corpora["far"]}, features)


def test_the_plane_keeps_the_widest_direction() -> None:
    x = np.zeros((11, 3))
    x[:, 2] = np.arange(11)
    assert np.ptp(plane(x)[:, 0]) == pytest.approx(10)


def test_corpora_are_read(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a dog\n\na cat\n")
    (tmp_path / "said.jsonl").write_text('{"id": "1", "caption": "a dog"}\n{"id": "2", "caption": "a cat"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"video": "1.mp4", "captions": ["a dog", "a cat"]}\n')
    for name in ("lines.txt", "said.jsonl", "pairs.jsonl"):
        assert read_corpus(str(tmp_path / name)) == ["a dog", "a cat"]
    assert [len(read_corpus(name)) > 200 for name in MADE] == [True] * 3
    (tmp_path / "short.txt").write_text("one\n")
    for name, said in (
        ("short.txt", "holds 1 texts"),
        ("none.txt", "cannot be read"),
        ("none.jsonl", "no file"),
        ("photo.png", "is no corpus"),
    ):
        with pytest.raises(ClipreelError, match=said):
            read_corpus(str(tmp_path / name))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["gap", "talk=shapes/subtitles", "shapes/captions", "shapes/test", "--model", "shapes-tiny"]
    command += ["--texts", "60", "--seeds", "2", "--out", str(tmp_path / "g"), "--device", "cpu", "--json"]
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "g" / "gap.json").read_text())
    gap = {(g["first"], g["second"]): g["mean"] for g in said["gaps"]}
    # captions of stills never say what happens, subtitles and test captions always do
    assert gap["talk", "shapes/test"] < gap["talk", "shapes/captions"]
    assert (tmp_path / "g" / "clusters.png").read_bytes()[:4] == b"\x89PNG"
    assert "| talk - shapes/captions | 60 |" in (tmp_path / "g" / "table.md").read_text()
    before = (tmp_path / "g" / "gap.json").read_bytes()
    assert main(command) == 0  # the same again
    assert (tmp_path / "g" / "gap.json").read_bytes() == before
    capsys.readouterr()
    (tmp_path / "more.txt").write_text("a dog\na cat\n")
    (fewer := list(command))[command.index("60")] = "50"
    (once := list(command))[command.index("2")] = "1"
    for other in (fewer, once, ["gap", f"more={tmp_path / 'more.txt'}", *command[1:]]):
        assert main(other) == 2
        assert "holds another result" in capsys.readouterr().err
    assert (tmp_path / "g" / "gap.json").read_bytes() == before
    (tmp_path / "g" / "gap.json").write_text("[]")
    assert main(command) == 2
    assert "is no result of clipreel gap" in capsys.readouterr().err
    assert str(tmp_path) not in before.decode()
    assert main(["gap", "shapes/test"]) == 2
    assert main(["gap", "a=shapes/test", "a=shapes/captions", "--model", "shapes-tiny"]) == 2
    assert "write NAME=PATH" in capsys.readouterr().err
