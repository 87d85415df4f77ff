"""ST-Adapter: bottlenecks with a depthwise convolution over time, on patches (arXiv 2206.13559).

x_p + W_2 conv(W_1 x_p + b_1) + b_2, without an activation, put before attention, before the MLP, or both; CLS is left
alone. Checked against linziyi96/st-adapter on parity fixtures. Ours: padded frames do not reach their neighbours
(`hide_padding`; in the released code they do), and kernels over time alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.patterns import Layout
from clipreel.sites import LayerTuner
from clipreel.tuners.adaptformer import VisionAdapters
from clipreel.tuners.checking import Options


@dataclass(frozen=True)
class StAdapterConfig(Options):
    """`width` of the bottleneck, `places` of attn, mlp (what it stands before), `kernel` in frames (odd);
    `hide_padding` False is the released behaviour. `text_width` above 0 puts bottlenecks into the text tower too,
    `biases` trains every bias of the base. What stands before the last MLP has no effect, because CLS alone is read
    behind it; it is there, and counted, as in the released code, and never computed."""

    width: int = 384
    places: tuple[str, ...] = ("mlp",)
    kernel: int = 3
    hide_padding: bool = True
    text_width: int = 0
    biases: bool = False

    def check(self) -> None:
        self.some_of(("attn", "mlp"), "places")
        self.at_least(1, "width")
        self.at_least(0, "text_width")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ClipreelError(f"kernel {self.kernel}: give an odd number of frames")


class TimeConv(nn.Module):
    """W_2 conv(W_1 x_p + b_1) + b_2 on the patches of a sequence, zero on CLS."""

    def __init__(self, c: StAdapterConfig, d: int) -> None:
        super().__init__()
        self.hide = c.hide_padding
        self.down, self.up = nn.Linear(d, c.width), nn.Linear(c.width, d)
        self.kernel, self.bias = nn.Parameter(torch.zeros(c.kernel, c.width)), nn.Parameter(torch.zeros(c.width))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, x_BSD: Tensor, layout: Layout) -> Tensor:
        if layout.globals:
            raise ClipreelError(f"ST-Adapter reads frames, and {layout.globals} tokens belong to none; do not chain it")
        u = self.down(layout.split(x_BSD)[1][:, :, 1:])
        if self.hide and layout.frame_mask is not None:
            u = u.masked_fill(~layout.frame_mask[..., None, None], 0.0)
        # depthwise: a weighted sum of shifted copies, which needs no other memory layout as a convolution would
        reach, T = len(self.kernel) // 2, layout.frames
        u = F.pad(u, (0, 0, 0, 0, reach, reach))
        seen = self.bias + sum(u[:, t : t + T] * row for t, row in enumerate(self.kernel.unbind()))
        return F.pad(self.up(seen), (0, 0, 1, 0)).flatten(1, 2)


class StLayer(LayerTuner):
    def __init__(self, c: StAdapterConfig, d: int, last: bool = False) -> None:
        super().__init__()
        if "attn" in c.places:
            self.attn = TimeConv(c, d)
            self.before = self.before_attention
        if "mlp" in c.places:
            self.mlp = TimeConv(c, d)
            if not last:
                self.beside_attn = self.before_mlp

    def before_attention(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        return x + self.attn(x, layout), layout

    def before_mlp(self, x: Tensor, h: Tensor, y: Tensor, layout: Layout) -> Tensor:
        return self.mlp(x + y, layout)


class StAdapter(VisionAdapters):
    def __init__(self, clip: Clip, config: StAdapterConfig) -> None:
        super().__init__(clip, config.text_width, config.biases)
        c = self.config = config
        vision = clip.config.vision
        for i in range(vision.layers):
            self.place("vision", i, StLayer(c, vision.width, last=i + 1 == vision.layers))
