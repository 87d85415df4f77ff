"""What an adapter comes from, and what --commercial says of it."""

from dataclasses import replace
from pathlib import Path

import pytest

import clipreel
from clipreel.adapter import read_config, save_adapter, write_config
from clipreel.cli import main
from clipreel.errors import ClipreelError
from clipreel.licences import lineage, link, require_commercial, state
from clipreel.tuners import build, options


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    base = clipreel.load("shapes-tiny")
    chosen = options("lora", {})
    model = base.adapted(build("lora", base.clip, chosen), adapter="x")
    licence = {"base": "shapes-tiny", "data": "shapes, msrvtt9k"}
    return save_adapter(tmp_path / "a", model, "lora", chosen, licence=licence)


def test_lineage_names_every_link(adapter: Path) -> None:
    assert [(x.what, x.name, x.commercial) for x in lineage(adapter)] == [
        ("base", "shapes-tiny", True),
        ("data", "shapes", True),
        ("data", "msrvtt9k", False),
    ]
    assert link("base", "openai/clip-vit-base-patch32", {}).licence == "MIT"
    assert link("base", "/home/me/model", {}).commercial is None


def test_commercial_says_which_link_does_not_allow_it(adapter: Path) -> None:
    with pytest.raises(ClipreelError, match=r"data msrvtt9k: for research.*no commercial use.*another adapter"):
        require_commercial("shapes-tiny", adapter)
    write_config(adapter, replace(read_config(adapter), licence={"base": "shapes-tiny", "data": "mine.jsonl"}))
    with pytest.raises(
        ClipreelError, match=r"data mine.jsonl: unknown.*clipreel adapters licence .* data TEXT --allows"
    ):
        require_commercial("shapes-tiny", adapter)
    assert main(["adapters", "licence", str(adapter), "data", "filmed by us", "--allows"]) == 0
    require_commercial("shapes-tiny", adapter)
    assert str(lineage(adapter)[1]) == "data mine.jsonl: filmed by us (allows commercial use)"
    state(adapter, "data", "a loan", False)
    with pytest.raises(ClipreelError, match="a loan"):
        require_commercial("shapes-tiny", adapter)
    with pytest.raises(ClipreelError, match="say base or data"):
        state(adapter, "films", "x", True)


def test_a_base_by_itself() -> None:
    require_commercial("openai/clip-vit-base-patch32", None)
    with pytest.raises(ClipreelError, match=r"base somewhere: unknown.*another base"):
        require_commercial("somewhere", None)
