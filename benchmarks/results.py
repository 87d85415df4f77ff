"""Writes docs/results.md, and the README's table of methods, from the JSON files that hold every figure.

Usage: python benchmarks/results.py

Read are benchmarks/results/*.json (a table for all rows of equal columns), benchmarks/results/reproduced/*.json
(result.json of `clipreel reproduce`), table.json beside the configs of each study (of `clipreel compare`), the tables
in benchmarks/studies as their commands wrote them, and the built-in model's card.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipreel.training.comparing import Study
from clipreel.training.rendering import markdown
from clipreel.training.reproducing import HEAD, markdown_row

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CONFIGS = ROOT / "configs"
STUDIES = {  # folder of the configs: what it is, with what is asked for besides
    "shapes": ("Methods on the shapes world", "--seeds 3"),
    "ablation/heads": ("Heads on the shapes world", "--seeds 3"),
    "ablation/mv_adapter": ("MV-Adapter's parts on the shapes world", "--seeds 3"),
    "sweep/vop": ("What was tried to give forms of VoP a sense of time", "--seeds 1"),
    "ablation/petl": ("Adapters in both towers, and patches over three frames", "--seeds 3"),
    "sweep/petl": ("Learning rates of adapters and heads on the shapes world", "--seeds 1"),
    "sweep/mv_adapter": ("MV-Adapter's learning rates on the shapes world", "--seeds 1"),
}
VIP = "python -m clipreel.training.vip_studies"
MINIATURES = {  # folder of benchmarks/studies with the table.json and table.md of a command: what it is, the command
    "clip_vip_proxies": ("CLIP-ViP: proxies against mean pooling and full attention", f"{VIP} proxies"),
    "clip_vip_losses": ("CLIP-ViP: combinations of losses", f"{VIP} losses --captions captions.jsonl"),
    "clip_vip_scale": ("CLIP-ViP: length of post-pretraining on two sizes of corpus", f"{VIP} scale"),
    "clip_vip_gap": ("CLIP-ViP: the gap between corpora", f"{VIP} gap --captions captions.jsonl"),
    "alpro": ("ALPRO: losses, prompts, entities, frames, questions", "python -m clipreel.training.alpro_study"),
}
STUDIED = ROOT / "benchmarks" / "studies"
README, BEGIN, END = ROOT / "README.md", "<!-- benchmarks/results.py writes this table -->\n", "<!-- to here -->\n"
CHOSEN = {  # the README's rows: folder of the configs and name of a row, and how it is called
    ("ablation/heads", "seq_transf"): "CLIP4Clip's seqTransf over the base as it is",
    ("ablation/heads", "seq_lstm"): "CLIP4Clip's seqLSTM over the base as it is",
    ("shapes", "mv_adapter"): "MV-Adapter",
    ("ablation/petl", "st_adapter_text"): "ST-Adapter, with bottlenecks in the text tower",
    ("shapes", "st_adapter"): "ST-Adapter",
    ("shapes", "vop_fc_transformer"): "VoP^F+C, context from a transformer",
    ("shapes", "vop_c_transformer"): "VoP^C, context from a transformer",
    ("shapes", "vop_fc"): "VoP^F+C, context from a BiLSTM",
    ("shapes", "vop_c"): "VoP^C, context from a BiLSTM",
    ("shapes", "vop_fp"): "VoP^F+P",
    ("shapes", "vop_f"): "VoP^F",
    ("shapes", "vop_p"): "VoP^P",
    ("shapes", "full"): "full tuning (cannot see order)",
    ("shapes", "vop"): "VoP (cannot see order)",
}
CARD = ROOT / "clipreel" / "models" / "shapes-tiny" / "measured.json"
PAGE = ROOT / "docs" / "results.md"
TOP = """# Results

