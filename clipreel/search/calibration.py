"""What a score means: how it stands among the scores that the queries of a bank reach with the same video.

For each video the bank's scores are kept beside the vectors, so that one live query costs a look-up. Ranking by the
bank is query-bank normalisation with the dynamic inverted softmax (specification core.md 5.5), in the log domain. Dual
softmax is not offered here: it needs all queries of a test set at once, and that each video answers exactly one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipreel.errors import ClipreelError
from clipreel.search.ann import best_scores
from clipreel.search.bank import Bank, general
from clipreel.search.index import File, Index

if TYPE_CHECKING:
    import pyarrow as pa

    from clipreel.retriever import Retriever

TABLE, VECTORS = "calibration", "bank"
FACT = "calibration"
BETA = 20.0  # of the softmax over the bank, for cosines
FALSE_ALARM = 0.05
AT_ONCE = 32  # queries that are encoded together
LOOKED_AT = 50  # best videos of a query, among which the most unusual score decides whether anything matches
STRONG = 1.0  # standard deviations above the cut-off
WEAK = 0.95  # share of the bank below which a score is nothing special

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """Statistics of the bank's scores for V files, NaN for those that came later: their `mean`, `std`, the log of the
    sum of exp(BETA score), the `scores` themselves in ascending order (V, B), and whether a query of the bank likes
    the file best. `fact` says how it was made."""

    mean: Array
    std: Array
    log_sum: Array
    active: NDArray[np.bool_]
    scores: NDArray[np.float16]
    fact: dict[str, Any]

    @classmethod
    def read(cls, index: Index, files: Sequence[File]) -> Calibration | None:
        """That of an index for these files, None where it has none."""
        fact = index.facts.get(FACT)
        if fact is None or TABLE not in index._names():
            return None
        table = index.guard(lambda: index.db.open_table(TABLE).to_arrow())
        if not len(table):
            return None
        row = {f: i for i, f in enumerate(table.column("file").to_pylist())}
        place = np.array([row.get(f.id, -1) for f in files], np.int64)
        known = place >= 0

        def column(name: str) -> Array:
            return np.where(known, table.column(name).to_numpy()[place], np.nan).astype(np.float32)

        flat = table.column("scores").combine_chunks()
        stored = flat.values.to_numpy(zero_copy_only=False).reshape(len(flat), -1)
        scores = np.full((len(files), stored.shape[1]), np.nan, np.float16)
        scores[known] = stored[place[known]]
        active = known & (table.column("active").to_numpy(zero_copy_only=False)[place])
        return cls(column("mean"), column("std"), column("log_sum"), active, scores, fact)

    def meanings(self, file: int, scores: Sequence[float]) -> list[dict[str, Any]]:
        """What scores of a file mean: `unusual`, the share of the bank's queries that score lower for it, and `words`
        (strong, good or weak match, unlikely); None and unrated for a file that is not calibrated. `apart` is for
        queries that are no text (spread.py)."""
        mean, std = float(self.mean[file]), float(self.std[file])
        if not math.isfinite(mean):
            return [{"unusual": None, "words": "unrated", "apart": None}] * len(scores)
        count = self.scores.shape[1]
        shares = [n / count for n in self.scores[file].searchsorted(np.array(scores, np.float16)).tolist()]
        above = [(score - mean) / std - self.fact["cutoff"] for score in scores]
        return [{"unusual": u, "words": words(a, u), "apart": None} for u, a in zip(shares, above, strict=True)]

    def matching(self, best: Array) -> int:
        """How many files are a good or strong match by their best scores (V,), -inf where a file is left out."""
        return int(((best - self.mean) / self.std >= self.fact["cutoff"]).sum())

    def matches(self, best: Array) -> bool:
        """Whether anything matches a query with these best scores of all files (V,), -inf where a file is left out."""
        top = most_unusual(best[None], self.mean, self.std)[0]
        return not math.isfinite(top) or bool(top >= self.fact["cutoff"])

    def keys(self, best: Array) -> Array:
        """What a ranking by the bank sorts by (V,): only where the best file is one that the bank likes."""
        if not np.isfinite(best).any() or not self.active[int(np.argmax(best))]:
            return best
        usual = np.nanmean(self.log_sum) if np.isfinite(self.log_sum).any() else 0.0
        return BETA * best - np.where(np.isfinite(self.log_sum), self.log_sum, usual).astype(np.float32)


def words(above: float, share: float) -> str:
    """A score in words, which lies so many deviations above the cut-off and above this share of the bank."""
    if above >= STRONG:
        return "strong match"
    return "good match" if above >= 0 else "weak match" if share >= WEAK else "unlikely"


def most_unusual(best: Array, mean: Array, std: Array) -> Array:
    """For queries with best scores (Q, V): the highest deviation among each one's LOOKED_AT best files, and those that
    score as the last of them does."""
    count = min(LOOKED_AT, best.shape[1])
    if not count:
        return np.full(len(best), np.nan, np.float32)
    least = np.partition(best, -count, axis=1)[:, -count, None]
    with np.errstate(invalid="ignore"):
        above = (best - mean) / std
    return np.where(np.isfinite(above) & (best >= least), above, -np.inf).max(1)


def calibrate(
    index: Index,
    model: Retriever,
    bank: Bank | None = None,
    false_alarm: float = FALSE_ALARM,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any] | None:
    """Compare every video with the bank (default: the general one) and keep that; returns the fact it is known by.

    One half of the queries that nothing answers sets the cut-off so that a share of `false_alarm` lies above it, the
    other half measures what share does. `progress` is told how many queries are encoded. None for an index without
    videos or a model without a vocabulary.
    """
    from clipreel.search.indexer import check_space

    check_space(index, model)
    if not 0 < false_alarm < 1:
        raise ClipreelError(f"a false-alarm rate of {false_alarm}: give a share between 0 and 1, such as {FALSE_ALARM}")
    bank = bank or general()
    files = index.visible()
    if not files or model.tokenizer is None:
        return None
    with index.writing():
        queries = encoded(index, model, bank, progress)
        number = {f.id: i for i, f in enumerate(files)}
        best = best_scores(index, queries, number)
        ours, others = best[:, : len(bank.texts)], best[:, len(bank.texts) :]
        mean, std = ours.mean(1), np.maximum(ours.std(1), 1e-4)
        nothing = most_unusual((others if others.size else ours).T, mean, std)
        fitting, held_out = nothing[::2], nothing[1::2]
        cutoff = float(np.quantile(fitting, 1 - false_alarm, method="higher"))
        fact = {
            "bank": bank.name,
            "fingerprint": bank.fingerprint,
            "queries": len(bank.texts),
            "beta": BETA,
            "cutoff": cutoff,
            "false_alarm": false_alarm,
            "measured": float((held_out >= cutoff).mean()),
            "held_out": len(held_out),
            "videos": len(files),
        }
        index.replace_table(TABLE, table_of(files, ours, mean, std))
        index.set_facts(**{FACT: fact})
    return fact


def table_of(files: Sequence[File], scores: Array, mean: Array, std: Array) -> pa.Table:
    import pyarrow as pa

    highest = scores.max(1, keepdims=True)
    log_sum = highest[:, 0] * BETA + np.log(np.exp(BETA * (scores - highest)).sum(1))
    active = np.zeros(len(files), bool)
    active[scores.argmax(0)] = True
    flat = np.sort(scores, 1).astype(np.float16)
    return pa.table(
        {
            "file": [f.id for f in files],
            "mean": mean.astype(np.float32),
            "std": std.astype(np.float32),
            "log_sum": log_sum.astype(np.float32),
            "active": active,
            "scores": pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1]),
        }
    )


def encoded(index: Index, model: Retriever, bank: Bank, progress: Callable[[int, int], None]) -> Array:
    """Vectors of the bank's queries, then of those that nothing answers; kept in the index for the next time."""
    import pyarrow as pa

    texts = [*bank.texts, *bank.absent]
    if VECTORS in index._names() and index.facts.get(FACT, {}).get("fingerprint") == bank.fingerprint:
        kept = index.guard(lambda: index.db.open_table(VECTORS).to_arrow().column("vector").combine_chunks())
        if len(kept) == len(texts):
            return np.asarray(kept.values.to_numpy(zero_copy_only=False).reshape(len(texts), -1), np.float32)
    parts = []
    for i in range(0, len(texts), AT_ONCE):
        parts.append(model.encode_text(texts[i : i + AT_ONCE], strip_special=True).cpu().numpy())
        progress(min(i + AT_ONCE, len(texts)), len(texts))
    vectors = np.concatenate(parts).astype(np.float32)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    index.replace_table(VECTORS, pa.table({"vector": rows}))
    return vectors


def described(fact: dict[str, Any] | None) -> str:
    """What `clipreel status` says of it."""
    if fact is None:
        return "not calibrated: scores are bare cosines; clipreel index calibrates"
    return (
        f"calibrated for {fact['videos']} videos with the bank {fact['bank']} ({fact['queries']} queries); "
        f'"nothing matches" below {fact["cutoff"]:.2f} deviations: false alarms {fact["measured"]:.1%} of '
        f"{fact['held_out']} held-out queries (aimed at {fact['false_alarm']:.0%})"
    )
