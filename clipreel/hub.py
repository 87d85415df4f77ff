"""Models by hub id, through huggingface_hub: the local cache first, a download only where the caller allows it."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

from clipreel.errors import ClipreelError, NotHere

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SMALL_FILES = [
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "*.index.json",
]
# the first kind of weights that a repository has is taken: never pickles where safetensors exist
WEIGHTS = [
    ("model.safetensors",),
    ("model-*-of-*.safetensors",),
    ("open_clip_model.safetensors",),
    ("pytorch_model.bin",),
    ("pytorch_model-*-of-*.bin",),
    ("open_clip_pytorch_model.bin",),
]

# of OpenAI's models (core.md 1.1), whose weights are kept in float32
PARAMETERS = {
    "openai/clip-vit-base-patch32": 151_277_313,
    "openai/clip-vit-base-patch16": 149_620_737,
    "openai/clip-vit-large-patch14": 427_616_513,
    "openai/clip-vit-large-patch14-336": 427_944_193,
}


def size_of(hub_id: str) -> str:
    """How big the weights of a model of the hub are, in words."""
    known = PARAMETERS.get(hub_id)
    return "of unknown size" if known is None else f"about {known * 4 / 1e6:.0f} MB"


def snapshot(hub_id: str, download: bool) -> Path:
    """The folder of a model in the local cache. `download` False never touches the network.

    Raises ClipreelError that says how to get the model here by hand.
    """
    from huggingface_hub import HfApi, snapshot_download

    by_hand = (
        f"download {hub_id} on a machine with a connection (`hf download {hub_id} --local-dir FOLDER`), "
        "copy the folder here and give it as --model FOLDER"
    )
    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
        if whole(folder):
            return folder
    except Exception:  # whatever the reason, the cache does not have it; the next step says so
        pass
    if not download:
        raise NotHere(
            f"the model {hub_id} is not on this machine (nor is a folder of this name) and needs one download "
            f"({size_of(hub_id)}): allow it with --download, or {by_hand}"
        )
    try:
        names = [f.rfilename for f in HfApi().model_info(hub_id).siblings or []]
        wanted = next((g for g in WEIGHTS if any(fnmatch.fnmatch(n, p) for n in names for p in g)), None)
        if wanted is None:
            raise ClipreelError(f"{hub_id} has no CLIP weights; its files are {', '.join(sorted(names)[:12])}")
        # the weights come last, so that a cache that has them has the rest too, even if a download was broken off
        snapshot_download(hub_id, allow_patterns=SMALL_FILES)
        return Path(snapshot_download(hub_id, allow_patterns=[*wanted]))
    except ClipreelError:
        raise
    except Exception as e:  # the hub's client raises a dozen types for "no connection", "no such repository", "offline"
        reason = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
        raise ClipreelError(f"{hub_id} could not be fetched ({reason}); {by_hand}") from e


def whole(folder: Path) -> bool:
    """Whether one kind of weights is there, with all its parts."""
    if any((folder / pattern).is_file() for group in WEIGHTS for pattern in group):
        return True
    indices = folder.glob("*.index.json")
    parts = (set(json.loads(i.read_text("utf-8"))["weight_map"].values()) for i in indices)
    return any(all((folder / part).is_file() for part in names) for names in parts)
