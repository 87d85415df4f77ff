"""The tables of ALPRO's study on the shapes world: mean and range over the seeds, and what can be told from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from clipreel.data.shapes_questions import KINDS
from clipreel.training.comparing import Spread

Reports = Mapping[str, Sequence[Mapping[str, Any]]]

RECALLS = ("cosine R@1", "cosine R@5", "matching R@1", "matching R@5")
COSTS = ("encoding ms per video", "cosine ms per query", "matching ms per query")
PRETRAINED = {
    "vtc-vtm-mlm": "VTC + VTM + MLM",
    "pem": "+ PEM: 50 entities, ensembled prompts, 4 frames",
    "pem-single-prompt": "+ PEM, a single prompt",
    "pem-10-entities": "+ PEM, 10 entities",
    "pem-200-entities": "+ PEM, 200 entities",
    "pem-2-frames": "+ PEM, 2 frames",
    "pem-8-frames": "+ PEM, 8 frames",
}
ANSWERING = {"qa": "4 frames", "qa-one-frame": "one frame", "qa-question-only": "the question alone (black frames)"}
ASKED = ("accuracy", *(f"accuracy {kind}" for kind in KINDS))
RERANKED = ("vtc-vtm-mlm", "pem")  # where matching is compared with cosine
QUESTIONS = (  # what is compared: measure, one run, another
    ("matching R@1", "vtc-vtm-mlm", "pem"),
    ("matching R@1", "pem-single-prompt", "pem"),
    ("matching R@1", "pem-10-entities", "pem"),
    ("matching R@1", "pem", "pem-200-entities"),
    ("matching R@1", "pem-2-frames", "pem"),
    ("matching R@1", "pem", "pem-8-frames"),
    ("accuracy", "qa-question-only", "qa-one-frame"),
    ("accuracy", "qa-one-frame", "qa"),
    *((f"accuracy {kind}", "qa-one-frame", "qa") for kind in KINDS),
)


def tables(reports: Reports, facts: Mapping[str, Any], failed: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Everything as plain data and as Markdown. Runs that are missing are left out of the tables and named."""
    found = {name: spreads(of) for name, of in reports.items() if of}
    tags = [k for k in found.get("prompter", {}) if k.startswith("tag ")]
    data = {
        "facts": dict(facts),
        "runs": {name: {k: asdict(v) for k, v in of.items()} for name, of in found.items()},
        "parameters": {name: of[0]["parameters"] for name, of in reports.items() if of},
        "told": told(found, facts["seeds"]),
        "failed": dict(failed),
    }
    bound = ", ".join(f"{measure} {value:.1f}" for measure, value in facts["bound"].items())
    parts = [
        f"Mean (lowest-highest) of {facts['seeds']} seed(s) on the test split of the shapes world, where nothing was "
        f"selected. Steps of {facts['batch']} videos: {facts['prompter']} prompter, {facts['pretrain']} pre-training, "
        f"{facts['qa']} questions.",
        "## Pre-training: text to video, per cent, by cosine and with the best judged by matching",
        table(found, PRETRAINED, (*RECALLS, "kept"), "losses"),
        f"A model without a sense of time cannot pass {bound}. Kept: rows of the last logged step whose likeliest "
        "entity is twice as likely as chance (at most 0.2, the published rule).",
        f"## Reranking: milliseconds on the threads of one run; {facts['judged']} candidates",
        table(found, {k: PRETRAINED[k] for k in ("pem-2-frames", "pem", "pem-8-frames")}, COSTS, "model"),
        "## Questions: per cent right",
        table(found, ANSWERING, ASKED, "what is seen"),
        "## The prompter's best entity is a shape of the film, per cent",
        table(found, {"prompter": "prompter"}, tags, ""),
        "## What can be told",
        "Of the seeds alone: 240 queries leave a figure uncertain by about 6 points either way. M = 10 holds every "
        "shape of the films; 50 and 200 add words that no film shows, and the rule for what is kept follows M.",
        *(f"- {line}" for line in data["told"]),
        *(f"- failed: {name}: {why}" for name, why in failed.items()),
    ]
    return data, "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def spreads(reports: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Every number that all seeds have."""
    rows = []
    for r in reports:
        kept = {"kept": 100 * r["log"]["kept"]} if "kept" in r["log"] else {}
        rows.append({**r["metrics"], "seconds": r["seconds"], **kept})
    return {k: Spread.of([row[k] for row in rows]) for k in rows[0] if all(k in row for row in rows)}


def table(
    found: Mapping[str, Mapping[str, Spread]], names: Mapping[str, str], columns: Sequence[str], head: str
) -> str:
    cells = [[head, *columns]]
    for name, label in names.items():
        if name in found:
            cells.append([label, *(str(found[name][c]) if c in found[name] else "" for c in columns)])
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|---|{'---:|' * len(columns)}", *lines[1:]])


def told(found: Mapping[str, Mapping[str, Spread]], seeds: int) -> list[str]:
    """For each comparison, whether the ranges over the seeds lie apart."""
    pairs = [
        (f"{n}: matching against cosine, R@1", found[n]["cosine R@1"], found[n]["matching R@1"])
        for n in RERANKED
        if n in found
    ]
    pairs += [
        (f"{b} against {a}: {measure}", found[a][measure], found[b][measure])
        for measure, a, b in QUESTIONS
        if a in found and b in found and measure in found[a] and measure in found[b]
    ]
    lines = []
    for name, x, y in pairs:
        apart = x.high < y.low or y.high < x.low
        verdict = "the ranges lie apart" if apart else "the ranges overlap, so the seeds do not tell them apart"
        verdict = verdict if seeds > 1 else "one seed tells nothing"
        lines.append(f"{name} {y.mean - x.mean:+.1f}; {verdict}")
    return lines
