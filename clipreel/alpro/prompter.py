"""The prompter: a frozen ALPRO that names what it sees in a crop, as soft labels over entities.

Specification alpro.md 1 and 3 (crop, pseudo labels); checked against salesforce/ALPRO on fixtures. An entity's feature
is the plain mean of its unit features over the templates and is not made unit again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipreel.errors import ClipreelError

AREA, SHAPE = (0.3, 0.5), (0.3, 1 / 0.3)
TRIES = 10_000
PROMPT_LENGTH = 15
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
                f"the crop {(top, left, height, width)} does not lie in a frame of {grid} x {grid} patches"
            )
        row[top : top + height, left : left + width] = 0
    return mask


def blackened(pixels: Tensor, outside_Bhw: Tensor, patch: int, black: float | Tensor = 0.0) -> Tensor:
    """The frames (B, T, 3, H, W) with everything but the crop black, in all frames alike; the crop stays in place."""
    hide = outside_Bhw.bool().repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None, None]
    return torch.where(hide, torch.as_tensor(black, dtype=pixels.dtype, device=pixels.device), pixels)
