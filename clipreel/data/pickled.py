"""Captions out of a pickle (raw-captions.pkl of CLIP4Clip, the caption numbers of Frozen) without running any of it.

A pickle is a program. The reader below knows lists, dicts, texts and numbers, and refuses the first other name that
the program asks for, before it is called. Specification core.md 4.3.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from clipreel.errors import ClipreelError

# what a pickle may ask for, and what it gets; nothing here runs anything
HARMLESS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("builtins", "list"): list,
    ("builtins", "dict"): dict,
    ("__builtin__", "list"): list,
    ("__builtin__", "dict"): dict,
}


class Refused(Exception):
    """The pickle asks for something else than plain data."""


class PlainData(pickle.Unpickler):
    """Every way in which a pickle reaches code goes through one of these two."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise Refused(f"it asks for {module}.{name}")
        return HARMLESS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to objects outside of it")


def read_plain(path: Path) -> dict[str, Any]:
    """The dict of a pickle of plain data. Raises ClipreelError for a pickle of anything else."""
    try:
        found = PlainData(io.BytesIO(path.read_bytes()), encoding="utf-8").load()
    except Refused as e:
        raise ClipreelError(
            f"{path} is a pickle that holds more than texts and lists ({e}) and was not run; take the captions from a "
            "source that you trust, or as JSON"
        ) from e
    except OSError as e:
        raise ClipreelError(f"{path} cannot be read ({e.strerror}); check the path and its rights") from e
    except Exception as e:  # a damaged pickle raises nearly anything
        raise ClipreelError(f"{path} is no readable pickle ({type(e).__name__}); get it again") from e
    if not isinstance(found, dict) or not all(isinstance(k, str) for k in found):
        raise ClipreelError(
            f"{path} is a pickle that is not captions: a dict of video ids is expected, and it holds "
            f"a {type(found).__name__}"
        )
    return found
