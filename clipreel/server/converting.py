"""The process that makes one file playable: `python -m clipreel.server.converting SOURCE PART DONE HOW FROM`.

PART can be played while it grows; DONE is the same with an index in front, so that a player can jump in it. Lines of
JSON say how far it is; the last one says what was made, or why nothing was. FROM is the second at which both begin.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from clipreel.errors import ClipreelError
from clipreel.exports.remake import How, remake
from clipreel.video.packets import DecodeError

EVERY_S = 0.25


def main(source: str, part: str, done: str, how: How, start_s: float = 0.0) -> int:
    os.nice(10)  # answers come first
    said = 0.0

    def progress(at_s: float) -> None:
        nonlocal said
        if time.monotonic() - said > EVERY_S:
            said = time.monotonic()
            say(at_s=at_s)

    try:
        try:
            made = remake(Path(source), Path(part), how, start_s=start_s, fragmented=True, progress=progress)
        except (DecodeError, ValueError):  # MP4 does not take these packets as they are
            if how == "encode":
                raise
            how = "encode"
            made = remake(Path(source), Path(part), how, start_s=start_s, fragmented=True, progress=progress)
        # copied packets come from the source again: only there are all their times
        remake(Path(source if how == "copy" else part), Path(done), "copy")
    except DecodeError as e:
        say(failed=e.reason, message=e.detail or e.reason)
        return 1
    except (ClipreelError, ValueError, MemoryError) as e:
        say(failed="disk-full" if "is full" in str(e) else "corrupt", message=str(e))
        return 1
    say(done=True, how=how, duration_s=made.duration_s)
    return 0


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    source, part, done, how, start_s = sys.argv[1:]
    # a name may hold bytes that are no text; the arguments carry them as they are
    sys.exit(main(source, part, done, "copy" if how == "copy" else "encode", float(start_s)))
