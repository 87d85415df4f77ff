"""An evaluation shared by several processes: each encodes whole blocks of videos and captions, and vectors carry ids.

Blocks are those of one process alone, so the vectors are the same bit for bit on equal hardware; samplers that pad a
ragged share with repeated items (specification core.md 5.7) are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import Features
from clipreel.evaluation.runs import (
    BATCH,
    CAPTIONS,
    base_of,
    encode_captions,
    encode_videos,
    features_of,
    identity,
    stacks,
)
from clipreel.heads import PoolingHead
from clipreel.retriever import Retriever
from clipreel.training.distributed import device_of_messages, gather_rows, row_counts, share, world
from clipreel.training.measuring import frame_vectors


def evaluate_together(
    model: Retriever,
    samples: Sequence[Sample],
    split: str,
    frames: int = 8,
    bank: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """The features of all samples on every process, equal to those of one process; with the scores of a head that
    judges pairs.

    Raises ClipreelError where the processes were given different samples.
    """
    rows = mine(len(samples), BATCH)
    own, scores = [samples[i] for i in rows], None
    if model.head is None or isinstance(model.head, PoolingHead):
        videos, unread = encode_videos(model, own, frames, progress)
    else:
        texts = [*(c for s in samples for c in s.captions), *bank]
        videos, judged, unread = judge(model, own, texts, frames, progress)
        scores = placed(rows, judged.T.contiguous(), len(samples)).T.contiguous()
    videos = placed(rows, videos, len(samples))
    failed = [(str(v), str(why)) for part in share(unread) for v, why in part]
    order = {str(s.video): i for i, s in enumerate(samples)}
    failed.sort(key=lambda f: order[f[0]])
    if scores is None:
        return features_of(model, samples, videos, split, frames, bank, failed, encode=shared_captions)
    found = features_of(model, samples, videos, split, frames, (), failed, encode=shared_captions)
    count = len(found.texts)
    return replace(found, scores=scores[:count], bank=scores[count:] if bank else None)


@torch.no_grad()
def judge(
    model: Retriever,
    samples: Sequence[Sample],
    texts: Sequence[str],
    frames: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    """Vectors (V, E) of the videos, the scores (T, V) of the head of the model for all texts, both NaN where a video
    could not be read, and those videos with their reasons."""
    assert model.head is not None
    failed: list[tuple[str, str]] = []
    given = stacks(model, samples, frames, failed, progress)
    found = frame_vectors(model, given, len(samples), frames)
    vectors, mask = (x.to(model.device) for x in found)
    said = [model.encode_text(texts[i : i + CAPTIONS], normalize=False) for i in range(0, len(texts), CAPTIONS)]
    return model.pool(vectors, mask).cpu(), model.head.score(torch.cat(said), vectors, mask).cpu(), failed


def with_bank(features: Features, model: Retriever, bank: Sequence[str]) -> Features:
    """Stored features with the vectors of texts that are no queries. Raises ClipreelError for another model than theirs
    and for scores of pairs, which need the videos."""
    if features.scores is not None:
        raise ClipreelError("a head judged these pairs and needs the videos to judge a bank: evaluate them with --bank")
    theirs, ours = (features.stamp.base, features.stamp.adapter), (base_of(model), identity(model))
    if theirs != ours:
        said = ["base {}, adapter {}".format(*both) for both in (theirs, ours)]
        raise ClipreelError(
            f"the vectors are of {said[0]} and the model has {said[1]}; name theirs with --model and --adapter"
        )
    return replace(features, bank=encode_captions(model, bank))


def shared_captions(model: Retriever, captions: Sequence[str]) -> Tensor:
    """Vectors (T, E) of all captions, each process encoding some blocks of them."""
    rows = mine(len(captions), CAPTIONS)
    return placed(rows, encode_captions(model, [captions[i] for i in rows]), len(captions))


def mine(count: int, block: int) -> list[int]:
    """The items of this process: every size-th block."""
    here = world()
    starts = range(here.rank * block, count, here.size * block)
    return [i for start in starts for i in range(start, min(start + block, count))]


def placed(rows: Sequence[int], vectors: Tensor, count: int) -> Tensor:
    """The vectors (count, E) of all processes, each at its id; `rows` are the ids of this one's."""
    if world().size == 1:
        return vectors
    counts = row_counts(len(rows))
    with torch.no_grad():
        ids = gather_rows(torch.tensor(rows, dtype=torch.long, device=device_of_messages()), counts).cpu()
        found = gather_rows(vectors.to(device_of_messages()), counts).cpu()
    if sorted(ids.tolist()) != list(range(count)):
        raise ClipreelError(
            f"the processes hold {len(ids)} vectors of {len(set(ids.tolist()))} items, and {count} were expected: they "
            "were not given the same data"
        )
    whole = torch.empty(count, vectors.shape[1], dtype=vectors.dtype)
    whole[ids] = found
    return whole
