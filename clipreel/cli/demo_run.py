"""What `clipreel demo` does: evaluate, index, search, and a page to look at."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clipreel.cli.output import DEFAULT_MODEL, Progress, clock, shown, skipped
from clipreel.cli.search import load_model, open_if_there
from clipreel.cli.tune_page import SAID, examples, page
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.data.sources import SHAPES
from clipreel.errors import ClipreelError
from clipreel.evaluation import gallery
from clipreel.evaluation.gallery import Card, Section, Shown
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.report import Rows, protocol, table
from clipreel.evaluation.runs import encode_videos, evaluate_vectors, shapes_bound, shapes_samples
from clipreel.retriever import Retriever
from clipreel.search.index import Index
from clipreel.search.indexer import Report, facts_of, update
from clipreel.search.query import Filter, Query, Searcher
from clipreel.training.config import OptimConfig, ScheduleConfig, SelectConfig, TrainConfig
from clipreel.training.pairs import DataConfig
from clipreel.training.settings import TuneConfig
from clipreel.training.tuning import Tuned, tune
from clipreel.video.shots import Segments

SHAPES_QUERIES = (
    "a yellow star above a cyan moon",
    "first an orange square then a red moon",
    "a white moon",
    "a cross -purple",
)
OWN_QUERIES = ("a person talking", "people dancing", "an animal", "text on the screen")
HITS = 3  # answers of a search that are shown
FRAMES = 8
# about a minute on two cores; the study that it was taken from: clipreel compare configs/shapes/*.yaml
DEMO = TuneConfig(
    method="mv_adapter",
    data=DataConfig(SHAPES, limit=640),
    frames=FRAMES,
    order="opposites",
    lr=3e-3,
    train=TrainConfig(
        steps=60,
        optim=OptimConfig(decay=0.0),
        schedule=ScheduleConfig("constant"),
        select=SelectConfig(every_steps=30),
    ),
)
CARDS = 4
BOUND = "order-blind bound"


@dataclass(frozen=True)
class Measured:
    """The evaluation of the demo: cosines (N, V) of each sample's caption with each sample's video, and the result."""

    samples: Sequence[Sample]
    scores: torch.Tensor
    result: Result


def shapes(model: str, out: Path, device: str) -> int:
    """The demo on the shapes world: numbers, a method tuned live, then search with it, and the page."""
    started = time.monotonic()
    retriever = load_model(model, False, device)
    folder = out / "shapes" / "test"
    print("1. Rendering the test videos of the shapes world")
    samples = shapes_samples(folder)
    print(f"   {len(samples)} videos in {folder}\n\n2. How well does {model} find each by its caption?")
    measured, failed = measure(retriever, samples)
    rows: Rows = {f"{model}, mean of {FRAMES} frames": measured.result, BOUND: shapes_bound()}
    print(indented(table(rows)))
    print(indented(textwrap.fill(protocol(measured.result), 110)))
    print(
        "   The bound is what the best model without a sense of time can reach: nearly every film comes with its\n"
        f"   reverse, which has the same frames. Passing it is what video methods are for.\n\n3. Tuning {DEMO.method}"
    )
    tuned = tuned_live(retriever, out)
    rows = {**rows, f"{DEMO.method}, {DEMO.train.steps} steps": tuned.compared.after}
    print(indented(table({k: rows[k] for k in list(rows)[1:]})))
    print(f"   {SAID[tuned.helped]}\n\n4. Indexing the folder with the adapter")
    index, report = indexed(tuned.after.model, folder, out)
    print("\n5. Searching it")
    captions = {os.path.abspath(s.video): s.captions[0] for s in samples}
    found = search(Searcher(index, tuned.after.model), SHAPES_QUERIES, folder, captions)
    page = write(
        out,
        "clipreel demo",
        f"{model} looks for {len(samples)} small films that it has never seen. It takes the mean over {FRAMES} frames "
        f"of each, so it knows what is in a film, but not what happens. Then {DEMO.method} was tuned on it, with "
        f"{tuned.facts['trainable']:,} trained numbers in {clock(tuned.facts['seconds'])}.",
        [
            numbers(model, measured.result, tuned.compared.after, rows),
            answers(found, out),
            *examples(tuned, out),
            *opened(measured, out),
        ],
    )
    skipped([*failed, *report.skipped])
    commands = [f'search "a green star grows" --index {index.place}', "demo --videos YOUR_FOLDER --download"]
    tell(page, started, ["tune YOUR_PAIRS.jsonl --method vop_fc --download", *commands])
    return 1 if failed or report.skipped else 0


def tuned_live(base: Retriever, out: Path) -> Tuned:
    """The demo's method on this base; the same command again finds it done."""
    line = Progress("   step")
    tuned = tune(replace(DEMO, model=base.name), out / "tuned", scratch=out, base=base, progress=line, say=silent)
    page(tuned, out / "tuned")
    return tuned


