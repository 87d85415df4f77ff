"""Similarity matrices in blocks: texts in rows, videos in columns, never more than a fixed share of them in memory.

Specification core.md 5.4, 5.5, 5.7, 6. A block asked for twice is the same product of the same shape, so it is
bit-identical: a positive's score can be compared with its own row. All blocks of a matrix have nearly the same shape,
because a product with a narrow remainder runs through another kernel whose last bits differ, and then two equal
captions no longer tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

ROWS, COLUMNS = 1024, 1024  # 4 MB: larger ones are mapped and cleared anew for every temporary, and take twice the time
KEPT = 2**26  # scores that a Cosine may keep instead of computing them again: 256 MB


class Matrix(Protocol):
    """Scores of T texts with V videos."""

    shape: tuple[int, int]
    device: torch.device

    def block(self, rows: slice, columns: slice) -> Tensor:
        """The scores (rows, columns), float32 or float64, NaN already turned into -inf; not to be written to."""
        ...


def pieces(length: int, step: int) -> list[slice]:
    """0..length in equal pieces (to within one) of at most `step`."""
    count = -(-length // step)
    return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]


def blocks(matrix: Matrix, rows: int = ROWS, columns: int = COLUMNS) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every block once, column by column of blocks."""
    for c in pieces(matrix.shape[1], columns):
        for r in pieces(matrix.shape[0], rows):
            yield r, c, matrix.block(r, c)


def without_nan(scores: Tensor) -> Tensor:
    """NaN counts as -inf, for positives and others alike."""
    return torch.where(scores.isnan(), -torch.inf, scores)


class Dense:
    """A matrix (T, V) that is there; -inf may stand for "no score", +inf raises ValueError."""

    def __init__(self, scores: Tensor) -> None:
        scores = scores if scores.is_floating_point() else scores.double()
        if bool((scores == torch.inf).any()):
            raise ValueError("the scores contain +inf; find what overflowed, or clip them to a finite value")
        self.scores, self.shape, self.device = scores, (scores.shape[0], scores.shape[1]), scores.device

    def block(self, rows: slice, columns: slice) -> Tensor:
        return without_nan(self.scores[rows, columns])


def broken_rows(features: Tensor) -> Tensor:
    """Rows that have no direction: NaN, inf, or too large to be squared in float32 (N,) bool."""
    return ~features.float().square().sum(1).isfinite()


class Cosine:
    """Dot products of text vectors (T, E) and video vectors (V, E), float32, computed when asked for.

    Broken vectors score -inf with everything. The first `KEPT` scores are kept, so that small matrices are computed
    once; memory is bounded by that and one block, whatever T x V.
    """

    def __init__(self, texts: Tensor, videos: Tensor) -> None:
        videos = videos.to(texts.device)
        self.bad_texts, self.bad_videos = broken_rows(texts), broken_rows(videos)
        self.texts, self.videos = self._usable(texts, self.bad_texts), self._usable(videos, self.bad_videos)
        self.shape, self.device = (len(texts), len(videos)), texts.device
        self._kept: dict[tuple[int, int, int, int], Tensor] = {}
        self._free = KEPT

    @staticmethod
    def _usable(features: Tensor, bad: Tensor) -> Tensor:
        return features.float().masked_fill(bad[:, None], 0.0) if bad.any() else features.float()

    def block(self, rows: slice, columns: slice) -> Tensor:
        key = rows.start, rows.stop, columns.start, columns.stop
        if key in self._kept:
            return self._kept[key]
        s = self.texts[rows] @ self.videos[columns].T
        s[self.bad_texts[rows]] = -torch.inf
        s[:, self.bad_videos[columns]] = -torch.inf
        if s.numel() <= self._free:
            self._kept[key] = s
            self._free -= s.numel()
        return s


