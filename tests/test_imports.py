"""Imports run one way, and `import clipreel` and `clipreel --help` stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "clipreel"
HEAVY = ("torch", "lancedb", "av", "pyarrow", "transformers", "matplotlib")
MODEL = ("clip", "sites", "patterns", "checkpoints", "retriever", "tokenizer", "tuners", "adapter", "training")
FORBIDDEN = {
    "patterns": ("clip", "sites", "checkpoints", "retriever", "video", "search", "evaluation", "cli"),
    "sites": ("clip", "checkpoints", "retriever", "video", "search", "evaluation", "cli"),
    "clip": ("checkpoints", "retriever", "video", "search", "evaluation", "cli", "tuners"),
    "tuners": ("adapter", "training", "search", "evaluation", "cli"),
    "video": (*MODEL, "search", "evaluation", "cli", "data"),
    "data": (*MODEL, "search", "evaluation", "cli"),
    "evaluation": (*MODEL, "search", "cli"),
    "search": ("training", "cli", "server"),
    "server": ("tuners", "training"),
}


def imported(path: Path) -> set[str]:
    """Rooms of clipreel that a file imports when it runs (not only for type checking)."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        found |= {n.split(".")[1] for n in names if n.startswith("clipreel.")}
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_run_one_way(room: str) -> None:
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").is_file() else sorted((ROOT / room).rglob("*.py"))
    for path in files:
        wrong = imported(path) & set(FORBIDDEN[room])
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("code", ["import clipreel", "from clipreel.cli import main; main(['--help'])"])
def test_light_start(code: str) -> None:
    report = f"{code}; import sys; print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "LOADED"
