"""Full tuning that one device has no room for: weights, gradients and moments spread over all processes (FSDP2)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from clipreel.sites import Tuner
from clipreel.training.distributed import shard, whole
from clipreel.training.recipe import RetrievalRecipe
from clipreel.tuners.overriding import Overriding


class Sharded(RetrievalRecipe):
    """A recipe of the method full over all processes of a group: the same parameters under the same names.

    A copy of the base is trained in shares; base and tuner stay whole on every process, without gradients. `gather`
    brings the tuner up to date, which measuring reads. Every process must call it.
    """

    def __init__(self, plain: RetrievalRecipe, tuner: Overriding) -> None:
        clip = deepcopy(plain.clip)
        with torch.no_grad():
            for name, tensor in tuner.overrides.items():
                clip.get_parameter(name).copy_(tensor)
        shard(clip)
        super().__init__(
            clip,
            Tuner(),
            plain.preprocess,
            train_base=True,
            train_scale=True,
            loss=plain.loss,
            same_video=plain.same_video,
        )
        self.max_log, self.full = plain.max_log, tuner.requires_grad_(False)

    def trained(self) -> dict[str, nn.Parameter]:
        return {f"base.tensors.{name.replace('.', '/')}": p for name, p in super().trained().items()}

    @torch.no_grad()
    def gather(self) -> None:
        trained = self.trained()
        for name, p in self.full.named_parameters():
            p.copy_(whole(trained[name]))
