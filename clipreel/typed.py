"""Values out of configs as the types that options state: those of methods and of heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from clipreel.errors import ClipreelError

WORDS: Mapping[Any, str] = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}


def read(name: str, hint: Any, value: Any) -> Any:
    """The value of an option as its type. ClipreelError where it is none.

    >>> read("dropout", float, "1e-1")
    0.1
    """
    try:
        return typed(hint, value)
    except (ValueError, OverflowError) as e:
        raise ClipreelError(f"{name} {value!r}: give {wanted(hint)}") from e


def typed(hint: Any, value: Any) -> Any:
    """The value as a type that `wanted` can name. Raises ValueError, or OverflowError, where it is none."""
    args = get_args(hint)
    if get_origin(hint) in (Union, UnionType):  # something or None
        return None if value is None else typed(next(a for a in args if a is not NoneType), value)
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(typed(args[0], v) for v in value)
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
