"""clipreel adapts a still-image model (CLIP) to video, proves that it got better, and searches videos with it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Names are resolved on first use: `import clipreel` must not import torch.
_WHERE = {
    "load": "clipreel.adapter",
    "load_official": "clipreel.official",
    "save_adapter": "clipreel.adapter",
    "save_head": "clipreel.head_files",
    "with_head": "clipreel.head_files",
    "Index": "clipreel.search.index",
    "Retriever": "clipreel.retriever",
    "ClipreelError": "clipreel.errors",
}

if TYPE_CHECKING:
    from clipreel.adapter import load, save_adapter
    from clipreel.errors import ClipreelError
    from clipreel.head_files import save_head, with_head
    from clipreel.official import load_official
    from clipreel.retriever import Retriever
    from clipreel.search.index import Index

__all__ = [
    "ClipreelError",
    "Index",
    "Retriever",
    "__version__",
    "load",
    "load_official",
    "save_adapter",
    "save_head",
    "with_head",
]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'clipreel' has no attribute {name!r}")
