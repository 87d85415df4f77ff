"""Which tensors these are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor


def digest(tensors: Mapping[str, Tensor], about: str = "") -> str:
    """Identity of tensors: names, shapes, float32 values, whatever file they came from; `about`: what else counts."""
    total = hashlib.blake2b(about.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}{tuple(tensor.shape)}".encode())
        total.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
