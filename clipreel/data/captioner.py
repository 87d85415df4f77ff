"""Captions of frames by an image captioner of transformers (BLIP, GIT, Florence-2 and their kin), stored as they come.

CLIP-ViP's auxiliary captions (specification clip_vip.md 1.4): the middle frame of every video, at most 16 words. The
paper took OFA, which transformers does not have. What is stored is a line a video with the model's name, its licence
and a hash of its weights, so that a stopped run goes on, also from another place, and nobody has to guess where a
caption is from. Files of former versions have the model's path instead of the hash, and can be gone on with.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipreel.data.sample import Sample
from clipreel.errors import ClipreelError
from clipreel.identity import digest
from clipreel.video.decode import Frames, read_frames
from clipreel.video.many import read_many
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling

WORDS = 16
TOKENS_A_WORD = 3
PROMPTS = {"florence2": "<CAPTION>"}  # what a kind of model has to be asked; the others need nothing
LICENCE = re.compile(r"^licen[sc]e:\s*[\"']?([^\s\"']+)", re.MULTILINE)
Image = NDArray[np.uint8]


@dataclass
class Captioned:
    """Captions made now and kept from before, and (path, reason) of the videos without one."""

    made: int = 0
    kept: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


class Captioner:
    """Images in, a sentence of at most `words` words each out.

    `source` is a folder or a hub id, from the local cache alone unless `download`. `prompt` is put before what is
    generated (None: what the kind of model needs); `beams` candidates are kept. Raises ClipreelError where transformers
    or the model is missing, or where it is no captioner. Only safetensors are read, and no code of the repository runs.
    """

    def __init__(
        self,
        source: str,
        *,
        words: int = WORDS,
        prompt: str | None = None,
        beams: int = 1,
        licence: str | None = None,
        download: bool = False,
        device: str = "cpu",
    ) -> None:
        for name, value in (("words", words), ("beams", beams)):
            if value < 1:
                raise ClipreelError(f"{name} {value}: give at least 1")
        self.name = Path(source).resolve().name if Path(source).is_dir() else source
        self.words, self.beams = words, beams
        self.processor, model = load(source, download)
        self.weights = digest(model.state_dict())
        self.model = model.eval().to(device)
        self.prompt = PROMPTS.get(model.config.model_type, "") if prompt is None else prompt
        self.licence = licence or licence_of(source, download)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image]) -> list[str]:
        """A caption for each image (H, W, 3) uint8; may be empty where the model says nothing."""
        texts = {"text": [self.prompt] * len(images)} if self.prompt else {}
        inputs = self.processor(images=list(images), return_tensors="pt", **texts).to(self.model.device)
        ids = self.model.generate(
            **inputs, max_new_tokens=TOKENS_A_WORD * self.words, num_beams=self.beams, do_sample=False
        )
        said = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(text.split()[: self.words]) for text in said]

    @property
    def facts(self) -> dict[str, Any]:
        """What every caption depends on besides its frames."""
        made = {"model": self.name, "weights": self.weights, "licence": self.licence}
        return made | {"words": self.words, "prompt": self.prompt}


def load(source: str, download: bool) -> tuple[Any, Any]:
    """Processor and model."""
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils import logging
    except ImportError as e:
        raise ClipreelError(f"captions need transformers ({e}): pip install 'clipreel[caption]'") from e
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if os.path.sep in source and not Path(source).is_dir() and source.count("/") != 1:
        raise ClipreelError(f"there is no folder {source}; give one with a captioner, or a hub id")
    try:
        processor = AutoProcessor.from_pretrained(source, local_files_only=not download)
        model = AutoModelForImageTextToText.from_pretrained(source, local_files_only=not download, use_safetensors=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as e:
        reason = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
        hint = "" if download or Path(source).is_dir() else "; allow one download with --download"
        raise ClipreelError(f"{source} cannot be loaded as an image captioner ({reason}){hint}") from e
    if not hasattr(processor, "batch_decode"):
        raise ClipreelError(f"{source} has no vocabulary to write with; give a captioner with its tokenizer")
    return processor, model


def licence_of(source: str, download: bool) -> str:
    """What the model's card says; "unknown" where it says nothing."""
    card = Path(source) / "README.md"
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            card = Path(hf_hub_download(source, "README.md", local_files_only=not download))
        except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError):
            return "unknown"
    try:
        _, front, _ = card.read_text("utf-8").split("---", 2)
    except (OSError, ValueError):
        return "unknown"
    found = LICENCE.search(front)
    return found[1] if found else "unknown"


