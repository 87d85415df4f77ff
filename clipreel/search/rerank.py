"""A second look at the best hits: a head scores the frames of each one's moment with the query.

Frame vectors are stored on request (`clipreel index --frames`) in a table of their own: one row for each moment, with
the frames that its vector was made of, as they are before any normalisation, in float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.search.index import Index, among
from clipreel.search.query import Hit, Query, Searcher, clean

if TYPE_CHECKING:
    import pyarrow as pa

    from clipreel.retriever import Retriever

Timed = tuple[NDArray[np.float64], NDArray[np.float32]]  # times (T,) ascending, unit vectors (T, E)
TABLE = "frames"
FACT = {"frames": True}  # said when an index is made


class FrameStore:
    """The frames table of an index that keeps frame vectors."""

    def __init__(self, index: Index) -> None:
        self.index = index
        if not index.facts.get("frames"):
            raise ClipreelError(
                f"the index at {index.place} keeps no frame vectors; make one that does: "
                "clipreel index FOLDER --frames --index ANOTHER"
            )
        self.table = index.guard(lambda: index.db.create_table(TABLE, schema=schema(), exist_ok=True))

    def put(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store the `frames` (T, E) of rows of moments; they replace those of the same id."""
        import pyarrow as pa

        if rows:
            flat = [{**row, "frames": row["frames"].reshape(-1)} for row in rows]
            layout = self.index.guard(lambda: self.table.schema)  # older ones do not know the times
            merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            self.index.guard(lambda: merge.execute(pa.Table.from_pylist(flat, layout)))

    def between(self, wanted: Sequence[tuple[str, float, float]]) -> list[Timed | None]:
        """The frames of (file, start_s, end_s) as unit vectors with their times, read in one go; None where there are
        none or their times are unknown."""
        if not wanted or "times_s" not in self.index.guard(lambda: self.table.schema).names:
            return [None] * len(wanted)
        pieces = (f"(file = '{f}' AND start_s < {last!r} AND end_s > {first!r})" for f, first, last in wanted)
        query = self.table.search().where(" OR ".join(pieces)).select(["file", "frames", "times_s"]).limit(None)
        found: dict[str, list[Timed]] = {}
        width = self.index.facts["embed_dim"]
        for batch in self.index.guard(lambda: query.to_batches()):
            for file, frames, times in zip(*(batch.column(n) for n in ("file", "frames", "times_s")), strict=True):
                seconds = times.values.to_numpy(zero_copy_only=False).astype(np.float64)
                if len(seconds):
                    flat = frames.values.to_numpy(zero_copy_only=False).reshape(len(seconds), width)
                    found.setdefault(file.as_py(), []).append((seconds, flat.astype(np.float32)))
        return [within(found.get(file, []), first, last) for file, first, last in wanted]

    def sweep(self) -> None:
        """Take out frames of files that the index does not list, and merge the pieces that writing left."""
        listed = {f.id for f in self.index.list_files()}
        owners = self.index.guard(lambda: self.table.search().select(["file"]).limit(None).to_arrow())
        orphans = sorted(set(owners.column("file").unique().to_pylist()) - listed)
        for start in range(0, len(orphans), 500):
            self.index.guard(lambda s=start: self.table.delete(among(orphans[s : s + 500])))
        self.index.guard(lambda: self.table.optimize(cleanup_older_than=timedelta(hours=1)))

    def of(self, hits: Sequence[Hit]) -> list[Tensor]:
        """The frames (T, E) float32 of each hit's moment."""
        self.index.version()  # another process may have written
        self.index.guard(lambda: self.table.checkout_latest())
        ids = {f.path: f.id for f in self.index.list_files()}
        wanted = [(ids.get(h.path, ""), h.start_s, h.end_s) for h in hits]
        where = among(sorted({file for file, _, _ in wanted}))
        rows = self.index.guard(lambda: self.table.search().where(where).limit(None).to_arrow())
        places = zip(*(rows.column(c).to_pylist() for c in ("file", "start_s", "end_s")), strict=True)
        found = {place: i for i, place in enumerate(places)}
        column, width = rows.column("frames").combine_chunks(), self.index.facts["embed_dim"]
        frames = []
        for hit, place in zip(hits, wanted, strict=True):
            if place not in found:
                raise ClipreelError(
                    f"the frames of {hit.path} are not in the index at {self.index.place}; it changed meanwhile, or "
                    "is damaged: search again, or index again into another folder"
                )
            flat = column[found[place]].values.to_numpy(zero_copy_only=False)
            frames.append(torch.from_numpy(flat.astype(np.float32).reshape(-1, width)))
        return frames


class Reranker:
    """Orders hits anew by the head of a model (`clipreel.with_head`) over the frames of their moments."""

    def __init__(self, index: Index, model: Retriever) -> None:
        if model.rerank is None:
            raise ClipreelError(f"{model.name} has no head to rerank with; see clipreel.with_head")
        self.store, self.model, self.score = FrameStore(index), model, model.rerank

    def search(self, searcher: Searcher, query: Query, k: int = 10, candidates: int = 50) -> list[Hit]:
        """The best k videos: the first `candidates` in the order of the head, those behind them as they were."""
        if candidates < 1:
            raise ClipreelError(f"{candidates} candidates: give at least 1 (--candidates)")
        hits = searcher.search(query, max(k, candidates))
        return [*self(query, hits[:candidates]), *hits[candidates:]][:k]

    def __call__(self, query: Query, hits: Sequence[Hit]) -> list[Hit]:
        """The hits by descending score of the head, which takes the place of the cosine; equal ones stay in order.

        Raises ClipreelError for a query of anything but one text, which is what heads are trained on.
        """
        texts = [t for t in (clean(t) for t in query.texts) if t]
        if len(texts) != 1 or query.minus or query.images or query.videos:
            raise ClipreelError("a head reads one text: rerank without --image, --video, --minus and words with a -")
        if not hits:
            return []
        frames, mask = padded(self.store.of(hits))
        text = self.model.encode_text(texts, normalize=False, strip_special=True)
        scores = self.score(text, frames.to(text.device), mask.to(text.device))[0].cpu()
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        return [replace(hits[i], score=float(scores[i])) for i in order]


def within(stacks: Sequence[Timed], start_s: float, end_s: float) -> Timed | None:
    """The frames of several pieces of a video between two seconds, each once, in order of time."""
    if not stacks:
        return None
    times, first = np.unique(np.concatenate([t for t, _ in stacks]), return_index=True)
    inside = (times >= start_s) & (times <= end_s)
    if not inside.any():
        return None
    vectors = np.concatenate([v for _, v in stacks])[first[inside]]
    return times[inside], unit(torch.from_numpy(vectors)).numpy()


def padded(stacks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stacks of frames of different length as one tensor (V, T, E), and the mask (V, T) of real ones."""
    mask = torch.arange(max(map(len, stacks))) < torch.tensor([len(s) for s in stacks])[:, None]
    return torch.nn.utils.rnn.pad_sequence(list(stacks), batch_first=True), mask


def schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("file", pa.string()),
            ("start_s", pa.float32()),
            ("end_s", pa.float32()),
            ("frames", pa.list_(pa.float16())),
            ("times_s", pa.list_(pa.float32())),
        ]
    )
