"""Random numbers that belong to rows of the global batch: dropout, drop path, hidden words, crops.

A number is a function of torch's CPU stream, which is set for each step and restored by a checkpoint, of the row's
place in the global batch, and of the place inside the row. So neither micro-batches nor processes nor recomputation
nor the device change it, and a text that is cut behind its last word keeps the numbers of the words that stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

from clipreel.errors import ClipreelError

# multipliers of SplitMix64 (Steele, Lea, Flood 2014), as signed numbers
STRIDE, FIRST_FACTOR, SECOND_FACTOR = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_start = 0  # not of a thread: torch runs backward passes of a GPU, and what is computed again there, in another one


@contextmanager
def from_row(first: int) -> Iterator[None]:
    """Here the first row of every tensor is row `first` of the global batch (outside: row 0)."""
    global _start
    before, _start = _start, first
    try:
        yield
    finally:
        _start = before


def bits(shape: Sequence[int], device: torch.device) -> Tensor:
    """int32 of this shape, whose first dimension are the rows, all values equally likely."""
    rows, each = shape[0], prod(shape[1:])
    place = torch.arange(_start, _start + rows, device=device)
    # a tensor without dimensions may stay on the CPU, so that nothing waits for a GPU
    key = _mixed(place.mul_(STRIDE).add_(torch.randint(2**63 - 1, (), device="cpu")))
    inside = torch.arange(-(-each // 2), device=device).mul_(STRIDE)
    return _mixed(key[:, None] + inside).view(torch.int32)[:, :each].reshape(shape)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's mixing, in place."""
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
        _folded(z, shift).mul_(factor)
    return _folded(z, 31)


def _folded(z: Tensor, shift: int) -> Tensor:
    """The upper bits onto the lower ones; the sign, which torch shifts in, is masked off."""
    return z.bitwise_xor_((z >> shift).bitwise_and_(2 ** (64 - shift) - 1))


def uniform(shape: Sequence[int], device: torch.device) -> Tensor:
    """float32 of this shape, each at least 0 and below 1, by row."""
    return ((bits(shape, device) >> 8) + 2**23).float() * 2**-24


def below(shape: Sequence[int], share: float, device: torch.device) -> Tensor:
    """True with probability `share`, of this shape, by row."""
    return bits(shape, device) < round(share * 2**32) - 2**31


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """x (B, ...) with a share `rate` of its entries zero and the others scaled up; as it is without `training`."""
    if not 0 <= rate < 1:
        raise ClipreelError(f"dropout {rate}: give a share from 0 to below 1")
    if not training or rate == 0:
        return x
    return (x / (1 - rate)).masked_fill_(below(x.shape, rate, x.device), 0.0)
