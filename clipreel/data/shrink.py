"""Smaller copies of the videos of a data set, so that the originals need not be kept.

A copy is H.264 without sound, upright, with the time stamps of its original. It counts only after it was decoded again
and compared with the original from beginning to end; only then, and only if asked, is the original removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from clipreel.data.cache import Forecast, amount
from clipreel.data.doctor import EVERY, tiny
from clipreel.data.sample import Sample
from clipreel.data.sets import Part
from clipreel.errors import ClipreelError
from clipreel.video.decode import probe, stream_frames
from clipreel.video.packets import DecodeError
from clipreel.video.quarantine import state

TICK = Fraction(1, 90_000)
BITS = 0.2  # of a pixel of a copy; two films of MSR-VTT took 0.13 and 0.21
PROBED = 64  # originals that a forecast looks into
CLOSE = 6.0  # grey levels, mean difference of a copy that is refused; CRF 20 stays below 2
LOG = "shrunk.jsonl"


@dataclass
class Shrunk:
    """Videos `made` now and `kept` from before, bytes of their originals and of the copies, originals removed, and
    videos `skipped` with the reason."""

    made: int = 0
    kept: int = 0
    before: int = 0
    after: int = 0
    dropped: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def shrink(
    parts: Mapping[str, Part],
    into: Path,
    side: int,
    *,
    drop_originals: bool = False,
    workers: int = 2,
    forecast: Callable[[Forecast, int], None] = lambda forecast, originals: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Shrunk:
    """A copy of every video of the parts in `into`, named by its sample's id, with an annotations.jsonl of all.

    The same call goes on after an interruption. `forecast` is told how much about will be written, and the bytes of the
    originals. Raises ClipreelError for a side that is too small, for a folder that holds originals, for ids that cannot
    be file names, and for a disk that is too small.
    """
    if side < 16 or side % 2:
        raise ClipreelError(f"--shrink {side}: the shorter side is an even number of at least 16 pixels")
    samples = [s for part in parts.values() for s in part.samples]
    unique = {s.video: s for s in samples}
    inside = os.path.realpath(into)
    for s in unique.values():
        if os.path.dirname(os.path.realpath(s.video)) == inside:
            raise ClipreelError(f"{into} holds the original {s.video.name}; name another folder with --into")
    names = {video: copy_of(s, into) for video, s in unique.items()}
    if len(set(names.values())) < len(names):
        raise ClipreelError("two videos would have one name; give each its own id")
    into.mkdir(parents=True, exist_ok=True)
    known = read_log(into / LOG)
    report = Shrunk()
    done: dict[Path, Path] = {}
    there = {video: original_of(known.get(str(copy)), copy, state(video)) for video, copy in names.items()}
    check_space([video for video, then in there.items() if then is None], into, side, drop_originals, workers, forecast)

    def one(video: Path) -> tuple[Path, tuple[int, int], str | int]:
        """The copy, the state of its original and bytes, or why there is none."""
        copy, then, before = names[video], state(video), there[video]
        if before is not None:
            return copy, before, "kept"
        try:
            return copy, then, made(video, copy, side)
        except (DecodeError, av.FFmpegError, OSError, ValueError) as e:
            part_of(copy).unlink(missing_ok=True)
            return copy, then, e.reason if isinstance(e, DecodeError) else f"the copy failed ({e})"

    with open(into / LOG, "a", encoding="utf-8") as log, ThreadPoolExecutor(workers) as pool:
        for number, (video, (copy, then, found)) in enumerate(zip(names, pool.map(one, names), strict=True), 1):
            progress(number, len(names))
            if isinstance(found, str) and found != "kept":
                report.skipped.append((str(video), found))
                continue
            size = state(copy)[0]
            if found == "kept":
                report.kept += 1
            else:
                report.made += 1
                row = {"copy": copy.name, "copy_size": size, "video": str(video), "size": then[0], "mtime_ns": then[1]}
                log.write(json.dumps(row) + "\n")
                log.flush()
            report.before, report.after = report.before + then[0], report.after + size
            done[video] = copy
            if drop_originals and state(video) == then:  # never one that changed since it was read
                video.unlink()
                report.dropped += 1
    annotate(parts, done, into / "annotations.jsonl")
    return report


def original_of(row: dict | None, copy: Path, then: tuple[int, int]) -> tuple[int, int] | None:
    """The state of the original of a copy that counts; None where there is none, or the original changed since."""
    if row is None or row["copy_size"] != state(copy)[0]:
        return None
    before = row["size"], row["mtime_ns"]
    return before if then in (before, (-1, -1)) else None


def check_space(
    todo: Sequence[Path], into: Path, side: int, drop: bool, workers: int, forecast: Callable[[Forecast, int], None]
) -> None:
    """ClipreelError where the copies will not fit. Each original that is removed from the same disk makes room."""
    sizes = {video: max(state(video)[0], 0) for video in todo}
    free, originals, needed = shutil.disk_usage(into).free, sum(sizes.values()), expected(sizes, side)
    forecast(Forecast(len(todo), needed, free), originals)
    if drop and all(os.stat(v).st_dev == os.stat(into).st_dev for v in todo if sizes[v]):
        needed = min(needed, workers * max(sizes.values(), default=0))
    if needed > free:
        raise ClipreelError(
            f"{len(todo)} copies need about {amount(needed)} and {amount(free)} are free at {into}: free some, take a "
            "smaller --shrink, or put them elsewhere with --into"
        )


def expected(sizes: Mapping[Path, int], side: int) -> int:
    """Bytes that copies will about take: of some originals by their pixels, of the others in proportion."""
    some = list(sizes)[:: -(-len(sizes) // PROBED) or 1]
    before = after = 0
    for video in some:
        try:
            info = probe(video)
        except DecodeError:
            continue
        scale = min(1.0, side / max(min(info.width, info.height), 1))
        before += sizes[video]
        after += min(sizes[video], round(info.width * info.height * scale**2 * info.frames * BITS / 8))
    return round(sum(sizes.values()) * after / before) if before else 0


def copy_of(s: Sample, into: Path) -> Path:
    """Where the copy of a sample's video goes."""
    name = s.video.stem
    if not name or name.startswith(".") or not name.isprintable():
        raise ClipreelError(f"{str(s.video)!r}: a copy cannot have this name; rename the video")
    return into / f"{name}.mp4"


