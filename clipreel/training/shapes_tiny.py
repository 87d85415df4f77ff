"""Trains the built-in model: a small CLIP, from scratch, on stills of the shapes world only.

`python -m clipreel.training.shapes_tiny --out FOLDER` (an hour on one core, about 35 minutes on two) writes the model
in HF layout, with a model card whose figures it measures on the files it wrote.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from clipreel.clip import Clip, ClipConfig, TowerConfig
from clipreel.data.shapes_stills import ATTRIBUTES, Still, questions, stills
from clipreel.heads import unit
from clipreel.training.heap import keep_freed_memory

SEED, BATCH, STEPS, WARM_UP, RATE, DECAY, WORDS = 0, 128, 5400, 200, 1.5e-3, 0.05, 0.2
# single things come first: shapes are the slowest to learn, and everything else needs them
EASY_STEPS, EASY_MIX = 1500, (0.75, 0.15, 0.05, 0.05)
# relations said from both sides come last: from the start they are a plateau that is not left (accuracy 45 at 2600)
BOTH_SIDES_FROM = 3000
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 32


def build_tokenizer(captions: list[str]) -> dict:
    """A byte-level BPE in the layout of CLIP's tokenizer.json whose merges make one token of every word seen."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pieces = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    spec = json.loads(tokenizer.to_str())
    merges = spec["model"]["merges"]
    # ids in CLIP's order: bytes, bytes that end a word, merges, start, end (so the end token has the largest id)
    words = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges), START, END]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    spec["model"].update(vocab=vocab)
    spec["added_tokens"] = [
        {
            "id": vocab[word],
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for word in (START, END)
    ]
    spec["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": [END, vocab[END]],
        "cls": [START, vocab[START]],
        "trim_offsets": False,
        "add_prefix_space": False,
    }
    return spec


class Words:
    """Captions to ids with the tokenizer that is being shipped; remembers what it has seen."""

    def __init__(self, spec: dict) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(json.dumps(spec))
        self.vocab = self.tokenizer.get_vocab_size()

    def __call__(self, captions: list[str]) -> Tensor:
        ids = torch.zeros(len(captions), CONTEXT, dtype=torch.long)
        for row, encoding in zip(ids, self.tokenizer.encode_batch(captions), strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return ids


def pixels(images: list[np.ndarray]) -> Tensor:
    """Normalised pixels (N, 1, 3, H, W) of uint8 images (H, W, 3)."""
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
    return ((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))[:, None]


def contrastive(images: Tensor, texts: Tensor, same: list[str], scale: Tensor) -> Tensor:
    """Symmetric cross entropy in which captions of a batch that mean the same are equally right."""
    number = {c: i for i, c in enumerate(dict.fromkeys(same))}
    meaning = torch.tensor([number[c] for c in same])
    target = (meaning[:, None] == meaning[None]).float()
    target = target / target.sum(1, keepdim=True)
    logits = scale * unit(images) @ unit(texts).T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def named_words(images: Tensor, ids: Tensor, head: nn.Linear) -> Tensor:
    """Which words of the vocabulary a caption uses, read off its image alone: helps the video tower to see shapes
    long before whole captions match. The head is thrown away."""
    used = torch.zeros(len(ids), head.out_features).scatter_(1, ids, 1.0)
    return F.binary_cross_entropy_with_logits(head(images), used, reduction="none").sum(1).mean()


def rate_at(step: int) -> float:
    """Linear warm-up, then half a cosine down to zero, as a factor."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


def train(model: Clip, words: Words, size: int, log: Path) -> None:
    head = nn.Linear(model.config.embed, words.vocab)
    nn.init.constant_(head.bias, -6.0)  # almost every word is absent
    parameters = [*model.parameters(), *head.parameters()]
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=RATE,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate_at)
    easy, full = stills(f"{SEED}/easy", size, EASY_MIX), stills(SEED, size)
    hard, started = stills(f"{SEED}/hard", size, both_sides=True), time.time()
    with log.open("w") as out:
        for step in range(STEPS):
            stream = easy if step < EASY_STEPS else full if step < BOTH_SIDES_FROM else hard
            batch: list[Still] = list(islice(stream, BATCH))
            ids = words([s.caption for s in batch])
            images = model.encode_video(pixels([s.image for s in batch]))[:, 0]
            match = contrastive(images, model.encode_text(ids), [s.same for s in batch], model.scale())
            loss = match + WORDS * named_words(images, ids, head)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))
            if step % 50 == 0 or step == STEPS - 1:
                row = {
                    "step": step,
                    "loss": round(match.item(), 4),
                    "words": round((loss - match).item(), 4),
                    "seconds": round(time.time() - started, 1),
                }
                if step % 200 == 0 or step == STEPS - 1:
                    model.eval()
                    row.update({a: round(accuracy(model, words, a, 200, size), 3) for a in ATTRIBUTES})
                    model.train()
                out.write(json.dumps(row) + "\n")
                out.flush()


@torch.no_grad()
def accuracy(model: Clip, words: Words, attribute: str, count: int, size: int, unseen: bool = False) -> float:
    """Share of new stills whose true caption scores above those with another value of the attribute."""
    asked = questions(attribute, count, SEED + 1, size, unseen)
    images = unit(model.encode_video(pixels([q.image for q in asked]))[:, 0])
    texts = unit(model.encode_text(words([c for q in asked for c in q.captions])))
    scores = (images[:, None] * texts.view(count, -1, texts.shape[1])).sum(-1)
    return (scores.argmax(1) == 0).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    size = 64
    spec = build_tokenizer([s.caption for s in islice(stills("words", 8), 20_000)])
    words = Words(spec)
    text = TowerConfig(4, 128, 4, 512)
    config = ClipConfig(size, 8, TowerConfig(4, 96, 3, 384), text, CONTEXT, words.vocab, 128, "quick_gelu")
    model = Clip(config)
    started = time.time()
    train(model, words, size, args.out / "training.jsonl")
    # kept until the model is written, so that a failure there does not cost the training
    save_file(model.state_dict(), args.out / "trained.safetensors")
    from clipreel.training.shapes_card import ship

    recipe = {"seed": SEED, "batch": BATCH, "steps": STEPS, "learning rate": RATE, "weight decay": DECAY}
    ship(args.out, model.eval(), spec, (time.time() - started) / 60, recipe)


if __name__ == "__main__":
    main()
