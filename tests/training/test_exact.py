"""With dropout, too, one config gives one result: whatever the micro-batch, the processes, the recomputing, a kill."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipreel.training.checkpoint import read_whole
from clipreel.training.engine import fit
from clipreel.training.log import read_log
from tests.training import worker
from tests.training.tiny import Memory, tiny_config, tiny_recipe

DROPPING = ("adapter_ffn", "adapter_attn", "adaptformer_seq", "convpass", "lora")
RATE, SIZES = 0.1, (8, 7, 3)
Result = tuple[dict[str, Tensor], list[float]]


def silent(text: str) -> None:
    pass


def result(folder: Path) -> Result:
    """Weights and losses of a finished run."""
    losses = [row["loss"] for row in read_log(folder) if row["kind"] == "train"]
    return read_whole(folder / "last.safetensors")[0], losses


def trained(folder: Path, method: str, dropout: float = RATE, **config: object) -> Result:
    fit(tiny_recipe(dropout, method), Memory(SIZES), tiny_config(**config), folder, say=silent)
    return result(folder)


def require_equal(found: Result, wanted: Result) -> None:
    assert found[0].keys() == wanted[0].keys()
    for name, tensor in wanted[0].items():
        torch.testing.assert_close(found[0][name], tensor, atol=1e-5, rtol=0, msg=name)
    assert len(wanted[1]) == 6
    assert found[1] == pytest.approx(wanted[1], abs=1e-5)


@pytest.mark.parametrize("method", DROPPING)
def test_the_micro_batch_does_not_change_the_result(tmp_path: Path, method: str) -> None:
    wanted = trained(tmp_path / "whole", method, micro_batch=8)
    for micro in (3, 2):
        require_equal(trained(tmp_path / str(micro), method, micro_batch=micro), wanted)
    require_equal(trained(tmp_path / "less", method, micro_batch=3, recompute=True), wanted)
    without = trained(tmp_path / "without", method, 0.0, micro_batch=8)
    assert max(abs(a - b) for a, b in zip(wanted[1], without[1], strict=True)) > 1e-3


@pytest.mark.parametrize("method", ["adapter_ffn", "adapter_attn", "adaptformer_seq"])
def test_two_processes_give_the_result_of_one(tmp_path: Path, method: str) -> None:
    wanted = trained(tmp_path / "one", method, micro_batch=8)
    runs = worker.run(
        2, tmp_path / "two", sizes=SIZES, dropout=RATE, method=method, config={"micro_batch": 3, "recompute": True}
    )
    assert [code for code, _ in runs] == [0, 0], runs
    require_equal(result(tmp_path / "two"), wanted)


@pytest.mark.parametrize("method", DROPPING)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path, method: str) -> None:
    def stop(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    wanted = trained(tmp_path / "whole", method, micro_batch=3)
    config = tiny_config(micro_batch=3)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_recipe(RATE, method), Memory(SIZES, stop), config, tmp_path / "cut", say=silent)
    outcome = fit(tiny_recipe(RATE, method), Memory(SIZES), config, tmp_path / "cut", say=silent)
    assert outcome.resumed_from == 4
    found = result(tmp_path / "cut")
    assert found[1] == wanted[1]
    assert all(torch.equal(found[0][name], tensor) for name, tensor in wanted[0].items())
