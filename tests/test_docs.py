"""What the documents state about methods is what the code counts."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from clipreel.tuners import TUNERS
from clipreel.tuners.counting import ARCHITECTURES, Count, counts

ROOT = Path(__file__).parent.parent
METHODS = Path(__file__).parent.parent / "docs" / "methods"
HEADINGS = ["Idea", "Equation", "Where it acts", "Train and use", "Numbers and quirks"]
ROW = re.compile(r"^\| (\w+) \| ([\d,]+) \| ([\d.]+) % \|", re.M)


@pytest.fixture(scope="module")
def counted() -> dict[str, Count]:
    return counts(ARCHITECTURES["ViT-B/32"])


def stated() -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for page in METHODS.glob("*.md"):
        for name, number, share in ROW.findall(page.read_text("utf-8")):
            assert name not in found, f"{name} stands on two pages"
            found[name] = (int(number.replace(",", "")), float(share))
    return found


def test_every_method_has_a_page_with_its_count(counted: dict[str, Count]) -> None:
    found = stated()
    assert sorted(found) == sorted(TUNERS)
    for name, (number, share) in found.items():
        assert number == counted[name].trainable, name
        assert share == round(counted[name].paper_share, 3), name


def test_every_page_has_the_five_headings() -> None:
    for page in METHODS.glob("*.md"):
        assert re.findall(r"^## (.+)$", page.read_text("utf-8"), re.M) == HEADINGS, page.name


def test_links_of_the_documents_lead_somewhere() -> None:
    root = METHODS.parent.parent
    for page in [*root.glob("*.md"), *root.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_results_is_what_the_json_say() -> None:
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert page == results().page(), "a figure changed: python benchmarks/results.py writes docs/results.md again"


def test_the_table_of_the_readme_is_what_the_json_say() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert text == results().readme(text), "a figure changed: python benchmarks/results.py writes the table again"
    rows = json.loads((ROOT / "configs" / "shapes" / "table.json").read_text("utf-8"))["rows"]
    best = max(rows, key=lambda row: row["recalls"]["t2v R@1"]["mean"])
    assert f"| {best['trainable']:,} | {best['recalls']['t2v R@1']['mean']:.1f} (" in text


def test_every_figure_is_on_the_page_of_results() -> None:
    """Independent of how tables are made: every number of a JSON file stands in its part, to four digits."""
    parts = (ROOT / "docs" / "results.md").read_text("utf-8").split("\n## ")

    def numbers(value: object) -> list[float]:
        if isinstance(value, dict):
            return [n for k, v in value.items() if k != "machine" for n in numbers(v)]
        if isinstance(value, list):
            return [n for v in value for n in numbers(v)]
        return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []

    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        part = next(p for p in parts if f"({file.name})" in p or f"/{file.name})" in p)
        shown = [float(n.replace(",", "")) for n in re.findall(r"(?<![\w.])-?[\d,]*\d(?:\.\d+)?(?:e[+-]?\d+)?", part)]
        for number in numbers(json.loads(file.read_text("utf-8"))):
            assert any(abs(n - number) <= 6e-4 * abs(number) for n in shown), (file.name, number)
