"""CLIP-ViP's training rules: schedules, AdamW trajectory, parameter groups, frame indices."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from clipreel.training.config import GroupRule, OptimConfig, ScheduleConfig
from clipreel.training.optim import Updater, by_rules
from clipreel.training.schedule import rate
from clipreel.video.sampling import clip_vip
from tests.parity.fixture import Fixture, load

NO_DECAY = GroupRule(r"bias|LayerNorm\.bias|LayerNorm\.weight|logit_scale", decay=0.0)


class NumpyGlobal:
    """NumPy's old global generator as the official code draws from it, in the form that our samplers take."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def integers(self, low: int, high: int) -> int:
        return int(self.state.randint(low, high))


def check(path: Path) -> None:
    if not path.name.startswith("train_utils"):
        raise AssertionError(f"no check for {path.name}: only the training rules of CLIP-ViP are built")
    fixture = load(path)
    compared = check_schedules(fixture) | check_adamw(fixture) | check_sampling(fixture)
    check_groups(fixture)
    assert compared == set(fixture.outputs), f"not compared: {set(fixture.outputs) - compared}"


def check_schedules(fixture: Fixture) -> set[str]:
    for i, s in enumerate(fixture.config["sched"]):
        ours = [rate(f"hero_{s['decay']}", s["base_lr"], k, s["steps"], s["warmup_ratio"]) for k in range(s["steps"])]
        torch.testing.assert_close(
            torch.tensor(ours, dtype=torch.float64), fixture.outputs[f"lr.{i}"].double(), atol=1e-15, rtol=1e-9
        )
    return {f"lr.{i}" for i in range(len(fixture.config["sched"]))}


def check_adamw(fixture: Fixture) -> set[str]:
    c = fixture.config["adamw"]
    assert c["correct_bias"]
    names = [n.removeprefix("adamw.") for n in fixture.inputs if n.startswith("adamw.") and "grad" not in n]
    params = {name: nn.Parameter(fixture.inputs[f"adamw.{name}"].clone()) for name in names}
    # q, a vector, stands for the tensors that are not decayed
    rules = (GroupRule("^q$", decay=0.0),)
    optim = OptimConfig("adamw_hf", c["lr"], c["wd"], tuple(c["betas"]), c["eps"], clip_norm=None, groups=rules)
    updater = Updater(params, optim, ScheduleConfig("constant"), c["steps"])
    compared = set()
    for step in range(c["steps"]):
        for name, p in params.items():
            p.grad = fixture.inputs[f"adamw.grad_{name}.{step}"].clone()
        updater.update(step)
        for name, p in params.items():
            fixture.check(f"adamw.{name}.{step}", p, atol=1e-6)  # a few roundings; the steps are of size 1e-3
            compared.add(f"adamw.{name}.{step}")
    return compared


def check_groups(fixture: Fixture) -> None:
    """Four official groups, {prefix, rest} x {decayed, not}; a rate of null is the one that the schedule sets."""
    for prefix, groups in fixture.config["param_groups"].items():
        names = sorted(name for g in groups for name in g["params"])
        fast = [] if prefix == "none" else [GroupRule(prefix, lr=groups[0]["lr"])]
        ours = {(g.lr, g.decay): sorted(g.names) for g in by_rules(names, 1e-6, 0.2, [*fast, NO_DECAY])}
        wanted = {
            (1e-6 if g["lr"] is None else g["lr"], g["weight_decay"]): sorted(g["params"])
            for g in groups
            if g["params"]
        }
        assert ours == wanted, f"{fixture.path.name}: groups with prefix {prefix}"


def check_sampling(fixture: Fixture) -> set[str]:
    for i, s in enumerate(fixture.config["sampling"]):
        assert s["clips"] == 1
        rng = NumpyGlobal(s["np_seed"]) if s["mode"] == "train" and s["jitter"] else None
        fixture.check(f"sampling.{i}", torch.from_numpy(clip_vip(s["total_frames"], s["frames"], rng)))
    return {f"sampling.{i}" for i in range(len(fixture.config["sampling"]))}
