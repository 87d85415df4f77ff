"""Moments as MP4 files in one zip: exact to the frame (encoded anew), or from the keyframe before (packets copied).

`python -m clipreel.exports.cut OUT.zip HOW` does it in a process of its own, with the places as JSON on standard input.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from clipreel.errors import ClipreelError
from clipreel.exports.lists import Place, harmless
from clipreel.exports.remake import How, Made, remake
from clipreel.video.packets import DecodeError

HEIGHT = 2160  # cuts keep the size of their video up to here
MANIFEST = "cuts.csv"


def cut_all(places: Sequence[Place], out: Path, how: How = "encode") -> list[tuple[str, str]]:
    """Writes a zip of one MP4 for each place and a table that says what each one is; returns the failed with reasons.

    Raises ClipreelError where nothing could be cut or `out` cannot be written.
    """
    failed: list[tuple[str, str]] = []
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\r\n")
    rows.writerow(("file", "source", "start_s", "end_s", "how", "starts_at_s", "lasts_s"))
    try:
        with (
            tempfile.TemporaryDirectory(dir=out.parent, prefix="cut-") as scratch,
            zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive,
        ):
            for n, place in enumerate(places, 1):
                name, part = f"{n:03d}_{plain(place.name)}_{place.start_s:.1f}s.mp4", Path(scratch, f"{n}.mp4")
                try:
                    made, really = cut(place, part, how)
                except DecodeError as e:
                    failed.append((place.source, e.reason))
                    continue
                archive.write(part, name)
                part.unlink()
                times = (f"{s:.3f}" for s in (place.start_s, place.end_s))
                got = (f"{s:.3f}" for s in (made.start_s, made.duration_s))
                rows.writerow((name, harmless(place.name), *times, really, *got))
            for source, reason in failed:
                rows.writerow(("", harmless(Place(source, 0, 1, 1).name), "", "", f"failed: {reason}", "", ""))
            archive.writestr(MANIFEST, table.getvalue())
    except OSError as e:
        raise ClipreelError(f"{out} cannot be written ({e.strerror}); make room or give another folder") from e
    if len(failed) == len(places):
        out.unlink(missing_ok=True)
        raise ClipreelError(
            f"none of the {len(places)} moments could be cut: {failed[0][1] if failed else 'none given'}"
        )
    return failed


def cut(place: Place, out: Path, how: How) -> tuple[Made, str]:
    """One moment; what MP4 does not take as it is, is encoded."""
    make = partial(remake, Path(place.source), out, start_s=place.start_s, end_s=place.end_s, height=HEIGHT)
    if how == "copy":
        try:
            return make("copy"), "copied from the keyframe before"
        except (DecodeError, ValueError):
            pass
    return make("encode"), "encoded, exact"


def plain(name: str) -> str:
    """A file name that every system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).stem)[:60] or "video"


def main(out: str, how: str) -> int:
    os.nice(10)
    places = [Place(**row) for row in json.load(sys.stdin)]
    try:
        failed = cut_all(places, Path(out), "copy" if how == "copy" else "encode")
    except ClipreelError as e:
        print(json.dumps({"error": str(e)}))
        return 1
    print(json.dumps({"failed": len(failed)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
