"""Reads a parity fixture: stored tensors from the file, named ones rebuilt from their recipe.

A named tensor is mean + std sqrt(3) (2 u - 1) with u the upper 24 bits of NumPy's Philox stream, whose key is the
SHA-256 of "seed/name": the raw stream of a bit generator is guaranteed, so the numbers never change.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor


@dataclass
class Fixture:
    """One official computation: `config` and `meta` say what was run, the rest is named tensors."""

    path: Path
    meta: dict[str, str]
    weights: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    grads: dict[str, Tensor] = field(default_factory=dict)
    grad_norms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def config(self) -> dict:
        return json.loads(self.meta["config"])

    def check(self, name: str, ours: Tensor, atol: float = 1e-4) -> None:
        """Our output equals the stored one; integers must be equal exactly."""
        step = json.loads(self.meta.get("slices", "{}")).get(name)
        ours = (ours if step is None else ours[:, ::step]).detach()
        wanted = self.outputs[name]
        if wanted.dtype.is_floating_point:
            torch.testing.assert_close(
                ours.to(wanted.dtype), wanted, atol=atol, rtol=0.0, equal_nan=True, msg=self._say(name)
            )
        else:
            assert torch.equal(ours.to(wanted.dtype), wanted), f"{self.path.name}: {name} differs"

    def check_grad(self, name: str, ours: Tensor | None, rtol: float = 1e-3) -> None:
        """Our gradient equals the stored one, relative to the largest entry; long ones by their head and norm."""
        assert ours is not None, f"{self.path.name}: no gradient reached {name}"
        wanted, ours = self.grads[name], ours.detach()
        if name in self.grad_norms:
            norm = self.grad_norms[name].item()
            assert abs(ours.double().norm().item() - norm) <= rtol * norm, f"{self.path.name}: norm of grad {name}"
            ours = ours.flatten()[: wanted.numel()]
            scale = max(wanted.abs().max().item(), norm / math.sqrt(max(1, self.grads[name].numel())) * 1e-2)
        else:
            scale = wanted.abs().max().item()
        torch.testing.assert_close(
            ours.reshape(wanted.shape), wanted, atol=rtol * scale + 1e-9, rtol=rtol, msg=self._say(f"grad {name}")
        )

    def _say(self, what: str):
        return lambda text: f"{self.path.name}: {what}: {text}"


def named_tensor(seed: int, name: str, shape: list[int], mean: float, std: float) -> Tensor:
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    raw = np.atleast_1d(np.random.Philox(key=key).random_raw(math.prod(shape)))
    u = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-24
    return torch.from_numpy((mean + std * math.sqrt(3.0) * (2.0 * u - 1.0)).astype(np.float32).reshape(shape))


def load(path: Path) -> Fixture:
    """The fixture in a .safetensors file. Integer inputs are int64."""
    with safe_open(path, "pt") as f:
        fixture = Fixture(Path(path), dict(f.metadata() or {}))
        groups = {
            "weights": fixture.weights,
            "inputs": fixture.inputs,
            "outputs": fixture.outputs,
            "grads": fixture.grads,
            "grads_norm": fixture.grad_norms,
        }
        for key in f.keys():  # noqa: SIM118 - a file handle, not a dict
            head, name = key.split("/", 1)
            tensor = f.get_tensor(key)
            groups[head][name] = tensor.long() if head == "inputs" and tensor.dtype == torch.int32 else tensor
    recipe = json.loads(fixture.meta.get("recipe", "{}"))
    for name, *spec in recipe.get("tensors", []):
        assert name not in fixture.weights, name
        fixture.weights[name] = named_tensor(recipe["seed"], name, *spec)
    for name, *spec in recipe.get("inputs", []):
        fixture.inputs[name.removeprefix("inputs/")] = named_tensor(recipe["seed"], name, *spec)
    for target, how, source, mask, colour in recipe.get("derived", []):
        assert how == "blackout", how
        pixels = fixture.inputs[source.removeprefix("inputs/")]  # B T 3 H W
        hide = fixture.inputs[mask.removeprefix("inputs/")].bool()  # B, rows, columns of patches
        size = pixels.shape[-1] // hide.shape[-1]
        hide = hide.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, None, None]
        dark = torch.tensor(colour, dtype=torch.float32).view(1, 1, 3, 1, 1)
        fixture.inputs[target.removeprefix("inputs/")] = torch.where(hide, dark, pixels)
    return fixture