def silent(_: str) -> None: ...


def own_videos(videos: Path, model: str | None, out: Path, download: bool, device: str) -> int:
    """The demo on the user's own files: index them, answer a few general queries, write the page."""
    started = time.monotonic()
    if not videos.is_dir():
        raise ClipreelError(f"{videos} is no folder; give a folder of videos")
    name = model or DEFAULT_MODEL
    retriever = load_model(name, download, device)
    print(f"1. Indexing {videos} with {name}")
    index, report = indexed(retriever, videos, out)
    if not report.indexed + report.unchanged + report.moved:
        skipped(report.skipped)
        raise ClipreelError(f"no video below {videos} could be indexed; give a folder of videos")
    print("\n2. Searching it")
    found = search(Searcher(index, retriever), OWN_QUERIES, videos, {})
    page = write(out, "Your videos", f"What {name} finds in {videos}.", [answers(found, out)])
    skipped(report.skipped)
    tell(page, started, [f'search "what you look for" --index {index.place} --open', "search --help"])
    return 1 if report.skipped else 0


def measure(retriever: Retriever, samples: Sequence[Sample]) -> tuple[Measured, list[tuple[str, str]]]:
    """Also returns the videos that could not be read, with the reason."""
    videos, failed = encode_videos(retriever, samples, FRAMES, Progress("   encoding"))
    result = evaluate_vectors(retriever, samples, videos, "shapes test", FRAMES)
    texts = retriever.encode_text([s.captions[0] for s in samples]).cpu()
    return Measured(samples, (texts @ videos.T).nan_to_num(-1.0), result), failed


def indexed(retriever: Retriever, folder: Path, out: Path) -> tuple[Index, Report]:
    """The index of this model in the demo's folder, brought up to date with the videos."""
    place = out / f"index-{retriever.space[:8]}"
    index = open_if_there(str(place)) or Index.create(place, facts_of(retriever, Segments()))
    line = Progress("   indexing")

    def progress(done: int, total: int, report: Report) -> None:
        line(done, total)

    started = time.monotonic()
    report = update(index, retriever, [os.path.abspath(folder)], progress=progress)
    spent = ", ".join(f"{stage} {s:.1f} s" for stage, s in report.seconds.items())
    print(
        f"   {report.indexed} new, {report.unchanged} unchanged, {report.vectors} vectors "
        f"in {time.monotonic() - started:.1f} s ({spent})"
    )
    return index, report


def search(
    searcher: Searcher, queries: Sequence[str], folder: Path, captions: Mapping[str, str]
) -> dict[str, list[Shown]]:
    """Print and keep the first hits of each query; a video is told by its caption where there is one."""
    found: dict[str, list[Shown]] = {}
    for text in queries:
        print(f"   {text}")
        found[text] = []
        hits = searcher.search(replace(Query.parse(text), filter=Filter(under=os.path.abspath(folder))), HITS)
        for n, hit in enumerate(hits, 1):
            told = captions.get(hit.path) or f"{clock(hit.start_s)}  {os.path.basename(hit.path)}"
            print(f"      {n}  {hit.score:.3f}  {shown(told)}")
            found[text].append(Shown(Path(hit.path), told, n, hit.score, start_s=hit.start_s, end_s=hit.end_s))
    return found


