"""Results as text for a terminal; the protocol stands under every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipreel.errors import ClipreelError
from clipreel.evaluation.metrics import Result
from clipreel.evaluation.protocol import UNSTATED, WHOLE, Stamp

# a result, or the two directions of a bound
Rows = Mapping[str, Result | tuple[Mapping[str, Any], Mapping[str, Any]]]
SHOWN = ("R@1", "R@5", "R@10", "MdR", "MnR")


def table(rows: Rows) -> str:
    """One line per row, text to video and then video to text; a line of pessimistic values where ties exist."""
    return aligned(lines(rows))


def lines(rows: Rows) -> list[list[str]]:
    """The cells of `table`, heading first."""
    found = [["", *(f"t2v {m}" for m in SHOWN), *(f"v2t {m}" for m in SHOWN)]]
    for name, row in rows.items():
        both = (row.t2v, row.v2t) if isinstance(row, Result) else row
        found.append([name, *(f"{d[m]:.1f}" for d in both for m in SHOWN)])
        if not isinstance(row, Result):
            continue
        if any(d["tied"] for d in both):
            worst = [d.get("pessimistic", d) for d in both]
            label = f"  all ties lost ({both[0]['tied']}, {both[1]['tied']})"
            found.append([label, *(f"{d[m]:.1f}" for d in worst for m in SHOWN)])
        if row.merged is not None:
            equal = (row.merged["t2v"], row.merged["v2t"])
            found.append(["  equal captions as one", *(f"{d[m]:.1f}" for d in equal for m in SHOWN)])
    return found


def aligned(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def protocol(result: Result, about: bool = True) -> str:
    """The stamp in one paragraph; not `about`: without what the rows of a table are about."""
    s, n = result.stamp, result.t2v
    lost = [(len(result.failed_texts), "texts"), (len(result.failed_videos), "videos")]
    notes = [f"{n} {kind} have no vector and count as missed" for n, kind in lost if n]
    if result.non_finite and not any(n for n, _ in lost):
        notes.append(f"{result.non_finite} scores are not finite and count as missed")
    return stated(s, [f"{n['queries']} queries over {n['gallery']} videos"], notes, about)


def stated(s: Stamp, first: Sequence[str] = (), notes: Sequence[str] = (), about: bool = True) -> str:
    """A stamp in one paragraph, after what comes `first` and with `notes` before the seeds."""
    parts = [
        *first,
        f"split {s.split} ({s.split_hash})",
        f"captions: {s.caption_mode}",
        f"frames: {s.frames}" + ("" if s.part in (UNSTATED, WHOLE) else f" of parts ({s.part})"),
        f"{s.resolution} px{'' if s.pixels == UNSTATED else f' ({s.pixels})'}, {s.tokens} tokens ({s.tokenizer})",
        f"selection: {s.selection}",
        f"post-processing: {s.post_processing}{', transductive' if s.transductive else ''}",
        f"ties: {s.tie_rule}",
        *([f"base {subjects(s)['base']}, adapter {s.adapter}"] if about else []),
        *([f"trained on {s.trained_on}"] if about and s.trained_on != UNSTATED else []),
        *notes,
    ]
    if s.seeds and about:
        parts.append(f"seeds {', '.join(map(str, s.seeds))}")
    return "protocol: " + "; ".join([*parts, subjects(s)["versions"]] if about else parts)


def subjects(s: Stamp) -> dict[str, str]:
    """What rows are about besides their seeds, in words."""
    return {
        "base": s.base if s.base_name == UNSTATED else f"{s.base_name} ({s.base})",
        "adapter": s.adapter,
        "trained on": s.trained_on,
        "versions": " ".join(f"{k} {v}" for k, v in s.versions.items()),
    }


def compare(rows: Mapping[str, Result]) -> str:
    """Results made in the same way as one table, with the protocol of each. Raises ClipreelError that names the
    fields in which any two differ: such rows are never ranked."""
    if not rows:
        raise ClipreelError("nothing to compare; give at least one result")
    first, *others = rows.values()
    for other in others:
        first.stamp.require_equal(other.stamp)
        sizes = [tuple(d[k] for d in (r.t2v, r.v2t) for k in ("queries", "gallery")) for r in (first, other)]
        if sizes[0] != sizes[1]:
            raise ClipreelError(f"these results cannot be compared, they have queries and galleries of {sizes}")
    return "\n".join([table(rows), *(f"{name}: {protocol(result)}" for name, result in rows.items())])
