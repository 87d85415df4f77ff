"""Ranks by counting what scores higher and what scores the same, with a rule for ties that cannot be gamed.

Specification core.md 5.1-5.3 and 6; checked by brute force, and against six official codes where no ties exist.
Differs from all of them in ties and NaN, which they count by accident.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipreel.evaluation.similarity import COLUMNS, ROWS, Dense, Matrix, pieces

PROTOCOLS = ("caption", "video")
GROUPED = 2**25  # entries of the (videos, columns) table of best captions per block: 128 MB


@dataclass(frozen=True)
class Ranks:
    """Per query: `above` non-positives that score higher than the best positive, `tied` that score the same, and
    `best` positives that share the best score. All int64 (Q,), on the CPU."""

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
        """Probability that the best positive is among the first k, over all orders of the tied block (Q,) float64."""
        left = (k - self.above).double()
        miss = torch.ones_like(left)
        for j in range(1, int(self.best.max()) + 1 if len(self.best) else 1):
            share = ((self.tied - left + j) / (self.tied + j)).clamp(0, 1)
            miss = torch.where(self.best >= j, miss * share, miss)
        return torch.where(left <= 0, 0.0, torch.where(left > self.tied, 1.0, 1 - miss))


@dataclass(frozen=True)
class Positives:
    """The right pairs: text `texts[i]` belongs to video `videos[i]`, int64 (P,). Several per text or video are fine,
    none is not."""

    texts: Tensor
    videos: Tensor


def one_video_each(truth: Tensor) -> Positives:
    """Text t belongs to video truth[t]."""
    return Positives(torch.arange(len(truth), device=truth.device), truth)


def merged(truth: Tensor, texts: Sequence[str]) -> Positives:
    """Equal strings belong to all videos that any of them belongs to."""
    if len(texts) != len(truth):
        raise ValueError(f"{len(truth)} texts have a video, but {len(texts)} strings are given")
    owners: dict[str, dict[int, None]] = {}
    for text, video in zip(texts, truth.tolist(), strict=True):
        owners.setdefault(text, {})[video] = None
    pairs = [(t, v) for t, text in enumerate(texts) for v in owners[text]]
    both = torch.tensor(pairs, dtype=torch.long, device=truth.device).view(-1, 2)
    return Positives(both[:, 0], both[:, 1])


def rank_texts(matrix: Matrix, truth: Tensor | Positives, rows: int = ROWS, columns: int = COLUMNS) -> Ranks:
    """Each text's rank of its video `truth[t]` among all videos (text to video)."""
    return rank(matrix, truth, True, None, rows, columns)[0]


def rank_videos(
    matrix: Matrix, truth: Tensor | Positives, protocol: str = "caption", rows: int = ROWS, columns: int = COLUMNS
) -> Ranks:
    """Each video's rank of its own captions (video to text), by one of two protocols; see `rank`."""
    return rank(matrix, truth, False, protocol, rows, columns)[1]


