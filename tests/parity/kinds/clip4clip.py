"""CLIP4Clip's optimiser, step by step: BertAdam with its three schedules and per-tensor clipping."""

from pathlib import Path

import torch
from torch import nn

from clipreel.training.config import GroupRule, OptimConfig, ScheduleConfig
from clipreel.training.optim import Updater
from tests.parity.fixture import load


def check(path: Path) -> None:
    if not path.name.startswith("bertadam_"):
        raise AssertionError(f"no check for {path.name}: only the optimiser of CLIP4Clip is built")
    fixture = load(path)
    c = fixture.config
    assert (c["max_grad_norm"], c["dtype"]) == (1.0, "torch.float32")
    rules = tuple(GroupRule(f"^({'|'.join(g['params'])})$", g["lr"], g["weight_decay"]) for g in c["groups"])
    names = [name for group in c["groups"] for name in group["params"]]
    params = {name: nn.Parameter(fixture.inputs[name].clone()) for name in names}
    optim = OptimConfig("bert_adam", 1.0, 0.0, (c["b1"], c["b2"]), c["eps"], clip_norm=None, groups=rules)
    schedule = ScheduleConfig(c["schedule"].replace("warmup_", "bertadam_"), c["warmup"])
    updater = Updater(params, optim, schedule, c["t_total"])
    compared = set()
    for step in range(c["steps"]):
        for i, p in enumerate(params.values()):
            p.grad = fixture.inputs[f"g{i}_{step}"].clone()
        updater.update(step)
        # the official figure is the rate of the coming update, one for every tensor
        rates = dict(zip([g.names for g in updater.groups], updater.rates(step + 1), strict=True))
        ours = [next(lr for members, lr in rates.items() if name in members) for name in names]
        torch.testing.assert_close(ours, c["get_lr_after_step"][step], atol=1e-12, rtol=1e-9)
        for name, p in params.items():
            fixture.check(f"{name}_{step}", p, atol=1e-6)
            compared.add(f"{name}_{step}")
    assert compared == set(fixture.outputs)
