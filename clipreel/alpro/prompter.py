"""The prompter: a frozen ALPRO that names what it sees in a crop, as soft labels over entities.

Specification alpro.md 1 and 3 (crop, pseudo labels); checked against salesforce/ALPRO on fixtures. An entity's feature
is the plain mean of its unit features over the templates and is not made unit again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clipreel.alpro.model import Alpro
from clipreel.alpro.wordpiece import WordPiece
from clipreel.errors import ClipreelError

AREA, SHAPE = (0.3, 0.5), (0.3, 1 / 0.3)
TRIES = 10_000
COUNT = re.compile(r"(?<=\S)\s+[\d.]+\s*$")
PROMPT_LENGTH, PROMPTS_AT_ONCE = 15, 512
VIDEO_STEMS = ("footage", "video", "portrait", "video footage")
IMAGE_STEMS = ("photo", "picture", "good photo", "good picture")
DETERMINERS = ("a", "the", "one")
PROMPT_SETS: dict[str, tuple[str, ...]] = {  # the published ones, and one of our own that suits both
    "video": tuple(f"A {stem} of {det} {{}}." for stem in VIDEO_STEMS for det in DETERMINERS),
    "image": tuple(f"A {stem} of {det} {{}}." for stem in IMAGE_STEMS for det in DETERMINERS),
    "single": ("A video of a {}.",),
    "plain": ("{}", "a {}", "there is a {}", "one can see a {} here", "someone shows a {}", "a {} in a short video"),
}


def prompts(entities: Sequence[str], which: str = "video") -> list[str]:
    """Every entity in every template of a set, template after template: row = template * M + entity.

    >>> prompts(["dog", "car"], "single")
    ['A video of a dog.', 'A video of a car.']
    """
    if which not in PROMPT_SETS:
        raise ClipreelError(f"prompts {which!r}: allowed are {', '.join(PROMPT_SETS)}")
    if not entities:
        raise ClipreelError("there are no entities to ask for; mine some with: clipreel entities CAPTIONS")
    return [template.format(entity) for template in PROMPT_SETS[which] for entity in entities]


def ensembled(vectors: Tensor, entities: int) -> Tensor:
    """(M, E): the plain mean over templates of unit prompt vectors (templates * M, E)."""
    return vectors.unflatten(0, (-1, entities)).mean(0)


def soft_labels(vectors_BE: Tensor, entities_ME: Tensor, temp: Tensor | float) -> Tensor:
    """(B, M) probabilities of the entities for unit vectors of crops."""
    return (vectors_BE @ entities_ME.T / temp).softmax(1)


class Box(NamedTuple):
    """A part of a frame, in patches."""

    top: int
    left: int
    height: int
    width: int


def crop_box(rng: np.random.RandomState, size: int, patch: int) -> Box:
    """A random box by rejection: area 0.3 to 0.5 of the frame, height over width 0.3 to 1 / 0.3, rounded down to whole
    patches (so that real areas are smaller). ClipreelError where no box of whole patches can fit."""
    for _ in range(TRIES):
        area, shape = rng.uniform(*AREA) * size * size, rng.uniform(*SHAPE)
        width, height = int(np.sqrt(area / shape)), int(np.sqrt(area * shape))
        left, top = rng.randint(0, size), rng.randint(0, size)
        box = Box(*(n // patch for n in (top, left, height, width)))
        fits = box.top + box.height <= size // patch and box.left + box.width <= size // patch
        if fits and box.height and box.width:
            return box
    raise ClipreelError(f"no crop of whole patches of {patch} fits into a frame of {size} pixels; use smaller patches")


def outside(boxes: Sequence[Box], grid: int) -> Tensor:
    """(B, grid, grid) float, 0 on the patches of the box and 1 around it. ClipreelError for a box beyond the frame."""
    mask = torch.ones(len(boxes), grid, grid)
    for row, (top, left, height, width) in zip(mask, boxes, strict=True):
        if min(top, left) < 0 or top + height > grid or left + width > grid or not height or not width:
            raise ClipreelError(
                f"the crop {(top, left, height, width)} (top, left, height, width) does not lie in a frame of {grid} x "
                f"{grid} patches; make it smaller"
            )
        row[top : top + height, left : left + width] = 0
    return mask


def blackened(pixels: Tensor, outside_Bhw: Tensor, patch: int, black: float | Tensor = 0.0) -> Tensor:
    """The frames (B, T, 3, H, W) with everything but the crop black, in all frames alike; the crop stays in place."""
    hide = outside_Bhw.bool().repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None, None]
    return torch.where(hide, torch.as_tensor(black, dtype=pixels.dtype, device=pixels.device), pixels)


class Prompter(nn.Module):
    """A frozen ALPRO with the features of its entities in the prompts for videos and for images.

    `sets` are those prompts, of PROMPT_SETS. Raises ClipreelError for no entities, and for one that does not fit into a
    prompt of 15 tokens, which is never cut.
    """

    def __init__(
        self, model: Alpro, tokenizer: WordPiece, entities: Sequence[str], sets: tuple[str, str] = ("video", "image")
    ) -> None:
        super().__init__()
        self.model, self.entities = model.requires_grad_(False).eval(), tuple(entities)
        with torch.no_grad():
            for name, which in zip(("video", "image"), sets, strict=True):
                self.register_buffer(name, entity_features(model, tokenizer, self.entities, which))

    def train(self, mode: bool = True) -> Prompter:
        """Stays as it is: frozen, without dropout."""
        return self

    @torch.no_grad()
    def forward(self, crops: Tensor, is_image: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """(B, M) soft labels of crops (B, T, 3, H, W), normalised; `is_image` (B,) says whose prompts count."""
        seen = self.model.video_vectors(self.model.video(crops, frame_mask))
        video, image = (soft_labels(seen, self.get_buffer(which), self.model.temp) for which in ("video", "image"))
        return torch.where(is_image[:, None], image, video)


def entity_features(model: Alpro, tokenizer: WordPiece, entities: Sequence[str], which: str) -> Tensor:
    """(M, E) ensembled prompt features of the entities."""
    texts = prompts(entities, which)
    for text in texts:
        if len(tokenizer.encode(text)) + 2 > PROMPT_LENGTH:
            raise ClipreelError(
                f"the prompt {text!r} has more than {PROMPT_LENGTH} tokens and prompts are never cut: take a shorter "
                "entity"
            )
    ids = tokenizer(texts, PROMPT_LENGTH).to(model.temp.device)
    vectors = torch.cat([model.text_vectors(model.text.read(part)) for part in ids.split(PROMPTS_AT_ONCE)])
    return ensembled(vectors, len(entities))


def read_entities(path: str | Path, most: int = 1000) -> tuple[str, ...]:
    """The first `most` entities of a text file, one on a line, of one word or several; a number behind it is its count.
    Raises ClipreelError for a file without any."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, ValueError) as e:
        raise ClipreelError(f"the vocabulary {path} cannot be read as UTF-8 ({e})") from e
    words = [" ".join(COUNT.sub("", line).split()) for line in lines if line.strip()]
    if not words:
        raise ClipreelError(f"the vocabulary {path} is empty; mine one with: clipreel entities CAPTIONS")
    return tuple(dict.fromkeys(words[:most]))
