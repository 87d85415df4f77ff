"""What CLIP-ViP's proxies look at, drawn over the frames of a video, for the pages of tune and evaluate."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clipreel.data.sample import Sample
from clipreel.evaluation.gallery import Section
from clipreel.retriever import Retriever
from clipreel.tuners.clip_vip import ClipVip, proxy_maps
from clipreel.video.decode import read_frames
from clipreel.video.packets import DecodeError
from clipreel.video.sampling import Sampling

VIDEOS, LAYERS, HEIGHT = 3, 2, 96  # videos drawn, last layers that are averaged, pixels of a frame
STRONGEST = 0.75  # how much of the colour covers a patch that gets all attention of its row
COLOUR = np.array([255, 64, 0], np.float32)
Pixels = NDArray[np.uint8]


def attention(model: Retriever, samples: Sequence[Sample], sampling: Sampling | None = None) -> Section | None:
    """A row of frames, chosen by `sampling` (default: the model's), for every proxy of the first videos; None for
    another method and where nothing can be read."""
    tuner = getattr(model, "tuner", None)  # other systems than CLIP have none
    if not isinstance(tuner, ClipVip):
        return None
    drawn = []
    for sample in samples:
        found = frames_of(model, sample, sampling or model.sampling)
        if found is not None:
            drawn.append(figure(model, tuner, sample, found))
        if len(drawn) == VIDEOS:
            break
    lead = (
        f"Where the attention of each proxy goes, mean over heads and the last {LAYERS} layers: the more colour, the "
        "more of it. The first proxy is what the video's vector is read from. The strongest patch of a row has full "
        "colour, and the figure beside the row is the share that all patches get; the proxies get the rest."
    )
    return Section("What the proxies look at", lead, "".join(drawn)) if drawn else None


def frames_of(model: Retriever, sample: Sample, sampling: Sampling) -> torch.Tensor | None:
    """The pixels that the model sees (1, T, 3, H, W), not normalised; None for a video that cannot be read."""
    try:
        found = read_frames(
            sample.video,
            sampling,
            start_s=sample.start_s,
            end_s=sample.end_s,
            transform=model.preprocess.pixels,
        )
    except DecodeError:
        return None
    return found.pixels[None]


def figure(model: Retriever, vip: ClipVip, sample: Sample, pixels: torch.Tensor) -> str:
    frames = model.preprocess.normalise(pixels).to(model.device)
    maps = proxy_maps(model.clip, vip, frames)[-LAYERS:, 0].mean(0).float().cpu().numpy()  # (M, T, rows, columns)
    shown = pixels[0] if pixels.dtype == torch.uint8 else (pixels[0].clamp(0, 1) * 255).to(torch.uint8)
    stills = shown.permute(0, 2, 3, 1).cpu().numpy()
    rows = []
    for proxy, weights in enumerate(maps):
        strips = [
            overlaid(still, w / max(float(weights.max()), 1e-12)) for still, w in zip(stills, weights, strict=True)
        ]
        told = f"proxy {proxy + 1}: {100 * weights.sum():.0f} %"
        rows.append(
            f'<tr><th>{told}</th><td><img src="{jpeg(np.concatenate(strips, 1))}" alt="{told} on each frame"></td></tr>'
        )
    caption = html.escape(sample.captions[0] if sample.captions else sample.id)
    return f'<h3>{caption}</h3><div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>'


def overlaid(still: Pixels, weights: NDArray[np.float32]) -> Pixels:
    """A frame (H, W, 3) with colour where weights (rows, columns) from 0 to 1 are high, HEIGHT pixels high."""
    height, width = HEIGHT, max(1, round(HEIGHT * still.shape[1] / still.shape[0]))
    base = np.asarray(Image.fromarray(still).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    mask = Image.fromarray(np.asarray(weights, np.float32)).resize((width, height), Image.Resampling.NEAREST)
    share = STRONGEST * np.clip(np.asarray(mask, np.float32), 0, 1)[..., None]
    return (base + share * (COLOUR - base) + 0.5).astype(np.uint8)


def jpeg(pixels: Pixels) -> str:
    """A picture as a data URI."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
