"""Typed configs: frozen dataclasses, one default plus differences in YAML, overrides that change values only.

A file may start with `base: other.yaml` (relative to itself); what it states replaces the same keys of the base, and
lists are replaced whole. An unknown key is an error that suggests the nearest one. `read` serves any dataclass.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from clipreel.errors import ClipreelError
from clipreel.training.schedule import ScheduleName

T = TypeVar("T")


def within(name: str, value: float | None, least: float, most: float = math.inf, *, above: bool = False) -> None:
    """Raises ClipreelError unless the value is finite, at least (or `above`) `least`, and at most `most`; null is."""
    if value is None or (math.isfinite(value) and least <= value <= most and not (above and value == least)):
        return
    allowed = f"above {least:g}" if above else f"{least:g} or more"
    raise ClipreelError(
        f"{name}: {value} is not allowed; give " + (allowed if math.isinf(most) else f"{allowed}, up to {most:g}")
    )


@dataclass(frozen=True)
class GroupRule:
    """Parameters whose name contains the regular expression `match` get this lr, this decay, or both."""

    match: str
    lr: float | None = None
    decay: float | None = None

    def __post_init__(self) -> None:
        within("lr", self.lr, 0)
        within("decay", self.decay, 0)


@dataclass(frozen=True)
class OptimConfig:
    """The defaults are X-Pool's, which VoP is trained with (specification vop.md 5); `clip_norm` null does not clip."""

    name: Literal["adamw", "adamw_hf", "bert_adam"] = "adamw_hf"
    lr: float = 1e-3
    decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    clip_norm: float | None = 1.0
    groups: tuple[GroupRule, ...] = ()

    def __post_init__(self) -> None:
        within("lr", self.lr, 0)
        within("decay", self.decay, 0)
        within("eps", self.eps, 0, above=True)
        within("clip_norm", self.clip_norm, 0, above=True)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ClipreelError(
                f"betas: {list(self.betas)} are not two numbers from 0 to below 1, such as [0.9, 0.999]"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """`warmup` is the share of all updates; the names are explained in training/schedule.py."""

    name: ScheduleName = "hf_cosine"
    warmup: float = 0.1


@dataclass(frozen=True)
class SelectConfig:
    """When to measure (`every_steps`, else `every_epochs`) and which measurement picks the weights (higher is better).

    `split` test picks weights on the test split, which the papers do and which is marked on every number.
    """

    split: Literal["validation", "test"] = "validation"
    metric: str = "t2v R@1"
    every_steps: int | None = None
    every_epochs: float = 1.0
    at_start: bool = False

    def __post_init__(self) -> None:
        within("every_steps", self.every_steps, 1)
        within("every_epochs", self.every_epochs, 0, above=True)


@dataclass(frozen=True)
class TrainConfig:
    """One training run. `steps` replaces `epochs`; `micro_batch` rows go through the model at a time on each process,
    which changes memory and time, not the result; `recompute` keeps one activation per block."""

    seed: int = 0
    epochs: float = 5.0
    steps: int | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    micro_batch: int | Literal["auto"] = "auto"
    recompute: bool = False
    checkpoint_every: int = 200
    log_every: int = 10
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    select: SelectConfig = field(default_factory=SelectConfig)

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("micro_batch", 1), ("checkpoint_every", 1), ("log_every", 1)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ClipreelError(f"{name}: {value} is below {least}")
        within("seed", self.seed, 0)
        if self.steps is None:
            within("epochs", self.epochs, 0, above=True)
        if not 0 <= self.schedule.warmup < 1:
            raise ClipreelError(f"schedule.warmup: {self.schedule.warmup} is not a share of the run, 0 up to 1")


def read(kind: type[T], path: Path | str | None = None, overrides: Sequence[str] = ()) -> T:
    """The config in a YAML file (the defaults without one), changed by overrides such as "optim.lr=1e-3".

    Raises ClipreelError for unknown keys, wrong types, a missing file, or bases in a circle.
    """
    config = build(kind, {} if path is None else _chain(Path(path), ()), str(path) if path else "the defaults")
    for text in overrides:
        config = override(config, text)
    return config


def build(kind: type[T], data: Mapping[str, Any], source: str = "the config") -> T:
    """A config of this type from plain data; what is not stated keeps its default."""
    return _build(kind, data, "", source)


def as_dict(config: Any) -> dict[str, Any]:
    """Plain data of a config, which `build` takes back."""
    return _plain(asdict(config))


def to_yaml(config: Any) -> str:
    """The resolved config, every value stated."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys at which two plain configs differ, with both values."""
    found = []
    for key in [*a, *(k for k in b if k not in a)]:
        x, y = a.get(key), b.get(key)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            found += differences(x, y, f"{prefix}{key}.")
        elif x != y:
            found.append(f"{prefix}{key}: {x!r} and {y!r}")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _chain(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file merged over its bases."""
    here = path.resolve()
    if here in seen:
        raise ClipreelError(f"{path}: its bases lead back to itself ({' -> '.join(p.name for p in (*seen, here))})")
    try:
        data = yaml.safe_load(path.read_text("utf-8")) or {}
    except FileNotFoundError as e:
        raise ClipreelError(f"config {path} is missing" + (f" (base of {seen[-1]})" if seen else "")) from e
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise ClipreelError(f"{path} is not readable YAML ({' '.join(str(e).split())})") from e
    if not isinstance(data, dict):
        raise ClipreelError(f"{path}: a config is a mapping of keys to values, not {type(data).__name__}")
    base = data.pop("base", None)
    return data if base is None else merge(_chain(path.parent / str(base), (*seen, here)), data)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` replaced, section by section."""
    both = {
        k: merge(base[k], v) if isinstance(base.get(k), dict) and isinstance(v, dict) else v for k, v in over.items()
    }
    return {**base, **both}


def _unknown(key: str, where: str, allowed: Sequence[str], source: str) -> ClipreelError:
    near = difflib.get_close_matches(key, allowed, 1, 0.5)
    if not allowed:
        return ClipreelError(
            f"{source}: {where.rstrip('.')} has no key that could be changed; state it in a config file"
        )
    hint = f"did you mean {where}{near[0]}?" if near else f"allowed are {', '.join(where + a for a in allowed)}"
    return ClipreelError(f"{source}: unknown key {where}{key}; {hint}")


def _build(kind: Any, data: Any, where: str, source: str) -> Any:
    if not isinstance(data, Mapping):
        raise ClipreelError(f"{source}: {where.rstrip('.') or 'the config'} holds keys and values, not {data!r}")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    for key in data:
        if key not in names:
            raise _unknown(str(key), where, names, source)
    values = {k: _typed(hints[k], v, f"{where}{k}", source) for k, v in data.items()}
    try:
        return kind(**values)
    except ClipreelError as e:  # a value out of its range, which names the key alone
        raise ClipreelError(f"{source}: {where}{e}") from e
    except TypeError as e:
        raise ClipreelError(f"{source}: {where.rstrip('.') or 'the config'}: {e}") from e


def _typed(hint: Any, value: Any, where: str, source: str) -> Any:
    """The value as the type; a text is read as a number where one is wanted (YAML reads 1e-3 as a text)."""
    origin, args = get_origin(hint), get_args(hint)
    wrong = ClipreelError(f"{source}: {where} = {value!r} is not {_name(hint)}")
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _build(hint, value, f"{where}.", source)
    if origin in (Union, types.UnionType):
        for option in sorted(args, key=lambda a: a is not type(None)):
            try:
                return _typed(option, value, where, source)
            except ClipreelError:
                if is_dataclass(option) and isinstance(value, Mapping):
                    raise
        raise wrong
    if origin is Literal:
        if value in args:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in args], 1, 0.6)
        raise ClipreelError(f"{wrong}" + (f"; did you mean {near[0]}?" if near else ""))
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (args[-1] is not ... and len(value) != len(args)):
            raise wrong
        kinds = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(_typed(k, v, f"{where}[{i}]", source) for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise wrong
        return {str(k): _typed(args[1], v, f"{where}.{k}", source) if args else v for k, v in value.items()}
    return _scalar(hint, value, wrong)


def _scalar(hint: Any, value: Any, wrong: ClipreelError) -> Any:
    if hint is type(None) and value is None:
        return None
    if hint is bool or isinstance(value, bool):
        if hint is bool and isinstance(value, bool):
            return value
        raise wrong
    if hint is float and isinstance(value, (int, float, str)):
        try:
            return float(value)
        except ValueError as e:
            raise wrong from e
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint in (int, str) and type(value) is hint:
        return value
    raise wrong


def _name(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(a) for a in args)
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    return words.get(hint, "null" if hint is type(None) else str(getattr(hint, "__name__", hint)))


def override(config: T, text: str) -> T:
    """The config with one value changed by a text such as "optim.lr=1e-3"; ClipreelError for a key it does not have."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ClipreelError(f"override {text!r}: write key=value, such as optim.lr=1e-3")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise ClipreelError(f"override {text!r}: {value!r} is not readable YAML") from e
    data = as_dict(config)
    _set(data, key.strip().split("."), parsed, "", f"override {text!r}", type(config))
    return build(type(config), data, f"override {text!r}")


def _set(data: dict[str, Any], path: list[str], value: Any, where: str, source: str, kind: Any) -> None:
    """Put the value at the path, whose every key has to be there, or among the `keys` that the metadata of a field
    allows below it. A mapping changes the keys of a section that it has."""
    key, *rest = path
    if key not in data:
        raise _unknown(key, where, list(data), source)
    inside, within_key = data[key], f"{where}{key}."
    if isinstance(inside, dict):
        hints = get_type_hints(kind) if is_dataclass(kind) else {}
        keys = next((f.metadata.get("keys", ()) for f in fields(kind) if f.name == key), ()) if hints else ()
        allowed = {**dict.fromkeys(keys), **inside}
        if not rest and not isinstance(value, Mapping):
            raise ClipreelError(f"{source}: {where}{key} is a section; give one of its keys: {', '.join(allowed)}")
        for below, new in [(rest, value)] if rest else [([str(k)], v) for k, v in value.items()]:
            _set(allowed, below, new, within_key, source, hints.get(key))
        data[key] = {k: v for k, v in allowed.items() if k in inside or v is not None}
    elif rest:
        raise ClipreelError(f"{source}: {where}{key} is a single value and holds no {'.'.join(rest)}")
    else:
        data[key] = value
