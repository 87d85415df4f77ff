"""What `clipreel demo` does: evaluate, index, search, and a page to look at."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from clipreel.cli.output import DEFAULT_MODEL, Progress, clock, shown, skipped
from clipreel.cli.search import load_model, open_if_there
from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.evaluation.gallery import Card, Shown, cards, numbers, page, paragraph
from clipreel.evaluation.report import SHOWN, protocol, table
from clipreel.evaluation.runs import evaluate_samples, shapes_bound, shapes_samples
from clipreel.retriever import Retriever
from clipreel.search.index import Index
from clipreel.search.indexer import Report, facts_of, update
from clipreel.search.query import Query, Searcher
from clipreel.video.shots import Segments

QUERIES = ("a red circle moves to the left", "first a yellow star then an orange square", "a cross -purple")


def shapes(model: str, out: Path, device: str) -> int:
    """The demo on the shapes world: numbers, then search, then the page."""
    started = time.monotonic()
    retriever = load_model(model, False, device)
    folder = out / "shapes-videos"
    print("1. rendering the test videos of the shapes world")
    samples = shapes_samples(folder)
    print(f"   {len(samples)} videos in {folder}\n\n2. how well does {model}, trained on stills only, find them?")
    result, failed = evaluate_samples(retriever, samples, "shapes test", progress=Progress("   encoding"))
    bound = shapes_bound()
    print(indent(table({f"{model}, mean of 8 frames": result, "order-blind bound": bound})))
    print(
        "   A model that averages frames cannot pass the bound: half of the test asks what moved where, or came first."
    )
    print(indent(protocol(result)) + "\n\n3. indexing the folder")
    index = indexed(retriever, folder, out / "index")
    print("\n4. searching")
    answers = answer(Searcher(index, retriever), QUERIES)
    assert result.ranks is not None
    report = write_page(out, model, samples, retriever, (result.t2v, result.v2t), bound, answers, protocol(result))
    print(f"\n5. report with film strips of hits and misses: {report}")
    skipped(failed)
    print(
        f"\ndone in {clock(time.monotonic() - started)}. Try next:\n"
        f'   clipreel search "a green star grows" --index {out / "index"}\n'
        "   clipreel demo --videos YOUR_FOLDER --model A_CLIP   (a folder of CLIP weights, or a hub id with --download)"
    )
    return 1 if failed else 0


def indent(text: str) -> str:
    return textwrap.indent(text, "   ")


def own_videos(videos: Path, model: str | None, out: Path, download: bool, device: str) -> int:
    """The demo on the user's own files: index them, answer a few general queries, write the page."""
    if not videos.is_dir():
        raise ClipreelError(f"{videos} is no folder; give a folder of videos")
    name = model or DEFAULT_MODEL
    retriever = load_model(name, download, device)
    index = indexed(retriever, videos, out / "index")
    print("\nsearching")
    queries = ("a person talking", "people dancing", "text on the screen")
    found = answer(Searcher(index, retriever), queries)
    content = page(
        "clipreel: your videos",
        f"What {name} finds in {videos}.",
        [("Answers", cards([Card(q, hits) for q, hits in found.items()]))],
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(content, "utf-8")
    print(f'\nreport: {out / "report.html"}\nTry next: clipreel search "..." --index {out / "index"}')
    return 0


def indexed(retriever: Retriever, folder: Path, place: Path) -> Index:
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
    skipped(report.skipped)
    return index


def answer(searcher: Searcher, queries: Sequence[str]) -> dict[str, list[Shown]]:
    """Print and keep the first three hits of each query."""
    found = {}
    for text in queries:
        hits = searcher.search(Query.parse(text), 3)
        print(f"   {text!r}")
        for hit in hits:
            print(f"      {hit.score:.3f}  {clock(hit.start_s)}  {shown(os.path.basename(hit.path))}")
        found[text] = [Shown(Path(h.path), f"{h.score:.3f} {os.path.basename(h.path)}") for h in hits]
    return found


def write_page(
    out: Path,
    model: str,
    samples: Sequence[Sample],
    retriever: Retriever,
    measured: tuple[dict, dict],
    bound: tuple[dict, dict],
    answers: dict[str, list[Shown]],
    stamp: str,
) -> Path:
    """report.html: the numbers, the answers, and the best and worst of the test queries."""
    from clipreel.evaluation.runs import encode_videos

    videos, _ = encode_videos(retriever, samples, 8)
    texts = retriever.encode_text([s.captions[0] for s in samples]).cpu()
    scores = texts @ videos.T
    rank = (scores > scores.diagonal()[:, None]).sum(1)
    rows = [["", *(f"{d} {m}" for d in ("t2v", "v2t") for m in SHOWN)]]
    for name, both in ((f"{model}, mean of 8 frames", measured), ("order-blind bound", bound)):
        rows.append([name, *(f"{d[m]:.1f}" for d in both for m in SHOWN)])

    def told(queries: list[int]) -> str:
        items = []
        for i in queries:
            best = torch.topk(scores[i], 2).indices.tolist()
            picked = best if i in best else [best[0], i]
            items.append(
                Card(
                    samples[i].captions[0],
                    [Shown(samples[j].video, f"{scores[i, j]:.3f} {samples[j].captions[0]}", j == i) for j in picked],
                )
            )
        return cards(items)

    order = torch.argsort(rank, stable=True).tolist()
    spread = order[: max(1, int((rank == 0).sum()))]
    hits = spread[:: max(1, len(spread) // 4)][:4]
    content = page(
        "clipreel demo",
        f"{model} was trained on stills only. The mean of a film's frames tells what is in it, but not what happens.",
        [
            ("Numbers", numbers(rows) + paragraph(stamp)),
            ("Searches", cards([Card(q, shown_hits) for q, shown_hits in answers.items()])),
            ("Hits", told(hits)),
            ("Worst misses", told(order[::-1][:4])),
        ],
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(content, "utf-8")
    return out / "report.html"
