"""What a score means: how it stands among the scores that the queries of a bank reach with the same video."""

from __future__ import annotations

from collections.abc import Sequence

from clipreel.search.index import File, Index


class Calibration:
    """Statistics of the bank's scores for each video of an index."""

    @classmethod
    def read(cls, index: Index, files: Sequence[File]) -> Calibration | None:
        return None
