"""What is seen in every video and segment of an index, in words of a vocabulary: prompts against stored vectors.

Specification alpro.md 1 and 3 (prompts, ensembling); works with the vectors of any retriever, and decodes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipreel.alpro.prompter import ensembled, prompts
from clipreel.errors import ClipreelError
from clipreel.search.index import LEVELS, Index, text_of

if TYPE_CHECKING:
    from clipreel.retriever import Retriever

TABLE = "tags"
ROWS = 4096


@dataclass(frozen=True)
class Tag:
    """An entity that is seen in a video or in one of its segments."""

    path: str
    level: str
    start_s: float
    end_s: float
    tag: str
    probability: float


def entity_vectors(model: Retriever, entities: Sequence[str], which: str = "plain") -> NDArray[np.float32]:
    """(M, E) ensembled features of the entities in a set of prompts."""
    return ensembled(model.encode_text(prompts(entities, which)), len(entities)).cpu().numpy()


def tag(
    index: Index,
    model: Retriever,
    entities: Sequence[str],
    *,
    which: str = "plain",
    most: int = 3,
    least: float = 0.2,
) -> list[Tag]:
    """At most `most` entities for every video and segment, each of at least the probability `least`; stored in the
    index, where they replace those of an earlier run. Raises ClipreelError for an empty vocabulary or another model."""
    from clipreel.search.indexer import check_space

    check_space(index, model)
    if most < 1 or not 0 <= least <= 1:
        raise ClipreelError(f"{most} tags of at least {least}: give at least 1, and a probability from 0 to 1")
    words = torch.from_numpy(entity_vectors(model, entities, which))
    moments = index.moments()
    found: list[Tag] = []
    for start in range(0, len(moments.vectors), ROWS):
        part = torch.from_numpy(moments.vectors[start : start + ROWS])
        top = (model.scale * part @ words.T).softmax(1).topk(min(most, len(entities)), 1)
        for row, (values, numbers) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), start):
            file = moments.files[moments.file[row]]
            place = LEVELS[moments.level[row]], float(moments.start_s[row]), float(moments.end_s[row])
            found += [
                Tag(file.path, *place, entities[i], p) for p, i in zip(values, numbers, strict=True) if p >= least
            ]
    store(index, found)
    return found


def store(index: Index, tags: Sequence[Tag]) -> None:
    import pyarrow as pa

    kinds: dict[str, Any] = {"path": pa.binary(), "level": pa.string(), "start_s": pa.float32(), "end_s": pa.float32()}
    schema = pa.schema([*kinds.items(), ("tag", pa.string()), ("probability", pa.float32())])
    rows = [{**vars(t), "path": t.path.encode("utf-8", "surrogateescape")} for t in tags]
    with index.writing():
        index.replace_table(TABLE, pa.Table.from_pylist(rows, schema))


def read_tags(index: Index) -> list[Tag]:
    """The stored tags, in order of path and time. Raises ClipreelError where the index was never tagged."""
    if TABLE not in index._names():
        raise ClipreelError(f"the index at {index.place} has no tags; make some with: clipreel tag WORDS")
    rows = index.guard(lambda: index.db.open_table(TABLE).to_arrow().to_pylist())
    tags = [Tag(**{**r, "path": r["path"].decode("utf-8", "surrogateescape")}) for r in rows]
    return sorted(tags, key=lambda t: (t.path, t.level != LEVELS[0], t.start_s, -t.probability))


def facets(tags: Sequence[Tag]) -> list[tuple[str, int]]:
    """In how many videos each tag is seen, the most frequent first."""
    counts = Counter(tag for tag, _ in {(t.tag, t.path) for t in tags})
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def tagged(tags: Sequence[Tag], wanted: Sequence[str]) -> set[str]:
    """The videos in which all the wanted tags are seen. Raises ClipreelError for one that no video has."""
    by_tag: Mapping[str, set[str]] = {w: {t.path for t in tags if t.tag == w} for w in wanted}
    unknown = [w for w, paths in by_tag.items() if not paths]
    if unknown:
        common = ", ".join(text_of(word) for word, _ in facets(tags)[:10]) or "none"
        raise ClipreelError(f"no video has the tag {unknown[0]!r}; the most frequent are {common}")
    return set.intersection(*by_tag.values())
