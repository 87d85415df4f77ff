"""How ALPRO's training changes the pixels of videos and pictures: a crop, then two operations drawn from a list.

Specification alpro.md 4; ranges and lists as in salesforce/ALPRO. All frames of a video are changed alike, each
operation has one sign, and what comes into the picture is grey. Videos take level 5 of 10, at which contrast,
brightness and sharpness change nothing; pictures level 7, each operation with even chance. Differs: a picture is
cropped out of its cached square, not out of the file, and shifts grow with the size of the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreel.errors import ClipreelError
from clipreel.training.batches import Augment

MOVES = ("shear x", "shear y", "translate x", "translate y", "rotate")
VIDEO = ("identity", "contrast", "brightness", "sharpness", *MOVES, "flip")
PICTURE = ("identity", "brightness", "sharpness", *MOVES)
TOP, GREY = 10, 128.0
SHEAR, SHIFT, TURN = 0.3, 10 / 224, 30.0  # at the top level: pixels a pixel, share of the frame, degrees
LUMA = (0.299, 0.587, 0.114)
LARGER = 256 / 224  # side of what videos are cut from, by that of the model

Which = Literal["none", "operations", "video", "picture"]


@dataclass(frozen=True)
class Operations(Augment):
    """Two operations of a list, and before them a crop of `crop` (see Augment).

    `cut` takes a random square of the model's size out of larger frames instead, as videos are; `repeats` draws the two
    with replacement; each is applied with the chance `each`.
    """

    names: tuple[str, ...] = VIDEO
    level: float = 5.0
    count: int = 2
    each: float = 1.0
    repeats: bool = False
    cut: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [n for n in self.names if n not in VIDEO]
        if unknown or (len(self.names) < self.count and not self.repeats):
            raise ClipreelError(f"operations {', '.join(unknown or self.names)}: {self.count} of {', '.join(VIDEO)}")
        if not 0 <= self.level <= TOP or not 0 <= self.each <= 1:
            raise ClipreelError(f"level {self.level}, chance {self.each}: levels go to {TOP}, chances from 0 to 1")

    def __call__(self, frames: Tensor, size: int, rng: np.random.Generator) -> Tensor:
        """uint8 (T, 3, H, W) -> (T, 3, size, size), all frames alike; a function of the frames and of `rng` alone."""
        if self.cut:
            top, left = (int(rng.integers(n - size + 1)) for n in frames.shape[-2:])
            frames = frames[..., top : top + size, left : left + size]
        elif self.crop is not None:
            top, left, height, width = self.box(frames.shape[-2], frames.shape[-1], rng)
            part = frames[..., top : top + height, left : left + width]
            frames = F.interpolate(part, (size, size), mode="bicubic", align_corners=False, antialias=True)
        if self.flip and rng.random() < self.flip:
            frames = frames.flip(-1)
        for name in rng.choice(self.names, self.count, replace=self.repeats):
            if rng.random() < self.each:
                frames = changed(frames, str(name), self.level)
        return frames


def changed(frames: Tensor, name: str, level: float) -> Tensor:
    """uint8 (T, 3, H, W) after one operation at a level of 0 to 10."""
    share = level / TOP
    if name == "identity":
        return frames
    if name == "flip":
        return frames.flip(-1)
    if name in MOVES:
        return moved(frames, motion(name, share, frames.shape[-2], frames.shape[-1]))
    factor = 1.8 * share + 0.1
    if math.isclose(factor, 1.0):
        return frames
    x = frames.float()
    if name == "contrast":
        mean = (x.mean((-2, -1), keepdim=True) * torch.tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
        x = (x - mean) * factor + mean
    elif name == "brightness":
        x = x * factor
    else:  # sharpness: away from, or towards, a smoothed picture, inside the border
        kernel = torch.ones(1, 1, 3, 3)
        kernel[..., 1, 1] = 5
        smooth = F.conv2d(x.flatten(0, 1)[:, None], kernel / kernel.sum())[:, 0].unflatten(0, x.shape[:2])
        inner = x[..., 1:-1, 1:-1]
        inner.copy_(smooth + factor * (inner - smooth))
    return x.clamp(0, 255).to(torch.uint8)


def motion(name: str, share: float, height: int, width: int) -> Tensor:
    """(3, 3): where the pixel (x, y, 1) of the old picture comes to lie in the new one."""
    m = torch.eye(3)
    if name == "shear x":
        m[0, 1] = SHEAR * share
    elif name == "shear y":
        m[1, 0] = SHEAR * share
    elif name == "translate x":
        m[0, 2] = -SHIFT * share * width
    elif name == "translate y":
        m[1, 2] = -SHIFT * share * height
    else:  # to the left, about the middle
        turn = math.radians(TURN * share)
        cos, sin = math.cos(turn), math.sin(turn)
        x, y = width / 2, height / 2
        m[:2] = torch.tensor([[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]])
    return m


def moved(frames: Tensor, matrix_33: Tensor) -> Tensor:
    """The frames after a motion of their pixels, bilinear, grey where nothing was."""
    height, width = frames.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    old = torch.stack([x, y, torch.ones_like(x)], -1).float() @ matrix_33.inverse().T
    grid = old[..., :2] / torch.tensor([max(width - 1, 1), max(height - 1, 1)]) * 2 - 1
    grid = grid.expand(len(frames), -1, -1, -1)
    x = F.grid_sample(frames.float() - GREY, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return (x + GREY).round().clamp(0, 255).to(torch.uint8)


def augmentation(which: Which) -> Augment:
    """What a config names: `video` as in pre-training, `operations` without its crop (VideoQA), `picture`, `none`."""
    if which == "none":
        return Augment()
    if which == "picture":
        return Operations(crop=(0.2, 1.0), flip=0.5, names=PICTURE, level=7.0, each=0.5, repeats=True)
    # the crop is never looked at where a square is cut; it tells the loader that sizes may differ
    return Operations(crop=(1.0, 1.0), cut=True) if which == "video" else Operations()
