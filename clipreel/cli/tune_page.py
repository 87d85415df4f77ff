"""The before/after page of `clipreel tune`: recalls with intervals, what was won and lost, and how it was made."""

from __future__ import annotations

import html
from pathlib import Path

import torch

from clipreel.adapter import read_config
from clipreel.cli.proxy_page import attention
from clipreel.evaluation import gallery
from clipreel.evaluation.gallery import Card, Section, Shown
from clipreel.evaluation.report import protocol
from clipreel.training.checkpoint import disk_errors, write_text
from clipreel.training.tuning import Compared, Tuned

CARDS = 4
SAID = {
    True: "The adapter helps: over all recalls the gain is beyond chance.",
    False: "The adapter does not help; search will not use it unless told to.",
    None: "It cannot be told whether the adapter helps: the held-out pairs are too few for the difference seen.",
}


def verdict(tuned: Tuned) -> str:
    """Whether the adapter helps, in a sentence."""
    if not tuned.worse:
        return SAID[tuned.helped]
    return "On other videos the adapter is worse, beyond chance; search will not use it unless told to. Held out:"


def page(tuned: Tuned, out: Path) -> Path:
    """Write `out`/report.html. Raises ClipreelError where it cannot be written."""
    c = tuned.compared
    with disk_errors(out):
        shown = examples(tuned, out)
    said = f"{verdict(tuned)} {gained(c)}" + (f" {said_of_misses(tuned.misses)}" if tuned.misses else "")
    sections = [
        Section("Numbers", said, intervals(c) + gallery.small(protocol(c.after))),
        *shown,
        *([drawn] if (drawn := attention(tuned.after.model, tuned.pairs.held_out)) else []),
        Section("How", "", costs(tuned)),
    ]
    if tuned.general is not None:
        worse = " This is worse, beyond chance." if tuned.worse else ""
        lead = f"A second set that the adapter was not made for. {gained(tuned.general)}{worse}"
        sections.insert(1, Section("Other videos", lead, intervals(tuned.general)))
    title = f"{named(tuned)} on {tuned.before.model.name}"
    lead = f"Before and after tuning, on {len(tuned.pairs.held_out)} held-out videos that took no part in it."
    if read_config(tuned.adapter).trained_on["config"]["start"] is not None:
        lead += " Whether the start has seen them is not known; the stamp says what it was trained on."
    return write_text(out / "report.html", gallery.page(title, lead, sections))


def named(tuned: Tuned) -> str:
    """The method, and the head where there is one."""
    method, head = tuned.facts["method"], tuned.after.model.head
    return method if head is None else f"{method} with {head.name}"


def gained(c: Compared) -> str:
    return f"The mean of the six recalls changed by {c.overall} points (95 % of resampled videos)."


def said_of_misses(found: dict[str, int]) -> str:
    """How many moments that were judged wrong took part, and where those stand that did not."""
    said = f"Answers marked wrong: {found['trained']} of {found['marked']} were trained on"
    if not found["held_out"]:
        return f"{said}; none has its query and its video among the held-out ones, so none was measured."
    ranked = f"{found['before']} ranked below the right one before and {found['after']} after"
    return f"{said}; of {found['held_out']} held-out ones, {ranked}."


def intervals(c: Compared) -> str:
    """Recalls before and after with intervals, and the paired gain."""
    head = "".join(f"<th>{html.escape(t)}</th>" for t in ("", "before", "after", "gain"))
    rows = []
    for way, name in (("t2v", "text to video"), ("v2t", "video to text")):
        for measure, gain in c.gains[way].items():
            cells = (c.intervals[f"before {way}"][measure], c.intervals[f"after {way}"][measure], gain)
            found = "".join(f"<td>{html.escape(str(i))}</td>" for i in cells)
            rows.append(f"<tr><th>{html.escape(f'{name} {measure}')}</th>{found}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def weights_told(tuned: Tuned) -> str:
    """Whose weights the numbers are, and what those of the last step give."""
    chosen, last = tuned.outcome.selected, tuned.outcome.last
    said = f"weights of step {chosen.step} ({chosen.selection})"
    ways = ", ".join(f"{way} R@1 {getattr(tuned.last, way)['R@1']:.1f}" for way in ("t2v", "v2t"))
    return f"{said}; of the last step, {last.step}: {ways}"


def costs(tuned: Tuned) -> str:
    f = tuned.facts
    rows = {
        "trainable numbers": f"{f['trainable']:,}",
        "adapter file": f"{f['adapter_bytes'] / 1e6:.2f} MB",
        "time": f"{f['seconds']:.0f} s",
        "waiting for data": f"{100 * f['data_wait']:.1f} %",
        "peak memory": f"{f['peak_memory_bytes'] / 1e9:.2f} GB",
        "weights of step": f"{tuned.outcome.selected.step} ({tuned.outcome.selected.selection})",
        "last step": f"t2v R@1 {tuned.last.t2v['R@1']:.1f}, v2t R@1 {tuned.last.v2t['R@1']:.1f}",
    }
    found = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    return f'<div class="wide"><table><tbody>{found}</tbody></table></div>'


def examples(tuned: Tuned, out: Path) -> list[Section]:
    """The queries whose video rose or fell most, by the ratio of ranks."""
    samples = tuned.pairs.held_out
    captions = [c for s in samples for c in s.captions]
    owner = [i for i, s in enumerate(samples) for _ in s.captions]
    scores = [one.scores(captions).nan_to_num(-torch.inf) for one in (tuned.before, tuned.after)]
    assert tuned.compared.before.ranks is not None
    assert tuned.compared.after.ranks is not None
    before, after = (r[0].expected() for r in (tuned.compared.before.ranks, tuned.compared.after.ranks))
    change = before.log() - after.log()

    def cards(order: list[int]) -> list[Card]:
        made: list[Card] = []
        seen: set[int] = set()
        for q in order:
            if owner[q] in seen or len(made) == CARDS:
                continue
            seen.add(owner[q])
            shown = []
            for when, rank, s in (("before", before[q], scores[0][q]), ("after", after[q], scores[1][q])):
                best = int(s.argmax())
                note = f"{when}: first of {len(samples)}" + (f", the right one at {rank:.0f}" if rank > 1.5 else "")
                video = samples[best]
                shown.append(Shown(video.video, note, 1, float(s[best]), best == owner[q], video.start_s, video.end_s))
            made.append(Card(captions[q], shown))
        return made

    order = torch.argsort(change, descending=True, stable=True).tolist()
    won = [q for q in order if change[q] > 0]
    lost = [q for q in reversed(order) if change[q] < 0]
    told = (
        ("Won", f"{len(won)} of {len(captions)} captions rank their video higher than before; the largest steps.", won),
        ("Lost", f"{len(lost)} rank it lower; the largest steps.", lost),
    )
    return [Section(h, lead, gallery.cards(cards(q), out)) for h, lead, q in told if q]
