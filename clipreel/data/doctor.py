"""A check-up of a data set: every file is decoded once from beginning to end, and every caption is looked at.

Processes decode, so a codec that hangs or crashes is a finding and not the end. What was seen of a file is kept in a
log and taken from there while the file does not change, so a stopped run goes on. Specification core.md 3.5 and 7.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipreel.data.sets import Part
from clipreel.errors import ClipreelError
from clipreel.video.content import content_hash
from clipreel.video.decode import Stream, stream_frames
from clipreel.video.many import stream_many
from clipreel.video.packets import WHAT_TO_DO, DecodeError
from clipreel.video.quarantine import state
from clipreel.video.sampling import Sampling

EVERY = Sampling("mv_adapter", 1 << 30)  # every frame of a file
SIDE, MOMENTS = 8, 8  # what is kept of the pictures: a grid of grey levels at a few moments
ALIKE = 2.0  # grey levels, mean difference of two files that show the same; another encoding of it stays below
FLAT = 1.0  # grey levels, spread of a file that shows nothing
KINDS = {
    "missing": "There is no such file.",
    "broken": "No frame can be decoded.",
    "truncated": "The file ends before it should, or parts of it cannot be decoded.",
    "blank": "All frames show one flat colour.",
    "one frame": "A video of a single frame.",
    "rotated": "Stored on its side; it is turned upright here, which the published codes do not do.",
    "variable rate": "Frames do not come at a constant rate: samplers by frame number take other moments.",
    "same file": "Two names for one content.",
    "same pictures": "Another encoding of the same pictures.",
    "in two splits": "Another split holds the same: what is tested would be trained on.",
    "caption repeated": "The same caption belongs to several videos: a query with several right answers.",
    "caption doubled": "The same caption stands more than once with one video, and is trained on as often.",
    "caption blank": "A caption without text, which is left out.",
    "caption too long": "The end of the caption is not read.",
}
QUARANTINED = ("missing", "broken")


@dataclass(frozen=True)
class Seen:
    """What decoding a file from beginning to end told. `reason` says why it gave no frames; `look` is a picture of its
    pictures, to find what shows the same."""

    path: str
    size: int
    mtime_ns: int
    reason: str = ""
    detail: str = ""
    duration_s: float = 0.0
    frames: int = 0
    width: int = 0
    height: int = 0
    codec: str = ""
    rotation: int = 0
    constant_rate: bool = True
    warnings: tuple[str, ...] = ()
    decode_s: float = 0.0
    mark: str = ""
    look: str = ""

    def grey(self) -> np.ndarray:
        """Grey levels (MOMENTS * SIDE * SIDE,) of a file that could be decoded."""
        return np.frombuffer(base64.b64decode(self.look), np.uint8).astype(np.float32)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what kind (a key of KINDS), which video or caption, and in what way."""

    kind: str
    name: str
    says: str
    path: Path | None = None


@dataclass
class Checkup:
    """All files that were looked at, what is wrong with them and with the captions, and seconds of decoding."""

    seen: dict[str, Seen] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def quarantine(self, kinds: Iterable[str]) -> list[tuple[Path, str]]:
        """Files of these kinds of findings, each once, with the reason."""
        wanted = set(kinds)
        rows: dict[Path, str] = {}
        for f in self.findings:
            if f.kind in wanted and f.path is not None:
                rows.setdefault(f.path, f"{f.kind}: {f.says}" if f.says else f.kind)
        return list(rows.items())

    def present(self, part: Part) -> int:
        """How many videos of a split have a file."""
        return sum(self.seen[str(s.video)].reason != "missing" for s in part.samples)

    @property
    def hours(self) -> float:
        return sum(s.duration_s for s in self.seen.values()) / 3600

    @property
    def decode_s(self) -> float:
        return sum(s.decode_s for s in self.seen.values())


# ---------------------------------------------------------------------- looking at files


