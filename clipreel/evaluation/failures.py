"""What a run gets wrong, on one page: the worst misses, the videos it takes for each other, and the frames it saw.

Made from stored features, so no model is needed. Ranks are shown under plain cosine, query bank and dual softmax.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipreel.evaluation import gallery
from clipreel.evaluation.features import Features
from clipreel.evaluation.gallery import Card, Section, Shown
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.report import protocol
from clipreel.evaluation.similarity import pieces

CARDS, FIRST, CAPTIONS = 12, 2, 2
BLOCK = 1024
UNEQUAL = (
    "The same vectors under each post-processing. These rows are not ranked against each other: dual softmax knows all "
    "queries at once."
)


@dataclass(frozen=True)
class Confusion:
    """Two videos: how many captions of one rank the other first, and those captions, most decided first."""

    videos: tuple[int, int]
    texts: tuple[int, ...]


def results(features: Features) -> dict[str, Result]:
    """The same vectors under each post-processing that can be applied to them."""
    found = {"plain": features.result()}
    if features.bank is not None:
        found["query bank"] = features.result(by_bank=True)
    return found | {"dual softmax": features.result(dual_softmax="softmax")}


def firsts(features: Features, count: int = FIRST) -> tuple[Tensor, Tensor]:
    """The best videos of each text (T, count) and their scores (-inf: no vector)."""
    matrix = features.matrix
    columns = slice(0, matrix.shape[1])
    count = min(count, matrix.shape[1])
    tops = [matrix.block(rows, columns).topk(count, 1) for rows in pieces(matrix.shape[0], BLOCK)]
    return torch.cat([t.indices for t in tops]), torch.cat([t.values for t in tops])


def own_scores(features: Features) -> Tensor:
    """The score of each text with its own video (T,), NaN where there is none."""
    if features.scores is not None:
        return features.scores[torch.arange(len(features.truth)), features.truth]
    return (features.texts * features.videos[features.truth]).sum(1)


def misses(plain: Result, features: Features) -> list[int]:
    """The texts whose video is not first, worst rank first, one for each video."""
    assert plain.ranks is not None
    expected, owner = plain.ranks[0].expected(), features.truth.tolist()
    order = torch.argsort(expected, descending=True, stable=True).tolist()
    seen: set[int] = set()
    found = []
    for q in order:
        if expected[q] > 1 and owner[q] not in seen:
            seen.add(owner[q])
            found.append(q)
    return found


def confusions(features: Features) -> list[Confusion]:
    """Pairs of videos that are taken for each other, in either direction; most captions first, then widest margin."""
    best, score = firsts(features, 1)
    margin = (score[:, 0] - own_scores(features)).nan_to_num(0.0).tolist()
    texts: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for q, (own, first) in enumerate(zip(features.truth.tolist(), best[:, 0].tolist(), strict=True)):
        if own != first:
            texts[min(own, first), max(own, first)].append(q)
    found = [Confusion(pair, tuple(sorted(qs, key=lambda q: -margin[q]))) for pair, qs in texts.items()]
    return sorted(found, key=lambda c: (-len(c.texts), -margin[c.texts[0]], c.videos))


def hubs(features: Features) -> list[tuple[int, int]]:
    """Videos that come first for captions of others, and for how many; most first."""
    best = firsts(features, 1)[0][:, 0]
    wrong = best[best != features.truth].tolist()
    return sorted(Counter(wrong).items(), key=lambda item: (-item[1], item[0]))


def page(features: Features, title: str, out: Path, cards: int = CARDS, more: Sequence[Section] = ()) -> Path:
    """Write the page, `more` at its end. Strips show the frames that the sampling of the features chooses, decoded
    again, with their times in seconds; a video that cannot be read shows its reason."""
    by_way = results(features)
    plain = by_way["plain"]
    missed, confused, drawing = misses(plain, features), confusions(features), hubs(features)
    captions, count = features.captions, len(features.samples)
    figures = gallery.numbers(by_way) + gallery.small(protocol(plain))
    told = "" if features.bank is not None else f" A query bank is missing: {remedy(features)}."
    sections = [Section("Numbers", f"{UNEQUAL}{told}", figures)]
    if missed:
        lead = f"{len(missed)} of {count} videos have a caption that does not rank them first; the lowest ranks."
        items = miss_cards(features, by_way, missed[:cards])
        sections.append(Section("Worst misses", lead, gallery.cards(items, out.parent)))
    if confused:
        lead = f"{len(confused)} pairs of videos, of which a caption of one ranks the other first."
        made = [confusion_card(features, c, captions) for c in confused[:cards]]
        sections.append(Section("Confusions", lead, gallery.cards(made, out.parent)))
    if drawing and drawing[0][1] > 1:
        lead = "Videos that come first for captions of others: what a query bank is meant to damp."
        often = [(v, n) for v, n in drawing[: max(1, cards // 3)] if n > 1]
        made = [Card(f"first for {n} captions of other videos", [hub(features, v)]) for v, n in often]
        sections.append(Section("Hubs", lead, gallery.cards(made, out.parent)))
    sections += more
    lead = f"{len(captions)} captions look for {count} videos; the times under the frames are seconds."
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(gallery.page(title, lead, sections), "utf-8")
    return out


def remedy(features: Features) -> str:
    """How a query bank comes into these features."""
    if features.scores is not None:
        return (
            "a head judged these pairs and needs the videos to judge other captions, so evaluate them with --bank FILE"
        )
    return "give other captions with --bank FILE, with --features beside their --model and --adapter"


def miss_cards(features: Features, by_way: dict[str, Result], texts: Sequence[int]) -> list[Card]:
    """The caption, its own video with its rank in every way, and what came first instead."""
    best, score = firsts(features)
    own, truth, captions = own_scores(features), features.truth, features.captions
    made = []
    for q in texts:
        v = int(truth[q])
        ranks = ", ".join(f"{way} {rank_of(r, q):g}" for way, r in by_way.items())
        answers = [shown(features, v, f"its own video; rank: {ranks}", 0, float(own[q]), right=True)]
        others = [(int(b), float(s)) for b, s in zip(best[q], score[q], strict=True) if int(b) != v]
        answers += [shown(features, b, features.samples[b].id, n, s) for n, (b, s) in enumerate(others[:FIRST], 1)]
        made.append(Card(captions[q], answers))
    return made


def rank_of(result: Result, text: int) -> float:
    assert result.ranks is not None
    return float(result.ranks[0].expected()[text])


def confusion_card(features: Features, c: Confusion, captions: Sequence[str]) -> Card:
    said = "; ".join(captions[q] for q in c.texts[:CAPTIONS])
    more = f" and {len(c.texts) - CAPTIONS} more" if len(c.texts) > CAPTIONS else ""
    answers = []
    for v in c.videos:
        of_it = [q for q in c.texts if int(features.truth[q]) == v]
        score = float(features.matrix.block(slice(c.texts[0], c.texts[0] + 1), slice(v, v + 1)))
        note = f"{features.samples[v].id}: {len(of_it)} of its captions rank{'s' * (len(of_it) == 1)} the other first"
        answers.append(shown(features, v, note, 0, score))
    return Card(said + more, answers)


def hub(features: Features, video: int) -> Shown:
    return shown(features, video, features.samples[video].id, 0, math.nan)


def shown(features: Features, video: int, note: str, rank: int, score: float, *, right: bool = False) -> Shown:
    s = features.samples[video]
    return Shown(s.video, note, rank, score, right, s.start_s, s.end_s, features.sampling)
