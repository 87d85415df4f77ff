"""What ALPRO's study on the shapes world is made of: frames, questions, vocabularies, and a small model to start from.

As the published training starts from a ViT and BERT, this one starts from the image tower of shapes-tiny, which has
seen stills of the world and no film, and from a small BERT that has read the corpus and seen nothing. What looks over
time starts from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from clipreel.adapter import write
from clipreel.alpro.bert import PAD, Bert, MaskedWords, TextConfig
from clipreel.alpro.model import AlproConfig, mask_words
from clipreel.alpro.prompter import PROMPT_SETS
from clipreel.alpro.retriever import AlproRetriever
from clipreel.alpro.start import start
from clipreel.alpro.timesformer import VisionConfig
from clipreel.alpro.wordpiece import WordPiece
from clipreel.clip import Clip
from clipreel.data.entities import mine
from clipreel.data.questions import Question, answer_vocabulary
from clipreel.data.sample import Sample
from clipreel.data.shapes import ShapesWorld
from clipreel.data.shapes_corpus import corpus
from clipreel.data.shapes_questions import shapes_questions
from clipreel.retriever import load
from clipreel.training.alpro_stages import Frames
from clipreel.video.sampling import Sampling

PIXELS, STORED, TOKENS = 64, 8, 24  # side of a frame, frames kept of a film, tokens of a text
WIDTH, HEADS, MLP, EMBED, TEXT_LAYERS, TEXT_MLP = 96, 3, 384, 64, 4, 192
READING, READ, RATE, WARM_UP = 2000, 64, 2e-3, 100  # steps, sentences in each, learning rate and its rise

SHORT = ("a {0}", "the {0}", "one {0}", "a video of a {0}", "a photo of the {0}", "a picture of a {1} {0}")


class Stack(Mapping[str, NDArray[np.uint8]]):
    """Films by id in one array, which processes share; `blind` shows nothing but black."""

    def __init__(self, ids: Sequence[str], films: NDArray[np.uint8], blind: bool = False) -> None:
        self.place = {id: i for i, id in enumerate(ids)}
        self.films, self.blind = films, blind

    def __getitem__(self, id: str) -> NDArray[np.uint8]:
        film = self.films[self.place[id]]
        return np.zeros_like(film) if self.blind else film

    def __iter__(self):
        return iter(self.place)

    def __len__(self) -> int:
        return len(self.place)


@dataclass(frozen=True)
class AlproWorld:
    """The shapes world as a study uses it. Frames are rendered once, into the `folder`; there too lies the BERT, after
    `reading` steps."""

    folder: Path
    world: ShapesWorld = field(default_factory=ShapesWorld)
    reading: int = READING

    def samples(self, split: str) -> list[Sample]:
        """Films with their captions. In training a short one more: captions of the web often name a thing and no more,
        and a model that never read one of those cannot be prompted."""
        rng = Random(f"short/{split}")
        found = []
        for i in self.world.videos(split):
            thing = rng.choice(i.scene.actors)
            short = (rng.choice(SHORT).format(thing.shape, thing.colour),) if split == "train" else ()
            found.append(Sample(i.id, self.folder / i.id, i.captions + short))
        return found

    def questions(self, split: str) -> list[Question]:
        return shapes_questions(self.world, split, self.folder)

    def frames(self, split: str, blind: bool = False) -> Stack:
        """Films (STORED, 3, PIXELS, PIXELS) uint8 by sample id."""
        items = self.world.videos(split)
        file = self.folder / f"frames-{split}-{PIXELS}-{STORED}.npy"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            films = np.stack([i.scene.render(PIXELS, STORED).transpose(0, 3, 1, 2) for i in items])
            part = file.with_suffix(".part.npy")
            np.save(part, films)
            part.replace(file)
        return Stack([i.id for i in items], np.load(file, mmap_mode="r"), blind)

    def answers_frames(self, split: str, blind: bool = False) -> Frames:
        """The same by question id."""
        films = self.frames(split, blind)
        return {q.id: films[q.video_id] for q in self.questions(split)}

    @cached_property
    def answers(self) -> tuple[str, ...]:
        return answer_vocabulary(self.questions("train"))

    def entities(self, most: int) -> tuple[str, ...]:
        """The most frequent nouns of the corpus, the same on every machine."""
        return tuple(word for word, _ in mine(corpus(self.world), most, "places"))

    @cached_property
    def tokenizer(self) -> WordPiece:
        """Whole words of all texts of the study, so that models of different runs read alike."""
        prompts = [t.format(word) for word in self.entities(1000) for t in (*PROMPT_SETS["video"], "{}")]
        prompts += [t.format("it", "") for t in (*PROMPT_SETS["image"], *SHORT)]
        asked = [t for q in self.questions("train") for t in (q.question, q.answer)]
        return WordPiece.of_words([*corpus(self.world), *prompts, *asked])

    @cached_property
    def text(self) -> TextConfig:
        return TextConfig(self.tokenizer.vocab_size, 40, WIDTH, TEXT_LAYERS, TEXT_LAYERS // 2, HEADS, TEXT_MLP, 0.0)

    @cached_property
    def reader(self) -> Reader:
        """What has read the corpus; made once."""
        file = self.folder / f"reader-{self.reading}.safetensors"
        torch.manual_seed(0)
        made = Reader(self.text)
        if file.is_file():
            made.load_state_dict(load_file(file))
        else:
            made.learn(corpus(self.world), self.tokenizer, self.reading)
            self.folder.mkdir(parents=True, exist_ok=True)
            write(file, save(made.state_dict()))
        return made

    def new_model(self, seed: int, frames: int, entities: Sequence[str] = ()) -> AlproRetriever:
        """A model that knows stills and texts, but neither films nor which text is of what."""
        base, reader = load("shapes-tiny", device="cpu"), self.reader.state_dict()
        torch.manual_seed(seed)
        layers = base.clip.config.vision.layers
        vision = VisionConfig(PIXELS, base.clip.config.patch, frames, WIDTH, layers, HEADS, MLP, drop_path=0.0)
        films = torch.from_numpy(np.array(self.frames("train").films[:16, 0]))
        vit = clip_as_vit(base.clip, base.preprocess.normalise(films))
        model = start(AlproConfig(vision, self.text, EMBED, entities=len(entities)), vit)
        model.load_state_dict({**model.state_dict(), **reader})
        return AlproRetriever(
            model,
            tokenizer=self.tokenizer,
            preprocess=base.preprocess,
            sampling=Sampling("uniform", frames),
            name="small ALPRO",
            context=TOKENS,
            entities=entities,
        )


class Reader(nn.Module):
    """The parts of an ALPRO that are a BERT: its text, both halves, and the head that guesses words."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.text, self.mlm = Bert(config), MaskedWords(config.width, config.vocab)

    def learn(self, texts: Sequence[str], tokenizer: WordPiece, steps: int) -> None:
        """To guess hidden words of these texts."""
        optimiser, rng = torch.optim.AdamW(self.parameters()), Random("reading")
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
            ids = tokenizer([rng.choice(texts) for _ in range(READ)], TOKENS)
            shown, labels = mask_words(ids, tokenizer.mask, tokenizer.vocab_size, tokenizer.special)
            hidden = labels != -100
            tokens = self.text.run(self.text.embed(shown), ids != PAD, range(len(self.text.layers)))
            loss = F.cross_entropy(self.mlm(tokens[hidden], self.text.words), labels[hidden])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@torch.no_grad()
