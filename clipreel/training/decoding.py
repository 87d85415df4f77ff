"""The frames that tuning reads: which folder keeps them, decoded once, and whether enough videos are left.

A cache of `clipreel prepare` is taken as it is; without one, a folder of caches has one for each recipe of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from clipreel.data.cache import FrameCache, place_in
from clipreel.data.sample import Sample
from clipreel.data.shards import MANIFEST
from clipreel.errors import ClipreelError
from clipreel.retriever import Retriever
from clipreel.training.measuring import Say, cached
from clipreel.training.pairs import LEAST, Pairs

FrameSampling = Literal["uniform", "middles", "mv_adapter", "clip4clip", "clip_vip", "alpro"]  # that a cache can keep
SHOWN = 5  # broken files that are named


@dataclass
class Decoder:
    """Decodes for one run into `scratch`: `frames` of each video, and three times as many where training draws them.

    `sizes` are the pixels of a side of the frames to measure on, and of those to train on where they are others; a
    prepared cache holds one of them. `skipped` collects the videos that could not be read, with the reason.
    """

    scratch: Path
    frames: int
    random: bool
    say: Say
    progress: Callable[[int, int], None] = lambda done, total: None
    sizes: Sequence[int] = ()
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def keep(self) -> int:
        return self.frames * (3 if self.random else 1)

    def __call__(
        self, model: Retriever, parts: Mapping[str, Sequence[Sample]], more: Sequence[Sample] = (), name: str = "frames"
    ) -> FrameCache:
        """The frames of the parts, by what they are for, and of `more`.

        Raises ClipreelError for a prepared cache of other frames or pixels, and where a part has too few videos.
        """
        everything = [s for samples in parts.values() for s in samples]
        there = {s.id for s in everything}
        everything += [s for s in more if s.id not in there]
        place = place_in(self.scratch, model.preprocess, replace(model.sampling, frames=self.keep), name)
        keep, ready = self.keep, self.prepared(model) if name == "frames" else None
        if ready is not None:
            if not ready.lacks(everything):  # nothing is written, so others may own it
                return ready
            place, keep = self.scratch, ready.recipe.frames
        found, skipped = cached(model, everything, place, keep, self.say, self.progress)
        self.skipped += [pair for pair in skipped if pair not in self.skipped]
        require_videos(parts, found, skipped)
        return found

    def of_pairs(self, model: Retriever, pairs: Pairs) -> tuple[FrameCache, FrameCache]:
        """The frames to train on and those to measure on, in one cache where they have one size."""
        learnt, measured = (
            {"for training": pairs.train},
            {"for validation": pairs.validation, "held out": pairs.held_out},
        )
        moments = pairs.misses.moments([s for part in (*learnt.values(), *measured.values()) for s in part])
        if len(self.sizes) < 2:
            found = self(model, learnt | measured, moments)
            return found, found
        large = replace(model.preprocess, size=self.sizes[-1])
        larger = model.adapted(model.tuner, adapter=model.adapter, preprocess=large)
        return self(larger, learnt, moments), self(model, measured, moments)

    def of_general(self, model: Retriever, samples: Sequence[Sample]) -> FrameCache:
        """Those of a second set, on which nothing is trained."""
        return replace(self, random=False)(model, {"of the general set": samples}, name="frames-general")

    def prepared(self, model: Retriever) -> FrameCache | None:
        """The cache that `scratch` is; None where it is none, or one for other frames of this run. It may keep more
        frames, as long as the plain choice is among them."""
        if not (self.scratch / MANIFEST).exists():
            return None
        found = FrameCache(self.scratch)
        if found.recipe.size != model.preprocess.size and found.recipe.size in self.sizes:
            return None
        found.require([], model.preprocess, replace(model.sampling, frames=self.keep))
        times, rest = divmod(found.recipe.frames, self.frames)
        if rest or not times % 2 or (times > 1 and found.recipe.sampling != "uniform"):
            raise ClipreelError(
                f"the frame cache at {self.scratch} holds {found.recipe}, among which {self.frames} frames cannot be "
                f"chosen as from the videos: name another --cache, or prepare {self.frames} or {3 * self.frames}"
            )
        return found

    def facts(self, frames: FrameCache) -> dict[str, int]:
        """What a resumed run must find again: how many frames are kept, where that is not what is decoded here."""
        return {} if frames.recipe.frames == self.keep else {"kept frames": frames.recipe.frames}


def sizes_of(own: int, crop_from: int | None, crop: tuple[float, float] | None) -> tuple[int, ...]:
    """Pixels of a side of the frames to measure on, and of those to train on where they are others. Raises
    ClipreelError for smaller ones, and for larger ones that nothing is cut from."""
    if crop_from is None:
        return (own,)
    if crop_from < own or crop is None:
        raise ClipreelError(
            f"crop_from {crop_from}: give at least the {own} pixels that the model sees, and augment.crop, the shares "
            "of the area that are cut from them"
        )
    return own, crop_from


def require_videos(
    parts: Mapping[str, Sequence[Sample]], frames: Container[str], skipped: Sequence[tuple[str, str]]
) -> None:
    """Raises ClipreelError that names the broken files of a part of which fewer than two videos are left."""
    for what, samples in parts.items():
        left = {s.video for s in samples if s.id in frames}
        if len(left) >= LEAST:
            continue
        own = {str(s.video) for s in samples}
        broken = [f"{path} ({why})" for path, why in skipped if path in own]
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise ClipreelError(
            f"{len(left)} of {len(own)} videos {what} can be read and at least {LEAST} are needed: repair or replace "
            f"{', '.join(broken[:SHOWN])}{more}"
        )
