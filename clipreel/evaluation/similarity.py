"""Similarity matrices in blocks: texts in rows, videos in columns, never more than one block in memory.

Specification core.md 5.4, 5.5, 5.7, 6. A block asked for twice is computed from the same product of the same shape, so
it is bit-identical: a positive's score can be compared with its own row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

ROWS, COLUMNS = 2048, 4096


class Matrix(Protocol):
    """Scores of T texts with V videos."""

    shape: tuple[int, int]

    def block(self, rows: slice, columns: slice) -> Tensor:
        """The scores (rows, columns), float32 or float64, NaN already turned into -inf."""
        ...


def pieces(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def blocks(matrix: Matrix, rows: int = ROWS, columns: int = COLUMNS) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every block once, column by column of blocks."""
    for c in pieces(matrix.shape[1], columns):
        for r in pieces(matrix.shape[0], rows):
            yield r, c, matrix.block(r, c)


def without_nan(scores: Tensor) -> Tensor:
    """NaN counts as -inf, for positives and others alike."""
    return torch.where(scores.isnan(), -torch.inf, scores)


class Dense:
    """A matrix (T, V) that is there."""

    def __init__(self, scores: Tensor) -> None:
        self.scores, self.shape = scores, (scores.shape[0], scores.shape[1])

    def block(self, rows: slice, columns: slice) -> Tensor:
        return without_nan(self.scores[rows, columns])


class Cosine:
    """Dot products of text vectors (T, E) and video vectors (V, E), float32, computed when asked for."""

    def __init__(self, texts: Tensor, videos: Tensor) -> None:
        self.texts, self.videos = texts.float(), videos.float()
        self.shape = (len(texts), len(videos))

    def block(self, rows: slice, columns: slice) -> Tensor:
        return without_nan(self.texts[rows] @ self.videos[columns].T)


class Transposed:
    """The same scores with the roles exchanged."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix, self.shape = matrix, (matrix.shape[1], matrix.shape[0])

    def block(self, rows: slice, columns: slice) -> Tensor:
        return self.matrix.block(columns, rows).T


def column_logsumexp(matrix: Matrix, factor: float) -> Tensor:
    """log sum_t exp(factor s[t, v]) for every column v, float64 (V,)."""
    total = torch.full((matrix.shape[1],), -torch.inf, dtype=torch.float64)
    for _, c, s in blocks(matrix):
        total[c] = torch.logaddexp(total[c], torch.logsumexp(s.double() * factor, 0).cpu())
    return total


class DualSoftmax:
    """Scores re-weighted by a softmax over the *texts* of each column, for ranking the videos of a text (rows).

    `product` is s * softmax as CLIP-ViP computes it, float64; it is not monotone for negative scores. `softmax` ranks
    by the softmax alone (inverted softmax), here its logarithm. Needs all queries at once: transductive. For ranking
    the texts of a video use it on the transposed matrix.
    """

    def __init__(self, matrix: Matrix, form: str, factor: float = 100.0) -> None:
        if form not in ("product", "softmax"):
            raise ValueError(f"dual softmax {form!r}: allowed are 'product' and 'softmax'")
        self.matrix, self.form, self.factor, self.shape = matrix, form, factor, matrix.shape
        self.total = column_logsumexp(matrix, factor)

    def block(self, rows: slice, columns: slice) -> Tensor:
        s = self.matrix.block(rows, columns).double()
        log_p = self.factor * s - self.total[columns].to(s.device)
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
        self.matrix, self.beta, self.shape = matrix, beta, matrix.shape
        self.total = column_logsumexp(bank, beta)
        if dynamic:
            self.active = torch.zeros(matrix.shape[1], dtype=torch.bool)
            self.active[best_columns(bank)] = True
            self.normalised = self.active[best_columns(matrix)]
        else:
            self.active = torch.ones(matrix.shape[1], dtype=torch.bool)
            self.normalised = torch.ones(matrix.shape[0], dtype=torch.bool)

    def block(self, rows: slice, columns: slice) -> Tensor:
        s = self.matrix.block(rows, columns).double()
        log_p = self.beta * s - self.total[columns].to(s.device)
        return without_nan(torch.where(self.normalised[rows, None].to(s.device), log_p, s))


def best_columns(matrix: Matrix) -> Tensor:
    """The column of the highest score of each row (T,), the first of equal ones."""
    best = torch.full((matrix.shape[0],), -torch.inf, dtype=torch.float64)
    where = torch.zeros(matrix.shape[0], dtype=torch.long)
    for r, c, s in blocks(matrix):
        top = s.double().max(1).values.cpu()
        # max does not say which of equal entries it found; the first is asked for
        first = (s.double() == top[:, None].to(s.device)).int().argmax(1).cpu() + c.start
        better = top > best[r]
        best[r] = torch.where(better, top, best[r])
        where[r] = torch.where(better, first, where[r])
    return where
