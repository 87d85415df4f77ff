"""What all options of methods have in common: types and ranges are checked when they are made, in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from clipreel.errors import ClipreelError

WORDS: Mapping[Any, str] = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Options:
    """Base of the dataclasses that hold options. Every value is of the type that its field states: a list
    becomes a tuple, and a text a number where one is wanted (YAML reads 1e-3 as a text).

    Raises ClipreelError that names the first option of another type, or out of its range.
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, read(hint, value))
            except (ValueError, OverflowError) as e:
                raise ClipreelError(f"{name} {value!r}: give {wanted(hint)}") from e
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


def read(hint: Any, value: Any) -> Any:
    """The value as a type that `wanted` can name. Raises ValueError, or OverflowError, where it is none."""
    args = get_args(hint)
    if get_origin(hint) in (Union, UnionType):  # something or None
        return None if value is None else read(next(a for a in args if a is not NoneType), value)
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(read(args[0], v) for v in value)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        if not math.isfinite(number := float(value)):
            raise ValueError(value)
        return number if isinstance(value, str) else value
    if type(value) is not hint:
        raise ValueError(value)
    return value


def wanted(hint: Any) -> str:
    args = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return f"null or {wanted(next(a for a in args if a is not NoneType))}"
    return "a list, each " + wanted(args[0]) if get_origin(hint) is tuple else WORDS[hint]
