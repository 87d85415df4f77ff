"""An evaluation by several processes is the evaluation by one, bit for bit, whatever the sizes."""

import json
from pathlib import Path

import pytest
import torch

from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import Features, load_features
from clipreel.training import evaluating
from clipreel.training.distributed import World
from tests.training.worker import run

MANY, FEW = 37, 5  # three ragged blocks; fewer than a process's block


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    films = tmp_path_factory.mktemp("films")
    ShapesWorld().write_videos(films, "train", count=MANY)[3].video.write_bytes(b"no video")
    return films


def features(folder: Path, size: int, count: int) -> Features:
    rows = (folder / "annotations.jsonl").read_text().splitlines()[:count]
    place = folder / f"part-{size}-{count}"
    place.mkdir()
    for row in rows:
        name = json.loads(row)["video"]
        (place / name).symlink_to(folder / name)
    (place / "annotations.jsonl").write_text("\n".join(rows))
    ended = run(size, place / "features", evaluate=True)
    assert [code for code, _ in ended] == [0] * size, ended
    return load_features(place / "features")


def judged(folder: Path, size: int, count: int) -> Features:
    """Those of a head that judges pairs."""
    return load_features(folder / f"part-{size}-{count}" / "features" / "judged")


@pytest.mark.parametrize("count", [MANY, FEW])
def test_processes_share_an_evaluation(folder: Path, count: int) -> None:
    one = features(folder, 1, count)
    assert len(one.failed) == 1
    assert len(one.texts) > 2 * count
    for size in (2, 3):
        shared = features(folder, size, count)
        assert torch.equal(shared.texts, one.texts)
        assert torch.equal(shared.videos.isnan(), one.videos.isnan())
        assert torch.equal(shared.videos.nan_to_num(9.0), one.videos.nan_to_num(9.0))
        assert [Path(v).name for v, _ in shared.failed] == [Path(v).name for v, _ in one.failed]
        assert shared.result().to_dict() == one.result().to_dict()
        heads = [judged(folder, n, count) for n in (1, size)]
        for kept in zip(*((h.scores, h.bank) for h in heads), strict=True):
            assert torch.equal(kept[0].isnan(), kept[1].isnan())
            torch.testing.assert_close(kept[0], kept[1], equal_nan=True, atol=1e-6, rtol=0)
        assert heads[0].scores.shape == (len(one.texts), count)
        assert heads[0].scores.isnan().all(0).nonzero()[:, 0].tolist() == [3]
        assert not torch.allclose(heads[0].scores.nan_to_num(), (one.texts @ one.videos.T).nan_to_num(), atol=1e-4)


def test_shares_are_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "world", lambda: World(2, 3))
    assert evaluating.mine(11, 2) == [4, 5, 10]
    assert evaluating.mine(4, 2) == []


def test_an_item_that_came_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "world", lambda: World(0, 2))
    monkeypatch.setattr(evaluating, "device_of_messages", lambda: torch.device("cpu"))
    monkeypatch.setattr(evaluating, "row_counts", lambda n: [n, n])
    monkeypatch.setattr(evaluating, "gather_rows", lambda x, counts: torch.cat([x, x]))
    with pytest.raises(ClipreelError, match="4 vectors of 2 items, and 4 were expected"):
        evaluating.placed([0, 1], torch.eye(2), 4)
