"""The model that an index was made with, from what the index says of it."""

from __future__ import annotations

from clipreel.adapter import load
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever
from clipreel.search.index import Index


def model_of(
    index: Index, device: str = "auto", *, model: str | None = None, adapter: str | None = None, download: bool = False
) -> Retriever:
    """The model of an index, or `model` and `adapter` where they lie elsewhere now. Raises ClipreelError."""
    int8 = index.facts.get("engine", "torch").partition("/")[0] == "int8"
    adapter = adapter or index.facts.get("adapter")
    if int8 and adapter:
        raise ClipreelError("the int8 engine computes the base alone; the index is damaged, index again")
    name = model or index.facts["model"]
    retriever = load(name, adapter, download=download, device="cpu" if int8 and device == "auto" else device)
    if int8:
        from clipreel.int8 import enable

        retriever = enable(retriever)
    return retriever
