"""A head as a folder: how it was made in `head_config.json`, its tensors in `head_model.safetensors`, each once.

The folder may be that of an adapter or of a checkpoint: the names of the files do not meet. A head belongs to the base
and the adapter whose vectors it was trained on, and says which they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save

from clipreel.adapter import fill, stated_tensors, trained, write
from clipreel.errors import ClipreelError
from clipreel.heads import HEADS, IN_PAPERS, Head, head_of
from clipreel.identity import digest
from clipreel.retriever import Retriever

SCHEMA = 1
CONFIG, WEIGHTS = "head_config.json", "head_model.safetensors"
# heads that learn nothing need no folder
WITHOUT_TENSORS = ("mean", "top_frames", "soft_frames")


@dataclass(frozen=True)
class HeadConfig:
    """What head_config.json says. `base` and `adapter` are fingerprints, `base_name` is where the base came from."""

    head: str
    width: int
    options: dict[str, Any]
    base: str
    base_name: str
    adapter: str
    tensors: str
    trained_on: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def save_head(folder: str | Path, model: Retriever, trained_on: dict[str, Any] | None = None) -> Path:
    """Write the head of a retriever into a folder, which may hold an adapter already."""
    folder, head = Path(folder), model.head
    if head is None:
        raise ClipreelError(f"{model.name} has no head to save; give it one with headed()")
    tensors = trained(head)
    config = HeadConfig(
        head.name,
        head.width,
        head.options,
        model.fingerprint,
        model.name,
        model.adapter,
        digest(tensors),
        trained_on or {},
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ClipreelError(f"no head can be saved at {folder} ({e.strerror}); give another folder") from e
    # the weights first: a folder with a config is whole
    write(folder / WEIGHTS, save({n: t.cpu().contiguous() for n, t in tensors.items()}, {"format": "pt"}))
    write(folder / CONFIG, (json.dumps(asdict(config), indent=1, ensure_ascii=False) + "\n").encode())
    return folder


def read_config(folder: Path) -> HeadConfig:
    """head_config.json of a folder. Raises ClipreelError that says what is wrong with it."""
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text("utf-8"))
        if data.get("schema") != SCHEMA:
            raise ClipreelError(f"{path} has schema {data.get('schema')!r}, this version reads {SCHEMA}")
        return HeadConfig(**data)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise ClipreelError(
            f"{folder} is no head: there is no {CONFIG} in it; give the folder of one, or {', '.join(WITHOUT_TENSORS)}"
        ) from e
    except OSError as e:
        raise ClipreelError(f"{path} cannot be read ({e.strerror})") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise ClipreelError(f"{path} is damaged ({e}); train or fetch the head again") from e


def read_head(folder: str | Path) -> tuple[Head, HeadConfig]:
    """The head in a folder, every tensor accounted for, and its config."""
    config, path = read_config(Path(folder)), Path(folder) / WEIGHTS
    head = head_of(config.head, config.width, config.options)
    fill(head, stated_tensors(path, config.tensors, "a head"), str(folder))
    return head, config


def with_head(model: Retriever, head: str | Path) -> Retriever:
    """The same base and tuner in memory with a head: a folder of one, or the name (also its paper's) of one that
    learns nothing.

    Raises ClipreelError where the head was trained on vectors of another base or adapter.

    >>> import clipreel
    >>> clipreel.with_head(clipreel.load("shapes-tiny"), "soft_frames").head.name
    'soft_frames'
    """
    name = IN_PAPERS.get(str(head), str(head))
    if name in WITHOUT_TENSORS:
        return model.headed(head_of(name, model.embed_dim))
    if name in HEADS and not Path(head).is_dir():
        raise ClipreelError(f"{name} must be trained: give the folder that clipreel tune --head {name} wrote")
    found, config = read_head(head)
    for what, theirs, ours in (("base", config.base, model.fingerprint), ("adapter", config.adapter, model.adapter)):
        if theirs != ours:
            raise ClipreelError(
                f"the head {head} was trained on the {what} {theirs[:12]} (of {config.base_name}), and {model.name} "
                f"has {ours[:12]}; load that one, or train the head again on this one"
            )
    return model.headed(found)
