"""clipreel entities, tag, ask."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from clipreel.cli.output import clock, shown, skipped
from clipreel.errors import ClipreelError

if TYPE_CHECKING:
    from clipreel.alpro.retriever import AlproRetriever

HOW_TO_GET_ONE = (
    "Tune an ALPRO on questions and answers (clipreel train configs/alpro/msvd-qa.yaml model=PRETRAINED "
    "train_data=train.jsonl --out my-alpro) and give its folder: --model my-alpro/model"
)
USE = "use them: clipreel search ... --tag WORD"
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


def entities(
    captions: Path,
    /,
    *,
    out: Path = Path("entities.txt"),
    most: int = 1000,
    tagger: Literal["auto", "spacy", "places"] = "auto",
    json: Flag = False,
) -> int:
    """Mine the most frequent nouns of captions: the vocabulary of tags, and of ALPRO's prompter.

    Try `clipreel entities demo-output/shapes/test/annotations.jsonl --most 10`

    Args:
        captions: Annotations (JSON lines, CSV, Parquet), captions as `clipreel caption` writes them, or a text file
            with a caption on each line.
        out: Where words and counts are written.
        most: How many words.
        tagger: How nouns are told: spacy, or places (by where words stand); auto takes spaCy where it is installed.
        json: Print words and counts as JSON.
    """
    import json as js

    from clipreel.data.entities import mine, write_entities
    from clipreel.data.gap import read_corpus

    texts = read_corpus(str(captions), least=1)
    found = mine(texts, most, tagger)
    write_entities(out, found)
    if json:
        print(js.dumps({"file": str(out), "captions": len(texts), "entities": dict(found)}))
    else:
        print(f"{len(found)} nouns of {len(texts)} captions: {', '.join(w for w, _ in found[:10])} ...  ({out})")
    return 0


def tag(
    words: Path | None = None,
    /,
    *,
    index: str | None = None,
    model: str | None = None,
    prompts: str = "plain",
    most: int = 3,
    least: float = 0.2,
    report: Path | None = None,
    videos: int = 12,
    device: str = "auto",
    json: Flag = False,
) -> int:
    """Tag every indexed video and segment with words of a vocabulary; search takes them as --tag.

    Try `clipreel tag entities.txt --index my-index --report tags.html`

    Args:
        words: A vocabulary, one word on each line (see clipreel entities); without it, the stored tags are shown.
        index: Folder or URI of the index (default: the platform's data folder).
        model: The model, where it lies elsewhere than when the index was made.
        prompts: The sentences that words are put into: plain, video, image or single.
        most: At most so many tags for each moment.
        least: Least probability of a tag.
        report: Write an HTML page that shows on the frames where each tag is seen.
        videos: Of so many videos on the page, those with the surest tags.
        device: Where the model runs: auto takes the GPU where there is one.
        json: One JSON object per tag and nothing else.
    """
    import json as js

    from clipreel.alpro.prompter import read_entities
    from clipreel.cli.search import engine_of, load_model
    from clipreel.search import tags
    from clipreel.search.index import Index, default_place

    store, failed = Index(index or default_place()), []
    if words is None:
        if report is not None:
            raise ClipreelError("the page is made while tagging; say: clipreel tag WORDS --report PAGE")
        found = tags.read_tags(store)
    else:
        if videos < 1:
            raise ClipreelError(f"{videos} videos on the page: show at least 1 (--videos)")
        vocabulary = read_entities(words)
        source, lies = model or store.facts["model"], store.facts.get("adapter")
        retriever = load_model(source, False, device, lies, engine_of(store))
        found = tags.tag(store, retriever, vocabulary, which=prompts, most=most, least=least)
        if report is not None:
            from clipreel.cli.evidence_page import tags_page

            failed = tags_page(found, retriever, vocabulary, prompts, report, videos)
    if json:
        for t in found:
            print(js.dumps(vars(t)))
    else:
        for word, count in tags.facets(found):
            print(f"{count:6d}  {word}")
        use = f"no word is as sure as --least {least:g}: lower it" if words and not found else USE
        print(f"{len(found)} tags in {len({t.path for t in found})} videos; {use}")
    skipped(failed)
    return 1 if failed else 0


def ask(
    video: str,
    question: str,
    /,
    *,
    model: str | None = None,
    k: Annotated[int, Parameter(name=["-k", "--answers"])] = 5,
    start: float | None = None,
    end: float | None = None,
    report: Path | None = None,
    seen_by: str | None = None,
    device: str = "auto",
    json: Flag = False,
) -> int:
    """Answer a question about a video, out of the answers that the model knows.

    Try `clipreel ask demo-output/shapes/test/test-rest-001a.mp4 "what colour is it?" --model my-alpro`

    Args:
        video: A video file.
        question: What to ask.
        model: Folder of an ALPRO that was tuned on questions and answers.
        k: How many answers.
        start: Look only at the part from this second.
        end: Look only at the part up to this second.
        report: Write an HTML page that shows on the frames what the answer depends on, and which entities are seen.
        seen_by: An ALPRO with an entity head, for the entities on the page where the model has none (tuning on
            questions drops it).
        device: Where the model runs: auto takes the GPU where there is one.
        json: Print the answers as JSON.
    """
    import json as js

    from clipreel.video.decode import probe, read_frames

    if k < 1:
        raise ClipreelError(f"{k} answers: ask for at least 1 (-k)")
    if seen_by is not None and report is None:
        raise ClipreelError("--seen-by names entities on the page: say where to write it with --report")
    if not 0 <= (start or 0.0) < (math.inf if end is None else end):
        raise ClipreelError(f"a part from {start} to {end} seconds is none: give 0 <= --start < --end")
    retriever = load_asking(model, device)
    judge = retriever if seen_by is None else load_judge(seen_by, device)
    length = probe(video).duration_s
    if start is not None and start >= length:
        raise ClipreelError(f"--start {start:g}: {shown(video)} ends at {length:.2f} seconds")
    frames = read_frames(video, retriever.sampling, start_s=start, end_s=end, transform=retriever.preprocess.pixels)
    found = retriever.ask(retriever.preprocess.normalise(frames.pixels)[None], question, k)
    if report is not None:
        from clipreel.cli.evidence_page import answer_page

        answer_page(retriever, judge, video, question, found, report, (start, end))
    if json:
        rows = [{"answer": a, "probability": round(p, 6)} for a, p in found]
        print(js.dumps({"video": video, "question": question, "answers": rows}))
    else:
        print(f"{shown(video)} ({clock(frames.info.duration_s)})")
        for answer, p in found:
            print(f"{p:6.1%}  {answer}")
    return 0


def load_judge(model: str, device: str) -> AlproRetriever:
    from clipreel.alpro.retriever import AlproRetriever
    from clipreel.cli.search import load_model

    found = load_model(model, False, device)
    if not isinstance(found, AlproRetriever) or found.model.mpm_head is None or not found.entities:
        raise ClipreelError(f"{model} has no entity head with its words; give --seen-by an ALPRO of pre-training")
    return found


def load_asking(model: str | None, device: str) -> AlproRetriever:
    from clipreel.alpro.retriever import AlproRetriever
    from clipreel.cli.search import load_model

    if model is None:
        raise ClipreelError(f"no model is given, and none that answers questions is built in. {HOW_TO_GET_ONE}")
    retriever = load_model(model, False, device)
    if not isinstance(retriever, AlproRetriever):
        raise ClipreelError(f"{model} is a CLIP, which answers no questions. {HOW_TO_GET_ONE}")
    return retriever
