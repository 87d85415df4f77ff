"""What the rest of the house sees of a model: texts and videos in, vectors of one space out (DESIGN 3).

A `Retriever` is a backbone, the tuner on it, the tokenizer, and the recipe of pixels and frames that belong to it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from clipreel.checkpoints import Loaded, load_weights, resize_positions
from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.heads import Head, PoolingHead, mean_pool, real_frames, unit
from clipreel.identity import digest
from clipreel.sites import PLAIN, Tuner
from clipreel.tokenizer import Tokenizer
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

BUILT_IN = {"shapes-tiny": Path(__file__).parent / "models" / "shapes-tiny"}
CPU_TOKENS = 1200  # that go through the tower at once: 5 to 10 % faster than four times as many
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrameEngine(Protocol):
    """Another way to compute the video tower: pixels (N, 3, H, W) -> raw vectors (N, E), each frame by itself."""

    @property
    def name(self) -> str: ...

    def __call__(self, frames_NCHW: Tensor, /) -> Tensor: ...


class Retriever:
    """Encodes videos and texts into one space of unit vectors, in which the cosine says how well they match.

    Holds no state that a call changes: threads may share one. Example:

    >>> import clipreel
    >>> model = clipreel.load("shapes-tiny")
    >>> model.encode_text(["a red circle", "a small blue square"]).shape
    torch.Size([2, 128])
    """

    head: Head | None = None
    engine: FrameEngine | None = None

    def __init__(
        self,
        clip: Clip,
        *,
        tokenizer: Tokenizer | None,
        preprocess: Preprocess,
        sampling: Sampling,
        name: str,
        tuner: Tuner = PLAIN,
        adapter: str = "none",
        dtype: torch.dtype = torch.float32,
        warnings: Sequence[str] = (),
    ) -> None:
        self.adapter, self.adapter_folder, self.base_name = adapter, "", name
        self.clip, self.tuner, self.tokenizer = clip.eval(), tuner.eval(), tokenizer
        self.preprocess, self.sampling, self.name, self.dtype = preprocess, sampling, name, dtype
        self.context, self.embed_dim = clip.config.context - tuner.text_slots, clip.config.embed
        self.warnings = tuple(warnings)

    @property
    def device(self) -> torch.device:
        return self.clip.logit_scale.device

    @property
    def network(self) -> nn.Module:
        """The backbone, for its sizes (`config`) and parts."""
        return self.clip

    @property
    def scale(self) -> float:
        """What cosines are multiplied with before a softmax over texts."""
        return self.clip.scale(self.tuner).item()

    @property
    def tokens(self) -> int:
        """How many tokens a text takes, with those of the method itself."""
        return self.clip.config.context

    def adapted(
        self,
        tuner: Tuner,
        *,
        adapter: str,
        name: str | None = None,
        preprocess: Preprocess | None = None,
        sampling: Sampling | None = None,
        folder: str = "",
    ) -> Retriever:
        """Another retriever on the same base in memory, with this tuner; `adapter` is the identity of its tensors and
        `folder` where it lies."""
        other = Retriever(
            self.clip,
            tokenizer=self.tokenizer,
            preprocess=preprocess or self.preprocess,
            sampling=sampling or self.sampling,
            name=name or self.name,
            tuner=tuner,
            adapter=adapter,
            dtype=self.dtype,
            warnings=self.warnings,
        )
        other.adapter_folder, other.base_name = folder, self.base_name
        other.__dict__["fingerprint"] = self.fingerprint  # hashing the base once is enough
        return other

    def kept_at(self, folder: str | Path) -> Retriever:
        """The same model, whose adapter lies in a folder now: an index that it makes says so."""
        other = copy(self)
        other.adapter_folder = os.path.abspath(folder)
        return other

    @property
    def engine_name(self) -> str:
        """What computes the video tower: "torch", or the name of the engine."""
        return "torch" if self.engine is None else self.engine.name

    def with_engine(self, engine: FrameEngine) -> Retriever:
        """The same model with its frames encoded by something else, and so in a `space` of its own."""
        other = copy(self)
        other.engine = engine
        other.__dict__["fingerprint"] = self.fingerprint
        other.__dict__.pop("space", None)
        return other

    def headed(self, head: Head) -> Retriever:
        """Another retriever on the same base and tuner, with this head over the frames.

        A pooling head makes the vectors of videos; any other only scores pairs (`rerank`) and leaves them as they are.
        """
        other = copy(self)
        other.head = head.requires_grad_(False).to(self.device).eval()
        other.__dict__.pop("space", None)
        return other

    @property
    def rerank(self) -> Callable[..., Tensor] | None:
        """Scores (N, V) of raw text vectors (N, E) with raw frame vectors (V, T, E), and a frame mask; by the head."""
        return None if self.head is None else self.head.score

    @property
    def pooling(self) -> PoolingHead | None:
        """The head that makes a video's vector, where it is more than the mean."""
        return self.head if isinstance(self.head, PoolingHead) and self.head.name != "mean" else None

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the base weights and architecture, whatever naming or file they came from."""
        return digest(self.clip.state_dict(), repr(self.clip.config))

    @cached_property
    def space(self) -> str:
        """Vectors compare only inside one space: base, adapter, tokenizer, pixel recipe and frame sampling."""
        words = "none" if self.tokenizer is None else self.tokenizer.fingerprint
        parts = [self.fingerprint, words, self.preprocess.fingerprint(), self.sampling.fingerprint()]
        parts += [self.adapter] if self.tuner is not PLAIN else []
        parts += [self.pooling.fingerprint()] if self.pooling is not None else []
        parts += [self.engine_name] if self.engine is not None else []
        return hashlib.blake2b("/".join(parts).encode(), digest_size=10).hexdigest()

    @property
    def pools_frames(self) -> bool:
        """Whether a video's vector is the mean of its frames' vectors, each encoded by itself."""
        return self.tuner is PLAIN and self.pooling is None

    def encode_video(self, frames: Tensor, frame_mask: Tensor | None = None, normalize: bool = True) -> Tensor:
        """One vector (B, E) float32 per video.

        `frames` (B, T, 3, H, W) are normalised pixels (`preprocess`); `frame_mask` (B, T) is False on padded frames.
        Raises ClipreelError for a video without a real frame.
        """
        z = self._frames(frames, frame_mask)
        pooled_over_frames = z.shape[1] == frames.shape[1]
        mask = frame_mask.to(z.device) if frame_mask is not None and pooled_over_frames else None
        return self.pool(z, mask, normalize)

    @torch.inference_mode()
    def pool(self, frames: Tensor, frame_mask: Tensor | None = None, normalize: bool = True) -> Tensor:
        """The vector (B, E) of each video from its raw frame vectors (B, T, E): their mean, or what the head makes."""
        pool = mean_pool if self.pooling is None else self.pooling.pool
        return pool(frames, frame_mask, normalize)

    def encode_frames(self, frames: Tensor, frame_mask: Tensor | None = None, normalize: bool = True) -> Tensor:
        """Vectors (B, T, E) float32, one per frame, from normalised pixels (B, T, 3, H, W); heads take them raw."""
        z = self._frames(frames, frame_mask)
        return unit(z) if normalize else z.float()

    @torch.inference_mode()
    def _frames(self, frames: Tensor, frame_mask: Tensor | None) -> Tensor:
        if frames.ndim != 5 or frames.shape[2] != 3 or not frames.shape[1]:
            raise ValueError(f"frames must be (B, T, 3, H, W) with at least one frame, not {tuple(frames.shape)}")
        real_frames(frame_mask, frames.shape[:2])
        if frame_mask is not None and not (real := frame_mask.any(1)).all():
            empty = (~real).nonzero()[0].item()
            raise ClipreelError(f"video {empty} of {len(real)} has no real frame in its frame_mask; leave it out")
        if self.pools_frames:  # they know nothing of each other, so there is nothing to mask yet
            return self._each(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        mask = None if frame_mask is None else frame_mask.to(self.device)
        with self._autocast():
            return self.clip.encode_video(frames.to(self.device), self.tuner, mask)

    def _each(self, frames_NCHW: Tensor) -> Tensor:
        """Raw vectors (N, E) of frames by themselves; on the CPU few at a time, so that caches hold what they need."""
        if self.engine is not None:
            return self.engine(frames_NCHW)
        few = max(1, CPU_TOKENS // len(self.clip.vision.pos)) if self.device.type == "cpu" else max(1, len(frames_NCHW))
        with self._autocast():
            parts = [self.clip.encode_video(p[None].to(self.device))[0] for p in frames_NCHW.split(few)]
        return torch.cat(parts)

    @torch.inference_mode()
    def encode_text(
        self, texts: Sequence[str] | Tensor, normalize: bool = True, *, strip_special: bool = False
    ) -> Tensor:
        """One vector (N, E) float32 per text; `texts` are strings or ids (N, L) int64.

        `strip_special` removes the literal start and end tokens, which would cut a user's query short.
        """
        if not isinstance(texts, Tensor):
            if isinstance(texts, str):
                raise TypeError("encode_text takes a list of texts; put the single text in a list")
            if self.tokenizer is None:
                raise ClipreelError(
                    f"{self.name} has no vocabulary, so it cannot read text: put tokenizer.json, or vocab.json and "
                    "merges.txt, or bpe_simple_vocab_16e6.txt.gz next to the weights"
                )
            texts = self.tokenizer(list(texts), self.context, strip_special=strip_special)
        if not len(texts):
            return torch.empty(0, self.embed_dim, device=self.device)
        with self._autocast():
            z = self.clip.encode_text(texts.to(self.device), self.tuner)
        return unit(z) if normalize else z.float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if device != "auto":
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as e:
            first_line = str(e).splitlines()[0]
            raise ClipreelError(f"device {device!r} cannot be used ({first_line}); try --device auto or cpu") from e
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a CUDA GPU that computes it, else float32 (bfloat16 is slower on most CPUs)."""
    if dtype == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in DTYPES:
        raise ClipreelError(f"dtype {dtype!r}: allowed are auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    activation: str | None = None,
    image_size: int | None = None,
    sampling: Sampling | None = None,
    preprocess: Preprocess | None = None,
    download: bool = True,
) -> Retriever:
    """A retriever from a hub id, a local folder, one file in any of the known namings, or a built-in name.

    `activation` settles what bare weights do not say ("quick_gelu" or "gelu"); `image_size` resizes the patch
    positions once; `sampling` and `preprocess` replace the recipe of the checkpoint; `download` False takes a hub id
    from the local cache only. Raises ClipreelError that names what is missing and what to do.
    """
    found = load_weights(BUILT_IN.get(str(source), source), activation=activation, download=download)
    return assemble(
        found,
        name=str(source),
        device=device,
        dtype=dtype,
        image_size=image_size,
        sampling=sampling,
        preprocess=preprocess,
    )


