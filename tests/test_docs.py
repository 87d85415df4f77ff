"""What the documents state about methods is what the code counts."""

import re
from pathlib import Path

import pytest

from clipreel.tuners import TUNERS
from clipreel.tuners.counting import ARCHITECTURES, Count, counts

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
