"""Several processes are one: equal numbers, ragged batches, sharded weights, and no hanging when one is lost."""

from pathlib import Path

import pytest
import torch

from clipreel.training.checkpoint import read_whole
from clipreel.training.engine import fit
from clipreel.training.log import read_log
from tests.training.tiny import Memory, tiny_config, tiny_recipe
from tests.training.worker import run, start

RAGGED = (7, 5, 2)  # on three processes, the last one gets no row of the third batch


def one_process(folder: Path, sizes: tuple[int, ...], **options: object) -> tuple[dict, list[float]]:
    fit(tiny_recipe(**options), Memory(sizes), tiny_config(), folder, say=lambda text: None)
    return read_whole(folder / "last.safetensors")[0], losses(folder)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_log(folder) if row["kind"] == "train"]


def require_equal(folder: Path, wanted: tuple[dict, list[float]]) -> None:
    found = read_whole(folder / "last.safetensors")[0]
    assert found.keys() == wanted[0].keys()
    for name, tensor in wanted[0].items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    assert losses(folder) == pytest.approx(wanted[1], abs=1e-5)


@pytest.mark.parametrize(("size", "micro"), [(2, "auto"), (3, 2)])
def test_several_processes_give_the_numbers_of_one(tmp_path: Path, size: int, micro: int | str) -> None:
    wanted = one_process(tmp_path / "one", RAGGED)
    runs = run(size, tmp_path / "many", sizes=RAGGED, config={"micro_batch": micro})
    assert [code for code, _ in runs] == [0] * size, runs
    require_equal(tmp_path / "many", wanted)


def test_a_loop_without_the_engine_gets_the_exact_gradient_too(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    found, _ = recipe(Memory((7,)).batch(0))
    found["contrastive"].backward()
    runs = run(2, tmp_path, sizes=[7], own_loop=True)
    assert [code for code, _ in runs] == [0, 0], runs
    for name, grad in read_whole(tmp_path / "grads.safetensors")[0].items():
        torch.testing.assert_close(grad, recipe.trained()[name].grad, atol=1e-6, rtol=1e-4, msg=name)


def test_sharded_full_tuning_gives_the_numbers_of_one_process_and_resumes(tmp_path: Path) -> None:
    wanted = one_process(tmp_path / "one", (7, 5), train_base=True)
    options = {"sizes": (7, 5), "shard": True, "config": {"micro_batch": 3}}
    killed = run(2, tmp_path / "many", die=[1, 3], **options)
    assert [code for code, _ in killed] == [2, -9], killed
    runs = run(2, tmp_path / "many", **options)
    assert [code for code, _ in runs] == [0, 0], runs
    assert "going on after step 2 of 6" in runs[0][1]
    require_equal(tmp_path / "many", wanted)


def test_sharded_weights_refuse_a_batch_that_leaves_a_process_without_rows(tmp_path: Path) -> None:
    runs = run(2, tmp_path, sizes=[1], shard=True)
    assert all(code == 2 and "a batch of 1 rows leaves a process without any" in said for code, said in runs), runs


@pytest.mark.parametrize(("how", "timeout_s"), [("die", 300.0), ("hang", 5.0)])
def test_when_a_process_is_lost_the_others_stop_with_a_message(tmp_path: Path, how: str, timeout_s: float) -> None:
    left, lost = start(2, tmp_path / "run", timeout_s=timeout_s, **{how: [1, 3]})
    try:
        code, said = left.wait(200)
    finally:
        lost.end()
    assert code == 2, said
    assert "process 0 of 2 stops because another one was lost or hangs" in said
    assert "start the same command again to resume" in said
    runs = run(2, tmp_path / "run")
    assert [code for code, _ in runs] == [0, 0], runs
    assert "going on after step" in runs[0][1]


def test_an_error_of_the_first_process_is_said_by_all(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    runs = run(2, tmp_path / "run")
    assert all(code == 2 and "cannot be written" in said for code, said in runs), runs