Written by `python benchmarks/results.py` from the JSON files that each part names; do not edit.
[protocol.md](protocol.md) says how recalls are made, and every JSON how and on what machine its figures were.
"""
NONE_YET = """None has been run here: it takes a data set and, for most, a GPU.
`clipreel reproduce --list` names the cells, and `clipreel reproduce CELL --data FOLDER` writes the result.json that
belongs into `benchmarks/results/reproduced/`.
"""


def main() -> None:
    PAGE.write_text(page(), "utf-8")
    README.write_text(readme(README.read_text("utf-8")), "utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} and the table of {README.relative_to(ROOT)}")


def readme(text: str) -> str:
    """The README with the table of methods as it is now, best first."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    folders = {folder for folder, _ in CHOSEN}
    studies = {folder: Study.from_dict(read(CONFIGS / folder / "table.json")) for folder in folders}
    shapes, lines = studies["shapes"], list[tuple[float, str]]()
    assert shapes.before is not None
    assert shapes.bound is not None
    for (folder, name), called in CHOSEN.items():
        row = next(r for r in studies[folder].rows if r.name == name)
        t2v, v2t = row.recalls["t2v R@1"], row.recalls["v2t R@1"]
        lines.append((t2v.mean, f"| {called} | {row.trainable:,} | {t2v} | {v2t} |"))
    for called, (t2v, v2t) in {
        "the bound": (shapes.bound["t2v R@1"], shapes.bound["v2t R@1"]),
        "without tuning": (shapes.before.t2v["R@1"], shapes.before.v2t["R@1"]),
    }.items():
        lines.append((t2v, f"| *{called}* | | *{t2v:.1f}* | *{v2t:.1f}* |"))
    head = "| method | trained numbers | t2v R@1 | v2t R@1 |\n|---|---:|---:|---:|\n"
    rows = "".join(f"{line}\n" for _, line in sorted(lines, reverse=True))
    return f"{before}{BEGIN}{head}{rows}{END}{after}"


def page() -> str:
    """The whole text."""
    parts = [TOP, "## Published figures\n", published()]
    for folder, (title, asked) in STUDIES.items():
        table = CONFIGS / folder / "table.json"
        if table.is_file():
            parts += [f"## {title}\n\n{source(table)}; `clipreel compare configs/{folder}/*.yaml {asked}`.\n"]
            parts += [f"{markdown(Study.from_dict(read(table)))}\n"]
    for folder, (title, command) in MINIATURES.items():
        table = STUDIED / folder / "table.json"
        if table.is_file():
            text = table.with_suffix(".md").read_text("utf-8").replace("\n## ", "\n### ")
            parts += [f"## {title}\n\n{source(table)}; `{command} --out FOLDER --seeds 3`.\n", text]
    parts += [section("shapes-tiny", CARD)]
    parts += [section(file.stem, file) for file in sorted(RESULTS.glob("*.json"))]
    return "\n".join(parts)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def source(path: Path) -> str:
    return f"[{path.name}](../{path.relative_to(ROOT).as_posix()})"


def published() -> str:
    """A row for each cell that was run, beside what was printed for it."""
    files = sorted((RESULTS / "reproduced").glob("*.json"))
    if not files:
        return NONE_YET
    rows = [f"{markdown_row(read(f))[:-2]} | {source(f)} |" for f in files]
    return "\n".join([f"| {' | '.join(HEAD)} | |", f"|{'---|' * (len(HEAD) + 1)}", *rows, ""])


def section(name: str, path: Path) -> str:
    """All figures of one file: a table for all rows of equal columns."""
    data = read(path)
    machine = data.pop("machine", None)
    where = f", measured on {spoken(machine)}" if machine else ""
    parts = [f"## {name}\n\n{source(path)}{where}.\n"]
    tables: dict[tuple[str, ...], list[tuple[str, dict[str, Any]]]] = {}
    for label, values in records(data):
        tables.setdefault(tuple(values), []).append((label, values))
    for columns, rows in tables.items():
        parts += [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
        parts += [f"| {label} | {' | '.join(shown(v) for v in values.values())} |" for label, values in rows]
        parts += [""]
    return "\n".join(parts)


def spoken(machine: Any) -> str:
    if not isinstance(machine, dict):
        return str(machine)
    packages = ", ".join(f"{k} {v}" for k, v in machine.get("packages", {}).items())
    known = [f"{machine['cores']} cores of {machine['cpu']}" if "cores" in machine else "", packages]
    return "; ".join(filter(None, known))


def records(data: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object that holds figures, named by its path: its numbers, texts and lists of them."""
    plain = {k: v for k, v in data.items() if isinstance(v, (int, float, str)) or is_list(v)}
    if plain:
        yield " / ".join(path), plain
    for key, value in data.items():
        if isinstance(value, dict):
            yield from records(value, (*path, key))
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            for number, item in enumerate(value, 1):
                yield from records(item, (*path, f"{key} {number}"))


def is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, (int, float, str)) for v in value)


def shown(value: Any) -> str:
    """Four digits of a number; whole numbers whole."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value).replace("|", "\\|")
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


if __name__ == "__main__":
    main()