def numbers(model: str, result: Result, tuned: Result, rows: Rows) -> Section:
    """Both directions, before and after, beside the bound."""
    bound = shapes_bound()
    bars = [
        gallery.meter(f"of {what} first (R@1), {when}", mine["R@1"], most["R@1"], BOUND)
        for what, before, after, most in (
            ("captions rank their video", result.t2v, tuned.t2v, bound[0]),
            ("videos rank their caption", result.v2t, tuned.v2t, bound[1]),
        )
        for when, mine in ((model, before), ("tuned", after))
    ]
    return Section(
        "Numbers",
        f"How often {model} ranks the right one first, before and after tuning. The mark is the most that any model "
        "without a sense of time can reach here, because nearly every film comes with its reverse.",
        gallery.meters(bars) + gallery.numbers(rows) + gallery.small(protocol(result)),
    )


def answers(found: Mapping[str, Sequence[Shown]], out: Path) -> Section:
    items = [Card(query, hits) for query, hits in found.items()]
    return Section(
        "Searches",
        f"The first {HITS} answers of the index, with the cosine of query and video. A word after a minus is taken "
        "away. A film strip opens its video.",
        gallery.cards(items, out),
    )


def opened(m: Measured, out: Path) -> list[Section]:
    """The evaluation opened up: clear hits, pairs that differ only in time, and the worst misses."""
    assert m.result.ranks is not None
    rank = m.result.ranks[0].expected()
    reverse = reverses()
    found = m.scores.clone().fill_diagonal_(-1.0)
    for i, j in reverse.items():
        found[i, j] = -1.0
    margin = m.scores.diagonal() - found.amax(1)
    first = [i for i in torch.argsort(margin, descending=True).tolist() if rank[i] == 1]
    alike = [i for i, j in reverse.items() if set(m.scores[i].topk(2).indices.tolist()) == {i, j}]
    worst = torch.argsort(rank, descending=True, stable=True).tolist()
    told = (
        (
            "Found",
            "The right film is first, by the widest margins over every film but its reverse.",
            apart(first, reverse),
        ),
        (
            "Same frames, another story",
            "A film and its reverse, one after the other: the mean of their frames is nearly equal, so which of them "
            "comes first is a coin toss.",
            of_each_kind(alike),
        ),
        ("Missed", "The right film is far down the list; above it, the one that was taken for it.", apart(worst, {})),
    )
    return [Section(heading, lead, gallery.cards([card(m, rank, i) for i in q], out)) for heading, lead, q in told]


def card(m: Measured, rank: torch.Tensor, query: int) -> Card:
    """The two best answers, or the best and the right one with its true rank."""
    best = m.scores[query].topk(2).indices.tolist()
    picked = best if query in best else [best[0], query]
    items = [
        Shown(
            m.samples[j].video,
            m.samples[j].captions[0],
            round(float(rank[query])) if j == query else place,
            float(m.scores[query, j]),
            j == query,
        )
        for place, j in enumerate(picked, 1)
    ]
    return Card(m.samples[query].captions[0], items)


def reverses() -> dict[int, int]:
    """The number of each test video that has a reverse -> the number of that."""
    items = ShapesWorld().videos("test")
    number = {item.id: i for i, item in enumerate(items)}
    return {i: number[item.opposite] for i, item in enumerate(items) if item.opposite is not None}


def apart(queries: Sequence[int], reverse: Mapping[int, int]) -> list[int]:
    """The first few of which no two are each other's reverse."""
    chosen: list[int] = []
    for q in queries:
        if reverse.get(q) not in chosen and len(chosen) < CARDS:
            chosen.append(q)
    return chosen


def of_each_kind(queries: Sequence[int]) -> list[int]:
    """The first few of different kinds of scene."""
    items = ShapesWorld().videos("test")
    kinds = {items[q].scene.kind: q for q in reversed(queries)}
    return sorted(kinds.values())[:CARDS]


def write(out: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    path.write_text(gallery.page(title, lead, sections), "utf-8")
    return path


def indented(text: str) -> str:
    return textwrap.indent(text, "   ")


def tell(page: Path, started: float, commands: Sequence[str]) -> None:
    """The last lines: where the page is, and what to type next in the words that work in this shell."""
    alone = "python -m clipreel" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
    program = "clipreel" if shutil.which("clipreel") else alone
    print(f"\nReport with film strips: {page}   (done in {clock(time.monotonic() - started)})\n\nTry next:")
    print("\n".join(f"   {program} {c}" for c in commands))
