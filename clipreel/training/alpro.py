"""The four stages of ALPRO as recipes of the one training loop: prompter, pre-training, retrieval, VideoQA.

Specification alpro.md 3, 4 and 8. Masked words, entities and the positive pairs are losses of single rows; only the
contrastive loss and the negative pairs need the whole batch, so they alone are computed from gathered tokens; of the
negative pairs every process judges its share.
Differs: captions of one video are not each other's negatives (`same_video`), and negatives come from the whole batch
(`negatives_within` is the batch of one process of the released code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.alpro import model as alpro
from clipreel.alpro.bert import PAD
from clipreel.alpro.model import Alpro
from clipreel.alpro.prompter import Prompter, blackened, crop_box, outside
from clipreel.alpro.wordpiece import WordPiece
from clipreel.errors import ClipreelError
from clipreel.losses import contrastive
from clipreel.noise import bits
from clipreel.training.recipe import Recipe, Tensors
from clipreel.training.row_shares import in_shares
from clipreel.video.transforms import Preprocess

if TYPE_CHECKING:
    from clipreel.training.batches import Batch

STAGES = {"prompter": ("vtc",), "pretrain": ("mlm", "vtm", "vtc", "pem"), "retrieval": ("vtc", "vtm")}
TERMS = ("vtc", "vtm", "mlm", "pem")


class AlproRecipe(Recipe):
    """Contrastive, matching, masked-word and entity losses, those in `terms`, all of weight 1.

    `keep` and `keep_least` are the rule for entity samples (see `model.kept`); a row whose frames are all equal counts
    as an image and gets the prompts for images.
    """

    def __init__(
        self,
        model: Alpro,
        preprocess: Preprocess,
        tokenizer: WordPiece,
        terms: Sequence[str] = STAGES["retrieval"],
        *,
        prompter: Prompter | None = None,
        keep: str = "confidence",
        keep_least: float = 0.2,
        same_video: str = "right",
        negatives_within: int | None = None,
    ) -> None:
        unknown = [t for t in terms if t not in TERMS]
        if unknown or not terms:
            raise ClipreelError(f"losses {list(unknown or terms)}: allowed are {', '.join(TERMS)}")
        if keep not in alpro.KEEP_RULES:
            raise ClipreelError(f"keep rule {keep!r}: allowed are {', '.join(alpro.KEEP_RULES)}")
        if same_video not in ("right", "wrong"):
            raise ClipreelError(f"same_video {same_video!r}: allowed are right, wrong")
        if "pem" in terms and prompter is None:
            raise ClipreelError("the entity loss (pem) needs a prompter; train one first, or leave pem out")
        if "pem" in terms and prompter is not None and len(prompter.entities) != model.config.entities:
            raise ClipreelError(
                f"{len(prompter.entities)} entities of the prompter for the {model.config.entities} classes of the "
                "entity head; build the model for as many"
            )
        if "mlm" in terms and model.mlm is None:
            raise ClipreelError("the loss of masked words (mlm) needs a model with that head; leave mlm out")
        self.model, self.preprocess, self.tokenizer, self.terms = model, preprocess, tokenizer, tuple(terms)
        self.prompter, self.keep, self.same_video, self.block = prompter, keep, same_video, negatives_within
        self.keep_least = keep_least

    def trained(self) -> dict[str, nn.Parameter]:
        return reached(self.model, self.terms)

    def encode(self, batch: Batch) -> Tensors:
        """Unit vectors `video`, `text` (B, E); what the other losses need of each row."""
        model, ids, mask = self.model, batch.ids, real_frames(batch)
        video, text = model.video(self.preprocess.normalise(batch.frames), mask), model.text.read(batch.ids)
        out = {"video": model.video_vectors(video), "text": model.text_vectors(text)}
        if set(self.terms) & {"vtm", "pem"}:
            fused = model.text.fuse(text, ids != PAD, video, first="pem" not in self.terms)
            if "vtm" in self.terms:
                out |= {"video_tokens": video.float(), "text_tokens": text.float(), "ids": ids}
                out["match"] = model.itm_head(fused[:, 0]).float()
            if "pem" in self.terms:
                out |= self.entities(batch, fused[:, ids.shape[1] :], mask)
        if "mlm" in self.terms:
            out |= self.words(ids, video)
        return out

    def words(self, ids: Tensor, video: Tensor) -> Tensors:
        """Summed loss and number of the hidden words of each row."""
        model, special = self.model, self.tokenizer.special
        seen, labels = alpro.mask_words(ids, self.tokenizer.mask, self.tokenizer.vocab_size, special)
        fused = model.text.fuse(model.text.read(seen), ids != PAD, video)[:, : ids.shape[1]]
        hidden = labels != -100
        found = alpro.word_losses(model.word_logits(fused[hidden]), labels)
        return {"word_losses": found, "word_counts": hidden.sum(1)}

    def entities(self, batch: Batch, fused_video: Tensor, mask: Tensor | None) -> Tensors:
        """Loss of the entities inside a random crop of each row, and whether the prompter was sure enough."""
        assert self.prompter is not None
        vision = self.model.config.vision
        seeds = (bits((len(batch),), torch.device("cpu")).long() + 2**31).tolist()
        # NumPy draws the crops of the released code
        boxes = [crop_box(np.random.RandomState(s), batch.frames.shape[-1], vision.patch) for s in seeds]
        hide = outside(boxes, vision.grid).to(batch.frames.device)
        crops = self.preprocess.normalise(blackened(batch.frames, hide, vision.patch))
        is_image = (batch.frames == batch.frames[:, :1]).flatten(1).all(1)
        labels = self.prompter(crops, is_image, mask)
        logits = self.model.entity_logits(alpro.pooled_crop(fused_video, hide))
        keep = alpro.kept(labels, self.keep, self.keep_least)
        return {"entity_losses": alpro.entity_losses(logits, labels), "kept": keep.float()}

    def losses(self, features: Tensors, groups: Tensor) -> tuple[Tensors, Tensors]:
        text, video, temp = features["text"], features["video"], self.model.temp
        right = groups if self.same_video == "right" else None
        found: Tensors = {}
        report: Tensors = {"temp": temp.detach()}
        if "vtc" in self.terms:
            found["vtc"] = contrastive(text, video, 1 / temp, right)
        if "vtm" in self.terms:
            found["vtm"], report["match_accuracy"] = self.matching(features, text @ video.T / temp, right)
        if "mlm" in self.terms:
            found["mlm"] = features["word_losses"].sum() / features["word_counts"].sum().clamp(min=1)
        if "pem" in self.terms:
            found["pem"] = alpro.mean_of_kept(features["entity_losses"], features["kept"].detach())
            report["kept"] = features["kept"].detach().mean()
        with torch.no_grad():
            best = (text @ video.T).argmax(1)
            report["in_batch_R@1"] = 100 * (groups[best] == groups).float().mean()
        return found, report

    def matching(self, features: Tensors, scores: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """The matching loss over drawn negatives, and the percentage of pairs that are told right."""
        p = [alpro.negative_probabilities(s, groups, self.block) for s in (scores, scores.T)]
        rows, columns = alpro.matching_rows(*alpro.draw_negatives(*p))
        positive, ids = features["match"], features["ids"]

        def match(which: slice, texts: Tensor, videos: Tensor) -> Tensor:
            a, b = rows[which], columns[which]
            return self.model.match(texts[a], ids[a] != PAD, videos[b])

        both, upper = (features["text_tokens"], features["video_tokens"]), self.model.text.upper()
        negative = in_shares(match, len(rows), both, [*upper.parameters(), *self.model.itm_head.parameters()])
        told = torch.cat([positive.argmax(1) == 1, negative.argmax(1) == 0]).float().mean()
        return alpro.matching(positive, negative), 100 * told

    def after_step(self) -> None:
        self.model.clamp()

    def train(self, on: bool) -> None:
        self.model.train(on)

    def recompute(self) -> None:
        self.model.video.checkpointing = self.model.text.checkpointing = True


class QaRecipe(Recipe):
    """Cross entropy over the answers. A row is a sample whose caption is the question; `labels` are the classes by
    sample id, and a sample without one (an answer outside the vocabulary) is not trained on.

    `frozen_attention` keeps the attention and MLP weights of the video encoder as they are, which the released VideoQA
    training does by an accident of its gradient checkpointing.
    """

    def __init__(
        self, model: Alpro, preprocess: Preprocess, labels: Mapping[str, int], *, frozen_attention: bool = False
    ) -> None:
        if model.classifier is None:
            raise ClipreelError("VideoQA needs a model with an answer head; build it with as many answers as there are")
        beyond = [n for n, i in labels.items() if not 0 <= i < model.config.answers]
        if beyond:
            raise ClipreelError(f"{beyond[0]!r} has class {labels[beyond[0]]} of {model.config.answers} answers")
        self.model, self.preprocess, self.labels = model, preprocess, labels
        self.frozen_attention = frozen_attention

    def trained(self) -> dict[str, nn.Parameter]:
        found = reached(self.model, ("qa",))
        parts = (".attn.", ".temporal_attn.", ".mlp.")
        return {n: p for n, p in found.items() if not (self.frozen_attention and any(part in n for part in parts))}

    def encode(self, batch: Batch) -> Tensors:
        pixels = self.preprocess.normalise(batch.frames)
        logits = self.model.answer_logits(pixels, batch.ids, real_frames(batch))
        labels = torch.tensor([self.labels.get(n, -1) for n in batch.names], device=logits.device)
        return {"logits": logits.float(), "labels": labels}

    def losses(self, features: Tensors, groups: Tensor) -> tuple[Tensors, Tensors]:
        logits, labels = features["logits"], features["labels"]
        known = labels >= 0
        loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / known.sum().clamp(min=1)
        hit = (logits.argmax(1) == labels).float().mean()
        return {"answers": loss}, {"accuracy": 100 * hit}

    def train(self, on: bool) -> None:
        self.model.train(on)

    def recompute(self) -> None:
        self.model.video.checkpointing = self.model.text.checkpointing = True


def real_frames(batch: Batch) -> Tensor | None:
    """The frame mask, None where every frame is real."""
    mask = batch.frame_mask
    return None if mask is None or bool(mask.all()) else mask


def reached(model: Alpro, terms: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters of a model that these losses reach, by name, each once."""
    fused = set(terms) & {"vtm", "mlm", "pem", "qa"}
    needs = {"itm_head.": "vtm", "mlm.": "mlm", "mpm_head.": "pem", "classifier.": "qa"}
    found: dict[str, nn.Parameter] = {}
    for name, p in model.named_parameters():
        upper = name.startswith("text.layers.") and int(name.split(".")[2]) >= model.config.text.text_layers
        need = next((t for head, t in needs.items() if name.startswith(head)), None)
        vectors = name.startswith(("vision_proj.", "text_proj.", "temp"))
        if (need is None or need in terms) and (not upper or fused) and not (vectors and "vtc" not in terms):
            found[name] = p
    return found
