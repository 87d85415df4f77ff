"""A killed run goes on as if nothing had happened, and a full disk costs nothing that was saved."""

import errno
import os
import resource
import sys
from pathlib import Path

import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.training import checkpoint, engine
from clipreel.training.checkpoint import State, read_whole, saved
from clipreel.training.engine import Validator, fit
from clipreel.training.log import read_log
from tests.training.tiny import Memory, tiny_config, tiny_recipe, weights
from tests.training.worker import run

RANDOM = {"dropout": 0.3, "config": {"micro_batch": 3}}  # random numbers and several micro-batches in every step


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert run(1, folder, **RANDOM)[0][0] == 0
    return folder


def require_bits(folder: Path, wanted: Path) -> None:
    for name in ("last.safetensors", *(p.name for p in wanted.glob("selected-*"))):
        ours, theirs = read_whole(folder / name)[0], read_whole(wanted / name)[0]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs), name
    rows, other = ([(r["kind"], r["step"], r.get("loss")) for r in read_log(f)] for f in (folder, wanted))
    assert rows == other


# before the first checkpoint, between two, while one is written (half a file), before and after it gets its name
KILLS = [
    {"die": [0, 0]},
    {"die": [0, 3]},
    {"kill": ["save_file", 4]},
    {"kill": ["replace", 6]},
    {"kill": ["fsync", 14]},
]


@pytest.mark.parametrize("kill", KILLS, ids=[str(k) for k in KILLS])
def test_killed_and_restarted_is_bit_for_bit_uninterrupted(tmp_path: Path, uninterrupted: Path, kill: dict) -> None:
    assert run(1, tmp_path / "run", **RANDOM, **kill)[0][0] == -9
    code, said = run(1, tmp_path / "run", **RANDOM)[0]
    assert code == 0, said
    require_bits(tmp_path / "run", uninterrupted)


def test_killed_at_every_step_in_turn(tmp_path: Path) -> None:
    """The same in one process, with every step a last one once: an exception is as sudden, and cheaper."""

    def stop_at(n: int):
        def hook(step: int) -> None:
            if step == n:
                raise KeyboardInterrupt

        return hook

    def measure(recipe: object) -> dict[str, float]:
        return {"t2v R@1": torch.rand(()).item()}

    config, validator = tiny_config(micro_batch=4), Validator("validation", measure)
    wanted = fit(tiny_recipe(0.2), Memory(), config, tmp_path / "whole", validator=validator, say=silent)
    recipe = tiny_recipe(0.2)
    for n in range(6):
        recipe = tiny_recipe(0.2)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, Memory(hook=stop_at(n)), config, tmp_path / "run", validator=validator, say=silent)
    recipe = tiny_recipe(0.2)
    outcome = fit(recipe, Memory(), config, tmp_path / "run", validator=validator, say=silent)
    require_bits(tmp_path / "run", tmp_path / "whole")
    assert outcome.selected.step == wanted.selected.step
    assert outcome.selected.metrics == wanted.selected.metrics
    assert all(torch.equal(p, read_whole(wanted.last.weights)[0][n]) for n, p in weights(recipe).items())


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(tiny_recipe(), Memory(), tiny_config(), tmp_path, say=silent)
    again = fit(tiny_recipe(), Memory(hook=lambda step: pytest.fail("a batch was read")), tiny_config(), tmp_path)
    assert again.resumed_from == first.last.step == 6
    assert again.last.metrics == first.last.metrics


def test_only_two_checkpoints_and_their_selected_weights_stay(tmp_path: Path) -> None:
    grows = iter(range(100))
    validator = Validator("validation", lambda r: {"t2v R@1": float(next(grows))})
    fit(tiny_recipe(), Memory(), tiny_config(), tmp_path, validator=validator, say=silent)
    assert [step for step, _ in saved(tmp_path / "checkpoints")] == [5, 6]
    assert sorted(p.name for p in tmp_path.glob("selected-*")) == [f"selected-0000000{n}.safetensors" for n in (5, 6)]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    wanted = tiny_recipe()
    fit(wanted, Memory(), tiny_config(), tmp_path, say=silent)
    newest = saved(tmp_path / "checkpoints")[-1][1]
    newest.write_bytes(newest.read_bytes()[:-50])
    said: list[str] = []
    recipe = tiny_recipe()
    assert fit(recipe, Memory(), tiny_config(), tmp_path, say=said.append).resumed_from == 4
    assert "going on from the one before it" in said[0]
    assert all(torch.equal(a, b) for a, b in zip(weights(recipe).values(), weights(wanted).values(), strict=True))


def test_another_config_or_other_data_do_not_go_on_with_a_run(tmp_path: Path) -> None:
    fit(tiny_recipe(), Memory(), tiny_config(), tmp_path, facts={"data": "a"}, say=silent)
    with pytest.raises(ClipreelError, match=r"another config \(seed: 0 and 1\); take another folder"):
        fit(tiny_recipe(), Memory(), tiny_config(seed=1), tmp_path, facts={"data": "a"})
    with pytest.raises(ClipreelError, match=r"facts.data: 'a' and 'b'"):
        fit(tiny_recipe(), Memory(), tiny_config(), tmp_path, facts={"data": "b"})
    fit(tiny_recipe(), Memory(), tiny_config(log_every=3), tmp_path, facts={"data": "a"}, say=silent)


