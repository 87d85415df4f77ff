"""Several processes as one: gathered rows, summed gradients, and clear words when a process is lost.

Launched by `torchrun`; alone, everything here does nothing. A lost process ends the others with ClipreelError: at once
where its connections close, after the timeout where it hangs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from clipreel.clip import Clip
from clipreel.errors import ClipreelError

T = TypeVar("T")
BUCKET = 2**25  # bytes of gradients that are summed in one message


@dataclass(frozen=True)
class World:
    """This process among all; `first` writes files and speaks."""

    rank: int
    size: int

    @property
    def first(self) -> bool:
        return self.rank == 0


def world() -> World:
    """Where this process stands, alone if no process group was joined."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


@contextmanager
def joined(timeout_s: float = 600.0) -> Iterator[World]:
    """The process group that torchrun asks for, one process without it; left at the end.

    A process that stays silent for `timeout_s` seconds while others wait for it ends the run.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield world()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with lost_process():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield world()
    finally:
        dist.destroy_process_group()


@contextmanager
def lost_process() -> Iterator[None]:
    """Turns the failure of a collective into one line."""
    try:
        yield
    except (dist.DistError, RuntimeError) as e:
        text = str(e)
        if not isinstance(e, dist.DistError) and not any(w in text.lower() for w in ("gloo", "nccl", "connection")):
            raise
        here = world()
        raise ClipreelError(
            f"process {here.rank} of {here.size} stops because another one was lost or hangs; see what that one said, "
            f"then start the same command again to resume ({text.strip().splitlines()[0][:120]})"
        ) from e


def device_of_messages() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def row_counts(rows: int) -> list[int]:
    """The number of rows of every process."""
    if world().size == 1:
        return [rows]
    with lost_process():
        mine = torch.tensor([rows], device=device_of_messages())
        found = [torch.zeros_like(mine) for _ in range(world().size)]
        dist.all_gather(found, mine)
    return [int(n) for n in found]


class _Gather(torch.autograd.Function):
    """All rows in order of rank; backward sums what every process sends for the rows of this one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _all_rows(x, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous()
        with lost_process():
            dist.all_reduce(grad)
        start = sum(ctx.counts[: world().rank])
        return grad[start : start + ctx.counts[world().rank]], None


def _all_rows(x: Tensor, counts: list[int]) -> Tensor:
    most = max(counts)
    padded = x.new_zeros(most, *x.shape[1:])
    padded[: len(x)] = x
    with lost_process():
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def gather_rows(x: Tensor, counts: list[int]) -> Tensor:
    """The rows (N, ...) of all processes in order of rank, differentiable; `counts` as from `row_counts`.

    The gradient of a row is the sum over processes, so averaging the parameters' gradients over processes afterwards
    gives exactly the gradient of a loss that every process computes from all rows.
    """
    return x if len(counts) == 1 else _Gather.apply(x, counts)


def gather_features(features: Mapping[str, Tensor]) -> tuple[list[int], dict[str, Tensor]]:
    """Counts of rows and all features of all processes, differentiable. A process without rows gives empty tensors."""
    rows = len(next(iter(features.values())))
    counts = row_counts(rows)
    return counts, {name: gather_rows(x, counts) for name, x in features.items()}


def like_those_of(features: Mapping[str, Tensor] | None, counts: list[int], device: torch.device) -> dict[str, Tensor]:
    """The features as they are, or, on a process without rows, empty ones of the same names, shapes and types."""
    if min(counts) > 0:
        return dict(features or {})
    source = next(r for r, n in enumerate(counts) if n)
    said = {n: [list(x.shape[1:]), str(x.dtype)] for n, x in (features or {}).items()}
    known = tell(said, source)
    if features:
        return dict(features)
    return {
        n: torch.zeros(0, *shape, dtype=getattr(torch, kind.removeprefix("torch.")), device=device)
        for n, (shape, kind) in known.items()
    }


def sum_gradients(params: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all processes; one that none of them reached keeps None, sharded ones are done."""
    whole = [p for p in params if not isinstance(p, DTensor)]
    if world().size == 1 or not whole:
        return
    with lost_process():
        reached = torch.tensor([p.grad is not None for p in whole], dtype=torch.int32, device=device_of_messages())
        dist.all_reduce(reached, dist.ReduceOp.MAX)
        waiting: list[Tensor] = []
        for p, anywhere in zip(whole, reached.tolist(), strict=True):
            if anywhere:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                waiting.append(p.grad)
            if sum(g.nbytes for g in waiting) >= BUCKET:
                _sum_together(waiting)
                waiting = []
        _sum_together(waiting)


def _sum_together(grads: list[Tensor]) -> None:
    for kind in dict.fromkeys(g.dtype for g in grads):
        same = [g for g in grads if g.dtype == kind]
        flat = torch.cat([g.reshape(-1) for g in same])
        dist.all_reduce(flat)
        for g, part in zip(same, flat.split([g.numel() for g in same]), strict=True):
            g.copy_(part.view_as(g))


def least(value: int) -> int:
    """The smallest of all processes' numbers."""
    return value if world().size == 1 else min(row_counts(value))


def tell(data: Any, source: int = 0) -> Any:
    """Plain data (as JSON) of the source process on every process."""
    if world().size == 1:
        return data
    return share(data if world().rank == source else None)[source]


def share(data: Any) -> list[Any]:
    """Plain data (as JSON) of every process, in order of rank."""
    if world().size == 1:
        return [data]
    text = torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8).to(device_of_messages())
    counts = row_counts(len(text))
    parts = _all_rows(text, counts).cpu().split(counts)
    return [json.loads(bytes(part.tolist())) for part in parts]


def on_first(work: Callable[[], Any]) -> Any:
    """What the first process's work returns (plain data), on every process; its ClipreelError is raised on all."""
    done: list[Any] = [None, None]
    if world().first:
        try:
            done[0] = work()
        except ClipreelError as e:
            done[1] = str(e)
    result, failure = tell(done)
    if failure is not None:
        raise ClipreelError(failure)
    return result


def after_first(work: Callable[[], T]) -> T:
    """What the work returns on every process; the others start once the first is done and its files are there."""
    kept: list[T] = []
    on_first(lambda: kept.append(work()))
    return kept[0] if kept else work()


def broadcast(tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The first process's tensors (on the CPU) on every process."""
    if world().size == 1:
        return dict(tensors or {})
    plan = tell([[n, list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in (tensors or {}).items()])
    found = {}
    with lost_process():
        for name, shape, kind in plan:
            t = tensors[name] if world().first and tensors else torch.empty(shape, dtype=getattr(torch, kind))
            t = t.to(device_of_messages()).contiguous()
            dist.broadcast(t, 0)
            found[name] = t.cpu()
    return found


def shard(clip: Clip) -> None:
    """Spread the backbone over all processes (FSDP2, ZeRO-3): each holds a share of every block and gathers a block's
    weights only while it runs. For full tuning with `RetrievalRecipe(train_base=True)`; sums gradients by itself."""
    mesh = init_device_mesh("cuda" if device_of_messages().type == "cuda" else "cpu", (world().size,))
    parts = [*clip.all_blocks(), clip.vision, clip.text]
    for part in parts:
        sharded = fully_shard(part, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on the CPU, gathered where it is sharded (every process must call)."""
    if isinstance(tensor, DTensor):
        with lost_process():
            tensor = tensor.full_tensor()
    return tensor.detach().cpu()


def laid_out_like(full: Tensor, model: Tensor) -> Tensor:
    """The whole tensor placed as the model is: on its device, and sharded where it is."""
    full = full.to(model.device)
    return distribute_tensor(full, model.device_mesh, model.placements) if isinstance(model, DTensor) else full
