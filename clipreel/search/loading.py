"""The model that an index was made with, from what the index says of it."""

from __future__ import annotations

from clipreel.adapter import load, with_adapter
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever
from clipreel.search.index import Index


def base_of(index: Index, device: str = "auto", model: str | None = None, download: bool = False) -> Retriever:
    """The base of the model of an index; `model` where it lies elsewhere now. Raises ClipreelError."""
    int8 = index.facts.get("engine", "torch").partition("/")[0] == "int8"
    if int8 and index.facts.get("adapter"):
        raise ClipreelError("the int8 engine computes the base alone; the index is damaged, index again")
    name = model or index.facts["model"]
    retriever = load(name, download=download, device="cpu" if int8 and device == "auto" else device)
    if int8:
        from clipreel.int8 import enable

        retriever = enable(retriever)
    return retriever


def on_base(base: Retriever, index: Index, adapter: str | None = None) -> Retriever:
    """The base with the adapter of an index, or `adapter` where it lies elsewhere now."""
    folder = adapter or index.facts.get("adapter")
    return with_adapter(base, folder) if folder else base


def model_of(index: Index, device: str = "auto") -> Retriever:
    return on_base(base_of(index, device), index)