def tiny(frame: Tensor) -> Tensor:
    """A frame (1, H, W, 3) as (1, SIDE, SIDE) grey levels, from 16 times as many of its pixels."""
    rows, columns = (torch.linspace(0, n - 1, 4 * SIDE).round().long() for n in frame.shape[1:3])
    some = frame[0, rows][:, columns].float().mean(-1)
    return some.view(SIDE, 4, SIDE, 4).mean((1, 3)).round().to(torch.uint8)[None]


def look_at(
    paths: Sequence[Path],
    log: Path,
    *,
    workers: int = 2,
    timeout_s: float = 120.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Seen]:
    """What is to be seen in each file, by path. The log holds files that were looked at; changed ones are done again.

    Raises ClipreelError when the log cannot be read or written.
    """
    known = {s.path: s for s in read_log(log)}
    states = {str(p): state(p) for p in paths}
    kept = {p: known[p] for p, s in states.items() if p in known and (known[p].size, known[p].mtime_ns) == s}
    todo = [Path(p) for p in states if p not in kept]
    read = partial(stream_frames, sampling=EVERY, transform=tiny, timeout_s=timeout_s)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as out:
            for done, (path, stream) in enumerate(stream_many(todo, read, workers, timeout_s), 1):
                found = watched(path, stream, states[str(path)])
                kept[found.path] = found
                out.write(json.dumps(asdict(found)) + "\n")
                out.flush()
                progress(done, len(todo))
    except OSError as e:
        raise ClipreelError(f"the log {log} cannot be written ({e.strerror}); name another folder with --out") from e
    return {p: kept[p] for p in states}


def read_log(log: Path) -> Iterator[Seen]:
    """What is in the log; a last line that was cut short by a kill is left out."""
    if not log.exists():
        return
    for line in log.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
            yield Seen(**{**row, "warnings": tuple(row["warnings"])})
        except (ValueError, TypeError, KeyError):
            continue


