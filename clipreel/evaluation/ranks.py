"""Ranks by counting what scores higher and what scores the same, with a rule for ties that cannot be gamed.

Specification core.md 5.1-5.3 and 6; checked by brute force and against six official codes where no ties exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipreel.evaluation.similarity import COLUMNS, ROWS, Dense, Matrix, pieces

PROTOCOLS = ("caption", "video")


@dataclass(frozen=True)
class Ranks:
    """Per query: `above` non-positives that score higher than the best positive, `tied` that score the same, and
    `best` positives that share the best score. All int64 (Q,)."""

    above: Tensor
    tied: Tensor
    best: Tensor
    gallery: int

    def expected(self) -> Tensor:
        """Mean rank over all orders of the tied block, from 1."""
        return self.above + (self.tied + self.best + 1) / (self.best + 1)

    def pessimistic(self) -> Tensor:
        """The rank when every tie is lost."""
        return 1 + self.above + self.tied

    def optimistic(self) -> Tensor:
        """The rank when every tie is won: for comparison with other codes only, never reported."""
        return 1 + self.above

    def hit_rate(self, k: int) -> Tensor:
        """Probability that the best positive is among the first k, over all orders of the tied block."""
        left = (k - self.above).double()
        miss = torch.ones_like(left)
        for j in range(1, int(self.best.max()) + 1 if len(self.best) else 1):
            share = ((self.tied - left + j) / (self.tied + j)).clamp(0, 1)
            miss = torch.where(self.best >= j, miss * share, miss)
        return torch.where(left <= 0, 0.0, torch.where(left > self.tied, 1.0, 1 - miss))


def rank_texts(matrix: Matrix, truth: Tensor, rows: int = ROWS, columns: int = COLUMNS) -> Ranks:
    """Each text's rank of its video `truth[t]` among all videos (text to video)."""
    check(matrix, truth)
    score = positive_scores(matrix, truth, rows, columns)
    above, tied = (torch.zeros(len(truth), dtype=torch.long) for _ in range(2))
    for r in pieces(matrix.shape[0], rows):
        own = score[r, None]
        for c in pieces(matrix.shape[1], columns):
            s = matrix.block(r, c)
            mine = own.to(s)
            above[r] += (s > mine).sum(1).cpu()
            tied[r] += (s == mine).sum(1).cpu()
    return Ranks(above, tied - 1, torch.ones_like(above), matrix.shape[1])  # the own entry ties with itself


def rank_videos(
    matrix: Matrix, truth: Tensor, protocol: str = "caption", rows: int = ROWS, columns: int = COLUMNS
) -> Ranks:
    """Each video's rank of its own captions (video to text).

    Protocol `caption`: the gallery is all captions and own ones never count against each other (QB-Norm, CE);
    `video`: a video is scored by its best caption and the gallery is the videos (CLIP4Clip, X-Pool, MV-Adapter).
    Every video needs a caption.
    """
    check(matrix, truth)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: allowed are {', '.join(PROTOCOLS)}")
    videos = matrix.shape[1]
    silent = torch.bincount(truth, minlength=videos) == 0
    if silent.any():
        raise ValueError(f"video {int(silent.int().argmax())} has no caption, so it cannot be a query; leave it out")
    score = positive_scores(matrix, truth, rows, columns)
    own = torch.full((videos,), -torch.inf, dtype=score.dtype).scatter_reduce(0, truth, score, "amax")
    best = torch.zeros(videos, dtype=torch.long).index_add(0, truth, (score == own[truth]).long())
    above, tied = (torch.zeros(videos, dtype=torch.long) for _ in range(2))
    for c in pieces(videos, columns):
        mine = own[c]
        group = torch.full((videos, mine.numel()), -torch.inf, dtype=score.dtype) if protocol == "video" else None
        for r in pieces(matrix.shape[0], rows):
            s = matrix.block(r, c)
            if group is None:
                here = mine.to(s)
                above[c] += (s > here).sum(0).cpu()
                tied[c] += (s == here).sum(0).cpu()
            else:
                index = truth[r, None].expand(-1, s.shape[1])
                group.scatter_reduce_(0, index, s.cpu().to(group.dtype), "amax")
        if group is not None:
            above[c] = (group > mine).sum(0)
            tied[c] = (group == mine).sum(0)
    if protocol == "video":
        return Ranks(above, tied - 1, torch.ones_like(above), videos)
    return Ranks(above, tied - best, best, matrix.shape[0])


def check(matrix: Matrix, truth: Tensor) -> None:
    texts, videos = matrix.shape
    if len(truth) != texts:
        raise ValueError(f"{texts} texts, but {len(truth)} of them have a video given")
    if texts and (truth.min() < 0 or truth.max() >= videos):
        raise ValueError(
            f"videos are numbered 0..{videos - 1}; text {int(((truth < 0) | (truth >= videos)).int().argmax())} is not"
        )


def positive_scores(matrix: Matrix, truth: Tensor, rows: int, columns: int) -> Tensor:
    """s[t, truth[t]] from the same blocks that are counted later, so that own entries compare equal (T,)."""
    score: Tensor | None = None
    for r in pieces(matrix.shape[0], rows):
        for c in pieces(matrix.shape[1], columns):
            inside = (truth[r] >= c.start) & (truth[r] < c.stop)
            if not inside.any():
                continue
            s = matrix.block(r, c)
            if score is None:
                score = torch.full((len(truth),), -torch.inf, dtype=s.dtype)
            at = inside.nonzero()[:, 0]
            score[r.start + at] = s[at.to(s.device), (truth[r][at] - c.start).to(s.device)].cpu()
    return torch.empty(0) if score is None else score


def order_blind(groups: Sequence[object]) -> tuple[Ranks, Ranks]:
    """Ranks of the best model that cannot tell apart the members of a group: the upper bound where groups hold videos
    with the same frames in another order. One caption per video; `groups[i]` is the group of video i."""
    number = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    group = torch.tensor([number[g] for g in groups])
    scores = Dense((group[:, None] == group[None]).float())
    truth = torch.arange(len(group))
    return rank_texts(scores, truth), rank_videos(scores, truth)