def clip_as_vit(clip: Clip, pictures: Tensor) -> dict[str, Tensor]:
    """The image tower of a CLIP under the names of a ViT, which has no norm in front of its blocks.

    That norm is folded into the embeddings: exactly for the CLS token, for patches with the mean standard deviation of
    those of `pictures` (N, 3, H, W), normalised, in the place of each one's own.
    """
    vision = clip.vision
    norm, weight, pos = vision.ln_pre, vision.patch.weight, vision.pos
    x = vision.patch(pictures).flatten(2).transpose(1, 2) + pos[1:]
    spread = (x.var(-1, unbiased=False) + norm.eps).sqrt().mean()
    gain = norm.weight / spread

    def centred(t: Tensor) -> Tensor:
        return t - t.mean(-1, keepdim=True)

    first = norm(vision.cls + pos[0])
    found = {
        "cls_token": first[None, None],
        "pos_embed": torch.cat([torch.zeros_like(pos[:1]), centred(pos[1:]) * gain + norm.bias])[None],
        "patch_embed.proj.weight": (weight - weight.mean(0)) * gain[:, None, None, None],
        "patch_embed.proj.bias": torch.zeros_like(gain),
        "norm.weight": vision.ln_post.weight,
        "norm.bias": vision.ln_post.bias,
    }
    names = {"ln1": "norm1", "qkv": "attn.qkv", "out": "attn.proj", "ln2": "norm2", "fc": "mlp.fc1", "proj": "mlp.fc2"}
    for i, block in enumerate(vision.blocks):
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                found[f"blocks.{i}.{theirs}.{kind}"] = block.get_parameter(f"{ours}.{kind}")
    return {n: t.detach().clone() for n, t in found.items()}