def rank(
    matrix: Matrix,
    truth: Tensor | Positives,
    t2v: bool = True,
    v2t: str | None = "caption",
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> tuple[Ranks, Ranks]:
    """Ranks of both directions (text to video, video to text) from two passes over the blocks; one not asked for is
    empty.

    `truth` (T,) names the video of each text. Protocol of `v2t`: `caption`: the gallery is all captions and own ones
    never count against each other (QB-Norm, CE); `video`: a video is scored by its best caption and the gallery is
    the videos (CLIP4Clip, X-Pool, MV-Adapter). Every video needs a caption to be a query there.
    """
    positives = one_video_each(truth) if isinstance(truth, Tensor) else truth
    positives = Positives(positives.texts.to(matrix.device), positives.videos.to(matrix.device))
    check(matrix, positives, v2t)
    texts, videos = matrix.shape
    grouped = v2t == "video" and len(positives.texts) > videos
    if grouped:
        columns = max(1, min(columns, GROUPED // videos))
    score = positive_scores(matrix, positives, rows, columns)
    by_text = _Counter(score, positives.texts, texts) if t2v else None
    by_video = _Counter(score, positives.videos, videos) if v2t else None
    for c in pieces(videos, columns):
        group = score.new_full((videos, c.stop - c.start), -torch.inf) if grouped else None
        for r in pieces(texts, rows):
            s = matrix.block(r, c)
            if by_text:
                by_text.add(r, s, 1)
            if group is not None:
                owner = positives.videos[r, None].expand(-1, s.shape[1])
                group.scatter_reduce_(0, owner, s, "amax")
            elif by_video:
                by_video.add(c, s, 0)
        if group is not None and by_video:
            by_video.add(c, group, 0)
    if by_video and grouped:
        by_video.best.fill_(1)  # the gallery is videos: one of them is right
    empty = torch.empty(0, dtype=torch.long)
    return (
        by_text.ranks(videos) if by_text else Ranks(empty, empty, empty, videos),
        by_video.ranks(videos if grouped else texts) if by_video else Ranks(empty, empty, empty, texts),
    )


class _Counter:
    """Counts scores above and equal to the best positive of each query."""

    def __init__(self, score: Tensor, query: Tensor, queries: int) -> None:
        self.own = score.new_full((queries,), -torch.inf).scatter_reduce(0, query, score, "amax")
        self.best = torch.zeros(queries, dtype=torch.long, device=score.device)
        self.best.index_add_(0, query, (score == self.own[query]).long())
        self.above, self.equal = torch.zeros_like(self.best), torch.zeros_like(self.best)

    def add(self, queries: slice, scores: Tensor, gallery_dim: int) -> None:
        own = self.own[queries].unsqueeze(gallery_dim)
        self.above[queries] += (scores > own).sum(gallery_dim)
        self.equal[queries] += (scores == own).sum(gallery_dim)

    def ranks(self, gallery: int) -> Ranks:
        # a positive ties with itself
        return Ranks(self.above.cpu(), (self.equal - self.best).cpu(), self.best.cpu(), gallery)


def check(matrix: Matrix, positives: Positives, v2t: str | None) -> None:
    texts, videos = matrix.shape
    if v2t is not None and v2t not in PROTOCOLS:
        raise ValueError(f"protocol {v2t!r}: allowed are {', '.join(PROTOCOLS)}")
    outside = (positives.videos < 0) | (positives.videos >= videos)
    if outside.any():
        text = int(positives.texts[outside][0])
        raise ValueError(f"videos are numbered 0..{videos - 1}; text {text} is not with one of them")
    have = torch.bincount(positives.texts, minlength=texts)
    if len(have) != texts or not have.all():
        raise ValueError(f"{texts} texts, but {int((have > 0).sum())} of them have a video given")
    if v2t:
        silent = torch.bincount(positives.videos, minlength=videos) == 0
        if silent.any():
            raise ValueError(
                f"video {int(silent.byte().argmax())} has no caption, so it cannot be a query; leave it out"
            )
        if v2t == "video" and len(positives.texts) != texts:
            raise ValueError("protocol 'video' needs texts that belong to one video each; use 'caption'")


def positive_scores(matrix: Matrix, positives: Positives, rows: int, columns: int) -> Tensor:
    """s[text, video] of every positive (P,), from the same blocks that are counted later, so that own entries compare
    equal: a separate dot product can differ in its last bit and would count as better than itself."""
    score: Tensor | None = None
    in_rows = [_inside(positives.texts, r) for r in pieces(matrix.shape[0], rows)]
    for c in pieces(matrix.shape[1], columns):
        in_columns = _inside(positives.videos, c)
        for r, in_row in zip(pieces(matrix.shape[0], rows), in_rows, strict=True):
            at = (in_row & in_columns).nonzero()[:, 0]
            if not len(at):
                continue
            s = matrix.block(r, c)
            if score is None:
                score = s.new_empty(len(positives.texts))
            score[at] = s[positives.texts[at] - r.start, positives.videos[at] - c.start]
    return torch.empty(0, device=matrix.device) if score is None else score


def _inside(index: Tensor, piece: slice) -> Tensor:
    return (index >= piece.start) & (index < piece.stop)


def order_blind(groups: Sequence[Hashable]) -> tuple[Ranks, Ranks]:
    """Ranks of the best model that cannot tell apart the members of a group: the upper bound where groups hold videos
    with the same frames in another order. One caption per video; `groups[i]` is the group of video i.

    >>> order_blind(["left", "left", "still"])[0].hit_rate(1).tolist()
    [0.5, 0.5, 1.0]
    """
    number = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    group = torch.tensor([number[g] for g in groups])
    return rank(Dense((group[:, None] == group[None]).float()), torch.arange(len(group)))
