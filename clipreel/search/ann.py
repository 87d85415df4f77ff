"""Approximate search for large indexes: LanceDB's IVF_SQ index, with parameters chosen by measured recall.

Vectors are units, so L2 orders them as the cosine does, and LanceDB scans L2 codes four times as fast as dot products.
A stretched query keeps that order, but ranks partitions nearly by their dot product, which texts need, because they lie
apart from all frames; where it leaves the range of the codes it costs accuracy, so the measurement decides about it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipreel.search.index import Index, Moments, among, arranged, owners, vectors_in

if TYPE_CHECKING:
    import pyarrow as pa

    from clipreel.retriever import Retriever

THRESHOLD = 200_000  # vectors; up to here the exact search takes less than 0.1 s
RECALL = 0.97  # of the ten best videos, for texts as well as for frames
GRID = tuple(product((1.0, 2.0), (1, 4)))  # stretch of the query, and how many more exact scores are looked at
FEW = 32  # files whose vectors are all read: exact, and as quick
LISTED = 4000  # files that a condition may name: more cost more than looking at more vectors
COLUMNS = ("id", "file", "level", "start_s", "end_s", "vector")
QUESTIONS = 64  # of each kind, to measure with
FACTOR = 1.5  # from one number of partitions to try to the next
SUBJECTS = ("a dog", "a woman in a red dress", "two children", "a white car", "an old man", "a crowd", "a boat", "food")
ACTIONS = (
    *("moving slowly", "seen from above", "at night", "near the water"),
    *("in a kitchen", "on a street in the city", "in close-up", "turning around"),
)


def refresh(index: Index, model: Retriever) -> dict[str, Any] | None:
    """Build, extend or drop the approximate index so that it suits the vectors, and measure it; returns its facts.

    It is built above THRESHOLD vectors and kept until half of them are left, so that it does not come and go.
    """
    rows = index.vectors.count_rows()
    fact = index.facts.get("ann")
    if rows <= (THRESHOLD // 2 if fact else THRESHOLD):
        if fact:
            index.set_facts(ann=None)  # first, so that no reader counts on what is gone
            index.guard(lambda: index.vectors.drop_index("vector_idx"))
        return None
    if not fact or not 0.5 <= rows / fact["trained"] <= 2:
        fact = {"trained": rows, "partitions": train(index, rows)}
    elif abs(rows - fact["rows"]) <= 0.1 * fact["rows"]:
        return fact  # the new vectors are in it (`Index.tidy`), and too few to change its recall
    measured = tune(index, questions(index, model), fact["partitions"])
    index.set_facts(ann={**fact, "rows": rows, **measured})
    return index.facts["ann"]


def train(index: Index, rows: int) -> int:
    """Make the index of vectors and the one of their files; returns how many partitions it has."""
    from lancedb.index import BTree, IvfSq

    partitions = max(1, round(math.sqrt(rows)))
    config = IvfSq(distance_type="l2", num_partitions=partitions, max_iterations=10, sample_rate=64)
    index.guard(lambda: index.vectors.create_index("vector", config=config))
    index.guard(lambda: index.vectors.create_index("file", config=BTree()))
    return partitions


def nearest(
    index: Index,
    vector: NDArray[np.float32],
    limit: int,
    *,
    nprobes: int,
    stretch: float,
    refine: int,
    where: str = "",
) -> pa.Table:
    """The nearest of the stored vectors in `nprobes` partitions that satisfy a condition, best first."""
    query = index.vectors.search(vector * stretch, vector_column_name="vector").distance_type("l2")
    query = query.nprobes(nprobes).limit(limit).select([*COLUMNS, "_distance"])
    if refine > 1:
        query = query.refine_factor(refine)
    if where:
        query = query.where(where, prefilter=True)
    return index.guard(lambda: query.to_arrow())


# ------------------------------------------------------------------ measuring


def questions(index: Index, model: Retriever) -> dict[str, NDArray[np.float32]]:
    """Queries to measure with: everyday texts, and stored vectors moved by noise to a cosine of about 0.9."""
    rng = np.random.default_rng(0)
    rows = index.vectors.count_rows()
    some = np.sort(rng.choice(rows, min(QUESTIONS, rows), replace=False))
    table = index.guard(lambda: index.vectors.take_offsets(some.tolist()).select(["vector"]).to_arrow())
    stored = vectors_in(table)
    frames = unit_rows(stored + 0.5 * unit_rows(rng.standard_normal(stored.shape)))
    if model.tokenizer is None:
        return {"frames": frames}
    texts = [f"{subject} {action}" for subject, action in product(SUBJECTS, ACTIONS)][:QUESTIONS]
    return {"texts": model.encode_text(texts).cpu().numpy(), "frames": frames}


def unit_rows(x: NDArray[Any]) -> NDArray[np.float32]:
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def tenth_scores(index: Index, queries: NDArray[np.float32], number: dict[str, int], k: int) -> NDArray[np.float32]:
    """The exact score of each query's k-th best file."""
    return -np.partition(-best_scores(index, queries, number), k - 1, axis=0)[k - 1]


