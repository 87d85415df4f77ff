"""clipreel adapts a still-image model (CLIP) to video, proves that it got better, and searches videos with it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Names are resolved on first use: `import clipreel` must not import torch.
_WHERE = {
    "load": "clipreel.retriever",
    "Retriever": "clipreel.retriever",
    "ClipreelError": "clipreel.errors",
}

if TYPE_CHECKING:
    from clipreel.errors import ClipreelError
    from clipreel.retriever import Retriever, load

__all__ = ["ClipreelError", "Retriever", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'clipreel' has no attribute {name!r}")
