"""Tables of compared runs for a terminal, Markdown, LaTeX and HTML; the protocol stands under each."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from clipreel.adapter import write
from clipreel.errors import ClipreelError
from clipreel.evaluation import gallery
from clipreel.evaluation.bootstrap import Interval
from clipreel.evaluation.report import aligned, protocol
from clipreel.training.comparing import Row, Study
from clipreel.training.finished import MEASURES

Form = Literal["terminal", "markdown", "latex", "html"]
FORMS: tuple[Form, ...] = get_args(Form)
WAYS = [f"{way} {m}" for way in ("t2v", "v2t") for m in MEASURES]
WITH_INTERVAL = AT_THE_END = VALIDATED = ("t2v R@1", "v2t R@1")
ESCAPED = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{"}
ESCAPED |= {"}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def lines(found: Study) -> list[list[str]]:
    """The cells, heading first: bounds, then rows with the best t2v R@1 last. A recall is the mean over seeds (lowest
    to highest), of the selected weights, and at the end of those of the last step; "val" are those by which weights
    were selected. Columns that no row fills are left out."""
    intervals = [f"{way}, 95 %" for way in WITH_INTERVAL]
    validation, last = [f"val {way}" for way in VALIDATED], [f"{way}, last step" for way in AT_THE_END]
    cells = [["method", "trained", "file", "steps", *validation, *WAYS, *intervals, *last, "time", "memory"]]
    blank, unseen = [""] * (len(intervals) + len(last)), [""] * len(validation)
    if found.before is not None:
        d = {"t2v": found.before.t2v, "v2t": found.before.v2t}
        cells.append(["zero-shot", "0", "", "", *unseen, *(f"{d[w[:3]][w[4:]]:.1f}" for w in WAYS), *blank, "", ""])
    if found.bound is not None:
        cells.append(
            ["order-blind bound", "", "", "", *unseen, *(f"{found.bound[w]:.1f}" for w in WAYS), *blank, "", ""]
        )
    cells += [row_cells(r) for r in sorted(found.rows, key=lambda r: r.recalls["t2v R@1"].mean)]
    if len(cells) == 1:
        return cells
    filled = [i for i in range(len(cells[0])) if any(line[i] for line in cells[1:])]
    return [[line[i] for i in filled] for line in cells]


def row_cells(r: Row) -> list[str]:
    ranges = [r.intervals.get(way) for way in WITH_INTERVAL]
    return [
        r.name,
        "" if r.trainable is None else f"{r.trainable:,}",
        "" if r.adapter_bytes is None else f"{r.adapter_bytes / 1e6:.2f} MB",
        "" if r.steps is None else f"{r.steps.mean:,.0f}",
        *("" if way not in r.validation else str(r.validation[way]) for way in VALIDATED),
        *(str(r.recalls[w]) for w in WAYS),
        *("" if i is None else f"{i.low:.1f} to {i.high:.1f}" for i in ranges),
        *(str(r.last[way]) if r.last else "" for way in AT_THE_END),
        "" if r.seconds is None else f"{r.seconds.mean:.0f} s",
        "" if r.peak_memory_bytes is None else f"{r.peak_memory_bytes.high / 1e9:.2f} GB",
    ]


def notes(found: Study) -> list[str]:
    """What stands under a table: how it was made, and the paired differences."""
    made = found.before or found.made
    of_rows = about(found.rows)
    said = [protocol(made, about=not of_rows)] if made is not None else []
    said += of_rows
    for g in found.gains:
        points = "; ".join(f"{way} {told(i)}" for way, i in g.gains.items())
        said.append(f"{g.b} against {g.a} on the same queries (points, 95 % of resampled videos): {points}")
    return said


def about(rows: Sequence[Row]) -> list[str]:
    """Base, adapter, training list, seeds and versions: those that all rows share in one line, and a line for each that
    differs. Nothing where a row does not state them, as in tables of before."""
    if not rows or not all(r.made for r in rows):
        return []
    shared, apart = [], []
    for what in rows[0].made:
        values = [", ".join(r.made[what]) for r in rows]
        if len({*values}) == 1:
            shared += [f"{what}: {values[0]}"] if values[0] else []
        else:
            apart.append(f"{what}: " + "; ".join(f"{r.name} {v or '-'}" for r, v in zip(rows, values, strict=True)))
    return [*(["; ".join(shared)] if shared else []), *apart]


def told(i: Interval) -> str:
    """A difference, and whether it is beyond chance."""
    beyond = "" if i.low <= 0 <= i.high else " *"
    return f"{i.value:+.1f} ({i.low:+.1f} to {i.high:+.1f}){beyond}"


def why_apart(found: Study) -> str:
    """Why the rows of a table are not ranked with those of the first; nothing for the first."""
    said = "; ".join(f"{k}: {a!r} there, {b!r} here" for k, (a, b) in found.apart.items())
    return f"Not ranked with the first table, because made differently: {said}" if said else ""


def terminal(found: Study) -> str:
    return joined(found, aligned(lines(found)))


def markdown(found: Study) -> str:
    cells = lines(found)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    fitted = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells]
    rows = [f"| {' | '.join(line)} |" for line in [fitted[0], ["-" * w for w in widths], *fitted[1:]]]
    return joined(found, "\n".join(rows))


def latex(found: Study) -> str:
    """A tabular for booktabs."""
    head, *body = [[escaped(cell) for cell in line] for line in lines(found)]
    rows = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule", f"{' & '.join(head)} \\\\", r"\midrule"]
    rows += [f"{' & '.join(line)} \\\\" for line in body]
    rows += [r"\bottomrule", r"\end{tabular}"]
    said = [f"% {line}" for line in (*filter(None, [why_apart(found)]), *notes(found))]
    return "\n".join([*rows, *said])


def escaped(text: str) -> str:
    return "".join(ESCAPED.get(c, c) for c in text)


def joined(found: Study, table: str) -> str:
    above = why_apart(found)
    return "\n".join([*([above, ""] if above else []), table, "", *notes(found)]).rstrip()


def html_page(tables: Sequence[Study], figures: Sequence[str] = ()) -> str:
    """The whole page; `figures` are SVG pictures to stand under the tables."""
    sections = []
    for n, found in enumerate(tables, 1):
        heading = "Table" if len(tables) == 1 else f"Table {n}"
        below = "".join(gallery.small(line) for line in notes(found))
        sections.append(gallery.Section(heading, why_apart(found), html_table(found) + below))
    if figures:
        sections.append(gallery.Section("Figures", "", "".join(f'<div class="wide">{f}</div>' for f in figures)))
    lead = "Recalls are means over seeds (lowest to highest). Rows of one table were made in the same way."
    return gallery.page("Compared", lead, sections)


def svg(text: str) -> str:
    """The picture without what only a file of its own needs."""
    return text[text.index("<svg") :] if "<svg" in text else ""


def html_table(found: Study) -> str:
    head, *body = lines(found)
    top = "".join(f"<th>{html.escape(c)}</th>" for c in head)
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(c)}</td>' for c in cells)}</tr>"
        for name, *cells in body
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def rendered(tables: Sequence[Study], form: Form) -> str:
    """All tables in one form."""
    one: dict[str, Callable[[Study], str]] = {"terminal": terminal, "markdown": markdown, "latex": latex}
    return html_page(tables) if form == "html" else "\n\n".join(one[form](t) for t in tables)


def save(tables: Sequence[Study], data: str, out: Path, figures: Sequence[str] = ()) -> None:
    """Write `out`/table.json (`data`), .md, .tex and .html."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ClipreelError(f"{out} cannot be made ({e.strerror}); give another --out") from e
    texts = {"json": data, "md": rendered(tables, "markdown"), "tex": rendered(tables, "latex")}
    for ending, text in {**texts, "html": html_page(tables, [svg(f) for f in figures])}.items():
        write(out / f"table.{ending}", f"{text}\n".encode())
