"""ALPRO as the rest of the house sees a model: vectors, a reranker, answers to questions, and where an entity is seen.

Specification alpro.md 5. `rerank` has LAVIS' form (logit of a match plus cosine, for the best candidates only); the
released form, the probability of a match for every pair, is `form="released"`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from clipreel.alpro.bert import PAD
from clipreel.alpro.model import Alpro, AlproConfig
from clipreel.alpro.weights import LoadedAlpro, foreign_names, translate_alpro
from clipreel.alpro.wordpiece import WordPiece
from clipreel.checkpoints import read_file, unwrap, weight_file
from clipreel.errors import ClipreelError
from clipreel.identity import digest
from clipreel.retriever import Retriever, pick_device, pick_dtype
from clipreel.sidecar import read_json
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

SYSTEMS = ("alpro-retrieval", "alpro-qa", "alpro-pretrain")
FORMS = ("lavis", "released")
PAIRS = 32  # pairs that go through the fusion encoder at once
ANSWERS, VOCABULARY = "answers.json", "entities.json"
FACTS = ("vision_heads", "text_heads", "text_layers", "image_size", "frames")


class AlproRetriever(Retriever):
    """A retriever whose vectors come from ALPRO's two lower encoders and whose `rerank` asks the third.

    `answers` are the words of the answer head in order of their classes, `entities` those of the entity head.
    """

    tokenizer: WordPiece | None

    def __init__(
        self,
        model: Alpro,
        *,
        tokenizer: WordPiece | None,
        preprocess: Preprocess,
        sampling: Sampling,
        name: str,
        context: int = 40,
        answers: Sequence[str] = (),
        entities: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        warnings: Sequence[str] = (),
    ) -> None:
        config = model.config
        for words, classes, what in ((answers, config.answers, "answer"), (entities, config.entities, "entity")):
            if words and classes and len(words) > classes:
                raise ClipreelError(
                    f"{len(words)} words for the {classes} classes of the {what} head; take its own list"
                )
        if tokenizer is not None and tokenizer.vocab_size > config.text.vocab:
            raise ClipreelError(
                f"a vocabulary of {tokenizer.vocab_size} tokens for a model of {config.text.vocab}; take its own"
            )
        self.model, self.tokenizer, self.preprocess, self.sampling = model.eval(), tokenizer, preprocess, sampling
        self.name, self.dtype, self.adapter, self.warnings = name, dtype, "none", tuple(warnings)
        self.adapter_folder, self.base_name = "", name
        self.context, self.embed_dim = min(context, config.text.context), config.embed
        self.answers, self.entities = tuple(answers), tuple(entities)

    @property
    def device(self) -> torch.device:
        return self.model.temp.device

    @property
    def network(self) -> Alpro:
        return self.model

    @property
    def scale(self) -> float:
        return 1 / self.model.temp.item()

    @property
    def tokens(self) -> int:
        return self.context

    @property
    def pools_frames(self) -> bool:
        return False

    @cached_property
    def fingerprint(self) -> str:
        """Identity of weights and architecture, whatever naming they came in."""
        config = self.model.config
        sizes = replace(config, vision=replace(config.vision, drop_path=0.0), text=replace(config.text, dropout=0.0))
        return digest(self.model.state_dict(), repr(sizes))

    @cached_property
    def space(self) -> str:
        words = "none" if self.tokenizer is None else self.tokenizer.fingerprint
        parts = [self.fingerprint, words, self.preprocess.fingerprint(), self.sampling.fingerprint()]
        return hashlib.blake2b("/".join(parts).encode(), digest_size=10).hexdigest()

    # ------------------------------------------------------------------ vectors

    @torch.inference_mode()
    def video_tokens(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """What `rerank` and `ask` take of videos: (B, 1 + N, D) of normalised pixels (B, T, 3, H, W)."""
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"frames must be (B, T, 3, H, W), not {tuple(frames.shape)}")
        mask = None if frame_mask is None else frame_mask.to(self.device)
        with self._autocast():
            return self.model.video(frames.to(self.device), mask)

    @torch.inference_mode()
    def encode_video(self, frames: Tensor, frame_mask: Tensor | None = None, normalize: bool = True) -> Tensor:
        tokens = self.video_tokens(frames, frame_mask)
        return self.model.video_vectors(tokens) if normalize else self.model.vision_proj(tokens[:, 0]).float()

    def encode_frames(self, frames: Tensor, frame_mask: Tensor | None = None, normalize: bool = True) -> Tensor:
        """Vectors (B, T, E) of the frames, each taken for a video of its own."""
        each = self.encode_video(frames.flatten(0, 1)[:, None], normalize=normalize)
        return each.unflatten(0, frames.shape[:2])

    @torch.inference_mode()
    def encode_text(
        self, texts: Sequence[str] | Tensor, normalize: bool = True, *, strip_special: bool = False
    ) -> Tensor:
        ids = texts if isinstance(texts, Tensor) else self.ids(texts, strip_special=strip_special)
        if not len(ids):
            return torch.empty(0, self.embed_dim, device=self.device)
        with self._autocast():
            tokens = self.model.text.read(ids.to(self.device))
            return self.model.text_vectors(tokens) if normalize else self.model.text_proj(tokens[:, 0]).float()

    def ids(self, texts: Sequence[str], *, strip_special: bool = False) -> Tensor:
        """Token ids (N, L) int64. Raises ClipreelError where the model came without a vocabulary."""
        if isinstance(texts, str):
            raise TypeError("a list of texts is needed; put the single text in a list")
        if self.tokenizer is None:
            raise ClipreelError(
                f"{self.name} has no vocabulary, so it cannot read text: put tokenizer.json or vocab.txt of "
                "bert-base-uncased next to the weights"
            )
        return self.tokenizer(list(texts), self.context, strip_special=strip_special)

    # ------------------------------------------------------------------ pairs

    @torch.inference_mode()
    def rerank(self, query: Tensor, candidates: Tensor, form: str = "lavis") -> Tensor:
        """Scores (K,) float32 of one text against K videos.

        `query` are its ids (1, L), `candidates` (K, 1 + N, D) as from `video_tokens`. `form` "lavis" adds the logit of
        a match and the cosine (not divided by temp); "released" is the probability of a match.
        """
        if form not in FORMS:
            raise ClipreelError(f"rerank form {form!r}: allowed are {', '.join(FORMS)}")
        ids = query.to(self.device)
        with self._autocast():
            text = self.model.text.read(ids)
            logits = [
                self.model.match(text.expand(len(v), -1, -1), (ids != PAD).expand(len(v), -1), v)
                for v in candidates.to(self.device).split(PAIRS)
            ]
            both = torch.cat(logits).float()
            if form == "released":
                return both.softmax(1)[:, 1]
            cosines = self.model.video_vectors(candidates.to(self.device)) @ self.model.text_vectors(text)[0]
        return both[:, 1] + cosines

    @torch.inference_mode()
    def ask(self, frames: Tensor, question: str, k: int = 5) -> list[tuple[str, float]]:
        """The k likeliest answers with their probabilities, for one video of normalised pixels (1, T, 3, H, W).

        Raises ClipreelError for a model without answers, an empty question, one that is longer than the model reads.
        """
        if not self.model.config.answers or not self.answers:
            raise ClipreelError(
                f"{self.name} answers no questions: it has no answer head, or no {ANSWERS} (words in order of their "
                "classes) beside it; take an ALPRO that was tuned on questions and answers"
            )
        ids = self.question_ids(question)
        with self._autocast():
            logits = self.model.answer_logits(frames.to(self.device), ids.to(self.device))
        found = logits.float().softmax(1)[0, : len(self.answers)].topk(min(k, len(self.answers)))
        return [(self.answers[i], p) for i, p in zip(found.indices.tolist(), found.values.tolist(), strict=True)]

    def question_ids(self, question: str) -> Tensor:
        ids = self.ids([question], strip_special=True)
        assert self.tokenizer is not None
        words = len(self.tokenizer.encode(question, strip_special=True))
        if not words:
            raise ClipreelError("the question is empty; ask something, such as: what colour is the circle?")
        if words > self.context - 2:
            raise ClipreelError(
                f"a question of {len(question.split())} words ({words} tokens): the model reads {self.context - 2} "
                "tokens; say it shorter"
            )
        return ids

    @torch.inference_mode()
    def evidence(self, frames: Tensor, text: str) -> Tensor:
        """(h, w, M) probabilities of the entities at each patch of one video, beside a text such as a question.

        Raises ClipreelError for a model without an entity head.
        """
        ids = self.ids([text]).to(self.device)
        with self._autocast():
            fused = self.model.text.fuse(
                self.model.text.read(ids), ids != PAD, self.model.video(frames.to(self.device))
            )
            logits = self.model.entity_logits(fused[0, ids.shape[1] + 1 :])
        p = self.model.config.vision.patch
        return logits.float().softmax(1).unflatten(0, (frames.shape[-2] // p, frames.shape[-1] // p))


# ---------------------------------------------------------------------- files


def assemble(
    loaded: LoadedAlpro,
    *,
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    tokenizer: WordPiece | None = None,
    preprocess: Preprocess | None = None,
    sampling: Sampling | None = None,
    **options: Any,
) -> AlproRetriever:
    """A retriever of weights under our names."""
    where, vision = pick_device(device), loaded.config.vision
    return AlproRetriever(
        loaded.build().to(where),
        tokenizer=tokenizer,
        preprocess=preprocess or Preprocess(vision.image_size, resize="uint8", geometry="squash"),
        sampling=sampling or Sampling("uniform", vision.frames),
        name=name,
        dtype=pick_dtype(dtype, where),
        warnings=loaded.warnings,
        **options,
    )


def load_official(
    system: str,
    source: str | Path | Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> AlproRetriever:
    """A retriever of a released checkpoint (of the authors or of LAVIS), with the released choice of frames.

    `config`: tokenizer (a folder or file), answers (a JSON list), context (tokens), and what translate_alpro takes.
    """
    config = dict(config or {})
    state = source if isinstance(source, Mapping) else read_file(Path(source))[0]
    state = {n.removeprefix("module."): t for n, t in unwrap(state).items()}
    loaded = translate_alpro(state, {k: config[k] for k in FACTS if k in config})
    if system == "alpro-qa" and not loaded.config.answers:
        raise ClipreelError("this checkpoint has no answer head (classifier.2.bias); load it as alpro-retrieval")
    return assemble(
        loaded,
        name=system,
        device=device,
        dtype=dtype,
        tokenizer=WordPiece.from_files(config["tokenizer"]) if "tokenizer" in config else None,
        sampling=Sampling("alpro", loaded.config.vision.frames),
        context=config.get("context", 40),
        answers=read_words(Path(config["answers"])) if "answers" in config else (),
    )


def is_alpro(source: str | Path) -> bool:
    """Whether this is a folder that `save_alpro` wrote."""
    about = read_json(Path(source) / "config.json").get("clipreel")
    return isinstance(about, dict) and about.get("system") == "alpro"


def load_alpro(source: str | Path, *, device: str = "auto", dtype: str = "auto") -> AlproRetriever:
    """A model that `save_alpro` wrote. Raises ClipreelError that names what is missing."""
    folder = Path(source)
    if not is_alpro(folder):
        raise ClipreelError(f"{folder} is no ALPRO of clipreel; load released checkpoints with load_official")
    about = read_json(folder / "config.json")["clipreel"]
    loaded = translate_alpro(read_file(weight_file(folder))[0], {k: about[k] for k in FACTS[:3]})
    words = {what: read_words(folder / f) for what, f in (("answers", ANSWERS), ("entities", VOCABULARY))}
    pixels: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["preprocess"].items()}
    return assemble(
        loaded,
        name=str(source),
        device=device,
        dtype=dtype,
        tokenizer=WordPiece.from_files(folder),
        preprocess=Preprocess(**pixels),
        sampling=Sampling(**about["sampling"]),
        context=about["context"],
        **words,
    )


def save_alpro(model: AlproRetriever, folder: str | Path) -> Path:
    """Write weights under the released names, with everything that `load_alpro` needs."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.model.config
    save_file(released(model.model.state_dict(), config), folder / "model.safetensors", metadata={"format": "pt"})
    about = {
        "system": "alpro",
        "vision_heads": config.vision.heads,
        "text_heads": config.text.heads,
        "text_layers": config.text.text_layers,
        "context": model.context,
        "preprocess": model.preprocess.to_dict(),
        "sampling": model.sampling.to_dict(),
    }
    (folder / "config.json").write_text(json.dumps({"clipreel": about}, indent=1), "utf-8")
    for words, file in ((model.answers, ANSWERS), (model.entities, VOCABULARY)):
        if words:
            (folder / file).write_text(json.dumps(list(words)), "utf-8")
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    return folder


def released(state: Mapping[str, Tensor], config: AlproConfig) -> dict[str, Tensor]:
    """Our weights under the released names."""
    out: dict[str, Tensor] = {}
    for ours, theirs in foreign_names(config).items():
        parts = state[ours].chunk(3) if len(theirs) > 1 else (state[ours],)
        out.update(zip(theirs, (p.cpu().clone().contiguous() for p in parts), strict=True))
    return out


def read_words(path: Path) -> tuple[str, ...]:
    """The words in a JSON list, or in a mapping from word to class as the authors publish; () without the file."""
    if not path.is_file():
        return ()
    try:
        data = json.loads(path.read_text("utf-8"))
        if isinstance(data, dict):
            data = sorted(data, key=data.__getitem__)
    except (OSError, ValueError, TypeError) as e:
        raise ClipreelError(f"{path} is not a readable JSON list of words ({e})") from e
    if not isinstance(data, list) or not all(isinstance(w, str) for w in data):
        raise ClipreelError(f"{path} holds something else than a list of words")
    return tuple(data)
