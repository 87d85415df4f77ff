"""Trains a small image captioner (GIT, arXiv 2205.14100) on stills of the shapes world, so that captions can be made.

`python -m clipreel.training.shapes_captioner --out FOLDER` (a few minutes on two cores) writes a folder for
`clipreel caption --model FOLDER`. Its eye begins as the video tower of shapes-tiny, which knows shapes and colours; its
words are those of the captions. It never sees a film.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipreel.data.captioner import Captioner
from clipreel.data.shapes import COLOURS, SHAPES
from clipreel.data.shapes_stills import Still, stills
from clipreel.retriever import BUILT_IN
from clipreel.training.heap import keep_freed_memory
from clipreel.training.shapes_tiny import pixels

SEED, BATCH, STEPS, WARM_UP, RATE = 0, 64, 1500, 100, 1e-3
MIX = (0.5, 0.35, 0.15, 0.0)  # no comic strips: a frame of a film looks like none
WIDTH, LAYERS, HEADS, LONGEST = 128, 2, 4, 32
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
CARD = """---
license: apache-2.0
tags: [image-to-text]
---
# shapes-captioner

A GIT of a few hundred thousand numbers that tells what is to be seen on stills of clipreel's shapes world, and nothing
else. Made with `python -m clipreel.training.shapes_captioner`: {steps} steps of {batch} stills, seed {seed}. On {asked}
new stills it names all colours and shapes of {right:.0%}, and only those.
"""


def tokenizer(captions: list[str]) -> Any:
    """One token a word, with a start and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({w for c in captions for w in c.split()})
    vocabulary = {w: i for i, w in enumerate([PAD, UNKNOWN, START, END, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in (START, END)]
    made.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=START,
        sep_token=END,
        bos_token=START,
        eos_token=END,
        model_max_length=LONGEST,
        model_input_names=["input_ids", "attention_mask"],
    )


def build(words: Any) -> tuple[Any, Any]:
    """The model, its eye filled from shapes-tiny, and its processor."""
    from safetensors.torch import load_file
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    base = BUILT_IN["shapes-tiny"]
    eye = json.loads((base / "config.json").read_text("utf-8"))["vision_config"]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    config = GitConfig(
        vision_config={n: eye[n] for n in names} | {"hidden_act": "quick_gelu"},
        vocab_size=len(words),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=LONGEST,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    model = GitForCausalLM(config)
    own = model.git.image_encoder.state_dict()
    state = load_file(base / "model.safetensors")
    own |= {n: t for n, t in state.items() if n in own}
    missing = [n for n in own if n not in state and not n.endswith("position_ids")]
    assert not missing, missing
    model.git.image_encoder.load_state_dict(own)
    return model, GitProcessor(CLIPImageProcessor.from_pretrained(base), words)


def loss_of(model: Any, words: Any, batch: list[Still]) -> Tensor:
    found = words([s.caption for s in batch], padding=True, return_tensors="pt")
    labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
    return model(**found, pixel_values=pixels([s.image for s in batch])[:, 0], labels=labels).loss


def train(model: Any, words: Any, size: int, steps: int, log: Path) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        warm = min(WARM_UP, steps // 4)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    stream, started = stills(f"{SEED}/captioner", size, MIX), time.time()
    model.train()
    with log.open("w") as out:
        for step in range(steps):
            loss = loss_of(model, words, list(islice(stream, BATCH)))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step % 20 == 0 or step == steps - 1:
                row = {"step": step, "loss": round(loss.item(), 4), "seconds": round(time.time() - started, 1)}
                out.write(json.dumps(row) + "\n")
                out.flush()
                print(row, flush=True)
    model.eval()


def named(text: str) -> list[str]:
    """The colours and shapes of a text, in no order."""
    return sorted(w for w in text.split() if w in SHAPES or w in COLOURS)


def accuracy(folder: Path, size: int, count: int) -> float:
    """The share of new stills of which the captioner in a folder names all colours and shapes, and no others."""
    asked = list(islice(stills(f"{SEED}/asked", size, MIX), count))
    captioner = Captioner(str(folder))
    said = [t for i in range(0, count, 50) for t in captioner([s.image for s in asked[i : i + 50]])]
    return sum(named(t) == named(s.caption) for t, s in zip(said, asked, strict=True)) / count


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--asked", type=int, default=400, help="stills that it is measured on")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    words = tokenizer([s.caption for s in islice(stills("words", 8, MIX), 20_000)])
    model, processor = build(words)
    size = model.config.vision_config.image_size
    train(model, words, size, args.steps, args.out / "training.jsonl")
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    right = accuracy(args.out, size, args.asked)
    facts = {"steps": args.steps, "batch": BATCH, "seed": SEED, "asked": args.asked, "right": right}
    (args.out / "README.md").write_text(CARD.format(**facts), "utf-8")
    (args.out / "measured.json").write_text(json.dumps(facts) + "\n", "utf-8")
    print(f"names all colours and shapes of {right:.0%} of {args.asked} new stills; {args.out}")


if __name__ == "__main__":
    main()
