"""A tiny random ALPRO with a vocabulary of a few words."""

from __future__ import annotations

from typing import Any

import torch

from clipreel.alpro.bert import TextConfig
from clipreel.alpro.model import Alpro, AlproConfig
from clipreel.alpro.retriever import AlproRetriever
from clipreel.alpro.timesformer import VisionConfig
from clipreel.alpro.wordpiece import WordPiece
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

WORDS = ["a video of the one red blue dog cat circle square moves left right what colour is it which shape ? ."]
SIZE, FRAMES = 32, 4
FACTS = {"vision_heads": 2, "text_heads": 2, "text_layers": 1}


def tokenizer() -> WordPiece:
    return WordPiece.of_words(WORDS)


def config(**changes: Any) -> AlproConfig:
    vision = VisionConfig(SIZE, 8, FRAMES, 24, 2, 2, 32, changes.pop("drop_path", 0.0))
    text = TextConfig(tokenizer().vocab_size, 20, 24, 2, 1, 2, 32, changes.pop("dropout", 0.0))
    return AlproConfig(vision, text, **{"embed": 16, **changes})


def tiny(seed: int = 0, **changes: Any) -> Alpro:
    torch.manual_seed(seed)
    model = Alpro(config(**changes))
    with torch.no_grad():  # larger than at a start, so that everything shows
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(std=0.2)
            elif name.endswith("bias"):
                p.normal_(std=0.1)
    return model.eval()


def retriever(**changes: Any) -> AlproRetriever:
    answers, entities = changes.pop("answers", ()), changes.pop("entities", ())
    return AlproRetriever(
        tiny(answers=len(answers), entities=len(entities), **changes),
        tokenizer=tokenizer(),
        preprocess=Preprocess(SIZE, "uint8", "squash"),
        sampling=Sampling("uniform", FRAMES),
        name="tiny-alpro",
        context=12,
        answers=answers,
        entities=entities,
    )


def pixels(rows: int, seed: int = 0, frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(rows, frames, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
