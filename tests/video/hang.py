"""Stand-ins for codecs that hang, crash or err inside one packet; processes that decode import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from torch import Tensor

from clipreel.video.decode import Stream, stream_frames
from clipreel.video.sampling import Sampling


def stuck(path: Path) -> Stream:
    """Reads a file whose name says what goes wrong, and where."""
    if "never-opens" in path.name:
        time.sleep(1e6)

    def transform(frame: Tensor) -> Tensor:
        if "hangs" in path.name and frame.float().mean() > 100:
            time.sleep(1e6)
        if "crashes" in path.name and frame.float().mean() > 100:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "wrong" in path.name:
            raise ZeroDivisionError("a mistake of ours")
        return frame

    return stream_frames(path, Sampling("rate", 0, 12.0), transform=transform)
