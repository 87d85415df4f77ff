"""Recall, median and mean rank of both directions, under the expected rule for ties (specification core.md 5)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipreel.errors import ClipreelError
from clipreel.evaluation.protocol import Stamp
from clipreel.evaluation.ranks import Ranks, merged, rank
from clipreel.evaluation.similarity import Cosine, Dense, DualSoftmax, Matrix, QueryBank, Transposed

if TYPE_CHECKING:
    from clipreel.evaluation.features import Features

KS = (1, 5, 10, 50)
SCHEMA = 1  # of the JSON form of a result
DUAL_SOFTMAX = ("softmax", "product", "released")


def measures(ranks: Ranks) -> dict[str, Any]:
    """R@k in per cent, MdR, MnR, SumR (R@1 + R@5 + R@10 of this direction), GeoMean of the same three, the numbers of
    queries and gallery items, how many queries have ties, and if any, the values when every tie is lost."""
    found: dict[str, Any] = {f"R@{k}": 100 * ranks.hit_rate(k).mean().item() for k in KS}
    found.update(_summary(found, ranks.expected()))
    tied = int((ranks.tied > 0).sum())
    found.update(queries=len(ranks.above), gallery=ranks.gallery, tied=tied)
    if tied:
        lost = ranks.pessimistic()
        worst = {f"R@{k}": 100 * (lost <= k).double().mean().item() for k in KS}
        found["pessimistic"] = {**worst, **_summary(worst, lost)}
    return found


def _summary(recalls: Mapping[str, float], ranks: Tensor) -> dict[str, float]:
    first = [recalls[f"R@{k}"] for k in (1, 5, 10)]
    ordered, n = ranks.double().sort().values, len(ranks)
    return {
        "MdR": ordered[[(n - 1) // 2, n // 2]].mean().item() if n else math.nan,
        "MnR": ordered.mean().item(),
        "SumR": sum(first),
        "GeoMean": math.prod(first) ** (1 / 3),
    }


@dataclass
class Result:
    """Both directions, the ranks they come from, and the protocol under which they may be compared.

    `non_finite` counts scores (pairs) that were not numbers and so count as missed; `failed_texts` and `failed_videos`
    are the numbers of the vectors that caused it. `merged` is the same with equal captions taken as one, v2t by
    protocol "caption": beside the headline, never instead of it. `ranks` and `features` are what it was made of.
    """

    t2v: dict[str, Any]
    v2t: dict[str, Any]
    stamp: Stamp
    non_finite: int = 0
    failed_texts: tuple[int, ...] = ()
    failed_videos: tuple[int, ...] = ()
    merged: dict[str, dict[str, Any]] | None = None
    ranks: tuple[Ranks, Ranks] | None = field(default=None, repr=False)
    features: Features | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"schema": SCHEMA, "t2v": self.t2v, "v2t": self.v2t, "non_finite": self.non_finite}
        out.update(failed_texts=list(self.failed_texts), failed_videos=list(self.failed_videos))
        if self.merged is not None:
            out["merged"] = self.merged
        return {**out, "stamp": self.stamp.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The result of `to_dict` again, without its ranks and features. Raises ClipreelError for anything else."""
        if data.get("schema") != SCHEMA or not {"t2v", "v2t", "stamp"} <= set(data):
            raise ClipreelError(
                f"this is no result of clipreel evaluate (schema {data.get('schema')!r}, this version reads {SCHEMA}); "
                "evaluate again"
            )
        failed = tuple(data.get("failed_texts", ())), tuple(data.get("failed_videos", ()))
        stamp, non_finite = Stamp.from_dict(data["stamp"]), data.get("non_finite", 0)
        return cls(data["t2v"], data["v2t"], stamp, non_finite, *failed, data.get("merged"))


@dataclass(frozen=True)
class Processed:
    """The scores that each direction is ranked by, and how the stamp names what was done to them."""

    texts: Matrix
    videos: Matrix
    name: str = "none"
    transductive: bool = False


def evaluate(
    texts: Tensor,
    videos: Tensor,
    text_to_video: Tensor | None = None,
    *,
    stamp: Stamp | None = None,
    v2t: str = "caption",
    dual_softmax: str | None = None,
    factor: float = 100.0,
    text_bank: Tensor | None = None,
    video_bank: Tensor | None = None,
    beta: float = 20.0,
    dynamic: bool = True,
    merge_identical_texts: Sequence[str] | None = None,
) -> Result:
    """Retrieval numbers of unit vectors `texts` (T, E) and `videos` (V, E), in float32 on the device of `texts`.

    Args:
        text_to_video: the video of each text (T,); default: text i belongs to video i.
        stamp: how the vectors were made; post-processing and caption mode are filled in here.
        v2t: gallery of the direction video to text, "caption" or "video" (see `ranks.rank`).
        dual_softmax: "softmax", "product" (CLIP-ViP's formula with the right twin for v2t) or "released" (CLIP-ViP's
            code, which ranks v2t by the matrix made for t2v); `factor` multiplies the scores in it. Transductive.
        text_bank, video_bank: other texts and videos (B, E) for query-bank normalisation of t2v and v2t; `beta` is
            its inverse temperature; not `dynamic`: normalise every query.
        merge_identical_texts: the strings of the texts; adds `Result.merged`.

    A vector that could not be made is a row of NaN: its queries count as missed and are reported. Memory does not grow
    with T x V: 50,000 x 50,000 needs less than 1 GB beside the vectors. Raises ValueError for wrong shapes or names.

    >>> evaluate(torch.eye(3), torch.eye(3)).t2v["R@1"]
    100.0
    """
    plain = Cosine(texts, videos)
    bank_texts = None if text_bank is None else Cosine(text_bank.to(plain.device), videos)
    bank_videos = None if video_bank is None else Cosine(video_bank.to(plain.device), texts)
    done = _process(plain, dual_softmax, factor, bank_texts, bank_videos, beta, dynamic)
    result = _evaluate(done, text_to_video, stamp, v2t, merge_identical_texts)
    bad_texts, bad_videos = plain.bad_texts.nonzero()[:, 0].tolist(), plain.bad_videos.nonzero()[:, 0].tolist()
    good = (len(texts) - len(bad_texts)) * (len(videos) - len(bad_videos))
    non_finite = len(texts) * len(videos) - good
    return replace(result, non_finite=non_finite, failed_texts=tuple(bad_texts), failed_videos=tuple(bad_videos))


