"""Where on the frames a model sees something: probabilities of patches as light over the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

TINT, DARK = (255, 190, 0), 0.35
LINE = 14  # pixels of the line of text


def drawn(frames_T3HW: Tensor, maps: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """A strip of the uint8 frames for each (name, (h, w) probabilities): bright and tinted where the probability is
    highest, dark where it is lowest; the highest stands beside the name."""
    T, _, H, W = frames_T3HW.shape
    page = Image.new("RGB", (T * W, len(maps) * (H + LINE)), "white")
    pen = ImageDraw.Draw(page)
    pictures = frames_T3HW.permute(0, 2, 3, 1).float()
    for row, (name, heat) in enumerate(maps):
        span = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-6)
        light = F.interpolate(span[None, None].float(), (H, W), mode="bilinear", align_corners=False)[0, 0, :, :, None]
        lit = pictures * (DARK + (1 - DARK) * light)
        lit = lit * (1 - 0.3 * light) + torch.tensor(TINT) * 0.3 * light
        strip = np.concatenate(list(lit.clamp(0, 255).byte().cpu().numpy()), 1)
        top = row * (H + LINE)
        pen.text((2, top + 1), f"{name}  {heat.max().item():.2f}", fill="black")
        page.paste(Image.fromarray(strip), (0, top + LINE))
    return page
