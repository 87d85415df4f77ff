"""One training step of one method: rows to features, features of the whole batch to losses.

The split is what makes the batch global: features are computed row by row, in micro-batches and on several processes,
and a loss always sees those of the whole batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.heads import Head, mean_pool, unit
from clipreel.losses import TWO, contrastive, missed, missed_in, paired, pairs, two_named
from clipreel.sites import Tuner
from clipreel.training.distributed import gather_features, gather_rows
from clipreel.video.transforms import Preprocess

if TYPE_CHECKING:
    from clipreel.training.batches import Batch

Tensors = dict[str, Tensor]


class Recipe(ABC):
    """What the engine needs to know about a method.

    `encode` must treat every row by itself: no batch statistics, and random numbers from noise.py, which no split of the
    batch changes (torch's own would). `losses` may use parameters of its own; it runs in float32 on every process with
    the same inputs and the same random numbers.
    """

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, each once."""

    @abstractmethod
    def encode(self, batch: Batch) -> Tensors:
        """Features by name, each (B, ...), row i of every one from row i of the batch."""

    @abstractmethod
    def losses(self, features: Tensors, groups: Tensor) -> tuple[Tensors, Tensors]:
        """Scalars of the global batch: the losses, whose sum is minimised, and what is only reported.

        `groups` (N,) has equal numbers for rows of the same video, and -1 in the last rows, if some of them hold a text
        and a video that was judged wrong for it (`Loader` with misses); RetrievalRecipe and HeadRecipe know those.
        """

    def after_step(self) -> None:  # noqa: B027 - most methods need none
        """Runs behind every update and after a resume, so it must not depend on how often; a clamp, for example."""

    def train(self, on: bool) -> None:  # noqa: B027
        """Training (dropout) or evaluation behaviour."""

    def recompute(self) -> None:
        """Keep one activation per block and recompute the rest in the backward pass."""
        raise ClipreelError(f"{type(self).__name__} cannot recompute activations; set recompute: false")

    def __call__(self, batch: Batch) -> tuple[Tensors, Tensors]:
        """Losses and report of this batch, or of the global batch where processes share it, with one graph.

        In a loop of your own on N processes, average the gradients of the parameters over them.
        """
        counts, features = gather_features(self.encode(batch))
        return self.losses(features, gather_rows(batch.groups.to(next(iter(features.values())).device), counts))


def right_rows(groups: Tensor) -> int:
    """How many rows are pairs; the others stand behind them."""
    return int((groups >= 0).sum())


class RetrievalRecipe(Recipe):
    """Contrastive training of one vector per video and text: VoP, CLIP4Clip meanP, the fine-tuning of CLIP-ViP.

    Trains the parameters of the tuner, and the logit scale with `train_scale`, which never rises above `max_scale`.
    With `train_base` it trains the backbone in place instead (full tuning whose weights are sharded over processes).
    `loss` is a name in losses.TWO. `same_video` "right" shares the target among captions of one video; "wrong" takes
    them for negatives, as the papers, and as all losses but contrastive and v-s do in any case. A row of group -1 gives
    its text one more candidate from text to video (losses.missed); the other losses then raise ClipreelError.
    """

    def __init__(
        self,
        clip: Clip,
        tuner: Tuner,
        preprocess: Preprocess,
        *,
        train_scale: bool = False,
        max_scale: float = 100.0,
        same_video: str = "right",
        train_base: bool = False,
        loss: str = "contrastive",
    ) -> None:
        if same_video not in ("right", "wrong"):
            raise ClipreelError(f"same_video {same_video!r}: allowed are right, wrong")
        if train_base and any(True for _ in tuner.parameters()):
            raise ClipreelError("train_base trains the backbone itself; give it no tuner with parameters")
        self.clip, self.tuner, self.preprocess = clip.requires_grad_(train_base), tuner, preprocess
        self.loss = two_named(loss)
        self.same_video, self.train_base, self.max_log = same_video, train_base, math.log(max_scale)
        # the base is never written, so the scale that is clamped is a copy, unless the tuner brings its own
        own = tuner.overrides.get("logit_scale")
        self.log_scale = nn.Parameter(clip.logit_scale.detach().clone(), train_scale) if own is None else own
        if train_base:
            clip.logit_scale.requires_grad_(False)

    def trained(self) -> dict[str, nn.Parameter]:
        found = {name: p for name, p in self.tuner.named_parameters() if p.requires_grad}
        if self.train_base:
            found |= {name: p for name, p in self.clip.named_parameters() if p.requires_grad}
        scale = self.log_scale
        if isinstance(scale, nn.Parameter) and scale.requires_grad and all(p is not scale for p in found.values()):
            found["logit_scale"] = scale
        return found

    def encode(self, batch: Batch) -> Tensors:
        """`video` (B, E), the unit mean of the unit frames, and `text` (B, E), unit; float32."""
        pixels = self.preprocess.normalise(batch.frames)
        frames = self.clip.encode_video(pixels, self.tuner, batch.frame_mask)
        mask = batch.frame_mask if frames.shape[1] == pixels.shape[1] else None
        return {"video": mean_pool(frames, mask), "text": unit(self.clip.encode_text(batch.ids, self.tuner))}

    def losses(self, features: Tensors, groups: Tensor) -> tuple[Tensors, Tensors]:
        scale, n = self.log_scale.exp(), right_rows(groups)
        text, video = features["text"][n:], features["video"][n:]
        features, groups = {name: x[:n] for name, x in features.items()}, groups[:n]
        loss = self.video_text(features, groups, scale)
        if len(text):
            more = missed(scale * text @ features["video"].T, scale * (text * video).sum(1))
            loss = loss + missed_in(self.loss) * more
        return {self.loss: loss}, self.report(features, groups, scale)

    def video_text(self, features: Tensors, groups: Tensor, scale: Tensor) -> Tensor:
        right = groups if self.same_video == "right" else None
        if self.loss == "contrastive":
            return contrastive(features["text"], features["video"], scale, right)
        if self.loss == "v-s":
            return pairs(features["text"], features["video"], scale, right)
        return TWO[self.loss](features["video"], features["text"], scale)

    @torch.no_grad()
    def report(self, features: Tensors, groups: Tensor, scale: Tensor) -> Tensors:
        best = (features["text"] @ features["video"].T).argmax(1)
        hit = (groups[best] == groups).float().mean()
        return {"scale": scale.detach(), "in_batch_R@1": 100 * hit}

    @torch.no_grad()
    def after_step(self) -> None:
        self.log_scale.clamp_(max=self.max_log)

    def train(self, on: bool) -> None:
        self.tuner.train(on)

    def recompute(self) -> None:
        self.clip.vision.checkpointing = self.clip.text.checkpointing = True


class HeadRecipe(RetrievalRecipe):
    """The same over the scores of a head, which is trained with the tuner; `Tuner()` leaves CLIP as it is.

    Scores that are no cosines (tightTransf) go into the loss as they are. With `train_base` CLIP is trained as well,
    as in CLIP4Clip and X-Pool; give its tensors a smaller learning rate by a rule on their names.
    """

    def __init__(self, clip: Clip, tuner: Tuner, preprocess: Preprocess, head: Head, **options: Any) -> None:
        super().__init__(clip, tuner, preprocess, **options)
        self.head = head.requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        return super().trained() | {f"head.{name}": p for name, p in self.head.named_parameters()}

    def encode(self, batch: Batch) -> Tensors:
        """`frames` (B, T, E) and `text` (B, E) as CLIP projects them, float32, and the `mask` (B, T) if there is one.

        The mask is uint8, because not every way between processes takes truth values.
        """
        pixels = self.preprocess.normalise(batch.frames)
        frames = self.clip.encode_video(pixels, self.tuner, batch.frame_mask)
        if frames.shape[1] != pixels.shape[1]:
            raise ClipreelError(
                f"this method makes {frames.shape[1]} vector of {pixels.shape[1]} frames, and a head needs one of each "
                "frame; train it without a head, or a head on another method"
            )
        found = {"frames": frames.float(), "text": self.clip.encode_text(batch.ids, self.tuner).float()}
        if batch.frame_mask is not None:
            found["mask"] = batch.frame_mask.to(torch.uint8)
        return found

    def losses(self, features: Tensors, groups: Tensor) -> tuple[Tensors, Tensors]:
        scale, mask, n = self.log_scale.exp(), features.get("mask"), right_rows(groups)
        text, frames, real = features["text"], features["frames"], None if mask is None else mask.bool()
        all_scores = self.head(text, frames[:n], None if real is None else real[:n])
        scores, groups, factor = all_scores[:n], groups[:n], scale if self.head.cosine else 1.0
        loss = paired(factor * scores, groups if self.same_video == "right" else None)
        if n < len(text):
            wrong = self.head(text[n:], frames[n:], None if real is None else real[n:]).diagonal()
            loss = loss + missed(factor * all_scores[n:], factor * wrong)
        hit = (groups[scores.argmax(1)] == groups).float().mean()
        return {"contrastive": loss}, {"scale": scale.detach(), "in_batch_R@1": 100 * hit}

    def train(self, on: bool) -> None:
        super().train(on)
        self.head.train(on)
