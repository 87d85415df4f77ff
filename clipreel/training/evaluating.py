"""An evaluation shared by several processes: each encodes whole blocks of videos and captions, and vectors carry ids.

Blocks are those of one process alone, so the vectors are the same bit for bit on equal hardware; samplers that pad a
ragged share with repeated items (specification core.md 5.7) are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.features import Features
from clipreel.evaluation.runs import BATCH, CAPTIONS, encode_captions, encode_videos, features_of
from clipreel.retriever import Retriever
from clipreel.training.distributed import device_of_messages, gather_rows, row_counts, share, world


def evaluate_together(
    model: Retriever,
    samples: Sequence[Sample],
    split: str,
    frames: int = 8,
    bank: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Features:
    """The features of all samples on every process, equal to those of one process.

    Raises ClipreelError where the processes were given different samples.
    """
    rows = mine(len(samples), BATCH)
    videos, unread = encode_videos(model, [samples[i] for i in rows], frames, progress)
    videos = placed(rows, videos, len(samples))
    failed = [(str(v), str(why)) for part in share(unread) for v, why in part]
    order = {str(s.video): i for i, s in enumerate(samples)}
    failed.sort(key=lambda f: order[f[0]])
    return features_of(model, samples, videos, split, frames, bank, failed, encode=shared_captions)


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
