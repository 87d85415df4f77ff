"""Rows that only a loss needs (pairs drawn from the whole batch), each computed by one process of several.

Every process knows all inputs and needs all outputs. What comes out, forwards and backwards, is as if it had computed
every row itself, so the rest of the loop need not know; only the work and its memory are shared. That includes random
numbers of noise.py, which belong to a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipreel.noise import from_row
from clipreel.training.distributed import gather_rows, lost_process, world


def in_shares(
    compute: Callable[..., Tensor], rows: int, inputs: Sequence[Tensor], params: Sequence[nn.Parameter]
) -> Tensor:
    """The output (rows, ...) of `compute(which, *inputs)`, a function of a slice of the rows, differentiable in the
    inputs (of all rows, equal on all processes) and in the parameters that it uses."""
    if world().size == 1:
        return compute(slice(0, rows), *inputs)
    used = [p for p in params if p.requires_grad]
    return _Shared.apply(compute, rows, len(inputs), *inputs, *used)


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], rows: int, inputs: int, *tensors: Tensor) -> Tensor:
        here = world()
        cuts = [rows * r // here.size for r in range(here.size + 1)]
        counts = [b - a for a, b in pairwise(cuts)]
        ctx.mine = slice(cuts[here.rank], cuts[here.rank + 1])
        leaves = [t.detach().requires_grad_(t.requires_grad) for t in tensors[:inputs]]
        ctx.sources = (*leaves, *tensors[inputs:])
        with torch.enable_grad(), from_row(ctx.mine.start):
            ctx.out = compute(ctx.mine, *leaves)
        return gather_rows(ctx.out.detach(), counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [t for t in ctx.sources if t.requires_grad]
        with from_row(ctx.mine.start):
            found = torch.autograd.grad(ctx.out, wanted, grads[0][ctx.mine], allow_unused=True, materialize_grads=True)
        sums = iter(totals(found))
        given = [next(sums) if t.requires_grad else None for t in ctx.sources]
        return None, None, None, *given


def totals(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over processes of each tensor, in one message for each type."""
    found = list(tensors)
    for kind in dict.fromkeys(t.dtype for t in tensors):
        places = [i for i, t in enumerate(tensors) if t.dtype == kind]
        flat = torch.cat([tensors[i].reshape(-1) for i in places])
        with lost_process():
            dist.all_reduce(flat)
        for i, part in zip(places, flat.split([tensors[i].numel() for i in places]), strict=True):
            found[i] = part.view_as(tensors[i])
    return found
