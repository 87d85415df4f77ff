"""What all options of methods have in common: types and ranges are checked when they are made, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_type_hints

from clipreel.errors import ClipreelError
from clipreel.typed import read


@dataclass(frozen=True)
class Options:
    """Base of the dataclasses that hold options. Every value is of the type that its field states: a list
    becomes a tuple, and a text a number where one is wanted (YAML reads 1e-3 as a text).

    Raises ClipreelError that names the first option of another type, or out of its range.
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, read(name, hint, getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Raises ClipreelError for a value that no base could take."""

    def at_least(self, least: int, *names: str) -> None:
        """Numbers with a least value; None is none of them."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise ClipreelError(f"{name} {value}: give at least {least}")

    def one_of(self, **allowed: Sequence[str]) -> None:
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ClipreelError(f"{name} {getattr(self, name)!r}: allowed are {', '.join(values)}")

    def some_of(self, allowed: Sequence[str], *names: str) -> None:
        for name in names:
            chosen = getattr(self, name)
            if not chosen or set(chosen) - set(allowed):
                raise ClipreelError(f"{name} {', '.join(chosen) or 'none'}: give some of {', '.join(allowed)}")

    def a_share(self, *names: str) -> None:
        """Dropouts: all would leave nothing to train."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ClipreelError(f"{name} {getattr(self, name)}: give 0 up to 1, without 1")
