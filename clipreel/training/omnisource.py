"""CLIP-ViP's post-pretraining loss on a whole batch: videos, their subtitles, single frames, captions of these.

Specification clip_vip.md 3. A batch without frames and captions (another corpus) is trained on what it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipreel.clip import Clip
from clipreel.heads import unit
from clipreel.losses import FOUR, four_named
from clipreel.sites import Tuner
from clipreel.training.recipe import RetrievalRecipe, Tensors
from clipreel.video.transforms import Preprocess

if TYPE_CHECKING:
    from clipreel.training.batches import Batch


class OmnisourceRecipe(RetrievalRecipe):
    """`loss` adds up terms of losses.FOUR, such as v-sc+f-c; the scale is trained and stays in [1, `max_scale`].

    A batch with others `beside` it gives videos v and subtitles s, the one beside frames f and captions c; a batch
    alone, of videos or of images, is trained with v-s. What no term asks for is not computed.
    """

    def __init__(
        self,
        clip: Clip,
        tuner: Tuner,
        preprocess: Preprocess,
        *,
        loss: str = "v-sc+f-c",
        max_scale: float = 200.0,
        **options: Any,
    ) -> None:
        super().__init__(clip, tuner, preprocess, train_scale=True, max_scale=max_scale, loss="v-s", **options)
        self.terms = four_named(loss)
        views = set("".join(self.terms))
        self.frames, self.captions = "f" in views, "c" in views

    def encode(self, batch: Batch) -> Tensors:
        """`video`, `text` (B, E), and of what stands beside, `frame` and `caption` (B, E); unit rows in float32."""
        found = super().encode(batch)
        aside = batch.beside
        if aside is None or not self.captions:
            return found
        if self.frames:
            still = super().encode(aside)
            return found | {"frame": still["video"], "caption": still["text"]}
        return found | {"caption": unit(self.clip.encode_text(aside.ids, self.tuner))}

    def losses(self, features: Tensors, groups: Tensor) -> tuple[Tensors, Tensors]:
        scale = self.log_scale.exp()
        v, s, c = features["video"], features["text"], features.get("caption")
        if c is None:
            return {"v-s": self.video_text(features, groups, scale)}, self.report(features, groups, scale)
        f = features.get("frame", v)  # no term reads it where there is none
        losses = {name: FOUR[name](v, s, f, c, scale) for name in self.terms}
        return losses, self.report(features, groups, scale)

    @torch.no_grad()
    def after_step(self) -> None:
        self.log_scale.clamp_(0.0, self.max_log)