def watched(path: Path, stream: Stream | DecodeError, then: tuple[int, int]) -> Seen:
    """Takes the frames of a stream as they come."""
    empty = Seen(str(path), *then)
    if isinstance(stream, DecodeError):
        return replace(empty, reason=stream.reason, detail=stream.detail)
    try:
        pictures = [pixels for _, pixels in stream.frames]
    except DecodeError as e:
        return replace(empty, reason=e.reason, detail=e.detail)
    info = stream.info
    places = [(2 * k + 1) * len(pictures) // (2 * MOMENTS) for k in range(MOMENTS)]
    look = torch.cat([pictures[i] for i in places]).numpy().tobytes()
    return replace(
        empty,
        duration_s=info.duration_s,
        frames=info.frames,
        width=info.width,
        height=info.height,
        codec=info.codec,
        rotation=info.rotation,
        constant_rate=info.constant_rate,
        warnings=tuple(stream.warnings),
        decode_s=stream.decode_s,
        mark=content_hash(str(path)),
        look=base64.b64encode(look).decode(),
    )


# ---------------------------------------------------------------------- what is wrong


def problems(seen: Mapping[str, Seen], splits: Mapping[str, str] | None = None) -> list[Finding]:
    """What is wrong with the files, each kind in the order of the files. `splits` names the split of each."""
    found = [f for s in seen.values() for f in of_file(s)]
    return found + list(same(list(seen.values()), splits))


def of_file(s: Seen) -> Iterator[Finding]:
    path = Path(s.path)

    def finding(kind: str, says: str) -> Finding:
        return Finding(kind, path.name, says, path)

    if s.reason:
        kind = "missing" if s.reason == "missing" else "broken"
        more = f"; {WHAT_TO_DO[s.reason]}" if s.reason == "incomplete" else ""
        yield finding(kind, "" if kind == "missing" else f"{s.reason}{f' ({s.detail})' if s.detail else ''}{more}")
        return
    # what is said of time stamps is no damage
    if damage := [w for w in s.warnings if "no time stamps" not in w]:
        yield finding("truncated", "; ".join(damage))
    if s.frames == 1:
        yield finding("one frame", "")
    elif np.ptp(s.grey()) < FLAT:
        yield finding("blank", "")
    if s.rotation % 360:
        yield finding("rotated", f"by {s.rotation} degrees")
    if not s.constant_rate:
        yield finding("variable rate", f"{s.frames} frames in {s.duration_s:.2f} s")


def same(seen: Sequence[Seen], splits: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Files with the same content, and files that show the same for as long; each names the first one of them, and the
    splits where they are not of one."""
    of = splits or {}

    def findings(kind: str, s: Seen, known: Seen) -> Iterator[Finding]:
        path, here, there = Path(s.path), of.get(s.path), of.get(known.path)
        yield Finding(kind, path.name, f"as {known.path}", path)
        if here != there:
            yield Finding("in two splits", path.name, f"{kind} in {here} as {known.path} in {there}", path)

    first: dict[str, Seen] = {}
    unique: list[Seen] = []
    for s in (s for s in seen if s.look):
        if s.mark in first:
            yield from findings("same file", s, first[s.mark])
        else:
            first[s.mark] = s
            unique.append(s)
    order = sorted(range(len(unique)), key=lambda i: unique[i].duration_s)
    looks = np.stack([unique[i].grey() for i in order]) if order else np.zeros((0, 1), np.float32)
    flat = np.ptp(looks, axis=1) < FLAT if len(looks) else np.zeros(0, bool)
    lengths = np.array([unique[i].duration_s for i in order])
    for row in range(len(order)):
        if flat[row]:  # nothing to compare
            continue
        last = int(np.searchsorted(lengths, lengths[row] * 1.02 + 0.05, "right"))
        difference = np.abs(looks[row + 1 : last] - looks[row]).mean(1)
        for other in np.flatnonzero((difference < ALIKE) & ~flat[row + 1 : last]):
            a, b = sorted((order[row], order[row + 1 + other]))
            yield from findings("same pictures", unique[b], unique[a])


def caption_problems(
    parts: Mapping[str, Part], context: int, tokens: Callable[[str], int] | None = None
) -> list[Finding]:
    """What is wrong with the captions of each split. `tokens` counts those of a caption, both ends among them; without
    it words are counted, of which each is at least one."""
    found = []
    for split, part in parts.items():
        owners: dict[str, list[str]] = defaultdict(list)
        doubled: list[Finding] = []
        for s in part.samples:
            again = [caption for caption, times in Counter(s.captions).items() if times > 1]
            doubled += [Finding("caption doubled", caption, f"{split}: {s.id}") for caption in again]
            for caption in s.captions:
                of = owners[" ".join(caption.lower().split())]
                if s.id not in of[-1:]:
                    of.append(s.id)
        for caption, ids in owners.items():
            if len(ids) > 1:
                more = ", ..." if len(ids) > 4 else ""
                found.append(Finding("caption repeated", caption, f"{split}: {', '.join(ids[:4])}{more}"))
        found += doubled
        found += [Finding("caption blank", id, split) for id in part.blank]
        for s in part.samples:
            for caption in s.captions:
                count = len(caption.split()) + 2 if tokens is None else tokens(caption)
                if count > context:
                    unit = "words and two ends" if tokens is None else "tokens"
                    found.append(Finding("caption too long", s.id, f"{split}: {count} {unit}, {context} are read"))
    return found


# ---------------------------------------------------------------------- what it will cost


@dataclass(frozen=True)
class Costs:
    """Hours to fill a frame cache and its bytes; hours to train, None where no model was measured."""

    videos: int
    cache_bytes: int
    cache_hours: float
    training_hours: float | None


def costs(
    checkup: Checkup, pairs: int, video_bytes: int, workers: int, epochs: float, pair_s: float | None = None
) -> Costs:
    """A forecast: each file is decoded about as long as it was here, by `workers` at once; a pair is trained on in
    `pair_s` seconds. Decoding for a cache can skip what leads to no wanted frame, so its hours are an upper bound."""
    good = [s for s in checkup.seen.values() if not s.reason]
    hours = checkup.decode_s / 3600 / max(min(workers, os.cpu_count() or 1), 1)
    training = None if pair_s is None else pair_s * pairs * epochs / 3600
    return Costs(len(good), len(good) * video_bytes, hours, training)
