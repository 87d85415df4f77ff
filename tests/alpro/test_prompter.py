"""Prompts, crops and soft labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clipreel.alpro.prompter import (
    PROMPT_SETS,
    Box,
    Prompter,
    blackened,
    crop_box,
    ensembled,
    outside,
    prompts,
    read_entities,
)
from clipreel.errors import ClipreelError
from tests.alpro.tiny import pixels, tiny, tokenizer


def test_the_published_prompts_are_twelve_of_each_template_by_template() -> None:
    assert [len(set(PROMPT_SETS[which])) for which in ("video", "image")] == [12, 12]
    texts = prompts(["dog", "car"])
    assert texts[:3] == ["A footage of a dog.", "A footage of a car.", "A footage of the dog."]
    assert texts[-1] == "A video footage of one car."


def test_an_ensemble_is_the_plain_mean_and_shorter_than_one() -> None:
    vectors = torch.tensor([[1.0, 0], [0, 1.0], [0, 1.0], [0, 1.0]])  # two templates of two entities
    assert ensembled(vectors, 2).tolist() == [[0.5, 0.5], [0, 1.0]]


def test_crops_have_the_published_sizes() -> None:
    rng = np.random.RandomState(0)
    boxes = [crop_box(rng, 224, 16) for _ in range(3000)]
    areas = [b.height * b.width / 196 for b in boxes]
    assert abs(np.mean(areas) - 0.334) < 0.005
    assert min(areas) > 0.2
    assert max(areas) < 0.5
    assert abs(np.median([b.height / b.width for b in boxes]) - 1.43) < 0.08
    assert all(b.top + b.height <= 14 and b.left + b.width <= 14 for b in boxes)
    with pytest.raises(ClipreelError, match="no crop of whole patches of 16 fits"):
        crop_box(rng, 16, 16)


def test_a_crop_stays_in_place_on_black() -> None:
    hide = outside([Box(0, 1, 1, 2)], 4)
    assert hide.sum() == 14
    frames = torch.full((1, 2, 3, 8, 8), 5, dtype=torch.uint8)
    crop = blackened(frames, hide, 2)
    assert crop.dtype == torch.uint8
    assert crop[..., :2, 2:6].eq(5).all()
    assert crop.sum() == 5 * 2 * 3 * 8
    with pytest.raises(ClipreelError, match="does not lie in a frame of 4 x 4 patches"):
        outside([Box(0, 3, 1, 2)], 4)


def test_the_prompter_is_frozen_and_sure_of_something() -> None:
    prompter = Prompter(tiny(dropout=0.5), tokenizer(), ("dog", "cat", "circle")).train()
    assert not any(p.requires_grad for p in prompter.parameters())
    labels = prompter(pixels(2), torch.tensor([False, True]))
    torch.testing.assert_close(labels.sum(1), torch.ones(2))
    assert torch.equal(labels, prompter(pixels(2), torch.tensor([False, True])))
    other = prompter(pixels(2), torch.tensor([True, True]))
    assert torch.equal(labels[1], other[1])
    assert not torch.equal(labels[0], other[0])


def test_entities_are_read_as_published(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("man 120\nwoman 90\n\nman 3\ndog\n")
    assert read_entities(file) == ("man", "woman", "dog")
    assert read_entities(file, 2) == ("man", "woman")
    file.write_text("\n")
    with pytest.raises(ClipreelError, match="is empty; mine one"):
        read_entities(file)
    with pytest.raises(ClipreelError, match="there are no entities"):
        prompts([])
    with pytest.raises(ClipreelError, match="allowed are video, image, single, plain"):
        prompts(["dog"], "xyz")
    with pytest.raises(ClipreelError, match="more than 15 tokens"):
        Prompter(tiny(), tokenizer(), ("a very very very very very very very long dog",))
