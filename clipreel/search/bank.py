"""Banks of queries that scores are compared with: the general one, a file of the user's, or what was asked before.

A bank has two parts: `texts` as people ask them, and `absent` ones, which nothing in the archive can answer; the
cut-off below which "nothing here matches" is set and measured on these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

from clipreel.errors import ClipreelError
from clipreel.search.index import Index, text_of
from clipreel.search.lines import Lines, Row
from clipreel.search.query import clean

HERE = Path(__file__).parent
LEAST, MOST = 20, 1000
ABSENT = 160
OFFERED = 100  # remembered queries from which on they are worth a bank
KIND = "queries"
WHO = ("a child", "an old woman", "two men", "a group of friends", "a dog", "somebody in a red coat")
DOES = ("walking", "sitting down", "laughing", "carrying something", "seen from behind", "in close-up")
WHERE = ("on a beach", "in the snow", "at night", "in a kitchen", "in a crowd")
# whom, doing what, where: every archive shows some of one list, and none a whole triple
NOBODY = ("a dragon", "a mermaid", "a woolly mammoth", "a robot with four arms", "a centaur", "a talking teapot")
NEVER = ("milking a whale", "playing chess with a tiger", "knitting a car", "ironing a glacier", "juggling pianos")
NOWHERE = ("on the rings of Saturn", "inside a volcano", "in a medieval submarine", "on a bridge of spaghetti")


@dataclass(frozen=True)
class Bank:
    """Queries by name. Without `absent`, half of the texts set the cut-off and the others measure it."""

    name: str
    texts: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not LEAST <= len(self.texts) <= MOST:
            raise ClipreelError(f"the bank {self.name} has {len(self.texts)} queries: it needs {LEAST} to {MOST}")

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(repr((self.texts, self.absent)).encode(), digest_size=8).hexdigest()


def general() -> Bank:
    """The bank that comes with clipreel: everyday queries, and triples of things that do not exist."""
    written = (HERE / "general_bank.txt").read_text("utf-8").splitlines()
    made = [" ".join(words) for words in product(WHO, DOES, WHERE)]
    return Bank("general", tuple(written + Random(0).sample(made, 120)), absent())


def absent(count: int = ABSENT) -> tuple[str, ...]:
    """Queries that no archive answers: an impossible being, deed or place, and all three."""
    lists = (NOBODY, NEVER), (NOBODY, NOWHERE), (NEVER, NOWHERE), (NOBODY, NEVER, NOWHERE)
    every = [" ".join(words) for some in lists for words in product(*some)]
    return tuple(Random(0).sample(every, count))


def from_file(path: str | Path) -> Bank:
    """A bank from a text file, one query a line; lines that begin with ! are queries that nothing here answers."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ClipreelError(f"the bank {text_of(str(path))} cannot be read ({e}); give one query a line") from e
    kept = list(dict.fromkeys(clean(line) for line in lines if clean(line)))[: 2 * MOST]
    unanswered = tuple(line[1:].strip() for line in kept if line.startswith("!"))
    return Bank(str(Path(path).absolute()), tuple(x for x in kept if not x.startswith("!"))[:MOST], unanswered)


def remembered(index: Index) -> list[str]:
    """The texts that were remembered of this archive, the latest last."""
    if not index.local:
        return []
    return [text for text in (row.get("text") for row in Lines.of(index, KIND).read()) if isinstance(text, str)]


def past(index: Index) -> Bank:
    """The latest queries that were remembered of this archive."""
    kept = remembered(index)
    if not kept:
        raise ClipreelError(
            f"the index at {index.place} remembers no queries yet (clipreel serve does); take --bank general"
        )
    return Bank("past", tuple(dict.fromkeys(reversed(kept)))[:MOST], absent())


def remember(index: Index, texts: Sequence[str]) -> None:
    """Keep queries for the bank `past`, beside the index and the latest MOST of them, each once.

    Nothing is kept unless somebody calls this. Raises ClipreelError for an index that is not on this machine.
    """
    new = [text for text in map(clean, texts) if text]

    def later(rows: list[Row]) -> list[Row]:
        kept = dict.fromkeys(row.get("text") for row in rows)
        for text in new:
            kept.pop(text, None)
            kept[text] = None
        return [{"text": text} for text in list(kept)[-MOST:]]

    if new:
        Lines.of(index, KIND).change(later)


def forget(index: Index) -> None:
    """Delete all that was remembered."""
    if index.local:
        Lines.of(index, KIND).change(lambda rows: [])


def bank_of(index: Index, which: str) -> Bank:
    """`general`, `past`, or the name of a file."""
    if which == "general":
        return general()
    return past(index) if which == "past" else from_file(which)
