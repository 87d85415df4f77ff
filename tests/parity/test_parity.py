"""Every fixture file is one test: our numbers against those of the official code."""

from pathlib import Path

from tests.parity.kinds import checker


def test_parity(fixture_path: Path) -> None:
    checker(fixture_path.parent.name)(fixture_path)
