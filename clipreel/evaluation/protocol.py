"""The protocol stamp: how a number was made, and what keeps two numbers from being compared (DESIGN 7)."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from clipreel.errors import ClipreelError

# what may differ between two rows of one table: it is what the rows are about
SUBJECTS = ("base", "base_name", "adapter", "trained_on", "seeds", "versions")
LATER = ("base_name", "trained_on", "pixels", "part")  # a stamp of before they were in it does not state them
UNSTATED = "unstated"
WHOLE = "whole videos"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("clipreel", "torch", "av", "ftfy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@dataclass(frozen=True)
class Stamp:
    """Everything that decides a retrieval number besides the model's quality; "unstated" differs from every value.

    `part` is of which parts of their files the videos are, `pixels` the recipe that made frames of them. `trained_on`
    names the training list of the adapter, `base_name` where the base came from.
    """

    split: str = UNSTATED
    split_hash: str = UNSTATED
    caption_mode: str = UNSTATED
    part: str = UNSTATED
    frames: str = UNSTATED
    pixels: str = UNSTATED
    resolution: int = 0
    tokens: int = 0
    tokenizer: str = UNSTATED
    selection: str = "none"
    post_processing: str = "none"
    transductive: bool = False
    tie_rule: str = "expected"
    base: str = UNSTATED
    base_name: str = UNSTATED
    adapter: str = "none"
    trained_on: str = UNSTATED
    seeds: tuple[int, ...] = ()
    versions: dict[str, str] = field(default_factory=versions)

    def having(self, **changes: Any) -> Stamp:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stamp:
        """The stamp of `to_dict` again, also after a trip through JSON; what one of before does not state is unstated.
        Raises ClipreelError for other fields."""
        known = {f.name for f in fields(cls)}
        odd = ", ".join(sorted({*data} - known | known - {*data, *LATER}))
        if odd:
            raise ClipreelError(f"the stamp has missing or unknown fields: {odd}; evaluate again with this version")
        return cls(**{**data, "seeds": tuple(data["seeds"])})

    def differences(self, other: Stamp) -> dict[str, tuple[Any, Any]]:
        """The fields of the protocol in which two results differ, with both values."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {k: (mine[k], theirs[k]) for k in mine if k not in SUBJECTS and mine[k] != theirs[k]}

    def require_equal(self, other: Stamp) -> None:
        """Raises ClipreelError that names the differing fields, so that unequal results are never ranked."""
        found = self.differences(other)
        if found:
            said = "; ".join(f"{k}: {a!r} and {b!r}" for k, (a, b) in found.items())
            raise ClipreelError(f"these results cannot be compared, they were made differently ({said})")


def split_hash(ids: Iterable[str]) -> str:
    """Identity of the list of test items in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]


def parts_hash(parts: Iterable[tuple[float | None, float | None]]) -> str:
    """Identity of the parts (start and end in seconds) of which the items are, in order."""
    said = [f"{start or 0.0!r} {end!r}" for start, end in parts]
    return WHOLE if {*said} <= {"0.0 None"} else hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]
