"""How far two corpora of texts lie apart: do two clusters of their features tell which text came from which?

CLIP-ViP's preliminary study (specification clip_vip.md 1.3): 1,000 texts of each, k-means with k = 2 on the union, the
normalised mutual information of cluster and origin. Not stated in the paper and chosen here: unit features, the
arithmetic mean of the entropies, k-means++ with 10 restarts, as many texts of one corpus as of the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipreel.data.captions import read_texts
from clipreel.data.readers import SUFFIXES, read_samples
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_talk import still_captions, subtitles
from clipreel.errors import ClipreelError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MADE = ("shapes/subtitles", "shapes/captions", "shapes/test")
TEXTS, RESTARTS, ROUNDS = 1000, 10, 300
PANELS = 4  # of a row of the picture


@dataclass(frozen=True)
class Gap:
    """Two corpora, how many texts of each were drawn, and their NMI under every seed."""

    first: str
    second: str
    texts: int
    nmi: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.nmi))

    @property
    def std(self) -> float:
        return float(np.std(self.nmi))

    def to_dict(self) -> dict[str, object]:
        return asdict(self) | {"mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class Panel:
    """What a picture of two corpora shows: points (N, 2), where they come from, and in which cluster they fell."""

    gap: Gap
    points: Floats
    origin: Ints
    cluster: Ints


def read_corpus(source: str, least: int = 2) -> list[str]:
    """The texts of a corpus: annotations as for training, captions, text lines, or a name in `MADE`.

    Raises ClipreelError for a file that is none of these, or that holds fewer texts than `least`.
    """
    path = Path(source)
    if source in MADE:
        world = ShapesWorld()
        texts = {
            "shapes/subtitles": lambda: list(subtitles(world.videos("train")).values()),
            "shapes/captions": lambda: list(still_captions(world.videos("train")).values()),
            "shapes/test": lambda: [c for item in world.videos("test") for c in item.captions],
        }[source]()
    elif path.suffix == ".txt":
        try:
            texts = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as e:
            raise ClipreelError(f"{source} cannot be read as UTF-8 text ({e})") from e
    elif path.suffix == ".json" or (path.suffix == ".jsonl" and without_videos(path)):
        texts = read_texts(path)
    elif path.is_dir() or path.suffix in SUFFIXES:
        texts = [c for s in read_samples(path, check_files=False) for c in s.captions]
    else:
        raise ClipreelError(
            f"{source} is no corpus: give annotations ({', '.join(SUFFIXES)}), captions (.json, .jsonl), lines (.txt), "
            f"or one of {', '.join(MADE)}"
        )
    if len(texts) < least:
        raise ClipreelError(f"{source} holds {len(texts)} texts; at least {least} are needed")
    return texts


def without_videos(path: Path) -> bool:
    """Whether JSON lines name ids and captions only, as a captioner writes them."""
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "{}"))
    except (OSError, ValueError):
        return False  # the reader of annotations says what is wrong
    return isinstance(first, dict) and "caption" in first and "video" not in first


def gaps(
    corpora: Mapping[str, Sequence[str]],
    encode: Callable[[list[str]], Floats],
    *,
    texts: int = TEXTS,
    seeds: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Panel]:
    """Every pair of corpora, with the picture of the first seed. `encode` gives features (N, E), one row a text.

    Seed s draws the texts and starts k-means. Raises ClipreelError for fewer than two corpora, texts or one seed.
    """
    if len(corpora) < 2 or texts < 2 or seeds < 1:
        raise ClipreelError(f"{len(corpora)} corpora, {texts} texts, {seeds} seeds: give at least 2, 2 and 1")
    count = {pair: min(texts, *(len(corpora[name]) for name in pair)) for pair in combinations(corpora, 2)}
    most = {name: max(n for pair, n in count.items() if name in pair) for name in corpora}
    drawn = {  # in an order of its own for each seed; a pair takes as many from the front as both have
        (name, seed): np.random.default_rng([seed, i]).permutation(len(corpora[name]))[: most[name]]
        for i, name in enumerate(corpora)
        for seed in range(seeds)
    }
    needed = list(dict.fromkeys(corpora[name][i] for (name, _), rows in drawn.items() for i in rows))
    features = unit_rows(encode(needed))
    row = {text: i for i, text in enumerate(needed)}

    def of(name: str, seed: int, n: int) -> Floats:
        return features[[row[corpora[name][i]] for i in drawn[name, seed][:n]]]

    panels = []
    for done, ((a, b), n) in enumerate(count.items(), 1):
        origin = np.repeat(np.arange(2), n)
        unions = [np.concatenate([of(a, seed, n), of(b, seed, n)]) for seed in range(seeds)]
        clusters = [kmeans(x, 2, seed) for seed, x in enumerate(unions)]
        found = Gap(a, b, n, tuple(nmi(c, origin) for c in clusters))
        panels.append(Panel(found, plane(unions[0]), origin, clusters[0]))
        progress(done, len(count))
    return panels


def unit_rows(x: Floats) -> Floats:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def nmi(u: Ints, v: Ints) -> float:
    """I(U; V) / ((H(U) + H(V)) / 2) of two labellings of the same things, 0 to 1; two labellings without a
    difference in them agree.

    >>> nmi(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3]))
    1.0
    """
    _, rows = np.unique(u, return_inverse=True)
    _, columns = np.unique(v, return_inverse=True)
    joint = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(joint, (rows, columns), 1 / len(rows))
    alone = joint.sum(1), joint.sum(0)

    def entropy(p: Floats) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    h = [entropy(p) for p in alone]
    if sum(h) == 0:
        return 1.0
    return max(0.0, sum(h) - entropy(joint.reshape(-1))) / (sum(h) / 2)


def kmeans(x: Floats, k: int, seed: int = 0, restarts: int = RESTARTS) -> Ints:
    """The cluster (N,) of every row of x (N, E): Lloyd's rounds from k-means++ seeds, the tightest of `restarts`."""
    if not 1 <= k <= len(x):
        raise ClipreelError(f"{k} clusters of {len(x)} texts: give 1 to {len(x)}")
    rng = np.random.default_rng([seed, k])
    runs = [lloyd(x, spread_seeds(x, k, rng)) for _ in range(restarts)]
    return min(runs, key=lambda run: run[1])[0]


