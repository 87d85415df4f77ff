"""The reader of parity fixtures itself: named tensors, groups, derived inputs, tolerances."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity.fixture import Fixture, load, named_tensor


def write(path: Path, tensors: dict[str, torch.Tensor], **meta: object) -> Path:
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()}
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata={"config": "{}", **texts})
    return path


def test_named_tensors_are_those_of_the_recipe() -> None:
    # values of the definition's own program
    wanted = [[-2.7957727909088135, 2.155658721923828, 1.9684983491897583]]
    wanted += [[-1.9231855869293213, -1.3236404657363892, -2.8421506881713867]]
    assert named_tensor(7, "weights/visual.proj", [2, 3], 0.5, 2.0).tolist() == wanted
    assert named_tensor(0, "x", [], 0.0, 1.0).item() == 1.2021905183792114


def test_groups_and_recipes(tmp_path: Path) -> None:
    recipe = {
        "seed": 7,
        "tensors": [["visual.proj", [2, 3], 0.5, 2.0]],
        "inputs": [["inputs/frames", [1, 2, 3, 4, 4], 0.0, 1.0]],
        "derived": [["inputs/hidden", "blackout", "inputs/frames", "inputs/mask", [0.1, 0.2, 0.3]]],
    }
    tensors = {
        "weights/bias": torch.ones(2),
        "inputs/ids": torch.tensor([[3, 4]], dtype=torch.int32),
        "inputs/mask": torch.tensor([[[1, 0], [0, 0]]], dtype=torch.int32),
        "outputs/loss": torch.tensor(0.5),
        "grads/bias": torch.zeros(2),
        "grads_norm/bias": torch.tensor(0.0),
    }
    fixture = load(write(tmp_path / "case.safetensors", tensors, recipe=recipe, config={"width": 8}))
    assert fixture.config == {"width": 8}
    assert sorted(fixture.weights) == ["bias", "visual.proj"]
    torch.testing.assert_close(fixture.weights["visual.proj"], named_tensor(7, "visual.proj", [2, 3], 0.5, 2.0))
    assert fixture.inputs["ids"].dtype == torch.int64
    assert list(fixture.grads) == list(fixture.grad_norms) == ["bias"]
    frames, hidden = fixture.inputs["frames"], fixture.inputs["hidden"]
    # a patch whose mask is 1 is blacked out
    dark = torch.tensor([0.1, 0.2, 0.3]).view(1, 1, 3, 1, 1).expand(1, 2, 3, 2, 2)
    torch.testing.assert_close(hidden[..., :2, :2], dark)
    torch.testing.assert_close(hidden[..., 2:, :], frames[..., 2:, :])


def case(outputs: dict[str, torch.Tensor], grads: dict[str, torch.Tensor] | None = None, **meta: object) -> Fixture:
    texts = {k: json.dumps(v) for k, v in meta.items()}
    return Fixture(Path("case"), texts, outputs=outputs, grads=grads or {})


def test_outputs_are_compared_within_the_tolerance_and_integers_exactly() -> None:
    full = torch.arange(12.0).view(2, 6)
    fixture = case({"x": full[:, ::3], "n": torch.tensor([1, 2])}, slices={"x": 3})
    fixture.check("x", full + 9e-5)
    fixture.check("n", torch.tensor([1, 2]))
    with pytest.raises(AssertionError, match="case: x"):
        fixture.check("x", full + 2e-4)
    with pytest.raises(AssertionError, match="n differs"):
        fixture.check("n", torch.tensor([1, 3]))


def test_long_gradients_are_compared_by_head_and_norm() -> None:
    grad = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    fixture = case({}, {"w": grad[:256], "b": torch.tensor([1.0, 2.0])})
    fixture.grad_norms["w"] = grad.double().norm()
    fixture.check_grad("w", grad * 1.0005)
    fixture.check_grad("b", torch.tensor([1.0005, 2.0]))
    tail = grad.clone()
    tail[4000:] = 0
    for name, wrong in (("w", tail), ("b", torch.tensor([1.1, 2.0]))):
        with pytest.raises(AssertionError, match=f"grad {name}"):
            fixture.check_grad(name, wrong)
    with pytest.raises(AssertionError, match="no gradient reached b"):
        fixture.check_grad("b", None)
