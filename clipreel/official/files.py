"""State dicts of released checkpoints: read, unwrapped, and without the copies of tensors that some of them hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from clipreel.checkpoints import read_file, unwrap
from clipreel.errors import ClipreelError


def read_state(source: str | Path | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file or of a state dict, under their own names."""
    return unwrap(source if isinstance(source, Mapping) else read_file(Path(source))[0])


def without_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """modelscope stores CLIP a second time under image_encoder.* and text_encoder.*: equal copies are dropped."""
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        first = name.replace("image_encoder.", "visual.").replace("text_encoder.", "")
        original = state.get(first, state.get("clip." + first))
        if first == name:
            kept[name] = tensor
        elif original is None or not torch.equal(tensor, original):
            raise ClipreelError(f"{name} should be a copy of {first} and is not; the file is damaged, fetch it again")
    return kept
