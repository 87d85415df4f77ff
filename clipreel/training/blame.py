"""Which samples made a loss or a gradient infinite: every row of the batch goes through the model by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from clipreel.errors import ClipreelError
from clipreel.noise import from_row
from clipreel.training import distributed
from clipreel.training.microbatch import Passes
from clipreel.training.recipe import Recipe

if TYPE_CHECKING:
    from clipreel.training.batches import Batch

SHOWN = 8
LOWER = "lower the learning rate (lr of clipreel tune, else train.optim.lr)"


def not_finite(
    what: str, recipe: Recipe, params: Mapping[str, nn.Parameter], batch: Batch, step: int, passes: Passes
) -> ClipreelError:
    """The error to raise when `what` (the loss, the gradient) of this step is not finite; on all processes the same."""
    said = f"step {step}: {what} is not finite"
    broken = [name for name, p in params.items() if not _finite(p)]
    if any(distributed.share(bool(broken))):
        where = _named(broken or ["on another process"])
        return ClipreelError(f"{said}, because weights are not ({where}); {LOWER}, and start in a new folder")
    guilty = list(
        dict.fromkeys(name for part in distributed.share(_guilty(recipe, batch, step, passes)) for name in part)
    )
    if guilty:
        return ClipreelError(
            f"{said}; by itself, {'this sample gives' if len(guilty) == 1 else 'these samples give'} features or "
            f"gradients that are not: {_named(guilty)}. Repair or remove {'it' if len(guilty) == 1 else 'them'}, or "
            "use precision: float32"
        )
    names = [name for part in distributed.share(list(batch.names)) for name in part]
    return ClipreelError(
        f"{said}, and no sample of the batch is the cause by itself ({_named(names)}); {LOWER}, or use "
        "precision: float32"
    )


def _guilty(recipe: Recipe, batch: Batch, step: int, passes: Passes) -> list[str]:
    """Samples of this process whose features, or whose share of the gradient, are not finite."""
    found = []
    counts = distributed.row_counts(len(batch))
    first = sum(counts[: distributed.world().rank])
    for i in range(max(counts)):
        if not len(batch):
            continue
        row = min(i, len(batch) - 1)  # sharded weights need every process to run the same number of passes
        for p in passes.params:
            p.grad = None
        with from_row(first + row):  # the masks that this row had in the batch
            features = passes.encode(recipe, batch.rows(row, row + 1), step)
            reached = [x for x in features.values() if x.requires_grad]
            torch.autograd.backward(reached, [torch.ones_like(x) for x in reached])
        grads = [p.grad for p in passes.params if p.grad is not None]
        if not all(_finite(x) for x in (*features.values(), *grads)):
            found.append(batch.names[row])
    for p in passes.params:
        p.grad = None
    return found


def _finite(x: Tensor) -> bool:
    return bool(getattr(x, "_local_tensor", x).detach().isfinite().all())


def _named(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
