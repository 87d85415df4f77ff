"""What orders the best hits of a search anew, by the name that a user gives it.

A name is the folder of a head or of an ALPRO, a head that learns nothing (mean, top_frames, soft_frames), or `alpro`
for the model of the index. A head reads the frames that the index keeps, an ALPRO the files.
"""

from __future__ import annotations

from collections.abc import Callable

from clipreel.adapter import is_alpro
from clipreel.alpro.retriever import AlproRetriever
from clipreel.errors import ClipreelError
from clipreel.head_files import with_head
from clipreel.retriever import Retriever
from clipreel.search.ask import Reorder
from clipreel.search.index import Index
from clipreel.search.query import Hit, Query
from clipreel.search.rerank import Reranker
from clipreel.search.reread import Read, here, reread

MODEL = "alpro"


def matching(source: str, model: Retriever, load: Callable[[str], Retriever]) -> AlproRetriever | None:
    """The ALPRO that a name means, None where it means a head. Raises ClipreelError for a model that is none."""
    if source != MODEL and not is_alpro(source):
        return None
    judge = model if source == MODEL else load(source)
    if not isinstance(judge, AlproRetriever):
        raise ClipreelError(f"{judge.name} has no matching head and cannot rerank; give the folder of an ALPRO")
    return judge


def by_matching(
    judge: AlproRetriever, failed: list[tuple[str, str]], read: Read = here, timeout_s: float = 60.0
) -> Reorder:
    """Candidates in the order of an ALPRO; files that cannot be read again are left out and added to `failed`."""

    def again(query: Query, hits: list[Hit]) -> list[Hit]:
        found, lost = reread(hits, " ".join(query.texts), judge, timeout_s, read)
        failed.extend(lost)
        return found

    return again


def by_head(source: str, model: Retriever, index: Index) -> Reorder:
    """Candidates in the order of a head. Raises ClipreelError for an index without frames and for a foreign head."""
    return Reranker(index, with_head(model, source))
