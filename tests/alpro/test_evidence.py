"""Maps of where something is seen."""

from __future__ import annotations

import pytest
import torch

from clipreel.alpro.evidence import GRID, answer_score, hidden_squares, lit, named_patches, word_score
from clipreel.errors import ClipreelError
from tests.alpro.tiny import SIZE, pixels, retriever


def test_hiding_costs_most_where_the_score_looks() -> None:
    """A score that reads one cell of the grid only."""
    cell = SIZE // GRID

    def score(frames: torch.Tensor) -> torch.Tensor:
        seen = frames[..., 2 * cell : 3 * cell, 5 * cell : 6 * cell].abs().mean((1, 2, 3, 4))
        return torch.stack([seen, torch.ones_like(seen)], 1)

    frames = pixels(1)
    lost = hidden_squares(score, frames)
    assert lost.shape == (GRID, GRID, 2)
    assert divmod(int(lost[..., 0].argmax()), GRID) == (2, 5)
    assert lost[2, 5, 0] == pytest.approx(score(frames)[0, 0].item(), abs=1e-5)
    far = lost[..., 0].clone()
    far[1:4, 4:7] = 0  # every square over the neighbours of the cell may hide it
    assert not far.any()
    assert not lost[..., 1].any()
    with pytest.raises(ClipreelError, match="4 x 4 pixels are too small to hide parts of"):
        hidden_squares(score, torch.zeros(1, 2, 3, 4, 4))


def test_scores_are_those_of_tags_and_answers() -> None:
    model = retriever(answers=("red", "blue", "left"))
    frames = pixels(2)
    found = answer_score(model, "what colour is it ?", ["left", "red"])(frames)
    for row, frame in zip(found, frames, strict=True):
        asked = dict(model.ask(frame[None], "what colour is it ?"))
        assert row.tolist() == pytest.approx([asked["left"], asked["red"]], abs=1e-6)
    words = model.encode_text(["dog", "cat", "circle"])
    p = (model.scale * model.encode_video(frames) @ words.T).softmax(1)
    torch.testing.assert_close(word_score(model, words, [2, 0])(frames), p[:, [2, 0]])


def test_the_entity_head_names_patches() -> None:
    model = retriever(entities=("dog", "cat", "circle"))
    found = named_patches(model, pixels(1), "", ["cat", "unknown"])
    assert list(found) == ["cat"]
    torch.testing.assert_close(found["cat"], model.evidence(pixels(1), "")[..., 1])
    best = list(named_patches(model, pixels(1), "a dog", ()))
    assert sorted(best) == ["cat", "circle", "dog"]
    with pytest.raises(ClipreelError, match="no entity head"):
        named_patches(retriever(), pixels(1), "", ["dog"])


def test_light_falls_on_the_heat() -> None:
    frames = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    heat = torch.zeros(4, 4)
    heat[1, 2] = 0.7
    picture = lit(frames, heat)
    assert picture.size == (32, 16)
    assert picture.getpixel((9, 6))[0] > picture.getpixel((1, 14))[0] == 35
    assert picture.getpixel((9, 6)) == picture.getpixel((25, 6))  # all frames alike
    assert lit(frames.float() / 255, heat).getpixel((1, 14)) == picture.getpixel((1, 14))
