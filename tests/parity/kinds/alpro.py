"""ALPRO's training rules: frame indices, linear schedule, AdamW trajectory."""

import re
from pathlib import Path

import torch
from torch import nn

from clipreel.training.config import OptimConfig, ScheduleConfig
from clipreel.training.optim import Updater
from clipreel.training.schedule import rate
from clipreel.video.sampling import alpro
from tests.parity.fixture import Fixture, load

PEAK = 1e-4  # of the stored schedules (notes of the fixture)


def check(path: Path) -> None:
    if not path.name.startswith("frame_indices"):
        raise AssertionError(f"no check for {path.name}: only the frame indices and training rules of ALPRO are built")
    fixture = load(path)
    compared = set()
    for name, wanted in fixture.outputs.items():
        if name.startswith("lr/"):
            compared.add(check_schedule(fixture, name))
        elif found := re.fullmatch(r"(nlvl_)?uniform/len(\d+)_frames(\d+)", name):
            n, frames = int(found[2]), int(found[3])
            # the ablation's rule divides the length into equal parts without rounding them first
            ours = torch.arange(frames) * n // frames if found[1] else torch.from_numpy(alpro(n, frames))
            assert torch.equal(ours, wanted.long()), f"{path.name}: {name}"
            compared.add(name)
    if "adamw/weights" in fixture.outputs:
        compared |= check_adamw(fixture)
    assert compared == set(fixture.outputs), f"not compared: {set(fixture.outputs) - compared}"


def check_schedule(fixture: Fixture, name: str) -> str:
    """Stored from 0 updates on; the rate of the first update is entry 1."""
    steps, warmup = re.fullmatch(r"lr/steps(\d+)_warm([\d.]+)", name).groups()
    wanted = fixture.outputs[name].double()
    ours = [rate("hero_linear", PEAK, k - 1, int(steps), float(warmup)) for k in range(len(wanted))]
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), wanted, atol=1e-15, rtol=1e-9)
    return name


def check_adamw(fixture: Fixture) -> set[str]:
    c, path = fixture.config, fixture.outputs["adamw/weights"]
    p = nn.Parameter(path[0].clone())
    optim = OptimConfig("adamw_hf", c["adamw_lr"], 0.0, tuple(c["betas"]), c["adamw_eps"], clip_norm=None)
    updater = Updater({"p": p}, optim, ScheduleConfig("constant"), len(path) - 1)
    for step, grad in enumerate(fixture.outputs["adamw/grads"]):
        p.grad = grad.clone()
        updater.update(step)
        torch.testing.assert_close(p.detach(), path[step + 1], atol=2e-7, rtol=0.0)
    return {"adamw/weights", "adamw/grads"}
