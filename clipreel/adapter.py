"""The life of an adapter: what a method trained, saved beside how it was made, and laid on its base again.

An adapter is a folder, as in PEFT: `adapter_config.json` says method, options, base, pixels, frames, data, metrics and
licences; `adapter_model.safetensors` holds what was trained, each tensor once. The base is never written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from clipreel.alpro.retriever import is_alpro, load_alpro
from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.identity import digest
from clipreel.retriever import Retriever
from clipreel.retriever import load as load_base
from clipreel.sites import PLAIN, Tuner
from clipreel.tuners import build
from clipreel.video.sampling import Sampling
from clipreel.video.transforms import Preprocess

SCHEMA = 1
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says. `base` is the fingerprint of the base weights, `base_name` where they came from.

    `helped` is the verdict of the before/after comparison on held-out pairs (None: never compared); search activates
    no adapter by itself that does not help. `licence` names those of the base and of the data.
    """

    method: str
    options: dict[str, Any]
    base: str
    base_name: str
    preprocess: dict[str, Any]
    sampling: dict[str, Any]
    tensors: str = ""
    trained_on: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    helped: bool | None = None
    licence: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def trained(tuner: nn.Module) -> dict[str, Tensor]:
    """What a method trains, each tensor once, under its first name."""
    return {name: p.detach() for name, p in tuner.named_parameters()}


def fill(tuner: nn.Module, tensors: Mapping[str, Tensor], source: str = "the adapter") -> None:
    """Copy saved tensors into a tuner or a head; every tensor is accounted for.

    Raises ClipreelError that names the first missing, unexpected and mis-shaped tensors.
    """
    own = trained(tuner)
    problems = []
    for what, names in (("missing", set(own) - set(tensors)), ("unexpected", set(tensors) - set(own))):
        if names:
            problems.append(f"{len(names)} {what}, first {', '.join(sorted(names)[:3])}")
    for name in sorted(set(own) & set(tensors)):
        if own[name].shape != tensors[name].shape:
            problems.append(f"{name} is {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}")
    if problems:
        raise ClipreelError(f"{source} does not fit its method: {'; '.join(problems[:4])}. Tune or fetch it again")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def write(path: Path, data: bytes) -> None:
    """The whole file or none of it, also when the disk is full or the process dies."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ClipreelError(f"{path} cannot be written ({e.strerror}); make room or give another folder") from e


def save_adapter(folder: str | Path, model: Retriever, method: str, options: Mapping[str, Any], **facts: Any) -> Path:
    """Write the tuner of a retriever as an adapter folder; `facts` fill the other fields of `AdapterConfig`."""
    folder = Path(folder)
    tensors = trained(model.tuner)
    config = AdapterConfig(
        method=method,
        options=dict(options),
        base=model.fingerprint,
        base_name=model.name,
        preprocess=model.preprocess.to_dict(),
        sampling=model.sampling.to_dict(),
        tensors=digest(tensors),
        **facts,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ClipreelError(f"no adapter can be made at {folder} ({e.strerror}); give another folder") from e
    # the weights first: a folder with a config is whole
    write(folder / WEIGHTS, save({n: t.cpu().contiguous() for n, t in tensors.items()}, {"format": "pt"}))
    write_config(folder, config)
    return folder


def write_config(folder: Path, config: AdapterConfig) -> None:
    write(folder / CONFIG, (json.dumps(asdict(config), indent=1, ensure_ascii=False) + "\n").encode())


def read_config(folder: str | Path) -> AdapterConfig:
    """adapter_config.json of a folder. Raises ClipreelError that says what is wrong with it."""
    path = Path(folder) / CONFIG
    try:
        data = json.loads(path.read_text("utf-8"))
        known = set(AdapterConfig.__dataclass_fields__)
        if data.get("schema") != SCHEMA:
            raise ClipreelError(f"{path} has schema {data.get('schema')!r}, this version reads {SCHEMA}")
        if set(data) - known:
            raise ClipreelError(f"{path} says {', '.join(sorted(set(data) - known))}, which this version does not know")
        return AdapterConfig(**data)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise ClipreelError(f"{folder} is no adapter: there is no {CONFIG} in it; see: clipreel adapters") from e
    except OSError as e:
        raise ClipreelError(f"{path} cannot be read ({e.strerror})") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise ClipreelError(f"{path} is damaged ({e}); tune or fetch the adapter again") from e


def read_tensors(folder: str | Path, config: AdapterConfig) -> dict[str, Tensor]:
    """What was trained, checked against the identity that the config states."""
    return stated_tensors(Path(folder) / WEIGHTS, config.tensors, "an adapter")


def stated_tensors(path: Path, stated: str, what: str) -> dict[str, Tensor]:
    """The tensors of a file with this digest. Raises ClipreelError that says what is wrong with it."""
    again = "tune or fetch it again"
    try:
        tensors = load_file(path)
    except FileNotFoundError as e:
        raise ClipreelError(f"{path.parent} is half {what}: there is no {path.name} in it; {again}") from e
    except (SafetensorError, OSError) as e:
        raise ClipreelError(f"{path} cannot be read ({e}); {again}") from e
    if digest(tensors) != stated:
        raise ClipreelError(f"{path} is not what the config beside it describes (another fingerprint); {again}")
    return tensors


def tuner_of(folder: str | Path, clip: Clip, config: AdapterConfig | None = None) -> Tuner:
    """The tuner in an adapter folder, on this backbone, ready for use."""
    config = config or read_config(folder)
    tensors = read_tensors(folder, config)
    tuner = build(config.method, clip, config.options)
    fill(tuner, tensors, str(folder))
    tuner.requires_grad_(False).to(clip.logit_scale.device).eval().fold()
    return tuner


def with_adapter(model: Retriever, folder: str | Path) -> Retriever:
    """The same base in memory with this adapter: nothing is copied or changed, so many can be resident at once.

    Raises ClipreelError where the adapter was made for another base.
    """
    config = read_config(folder)
    if config.base != model.fingerprint:
        raise ClipreelError(
            f"the adapter {folder} was tuned on {config.base_name} ({config.base[:12]}), not on {model.name} "
            f"({model.fingerprint[:12]}); load that base, or tune again on this one"
        )
    tuner = tuner_of(folder, model.clip, config)
    return model.adapted(
        tuner,
        preprocess=Preprocess(**config.preprocess),
        sampling=Sampling(**config.sampling),
        adapter="none" if tuner is PLAIN else config.tensors,
        name=f"{model.name} + {config.method}",
        folder=os.path.abspath(folder),
    )


def load(source: str | Path, adapter: str | Path | None = None, **options: Any) -> Retriever:
    """A retriever from any source that `retriever.load` takes, with its options, and the folder of an adapter on it;
    or the ALPRO in a folder.

    >>> import clipreel
    >>> model = clipreel.load("shapes-tiny", adapter=None)
    """
    if is_alpro(source):
        if adapter is not None:
            raise ClipreelError(f"{source} is an ALPRO, which takes no adapter; tune it with an alpro recipe instead")
        unknown = [k for k in options if k not in ("device", "dtype", "download")]
        if unknown:
            raise ClipreelError(f"{source} is an ALPRO, for which {unknown[0]} cannot be given; leave it out")
        return load_alpro(source, **{k: v for k, v in options.items() if k != "download"})
    model = load_base(source, **options)
    return model if adapter is None else with_adapter(model, adapter)