def best_scores(index: Index, queries: NDArray[np.float32], number: dict[str, int]) -> NDArray[np.float32]:
    """The best score (V, Q) of each file with each query, over all stored vectors, read in pieces."""
    best = np.full((len(number), len(queries)), -np.inf, np.float32)
    pieces = index.guard(lambda: index.vectors.search().select(["file", "vector"]).limit(None).to_batches())
    for piece in pieces:
        owner = owners(piece, number)
        rows = np.argsort(owner, kind="stable")[(owner < 0).sum() :]
        if len(rows):
            firsts = np.flatnonzero(np.diff(owner[rows], prepend=-1))
            highest = np.maximum.reduceat(vectors_in(piece)[rows] @ queries.T, firsts)
            listed = owner[rows[firsts]]
            best[listed] = np.maximum(best[listed], highest)
    return best


def tune(index: Index, queries: dict[str, NDArray[np.float32]], partitions: int) -> dict[str, Any]:
    """The cheapest parameters whose recall@10 reaches RECALL for every kind of query, else those of the best recall."""
    source = Approximate(index, {"partitions": partitions})
    k = min(10, len(source.files))
    wanted = {name: tenth_scores(index, q, source.number, k) for name, q in queries.items()}
    tried: list[dict[str, Any]] = []
    for stretch, refine in GRID:
        nprobes = max(1, partitions // 100)
        recall: dict[str, float] = {}
        while not recall:
            how: dict[str, Any] = {"nprobes": nprobes, "stretch": stretch, "refine": refine}
            source.fact = {"partitions": partitions, **how}
            least = RECALL if nprobes < partitions else 0.0
            ms: list[float] = []
            for name, q in queries.items():
                recall[name], spent = recall_of(source, q, wanted[name], k, least)
                ms += spent
                if recall[name] < least:
                    recall, nprobes = {}, min(partitions, math.ceil(nprobes * FACTOR))
                    break
        tried.append({**how, "recall": recall, "p50_ms": float(np.median(ms))})
    good = [t for t in tried if min(t["recall"].values()) >= RECALL]
    best = min(good, key=lambda t: t["p50_ms"]) if good else max(tried, key=lambda t: min(t["recall"].values()))
    return {**best, "queries": {name: len(q) for name, q in queries.items()}}


def recall_of(
    source: Approximate, queries: NDArray[np.float32], wanted: NDArray[np.float32], k: int, least: float
) -> tuple[float, list[float]]:
    """The share of each query's best k files that is found, and milliseconds of each query.

    Files are told by their score, so equal ones count alike. It ends early, with a share below `least`, when that can
    no longer be reached.
    """
    hits, ms = [], []
    everything = np.ones(len(source.files), bool)
    for q, tenth in zip(queries, wanted, strict=True):
        started = time.perf_counter()
        found = source.moments(q, k, everything, "")
        ms.append((time.perf_counter() - started) * 1000)
        hits.append(len(np.unique(found.file[found.vectors @ q >= tenth - 1e-5])) / k)
        if len(hits) - sum(hits) > (1 - least) * len(queries):
            return least - 1, ms
    return float(np.mean(hits)), ms


# ------------------------------------------------------------------ searching


class Approximate:
    """Candidates of an index that stays on disk; only the list of files is in memory.

    `fact` are the parameters (partitions, nprobes, stretch, refine); without it those that were measured.
    """

    def __init__(self, index: Index, fact: dict[str, Any] | None = None) -> None:
        self.index, self.files = index, index.visible()
        self.fact = index.facts["ann"] if fact is None else fact
        self.number = {f.id: i for i, f in enumerate(self.files)}

    def moments(self, vector: NDArray[np.float32], k: int, allowed: NDArray[np.bool_], where: str) -> Moments:
        """Rows that hold the best moment of each of the best k allowed files, as `Index.moments` gives them.

        `where` is a condition on vectors (their time). Files are allowed by naming them in the condition if they are
        few, else by looking at more vectors. Where only the vector of a whole video was near, its segments are read.
        """
        import pyarrow as pa

        inside = np.flatnonzero(allowed)
        if len(inside) <= max(k, FEW):
            return arranged(self._rows(inside, where), self.files, self.number)
        table = self._near(vector, k, allowed, where)
        owner = owners(table, self.number)
        best: dict[int, float] = {}
        for i, score in zip(owner.tolist(), (vectors_in(table) @ vector).tolist(), strict=True):
            if i >= 0 and allowed[i]:
                best[i] = max(score, best.get(i, score))
        top = sorted(best, key=lambda i: (-best[i], i))[:k]
        cut = set(owner[table.column("level").to_numpy() == 1].tolist())
        table = table.take(np.flatnonzero(np.isin(owner, [i for i in top if i in cut]))).select(list(COLUMNS))
        whole = [i for i in top if i not in cut]
        if whole:
            table = pa.concat_tables([table, self._rows(whole, where).select(list(COLUMNS))])
        return arranged(table, self.files, self.number)

    def _rows(self, files: Sequence[int] | NDArray[np.int64], where: str) -> pa.Table:
        return self.index.rows(both(among(self.files[i].id for i in files), where))

    def _near(self, vector: NDArray[np.float32], k: int, allowed: NDArray[np.bool_], where: str) -> pa.Table:
        fact = self.fact
        share = float(allowed.mean())
        # ten of all videos were measured; the nearest of few, and more than ten, lie in more distant partitions
        wider = min(4.0, math.sqrt(max(1.0, k / 10) / share))
        nprobes = min(fact["partitions"], math.ceil(fact["nprobes"] * wider))
        limit, named = 4 * max(k, 10), self._named(allowed)
        if not named:
            limit = math.ceil(limit / share)
        while True:
            refine = fact["refine"] if limit <= 1000 else 1
            how = {"nprobes": nprobes, "stretch": fact["stretch"], "refine": refine, "where": both(named, where)}
            table = nearest(self.index, vector, limit, **how)
            found = np.unique(owners(table, self.number))
            if allowed[found[found >= 0]].sum() >= k or (len(table) < limit and nprobes == fact["partitions"]):
                return table
            nprobes = min(fact["partitions"], 4 * nprobes)
            if len(table) == limit:
                limit *= 4
            if not named and share < 1 and limit > 10_000:
                named = among(self.files[i].id for i in np.flatnonzero(allowed))

    def _named(self, allowed: NDArray[np.bool_]) -> str:
        inside, outside = np.flatnonzero(allowed), np.flatnonzero(~allowed)
        if not len(outside):
            return ""
        if len(inside) <= LISTED:
            return among(self.files[i].id for i in inside)
        return among((self.files[i].id for i in outside), without=True) if len(outside) <= LISTED else ""


def both(a: str, b: str) -> str:
    return " AND ".join(part for part in (a, b) if part)


def described(fact: dict[str, Any]) -> str:
    """What `clipreel status` says of the approximate index."""
    recall = ", ".join(f"{value:.3f} for {fact['queries'][name]} {name}" for name, value in fact["recall"].items())
    return (
        f"approximate (IVF_SQ, {fact['nprobes']} of {fact['partitions']} partitions, stretch {fact['stretch']:g}, "
        f"refine {fact['refine']}); recall@10 against exact search at {fact['rows']} vectors: {recall}; "
        f"{fact['p50_ms']:.0f} ms a query"
    )
