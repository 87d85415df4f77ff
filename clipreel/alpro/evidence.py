"""Where on the frames a model sees what it says: what its entity head predicts at each patch, or what hiding costs.

The entity head of ALPRO names patches (specification alpro.md 2.3). Any other score, such as the tag of a CLIP or an
answer, is explained by hiding: a square is made grey in all frames, and the loss of probability falls on its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipreel.alpro.retriever import AlproRetriever
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever

GRID, SIDE = 8, 2  # hidden squares are SIDE of GRID cells wide and overlap by all but one
AT_ONCE = 7  # videos with something hidden that are scored together
TINT, DARK = (255, 190, 0), 0.35

Score = Callable[[Tensor], Tensor]  # normalised pixels (B, T, 3, H, W) -> probabilities (B, K)


def named_patches(model: AlproRetriever, frames: Tensor, text: str, words: Sequence[str]) -> dict[str, Tensor]:
    """(h, w) probabilities of those `words` that the entity head knows, beside a text; no word: the three likeliest.

    `frames` (1, T, 3, H, W) are normalised. Raises ClipreelError for a model without an entity head or its words.
    """
    heat = model.evidence(frames, text).cpu()
    if not model.entities:
        raise ClipreelError(f"{model.name} has an entity head and no list of its words (entities.json); add it")
    number = {word: i for i, word in enumerate(model.entities)}
    if not words:
        best = heat[..., : len(number)].flatten(0, 1).amax(0).topk(min(3, len(number))).indices.tolist()
        words = [model.entities[i] for i in best]
    return {word: heat[..., number[word]] for word in words if word in number}


def hidden_squares(score: Score, frames: Tensor) -> Tensor:
    """(GRID, GRID, K): how much each of K probabilities falls when the squares over a cell are hidden, on average.

    `frames` (1, T, 3, H, W) are normalised, so that what is hidden becomes the mean colour of the training pixels.
    """
    high, wide = frames.shape[-2:]
    if min(high, wide) < GRID:
        raise ClipreelError(f"frames of {high} x {wide} pixels are too small to hide parts of: {GRID} at least")
    places = [(y, x) for y in range(GRID - SIDE + 1) for x in range(GRID - SIDE + 1)]
    whole = score(frames)[0].cpu()
    lost: Tensor = torch.zeros(GRID, GRID, len(whole))
    seen = torch.zeros(GRID, GRID, 1)
    for start in range(0, len(places), AT_ONCE):
        part = places[start : start + AT_ONCE]
        hidden = frames.repeat(len(part), 1, 1, 1, 1)
        for video, (y, x) in zip(hidden, part, strict=True):
            rows, columns = (slice(a * n // GRID, (a + SIDE) * n // GRID) for a, n in ((y, high), (x, wide)))
            video[:, :, rows, columns] = 0
        for (y, x), p in zip(part, score(hidden).cpu(), strict=True):
            lost[y : y + SIDE, x : x + SIDE] += whole - p
            seen[y : y + SIDE, x : x + SIDE] += 1
    return lost / seen


def word_score(model: Retriever, words_ME: Tensor, numbers: Sequence[int]) -> Score:
    """The probabilities of some of M words by their vectors, as tags have them."""
    wanted = list(numbers)

    def score(frames: Tensor) -> Tensor:
        return (model.scale * model.encode_video(frames).cpu() @ words_ME.T).softmax(1)[:, wanted]

    return score


def answer_score(model: AlproRetriever, question: str, answers: Sequence[str]) -> Score:
    """The probabilities of some answers to a question."""
    wanted = [model.answers.index(answer) for answer in answers]
    ids = model.question_ids(question).to(model.device)

    @torch.inference_mode()
    def score(frames: Tensor) -> Tensor:
        logits = model.model.answer_logits(frames.to(model.device), ids.expand(len(frames), -1))
        return logits.float().softmax(1)[:, wanted]

    return score


def lit(frames_T3HW: Tensor, heat_hw: Tensor) -> Image.Image:
    """The frames (uint8, or float 0..1) side by side, bright and tinted where the heat is highest, dark where it is
    lowest; heat that is the same everywhere leaves them dark."""
    whole = frames_T3HW if frames_T3HW.dtype == torch.uint8 else frames_T3HW.clamp(0, 1) * 255
    pictures = whole.float().cpu().permute(0, 2, 3, 1)
    span = (heat_hw - heat_hw.min()) / (heat_hw.max() - heat_hw.min()).clamp(min=1e-6)
    shape = pictures.shape[1:3]
    light = F.interpolate(span[None, None].float(), shape, mode="bilinear", align_corners=False)[0, 0, :, :, None]
    bright = pictures * (DARK + (1 - DARK) * light)
    tinted = bright * (1 - 0.3 * light) + torch.tensor(TINT) * 0.3 * light
    return Image.fromarray(torch.cat(list(tinted.clamp(0, 255).byte()), 1).numpy())
