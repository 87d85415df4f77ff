"""From decoded frames to the pixels of a model: resize, crop, normalise, as each system does it.

Specification core.md 3.1-3.2, checked on real frames against OpenAI's, X-Pool's and CLIP-ViP's preprocessing. Mode
`pil` is equal to OpenAI's in every pixel because Pillow does it; mode `uint8` is torch's batched kernel, three to
seven times faster, and differs by one grey level in about one pixel of 500.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipreel.errors import ClipreelError

RESIZE = ("pil", "uint8", "tensor", "tensor_antialias")
GEOMETRY = ("crop", "squash")


def pillow_bicubic(frame_HWC: Tensor, target: tuple[int, int]) -> Tensor:
    """One uint8 frame (H, W, 3) at the target (height, width), as Pillow makes it."""
    image = Image.fromarray(frame_HWC.cpu().numpy())
    resized = np.array(image.resize(target[::-1], Image.Resampling.BICUBIC))
    return torch.from_numpy(resized).to(frame_HWC.device)


@dataclass(frozen=True)
class Preprocess:
    """The pixel recipe, part of a model's space.

    `resize`: `pil` is 8-bit bicubic with antialiasing (OpenAI), `uint8` the same within one grey level and faster;
    `tensor` float bicubic without antialiasing, not clamped (X-Pool, CLIP-ViP as published); `tensor_antialias` what
    the same code does with newer libraries.
    `geometry`: `crop` keeps the shape and cuts the centre, `squash` forces a square.
    """

    size: int = 224
    resize: str = "pil"
    geometry: str = "crop"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        for name, allowed in (("resize", RESIZE), ("geometry", GEOMETRY)):
            if getattr(self, name) not in allowed:
                raise ClipreelError(f"{name} {getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        if self.size < 1:
            raise ClipreelError(f"a size of {self.size} pixels: give at least 1")
        for name in ("mean", "std"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 (T, H, W, 3) RGB -> normalised float32 (T, 3, size, size), on the device of the frames."""
        return self.normalise(self.pixels(frames))

    def pixels(self, frames: Tensor) -> Tensor:
        """uint8 (T, H, W, 3) RGB -> (T, 3, n, n): uint8 in modes `pil` and `uint8`, else float 0..1, unclamped."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {tuple(frames.shape)}")
        x = frames.permute(0, 3, 1, 2)  # a channels-last view: the fast path of the uint8 kernel
        target = self._resized(x.shape[-2], x.shape[-1])
        if self.resize.startswith("tensor"):
            x = x.float() / 255
        if target == tuple(x.shape[-2:]):
            pass
        elif self.resize == "pil":
            x = torch.stack([pillow_bicubic(frame, target) for frame in frames]).permute(0, 3, 1, 2)
        else:
            x = F.interpolate(x, target, mode="bicubic", align_corners=False, antialias=self.resize != "tensor")
        top, left = (round((side - self.size) / 2) for side in target)  # half to even, as Python and OpenAI round
        return x[..., top : top + self.size, left : left + self.size]

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 or float 0..1 (..., 3, n, n) -> float32, mean and standard deviation of the model."""
        x = pixels.float()
        if pixels.dtype == torch.uint8:
            x = x / 255
        mean = torch.tensor(self.mean, device=x.device).view(3, 1, 1)
        return ((x - mean) / torch.tensor(self.std, device=x.device).view(3, 1, 1)).contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        n = self.size
        if self.geometry == "squash":
            return n, n
        if height <= width:
            return n, n * width // height
        return n * height // width, n

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