def evaluate_similarity(
    scores: Tensor,
    text_to_video: Tensor | None = None,
    *,
    stamp: Stamp | None = None,
    v2t: str = "caption",
    dual_softmax: str | None = None,
    factor: float = 100.0,
    bank: Tensor | None = None,
    beta: float = 20.0,
    dynamic: bool = True,
    merge_identical_texts: Sequence[str] | None = None,
) -> Result:
    """The same from a matrix of scores (T texts, V videos); `bank` (B, V) are the scores of other texts.

    >>> evaluate_similarity(torch.tensor([[0.9, 0.1], [0.8, 0.3]])).t2v["R@1"]
    50.0
    """
    plain = Dense(scores)
    bank_texts = None if bank is None else Dense(bank.to(plain.device))
    done = _process(plain, dual_softmax, factor, bank_texts, None, beta, dynamic)
    result = _evaluate(done, text_to_video, stamp, v2t, merge_identical_texts)
    bad = ~scores.isfinite()
    texts, videos = (tuple(bad.all(d).nonzero()[:, 0].tolist()) for d in (1, 0))
    return replace(result, non_finite=int(bad.sum()), failed_texts=texts, failed_videos=videos)


def _process(
    plain: Matrix,
    form: str | None,
    factor: float,
    bank_texts: Matrix | None,
    bank_videos: Matrix | None,
    beta: float,
    dynamic: bool,
) -> Processed:
    if form is None:
        return _query_bank(plain, bank_texts, bank_videos, beta, dynamic)
    if bank_texts is not None or bank_videos is not None:
        raise ValueError("dual softmax and a query bank are two normalisations; choose one")
    return _dual_softmax(plain, form, factor)


def _dual_softmax(plain: Matrix, form: str, factor: float) -> Processed:
    if form not in DUAL_SOFTMAX:
        raise ValueError(f"dual softmax {form!r}: allowed are {', '.join(DUAL_SOFTMAX)}")
    name = f"dual softmax ({form}, factor {factor:g})"
    formula = "product" if form == "released" else form
    for_texts = DualSoftmax(plain, formula, factor)
    if form == "released":
        return Processed(for_texts, for_texts, name, transductive=True)
    return Processed(for_texts, Transposed(DualSoftmax(Transposed(plain), formula, factor)), name, transductive=True)


def _query_bank(plain: Matrix, texts: Matrix | None, videos: Matrix | None, beta: float, dynamic: bool) -> Processed:
    for_texts: Matrix = plain if texts is None else QueryBank(plain, texts, beta, dynamic)
    for_videos: Matrix = plain
    if videos is not None:
        for_videos = Transposed(QueryBank(Transposed(plain), videos, beta, dynamic))
    banks = [
        f"{direction} by {bank.shape[0]} {kind} {fingerprint(bank)}"
        for direction, kind, bank in (("t2v", "texts", texts), ("v2t", "videos", videos))
        if bank is not None
    ]
    name = f"query bank ({', '.join(banks)}, beta {beta:g}, {'dynamic' if dynamic else 'static'})" if banks else "none"
    return Processed(for_texts, for_videos, name)


def fingerprint(bank: Matrix) -> str:
    """Identity of a bank by its vectors or scores."""
    values = bank.texts if isinstance(bank, Cosine) else bank.block(slice(0, bank.shape[0]), slice(0, bank.shape[1]))
    return hashlib.sha256(values.float().cpu().contiguous().numpy().tobytes()).hexdigest()[:8]


def _evaluate(
    scores: Processed, truth: Tensor | None, stamp: Stamp | None, v2t: str, strings: Sequence[str] | None
) -> Result:
    texts, videos = scores.texts.shape
    if truth is None:
        if texts != videos:
            raise ValueError(f"{texts} texts and {videos} videos: give text_to_video")
        truth = torch.arange(texts)
    stamp = stamp or Stamp()
    stamp = stamp.having(
        post_processing=scores.name,
        transductive=scores.transductive,
        caption_mode=mode_of(stamp, texts == videos, v2t),
    )
    ranks = _both(scores, truth, v2t)
    result = Result(measures(ranks[0]), measures(ranks[1]), stamp, ranks=ranks)
    if strings is not None:
        equal = _both(scores, merged(truth, strings), "caption")
        result.merged = {"t2v": measures(equal[0]), "v2t": measures(equal[1])}
    return result


def mode_of(stamp: Stamp, one_each: bool, v2t: str) -> str:
    """How captions became texts, as a stamp says it: one text of a video may be all its captions in a row."""
    one = "paragraph" if stamp.caption_mode == "paragraph" else "single"
    return one if one_each else f"multiple, v2t by {v2t}"


def _both(scores: Processed, truth: Any, v2t: str) -> tuple[Ranks, Ranks]:
    if scores.texts is scores.videos:
        return rank(scores.texts, truth, True, v2t)
    return rank(scores.texts, truth, True, None)[0], rank(scores.videos, truth, False, v2t)[1]
