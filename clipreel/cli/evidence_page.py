"""The pages of `clipreel tag` and `clipreel ask`: what was said of a video, and where on its frames it is seen."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clipreel.alpro.evidence import answer_score, hidden_squares, lit, named_patches, word_score
from clipreel.alpro.retriever import AlproRetriever
from clipreel.cli.output import clock, shown
from clipreel.errors import ClipreelError
from clipreel.evaluation.gallery import Section, page
from clipreel.retriever import Retriever
from clipreel.search.tags import Tag, entity_vectors, facets
from clipreel.video.decode import Frames, read_frames
from clipreel.video.packets import DecodeError

PATCHES = "what the entity head predicts at each patch"
HIDDEN = "where hiding a square costs the most"
HEIGHT = 120


@dataclass(frozen=True)
class Strip:
    """A word, what is said of it, and its place on the frames."""

    word: str
    note: str
    picture: Image.Image


def tags_page(
    tags: Sequence[Tag], model: Retriever, vocabulary: Sequence[str], prompts: str, file: Path, most: int
) -> list[tuple[str, str]]:
    """Write the page of the `most` surest tagged videos; those that cannot be read come back with the reason."""
    by_video: dict[str, list[Tag]] = {}
    for tag in sorted((t for t in tags if t.level == "video"), key=lambda t: -t.probability):
        by_video.setdefault(tag.path, []).append(tag)
    words = torch.from_numpy(entity_vectors(model, vocabulary, prompts))
    sections, failed = [Section("Tags", "In how many videos each is seen.", facet_table(tags))], []
    for path, found in list(by_video.items())[:most]:
        try:
            frames = looked_at(model, path)
        except DecodeError as e:
            failed.append((path, e.reason))
            continue
        sections.append(Section(shown(path), "", strips(tag_strips(model, frames, found, vocabulary, words))))
    lead = f"{len(by_video)} videos tagged by {model.name}; the {len(sections) - 1} with the surest tags."
    write(file, page("What is seen, and where", lead, sections))
    return failed


def tag_strips(
    model: Retriever, frames: Frames, tags: Sequence[Tag], vocabulary: Sequence[str], words: Tensor
) -> list[Strip]:
    """A strip for each tag: by the entity head where the model has one that knows the word, else by hiding."""
    pixels = model.preprocess.normalise(frames.pixels)[None].to(model.device)
    named = {}
    if isinstance(model, AlproRetriever) and model.entities and model.model.mpm_head is not None:
        named = named_patches(model, pixels, "", [t.tag for t in tags])
    rest = [t.tag for t in tags if t.tag not in named]
    lost = hidden_squares(word_score(model, words, [vocabulary.index(w) for w in rest]), pixels) if rest else None
    found = []
    for t in tags:
        heat = named[t.tag] if lost is None or t.tag in named else lost[..., rest.index(t.tag)]
        how = PATCHES if t.tag in named else HIDDEN
        found.append(Strip(t.tag, f"{t.probability:.0%}; {how}", lit(frames.pixels, heat)))
    return found


def answer_page(
    model: AlproRetriever,
    judge: AlproRetriever,
    video: str,
    question: str,
    answers: Sequence[tuple[str, float]],
    file: Path,
    part: tuple[float | None, float | None],
) -> None:
    """Write the page of a question: where the best answer is seen, and what the entity head of `judge` names."""
    frames = looked_at(model, video, *part)
    pixels = model.preprocess.normalise(frames.pixels)[None].to(model.device)
    best, p = answers[0]
    lost = hidden_squares(answer_score(model, question, [best]), pixels)[..., 0]
    why = strips([Strip(best, f"{p:.0%}; {HIDDEN}", lit(frames.pixels, lost))])
    rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{q:.1%}</td></tr>" for a, q in answers)
    sections = [
        Section("Answers", "Probabilities over all answers that the model knows.", f"<table>{rows}</table>"),
        Section("Why", "The part of the picture that the best answer depends on.", why),
    ]
    if judge is not model or (judge.model.mpm_head is not None and judge.entities):
        seen = frames if judge is model else looked_at(judge, video, *part)
        heat = named_patches(judge, judge.preprocess.normalise(seen.pixels)[None].to(judge.device), question, ())
        found = [Strip(w, f"{h.max():.0%}; {PATCHES}", lit(seen.pixels, h)) for w, h in heat.items()]
        sections.append(Section("Seen", "The likeliest entities at any patch, beside the question.", strips(found)))
    write(file, page(question, f"{shown(video)} ({clock(frames.info.duration_s)}), asked of {model.name}.", sections))


def looked_at(model: Retriever, path: str, start_s: float | None = None, end_s: float | None = None) -> Frames:
    """The frames that a model sees of a video, as its pixels. Raises DecodeError."""
    return read_frames(path, model.sampling, start_s=start_s, end_s=end_s, transform=model.preprocess.pixels)


def facet_table(tags: Sequence[Tag]) -> str:
    rows = "".join(f"<tr><th>{html.escape(word)}</th><td>{videos}</td></tr>" for word, videos in facets(tags))
    return f'<div class="wide"><table>{rows}</table></div>'


def strips(found: Sequence[Strip]) -> str:
    """Cards with a strip of frames each."""
    cards = "".join(
        f'<section class="card"><h3>{html.escape(s.word)}</h3><img style="width:100%" src="{data_uri(s.picture)}" '
        f'alt="{html.escape(s.word)} on the frames"><div class="told"><span>{html.escape(s.note)}</span></div>'
        "</section>"
        for s in found
    )
    return f'<div class="cards">{cards}</div>'


def data_uri(picture: Image.Image) -> str:
    size = max(1, round(picture.width * HEIGHT / picture.height)), HEIGHT
    out = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as e:
        raise ClipreelError(f"the page {file} cannot be written ({e.strerror}); give another --report") from e
