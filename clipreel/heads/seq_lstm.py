"""CLIP4Clip's sequential LSTM (seqLSTM, arXiv 2104.08860, section 3.3; specification mv_adapter.md 6.6).

g + LSTM(g), then the mean of unit vectors. Checked against ArrowLuo/CLIP4Clip, whose packing of sequences is not
needed: an LSTM that reads forwards knows nothing of the padding behind the real frames.
"""

from __future__ import annotations

from torch import Tensor, nn

from clipreel.errors import ClipreelError
from clipreel.heads.base import PoolingHead


class SeqLstm(PoolingHead):
    """One LSTM as wide as the vectors reads the frames in order; padding must come last."""

    name = "seq_lstm"

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.over_time = nn.LSTM(width, width, batch_first=True)

    def context(self, frames_VTE: Tensor, frame_mask: Tensor | None) -> Tensor:
        read = self.over_time(frames_VTE)[0]
        if frame_mask is not None:
            if bool((frame_mask[:, 1:] & ~frame_mask[:, :-1]).any()):
                raise ClipreelError("a real frame behind a padded one: the LSTM reads in order, so put padding last")
            read = read.masked_fill(~frame_mask[..., None], 0.0)
        return frames_VTE + read