def part_of(copy: Path) -> Path:
    """Where it is written until it is whole."""
    return copy.with_name(copy.name + ".part")


def read_log(file: Path) -> dict[str, dict]:
    """What was made before, by the path of the copy."""
    found = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
            found[str(file.parent / row["copy"])] = row
        except (ValueError, KeyError, TypeError):
            continue  # cut short by a kill; that video is made again
    return found


def made(video: Path, copy: Path, side: int) -> int:
    """Write and check one copy; its bytes. Raises DecodeError or ValueError where it is not what it should be."""
    part = part_of(copy)
    looks, times = encode(video, part, side)
    again = list(stream_frames(part, EVERY, transform=tiny).frames)
    if len(again) != len(times):
        raise ValueError(f"it has {len(again)} frames and the original {len(times)}")
    late = max(abs(a - b) for (a, _), b in zip(again, times, strict=True))
    if late > 0.02:
        raise ValueError(f"its frames come up to {late:.3f} s apart from those of the original")
    worst = max(float((a.float() - b).abs().mean()) for (_, a), b in zip(again, looks, strict=True))
    if worst > CLOSE:
        raise ValueError(f"a frame differs by {worst:.1f} grey levels from the original")
    with open(part, "rb") as f:
        os.fsync(f.fileno())  # the original may be removed next
    part.replace(copy)
    return copy.stat().st_size


def encode(video: Path, part: Path, side: int) -> tuple[list[torch.Tensor], list[float]]:
    """Writes the copy; what every frame should look like, and when it comes."""
    stream = stream_frames(video, EVERY)
    looks: list[torch.Tensor] = []
    times: list[float] = []
    with av.open(str(part), "w", format="mp4") as out:
        film = out.add_stream("libx264", rate=max(round(stream.info.fps), 1), options={"crf": "20", "preset": "fast"})
        film.codec_context.time_base = TICK
        film.pix_fmt = "yuv420p"
        film.thread_count = 1
        for moment, pixels in stream.frames:
            if times and moment <= times[-1]:
                continue  # a lost frame that its neighbour stands for
            height, width = pixels.shape[1:3]
            scale = min(1.0, side / min(height, width))
            wide, high = (max(2, round(n * scale / 2) * 2) for n in (width, height))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[0].numpy()), format="rgb24")
            frame = frame.reformat(wide, high, "rgb24", interpolation="BICUBIC")
            if not times:
                film.width, film.height = wide, high
            looks.append(tiny(torch.from_numpy(frame.to_ndarray(format="rgb24"))[None]).float())
            times.append(moment)
            frame.pts, frame.time_base = round(moment / TICK), TICK
            out.mux(film.encode(frame))
        for packet in film.encode(None):
            if times and packet.pts == round(times[-1] / TICK):  # how long the last frame stays
                packet.duration = max(round((stream.info.duration_s - times[-1]) / TICK), 1)
            out.mux(packet)
    if stream.warnings:  # what is lost in the original would be lost for good
        raise ValueError(f"the original is damaged: {stream.warnings[0]}")
    return looks, times


def annotate(parts: Mapping[str, Part], done: Mapping[Path, Path], file: Path) -> None:
    """Annotations of the copies, which the plain reader reads; those of originals that are gone by now stay."""
    rows = []
    for split, part in parts.items():
        for s in part.samples:
            if s.video in done:
                row = {"video": done[s.video].name, "captions": list(s.captions), "id": s.id}
                more = {"start": s.start_s, "end": s.end_s, "split": None if split == "all" else split}
                rows.append(row | {k: v for k, v in more.items() if v is not None})
    ids = {r["id"] for r in rows}
    before = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    kept = [r for r in before if r["id"] not in ids and (file.parent / r["video"]).is_file()]
    new = part_of(file)
    new.write_text("".join(json.dumps(r) + "\n" for r in [*kept, *rows]), "utf-8")
    new.replace(file)
