"""Optimisers of the papers under their own names, parameter groups by rule, and one update.

`adamw` is torch's (decay before the update, eps after bias correction). `adamw_hf` is the AdamW that transformers had,
which X-Pool, CLIP-ViP and ALPRO use (decay after the update, eps before bias correction). `bert_adam` has no bias
correction and clips every tensor by itself (CLIP4Clip, MV-Adapter). Checked on trajectories of the official codes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from clipreel.errors import ClipreelError
from clipreel.training.config import GroupRule, OptimConfig, ScheduleConfig
from clipreel.training.schedule import rate


class _Adam(Optimizer):
    """Moments of the gradients, updated tensor lists at a time; `_apply` turns them into a step."""

    def __init__(
        self, params: Iterable, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    zero = torch.zeros_like(p, memory_format=torch.preserve_format)
                    self.state[p] = {"step": torch.zeros(()), "exp_avg": zero, "exp_avg_sq": zero.clone()}
            states = [self.state[p] for p in params]
            for state in states:
                state["step"] += 1
            self._apply(group, params, self._gradients(params), states)

    def _gradients(self, params: list[Tensor]) -> list[Tensor]:
        return [p.grad for p in params if p.grad is not None]

    @staticmethod
    def _moments(group: dict[str, Any], grads: list[Tensor], states: list[dict]) -> tuple[list[Tensor], list[Tensor]]:
        """The updated first moments and sqrt of the second plus eps."""
        (b1, b2), m, v = group["betas"], [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_mul_(m, b1)
        torch._foreach_add_(m, grads, alpha=1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, grads, grads, 1 - b2)
        root = list(torch._foreach_sqrt(v))
        torch._foreach_add_(root, group["eps"])
        return m, root

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[dict]) -> None:
        raise NotImplementedError


class AdamWHF(_Adam):
    """p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps), then p <- p - lr decay p."""

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[dict]) -> None:
        m, root = self._moments(group, grads, states)
        (b1, b2), lr = group["betas"], group["lr"]
        steps = [s["step"].item() for s in states]
        torch._foreach_addcdiv_(params, m, root, [-lr * math.sqrt(1 - b2**t) / (1 - b1**t) for t in steps])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])


class BertAdam(_Adam):
    """p <- p - lr (m / (sqrt(v) + eps) + decay p), each gradient first cut to norm 1 by itself; no bias correction."""

    def _gradients(self, params: list[Tensor]) -> list[Tensor]:
        for p in params:
            nn.utils.clip_grad_norm_(p, 1.0)
        return super()._gradients(params)

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], states: list[dict]) -> None:
        m, root = self._moments(group, grads, states)
        update = torch._foreach_div(m, root)
        if group["weight_decay"]:
            torch._foreach_add_(update, params, alpha=group["weight_decay"])
        torch._foreach_add_(params, update, alpha=-group["lr"])


def adamw(groups: list[dict[str, Any]], **options: Any) -> Optimizer:
    """torch's; on a CPU in one pass over the memory instead of a dozen."""
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, fused=on_cpu or None, **options)


OPTIMISERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": adamw,
    "adamw_hf": AdamWHF,
    "bert_adam": BertAdam,
}


@dataclass(frozen=True)
class Group:
    """Names of the parameters that share a peak learning rate and a weight decay."""

    lr: float
    decay: float
    names: tuple[str, ...]


def by_rules(names: Sequence[str], lr: float, decay: float, rules: Sequence[GroupRule]) -> list[Group]:
    """The parameters in groups. For lr and for decay, the first rule whose pattern is found in the name and that gives
    the value decides; else the defaults. Raises ClipreelError for a rule that meets no parameter.

    >>> by_rules(["fc.weight", "fc.bias"], 1e-3, 0.2, [GroupRule("bias$", decay=0.0)])[1]
    Group(lr=0.001, decay=0.0, names=('fc.bias',))
    """
    for rule in rules:
        try:
            if not any(re.search(rule.match, name) for name in names):
                raise ClipreelError(
                    f"optim.groups: {rule.match!r} meets no trained parameter; they are {', '.join(names[:5])}"
                    + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                )
        except re.error as e:
            raise ClipreelError(f"optim.groups: {rule.match!r} is not a regular expression ({e})") from e
    groups: dict[tuple[float, float], list[str]] = {}
    for name in names:
        met = [rule for rule in rules if re.search(rule.match, name)]
        own_lr = next((r.lr for r in met if r.lr is not None), lr)
        own_decay = next((r.decay for r in met if r.decay is not None), decay)
        groups.setdefault((own_lr, own_decay), []).append(name)
    return [Group(*key, tuple(members)) for key, members in groups.items()]


class Updater:
    """Optimiser, schedule and clipping as one: `update(step)` turns the gradients into the next weights."""

    def __init__(
        self, params: Mapping[str, nn.Parameter], optim: OptimConfig, schedule: ScheduleConfig, total: int
    ) -> None:
        self.params, self.config, self.schedule, self.total = dict(params), optim, schedule, total
        self.groups = by_rules(list(params), optim.lr, optim.decay, optim.groups)
        self.optimiser: Optimizer = OPTIMISERS[optim.name](
            [{"params": [params[n] for n in g.names], "lr": g.lr, "weight_decay": g.decay} for g in self.groups],
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.decay,
        )

    def rates(self, step: int) -> list[float]:
        """The learning rate of every group at this update (0-based)."""
        return [rate(self.schedule.name, g.lr, step, self.total, self.schedule.warmup) for g in self.groups]

    def norm(self) -> Tensor:
        """L2 norm of all gradients as they are; the whole norm also where they are sharded."""
        grads = [p.grad for p in self.params.values() if p.grad is not None]
        sharded = [g for g in grads if isinstance(g, DTensor)]
        norm = nn.utils.get_total_norm([g for g in grads if not isinstance(g, DTensor)])
        if not sharded:
            return norm
        rest = nn.utils.get_total_norm(sharded)
        return torch.hypot(norm, rest.full_tensor() if isinstance(rest, DTensor) else rest)

    def update(self, step: int, norm: Tensor | None = None) -> Tensor:
        """Clip, update, clear the gradients. Returns their norm before clipping."""
        norm = self.norm() if norm is None else norm
        if self.config.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(list(self.params.values()), self.config.clip_norm, norm)
        for group, lr in zip(self.optimiser.param_groups, self.rates(step), strict=True):
            group["lr"] = lr
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors as `<parameter>/<key>`."""
        names: dict[Tensor, str] = {p: n for n, p in self.params.items()}
        return {
            f"{names[p]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
            for p, state in self.optimiser.state.items()
            for key, value in state.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave, bit for bit."""
        self.optimiser.state.clear()
        for name, value in tensors.items():
            parameter, key = name.rsplit("/", 1)
            self.optimiser.state[self.params[parameter]][key] = value