def spread_seeds(x: Floats, k: int, rng: np.random.Generator) -> Floats:
    """k-means++: each next centre is a row drawn by its squared distance to the nearest one so far."""
    chosen = [int(rng.integers(len(x)))]
    nearest = np.full(len(x), np.inf)
    while len(chosen) < k:
        nearest = np.minimum(nearest, ((x - x[chosen[-1]]) ** 2).sum(1))
        nearest[chosen] = 0.0  # not again, though rounding says otherwise
        total = nearest.sum()
        chosen.append(int(rng.choice(len(x), p=nearest / total if total > 0 else None)))
    return x[chosen]


def lloyd(x: Floats, centres: Floats) -> tuple[Ints, float]:
    """Clusters and the sum of squared distances to their centres, when no row moves any more."""
    labels = np.full(len(x), -1)
    square = (x**2).sum(1)
    for _ in range(ROUNDS):
        distance = square[:, None] - 2 * x @ centres.T + (centres**2).sum(1)
        new = distance.argmin(1)
        if (new == labels).all():
            break
        labels = new
        for j in range(len(centres)):
            own = labels == j
            # a centre that lost all rows goes to the row that is worst off
            centres[j] = x[own].mean(0) if own.any() else x[distance.min(1).argmax()]
    return labels, float(((x - centres[labels]) ** 2).sum())


def plane(x: Floats) -> Floats:
    """The rows on their two main axes (N, 2)."""
    centred = x - x.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T


def table(found: Sequence[Gap]) -> str:
    """One line a pair, the most distant first."""
    lines = ["| corpora | texts of each | NMI | std over seeds |", "|---|---|---|---|"]
    for g in sorted(found, key=lambda g: -g.mean):
        lines.append(f"| {g.first} - {g.second} | {g.texts} | {g.mean:.3f} | {g.std:.3f} |")
    return "\n".join(lines)


def draw(panels: Sequence[Panel], path: Path) -> None:
    """A picture (PNG or what the ending says) of every pair: colour is the origin, the mark is the cluster."""
    from matplotlib.figure import Figure

    columns = min(len(panels), PANELS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 3.6 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(places[: len(panels)], panels, strict=True):
        for corpus, name in enumerate((panel.gap.first, panel.gap.second)):
            for cluster, mark in enumerate("ox"):
                own = (panel.origin == corpus) & (panel.cluster == cluster)
                label = f"{name}, cluster {cluster + 1}: {own.sum()}"
                axes.scatter(*panel.points[own].T, s=8, marker=mark, color=f"C{corpus}", alpha=0.6, label=label)
        axes.set(title=f"NMI {panel.gap.nmi[0]:.3f}", xticks=[], yticks=[])
        axes.legend(fontsize=7)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=120)
