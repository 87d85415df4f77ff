"""The exact gradient of a loss over the global batch, a few rows in memory at a time (feature cache, GradCache).

Pass 1 encodes all rows without a graph; the loss of all features, gathered over processes, gives the gradient of each
feature; pass 2 encodes each micro-batch again with a graph and sends those gradients into it. When the rows of a
process fit at once, pass 2 reuses the graph of pass 1. Random numbers of a row depend on (seed, step, its place in the
global batch) alone, so both passes and every split draw the same ones (noise.py); torch's own, such as a library's
dropout inside `encode`, are the same in both passes and others in another split.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clipreel.errors import ClipreelError
from clipreel.noise import from_row
from clipreel.training import distributed
from clipreel.training.recipe import Recipe, Tensors

if TYPE_CHECKING:
    from clipreel.training.batches import Batch

SHARE_OF_FREE = 0.7  # of the free memory that a micro-batch may fill
TRANSIENT = 1.5  # CPU: peak of a pass against the bytes that it keeps for the backward pass


def seed_all(seed: int, step: int, what: int | str) -> None:
    """Restart torch's random numbers (CPU and CUDA) as a function of these three."""
    digest = hashlib.blake2b(f"{seed}/{step}/{what}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class Passes:
    """How rows go through the model: which parameters collect gradients, where, how many rows at a time, in which
    precision, with which seed."""

    params: Sequence[nn.Parameter]
    device: torch.device
    micro_batch: int
    autocast: Callable[[], AbstractContextManager]
    seed: int = 0

    def encode(self, recipe: Recipe, batch: Batch, step: int) -> Tensors:
        """Features of some rows; `from_row` around it and its backward pass says where the first one stands."""
        seed_all(self.seed, step, "rows")
        with self.autocast():
            return recipe.encode(batch.to(self.device))


def gradients(recipe: Recipe, batch: Batch, step: int, passes: Passes, scale: float = 1.0) -> tuple[Tensors, Tensors]:
    """Adds `scale` times the gradient of the global batch's loss to the trained parameters, equal on all processes.

    `batch` is this process's share. Returns losses and report of the global batch, without a graph.
    """
    params = passes.params
    here, counts = distributed.world(), distributed.row_counts(len(batch))
    first = sum(counts[: here.rank])
    pieces = _pieces(counts, here.rank, passes.micro_batch, any(isinstance(p, DTensor) for p in params))
    once = len(pieces) == 1
    kept: list[Tensors] = []
    with torch.set_grad_enabled(once):
        for a, b, _ in pieces:
            with from_row(first + a):
                kept.append(passes.encode(recipe, batch.rows(a, b), step))
    real = [features for features, (_, _, counted) in zip(kept, pieces, strict=True) if counted]
    local = {name: torch.cat([f[name] for f in real]).detach() for name in real[0]} if real else None
    local = distributed.like_those_of(local, counts, passes.device)
    leaves = {n: distributed.gather_rows(x, counts).requires_grad_(x.is_floating_point()) for n, x in local.items()}
    groups = distributed.gather_rows(batch.groups.to(passes.device), counts)
    seed_all(passes.seed, step, "loss")
    losses, report = recipe.losses(leaves, groups)
    (torch.stack([loss.float() for loss in losses.values()]).sum() * scale).backward()
    if not here.first:  # what the loss itself uses is the same everywhere and counts once
        for p in params:
            p.grad = None
    wanted = {n: leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}
    for i, (a, b, counted) in enumerate(pieces):
        with from_row(first + a):
            features = kept[i] if once else passes.encode(recipe, batch.rows(a, b), step)
            reached = [n for n in wanted if features[n].requires_grad]
            sent = [wanted[n][first + a : first + b] if counted else torch.zeros_like(features[n]) for n in reached]
            torch.autograd.backward([features[n] for n in reached], sent)
    distributed.sum_gradients(params)
    return {n: x.detach() for n, x in losses.items()}, {n: x.detach() for n, x in report.items()}


def _pieces(counts: list[int], rank: int, micro: int, in_step: bool) -> list[tuple[int, int, bool]]:
    """(from, to, counted) of this process's micro-batches, about equal in size. Sharded weights need every process to
    run the same number of passes (`in_step`), so some then run a row again that does not count."""
    number = -(-counts[rank] // micro)
    size = -(-counts[rank] // max(number, 1))
    found = [(a, min(a + size, counts[rank]), True) for a in range(0, counts[rank], max(size, 1))]
    if in_step:
        if min(counts) == 0:
            raise ClipreelError(
                f"a batch of {sum(counts)} rows leaves a process without any, which sharded weights cannot do; use "
                "fewer processes or a larger batch"
            )
        found += [(0, 1, False)] * (max(-(-n // micro) for n in counts) - len(found))
    return found


def fitting_rows(recipe: Recipe, batch: Batch, passes: Passes, free: int | None = None) -> int:
    """How many rows fit into the free memory at once, measured on one and two rows; the least over processes.

    Peak memory of a pass on CUDA, kept bytes with an allowance for the transient ones elsewhere.
    """
    rows = len(batch)
    if distributed.least(rows) > 2:
        free = free_bytes(passes.device) if free is None else free
        one, two = (_cost(recipe, batch.rows(0, n), passes) for n in (1, 2))
        each = max(two - one, 1)
        rows = min(rows, max(1, int((SHARE_OF_FREE * free - (one - each)) / each)))
    return distributed.least(max(rows, 1))


def _cost(recipe: Recipe, batch: Batch, passes: Passes) -> int:
    """Bytes that a pass with a graph takes."""
    seen: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            storage = x.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    cuda = passes.device.type == "cuda"
    if cuda:
        before = torch.cuda.memory_allocated(passes.device)
        torch.cuda.reset_peak_memory_stats(passes.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        features = passes.encode(recipe, batch, 0)
    wanted = [x for x in features.values() if x.requires_grad]
    torch.autograd.backward(wanted, [torch.zeros_like(x) for x in wanted])
    for p in passes.params:
        p.grad = None
    if cuda:
        return torch.cuda.max_memory_allocated(passes.device) - before
    return int(TRANSIENT * sum(seen.values()))


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still fill; on a CPU, its share of what the machine or its container has left."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _free_memory() -> int:
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:  # not Linux: half of all memory
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    try:
        group = Path("/sys/fs/cgroup")
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    return max(min(limits), 0)