# ---------------------------------------------------------------------- a whole data set


def caption_videos(
    samples: Sequence[Sample],
    captioner: Captioner,
    out: Path,
    *,
    frames: int = 1,
    batch: int = 16,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Captioned:
    """Append a line for every video that `out` has none of: id, caption, and where it is from.

    One frame is the middle one, number floor(n / 2); several are spread evenly, and what is said of them is put behind
    each other once. Raises ClipreelError for a file with captions of another model or other settings.
    """
    if frames < 1 or batch < 1 or workers < 1:
        raise ClipreelError(f"{frames} frames, {batch} at a time, {workers} workers: give at least 1")
    facts = captioner.facts | {"frames": frames}
    done = stored(out, facts)
    found = Captioned(kept=sum(s.id in done for s in samples))
    todo = [s for s in samples if s.id not in done]
    videos = max(1, batch // frames)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            for number, group in grouped(todo, frames, videos, workers, found):
                for sample, text in zip((s for s, _ in group), spoken(captioner, group), strict=True):
                    if not text:
                        found.skipped.append((str(sample.video), "the captioner says nothing"))
                        continue
                    file.write(json.dumps({"id": sample.id, "caption": text, **facts}, ensure_ascii=False) + "\n")
                    found.made += 1
                file.flush()
                os.fsync(file.fileno())
                progress(number, len(todo))
    except OSError as e:
        raise ClipreelError(
            f"{out} cannot be written ({e.strerror}); {found.made} captions are safe: repair that, and the same "
            "command goes on from there"
        ) from e
    return found


def stored(out: Path, facts: dict[str, Any]) -> set[str]:
    """The ids of a file from before, its unfinished last line cut off. Raises ClipreelError for other settings."""
    if not out.exists():
        return set()
    try:
        raw = out.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with out.open("r+b") as file:
                file.truncate(len(whole))
        rows = [json.loads(line) for line in whole.decode().splitlines()]
        for number, row in enumerate(rows, 1):
            if other := other_settings(row, facts):
                raise ClipreelError(f"{out}, line {number} was made with {', '.join(other)}; name another --out file")
        return {str(row["id"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ClipreelError(f"{out} is no file of captions ({e}); name another --out file") from e


def other_settings(row: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """In what a stored line was made otherwise. Its model is known by the weights, in an old line by its name."""
    known = "weights" if "weights" in row else "model"
    made = {**row, "model": Path(str(row.get("model"))).name}
    asked = {**facts, "model": Path(facts["model"]).name}
    asked.pop("model" if known == "weights" else "weights")
    return [f"{k} {made.get(k)!r} and not {v!r}" for k, v in asked.items() if made.get(k) != v]


def grouped(
    todo: Sequence[Sample], frames: int, videos: int, workers: int, found: Captioned
) -> Iterator[tuple[int, list[tuple[Sample, Image]]]]:
    """So many videos at a time with their frames (T, H, W, 3), and how many were read; unreadable ones are noted."""
    group: list[tuple[Sample, Image]] = []
    read = partial(one, frames)
    for number, (sample, got) in enumerate(read_many(todo, read, workers, ahead=videos + workers), 1):
        if isinstance(got, DecodeError):
            found.skipped.append((str(sample.video), got.reason))
        else:
            group.append((sample, got.pixels.numpy()))
        if len(group) == videos or number == len(todo):
            yield number, group
            group = []


def one(frames: int, sample: Sample) -> Frames:
    return read_frames(sample.video, Sampling("uniform", frames), start_s=sample.start_s, end_s=sample.end_s)


def spoken(captioner: Captioner, group: Sequence[tuple[Sample, Image]]) -> list[str]:
    """One text for each video: what is said of its frames, each thing once."""
    images = [image for _, stack in group for image in stack]
    said = captioner(images) if images else []
    texts = []
    for _, stack in group:
        own, said = said[: len(stack)], said[len(stack) :]
        texts.append(". ".join(dict.fromkeys(text for text in own if text)))
    return texts