def assemble(
    found: Loaded,
    *,
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    image_size: int | None = None,
    sampling: Sampling | None = None,
    preprocess: Preprocess | None = None,
    tuner: Callable[[Clip], Tuner] | None = None,
) -> Retriever:
    """A retriever from weights under our names; `tuner` builds the method on them."""
    config, state = found.config, found.state
    if image_size is not None and image_size != config.image_size:
        config = replace(config, image_size=image_size)
        grid = image_size // config.patch
        state = {**state, "vision.pos": resize_positions(state["vision.pos"], (grid, grid))}
    with torch.device("meta"):
        clip = Clip(config)
    clip.load_state_dict(state, assign=True)
    clip.requires_grad_(False)
    where = pick_device(device)
    recipe = dict(found.preprocess or {})
    if image_size is not None:
        recipe["size"] = image_size
    return Retriever(
        clip.to(where),
        tuner=PLAIN if tuner is None else tuner(clip).to(where),
        tokenizer=None if found.tokenizer_files is None else Tokenizer.from_files(found.tokenizer_files),
        preprocess=preprocess or Preprocess(**{"size": config.image_size, **recipe}),
        sampling=sampling or Sampling(**(found.sampling or {})),
        name=name,
        dtype=pick_dtype(dtype, where),
        warnings=found.warnings,
    )