class Transposed:
    """The same scores with the roles exchanged."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix, self.shape, self.device = matrix, (matrix.shape[1], matrix.shape[0]), matrix.device

    def block(self, rows: slice, columns: slice) -> Tensor:
        return self.matrix.block(columns, rows).T


def column_logsumexp(matrix: Matrix, factor: float) -> Tensor:
    """log sum_t exp(factor s[t, v]) for every column v, float64 (V,)."""
    total = torch.full((matrix.shape[1],), -torch.inf, dtype=torch.float64, device=matrix.device)
    for _, c, s in blocks(matrix):
        total[c] = torch.logaddexp(total[c], torch.logsumexp(s.double() * factor, 0))
    return total


class DualSoftmax:
    """Scores re-weighted by a softmax over the *texts* of each column, for ranking the videos of a text (rows).

    `product` is s * softmax(factor * s) as CLIP-ViP computes it, float64; it is not monotone for negative scores.
    `softmax` ranks by the softmax alone (inverted softmax), here its logarithm. Needs all queries at once:
    transductive. For ranking the texts of a video use it on the transposed matrix.
    """

    def __init__(self, matrix: Matrix, form: str, factor: float = 100.0) -> None:
        if form not in ("product", "softmax"):
            raise ValueError(f"dual softmax {form!r}: allowed are 'product' and 'softmax'")
        self.matrix, self.form, self.factor = matrix, form, factor
        self.shape, self.device = matrix.shape, matrix.device
        self.total = column_logsumexp(matrix, factor)

    def block(self, rows: slice, columns: slice) -> Tensor:
        s = self.matrix.block(rows, columns).double()
        log_p = self.factor * s - self.total[columns]
        return without_nan(log_p if self.form == "softmax" else s * log_p.exp())


class QueryBank:
    """Query-bank normalisation (QB-Norm) of text rows by a bank of other texts; logarithms, so nothing overflows.

    `dynamic` normalises only rows whose best video is the best of some bank text (the published form) and leaves the
    others as they are; otherwise all rows are (static inverted softmax). Each query is treated alone, so a live query
    can use it. Rows only: for the texts of a video use a bank of videos on the transposed matrix.
    """

    def __init__(self, matrix: Matrix, bank: Matrix, beta: float = 20.0, dynamic: bool = True) -> None:
        if bank.shape[1] != matrix.shape[1]:
            raise ValueError(f"the bank has scores for {bank.shape[1]} videos, the matrix for {matrix.shape[1]}")
        if not bank.shape[0]:
            raise ValueError("the bank is empty; give captions of the training split that are not test queries")
        self.matrix, self.beta, self.shape, self.device = matrix, beta, matrix.shape, matrix.device
        total = column_logsumexp(bank, beta)
        # a video without one bank score cannot be normalised; dividing by its zero would put it first everywhere
        self.total = total.masked_fill(total == -torch.inf, torch.inf)
        self.active = torch.full((matrix.shape[1],), not dynamic, device=matrix.device)
        self.normalised = torch.full((matrix.shape[0],), not dynamic, device=matrix.device)
        if dynamic:
            self.active[best_columns(bank)] = True
            self.normalised = self.active[best_columns(matrix)]

    def block(self, rows: slice, columns: slice) -> Tensor:
        s = self.matrix.block(rows, columns).double()
        log_p = self.beta * s - self.total[columns]
        return without_nan(torch.where(self.normalised[rows, None], log_p, s))


def best_columns(matrix: Matrix) -> Tensor:
    """The column of the highest score of each row (T,), the first of equal ones."""
    best: Tensor | None = None
    where = torch.zeros(matrix.shape[0], dtype=torch.long, device=matrix.device)
    for r, c, s in blocks(matrix):
        if best is None:
            best = torch.full((matrix.shape[0],), -torch.inf, dtype=s.dtype, device=matrix.device)
        top = s.max(1).values
        # max does not say which of equal entries it found; the first is asked for
        first = (s == top[:, None]).byte().argmax(1) + c.start
        better = top > best[r]
        best[r] = torch.where(better, top, best[r])
        where[r] = torch.where(better, first, where[r])
    return where