def test_another_method_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    fit(tiny_recipe(), Memory(), tiny_config(), tmp_path, say=silent)
    with pytest.raises(ClipreelError, match=r"misses tensor|has an unknown tensor"):
        fit(tiny_recipe(train_scale=False), Memory(), tiny_config(), tmp_path, say=silent)


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The disk is full from the second checkpoint on; with some space again, the run goes on to the same weights."""
    original = os.fsync

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def hook(step: int) -> None:
        if step == 3:
            monkeypatch.setattr(*((checkpoint, "save_file") if failing == "write" else (os, "fsync")), full)

    with pytest.raises(ClipreelError, match=r"the disk is full; free some space and start again to go on from step 2"):
        fit(tiny_recipe(), Memory(hook=hook), tiny_config(), tmp_path / "run", say=silent)
    monkeypatch.undo()
    assert os.fsync is original
    assert [step for step, _ in saved(tmp_path / "run" / "checkpoints")] == [2]
    assert not list((tmp_path / "run").rglob("*.part"))
    recipe, wanted = tiny_recipe(), tiny_recipe()
    assert fit(recipe, Memory(), tiny_config(), tmp_path / "run", say=silent).resumed_from == 2
    fit(wanted, Memory(), tiny_config(), tmp_path / "whole", say=silent)
    assert all(torch.equal(a, b) for a, b in zip(weights(recipe).values(), weights(wanted).values(), strict=True))


@pytest.mark.filterwarnings("error")
def test_a_log_that_cannot_grow_is_told_in_one_line(tmp_path: Path) -> None:
    """A real failure of the system to write, which closing the log must not repeat in words of its own."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def hook(step: int) -> None:
        if step == 2:
            size = (tmp_path / "log.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, limits[1]))

    recipe = tiny_recipe()
    try:
        with pytest.raises(ClipreelError, match=r"log.jsonl cannot be written: .*File too large; repair that"):
            fit(recipe, Memory(hook=hook), tiny_config(checkpoint_every=1000), tmp_path, say=silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not recipe.tuner.training
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2]


def test_slow_steps_are_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here ten minutes are over after every step; where the run goes on changes no bit of what comes out."""

    def hook(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    config = tiny_config(checkpoint_every=1000)
    fit(tiny_recipe(0.2), Memory(), config, tmp_path / "whole", say=silent)
    assert [step for step, _ in saved(tmp_path / "whole" / "checkpoints")] == [6]
    monkeypatch.setattr(engine, "SAVED_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_recipe(0.2), Memory(hook=hook), config, tmp_path / "run", say=silent)
    assert [step for step, _ in saved(tmp_path / "run" / "checkpoints")] == [3, 4]
    assert fit(tiny_recipe(0.2), Memory(), config, tmp_path / "run", say=silent).resumed_from == 4
    require_bits(tmp_path / "run", tmp_path / "whole")


def test_the_first_step_of_a_run_and_of_its_resumption_is_told(tmp_path: Path) -> None:
    told: list[int] = []

    def hook(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    def progress(done: int, total: int, extra: str) -> None:
        told.append(done)

    config = tiny_config(log_every=3, checkpoint_every=4)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_recipe(), Memory(hook=hook), config, tmp_path / "run", progress=progress, say=silent)
    fit(tiny_recipe(), Memory(), config, tmp_path / "run", progress=progress, say=silent)
    fit(tiny_recipe(), Memory(), config, tmp_path / "whole", say=silent)
    assert told == [1, 3, 5, 6]
    assert [row["step"] for row in read_log(tmp_path / "run")] == [1, 3, 6]
    require_bits(tmp_path / "run", tmp_path / "whole")


def test_tensorboard_gets_the_rows_of_the_log_and_its_absence_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said: list[str] = []

    def hook(step: int) -> None:
        if step == 5:  # behind the checkpoint of 4, so its row is dropped and written again
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_recipe(), Memory(hook=hook), tiny_config(), tmp_path / "with", say=said.append)
    fit(tiny_recipe(), Memory(), tiny_config(), tmp_path / "with", say=lambda text: None)
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard")).Reload()
    found = [(e.step, pytest.approx(e.value, rel=1e-5)) for e in events.Scalars("train/loss")]
    assert found == [(row["step"], row["loss"]) for row in read_log(tmp_path / "with")]
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    fit(tiny_recipe(), Memory(), tiny_config(), tmp_path / "without", say=said.append)
    assert not (tmp_path / "without" / "tensorboard").exists()
    require_bits(tmp_path / "without", tmp_path / "with")
    assert said == []


def test_a_checkpoint_of_another_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SCHEMA", 99)
    checkpoint.save(tmp_path, State(1, {"param/x": torch.zeros(1)}))
    monkeypatch.undo()
    with pytest.raises(ClipreelError, match="another version of clipreel"):
        checkpoint.latest(tmp_path, silent)


def test_files_that_are_no_checkpoint_say_so(tmp_path: Path) -> None:
    (tmp_path / "step-00000001.safetensors").write_bytes(b"hello")
    with pytest.raises(ClipreelError, match=r"step-00000001.safetensors is no file of a clipreel run"):
        checkpoint.latest(tmp_path, silent)
    assert checkpoint.latest(tmp_path / "nothing", silent) is None
