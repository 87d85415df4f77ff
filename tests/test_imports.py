"""Imports run one way, and `import clipreel` and `clipreel --help` stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "clipreel"
HEAVY = ("torch", "numpy", "lancedb", "av", "pyarrow", "transformers", "matplotlib", "huggingface_hub")

# room -> the rooms that it may import. A new room has to say here where it stands; `errors` is open to all.
MAY_IMPORT: dict[str, set[str]] = {
    "patterns": set(),
    "noise": set(),
    "identity": set(),
    "sites": {"patterns"},
    "block": {"patterns", "sites"},
    "clip": {"block", "patterns", "sites"},
    "typed": set(),
    "heads": {"block", "clip", "patterns", "typed"},
    "losses": {"heads"},
    "tokenizer": set(),
    "archive": set(),
    "hub": set(),
    "sidecar": set(),
    "checkpoints": {"archive", "clip", "hub", "sidecar", "tokenizer"},
    "tuners": {"block", "clip", "heads", "noise", "patterns", "sites", "typed"},
    "video": set(),
    "data": {"identity", "video"},
    "evaluation": {"data", "video"},
    "alpro": {"checkpoints", "heads", "hub", "identity", "noise", "patterns", "retriever", "sidecar", "tokenizer"}
    | {"video"},
    "retriever": {"checkpoints", "clip", "heads", "identity", "sites", "tokenizer", "video"},
    "adapter": {"alpro", "clip", "identity", "retriever", "sites", "tuners", "video"},
    "head_files": {"adapter", "heads", "identity", "retriever"},
    "licences": {"adapter"},
    "mixing": {"clip", "heads", "patterns", "retriever", "sites"},
    "export": {"checkpoints", "clip", "retriever", "sites"},
    "int8": {"data", "evaluation"},
    "official": {"adapter", "alpro", "checkpoints", "clip", "heads", "retriever", "sidecar", "tokenizer", "tuners"}
    | {"identity", "video"},
    "training": {
        "adapter",
        "alpro",
        "block",
        "clip",
        "data",
        "evaluation",
        "export",
        "head_files",
        "heads",
    }
    | {"hub", "identity", "losses", "noise", "official", "retriever", "sites", "tokenizer", "tuners", "video"},
    "search": {"adapter", "alpro", "head_files", "heads", "int8", "mixing", "retriever", "video"},
    "exports": {"video"},
    "server": {"adapter", "alpro", "exports", "int8", "licences", "retriever", "search", "video"},
    "cli": {
        "adapter",
        "alpro",
        "clip",
        "data",
        "evaluation",
        "export",
        "head_files",
        "int8",
        "licences",
        "official",
        "retriever",
        "search",
        "server",
        "training",
        "tuners",
        "video",
    },
    "__main__": {"cli"},
    "errors": set(),
}


def imported(path: Path) -> set[str]:
    """Rooms of clipreel that a file imports when it runs (not only for type checking)."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}, line {node.lineno}: write the import in full, from clipreel"
            module = node.module or ""
            names += [f"clipreel.{a.name}" for a in node.names] if module == "clipreel" else [module]
        elif isinstance(node, ast.Import):
            names += [a.name for a in node.names]
    # what `clipreel` itself gives, such as __version__, is no room
    return {n.split(".")[1] for n in names if n.startswith("clipreel.") and exists(n.split(".")[1])}


def exists(room: str) -> bool:
    return (ROOT / room).is_dir() or (ROOT / f"{room}.py").is_file()


def rooms() -> list[str]:
    files = [p.stem for p in ROOT.glob("*.py") if p.stem != "__init__"]
    return sorted(files + [p.name for p in ROOT.iterdir() if (p / "__init__.py").is_file()])


@pytest.mark.parametrize("room", rooms())
def test_imports_run_one_way(room: str) -> None:
    assert room in MAY_IMPORT, f"clipreel/{room} is new: say in MAY_IMPORT which rooms it may import"
    allowed = MAY_IMPORT[room] | {room, "errors"}
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").is_file() else sorted((ROOT / room).rglob("*.py"))
    for path in files:
        wrong = imported(path) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_no_room_reaches_itself_through_others() -> None:
    done: set[str] = set()
    while left := set(MAY_IMPORT) - done:
        free = {room for room in left if MAY_IMPORT[room] <= done}
        assert free, f"these rooms import each other in a circle: {', '.join(sorted(left))}"
        done |= free


@pytest.mark.parametrize("code", ["import clipreel", "from clipreel.cli import main; main(['--help'])"])
def test_light_start(code: str) -> None:
    report = f"{code}; import sys; print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout
    assert out.strip().splitlines()[-1] == "LOADED"


def test_a_model_is_loaded_without_torchs_compiler() -> None:
    code = "from clipreel.adapter import load; load('shapes-tiny', device='cpu')"
    report = f"import sys; {code}; print('torch._dynamo' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"
