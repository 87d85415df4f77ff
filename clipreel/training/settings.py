"""All settings of `clipreel tune`: what they are, how they are read and changed, and when two runs are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from clipreel.data.sources import SHAPES
from clipreel.errors import ClipreelError
from clipreel.heads import head_named, head_options
from clipreel.training.batches import Augment
from clipreel.training.config import GroupRule, OptimConfig, TrainConfig, as_dict, override, read, within
from clipreel.training.decoding import FrameSampling
from clipreel.training.pairs import DataConfig
from clipreel.tuners import FROZEN, options, own_rates
from clipreel.video.transforms import Preprocess

METRICS = tuple(f"{way} R@{k}" for way in ("t2v", "v2t") for k in (1, 5, 10))  # what is measured to select weights
PIXELS = {"keys": tuple(f.name for f in fields(Preprocess))}  # what `pixels` may hold


@dataclass(frozen=True)
class HeadChoice:
    """The head that is trained with the method: a name in heads.HEADS, or as its paper writes it, and its own `lr`.

    `mean` is the mean of the frames' vectors, which is what there is without a head.
    """

    name: str = "mean"
    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 1e-4

    def __post_init__(self) -> None:
        within("lr", self.lr, 0)

    @property
    def kind(self) -> str:
        """Our name of the head."""
        return head_named(self.name)


@dataclass(frozen=True)
class TuneConfig:
    """Everything that a tuned adapter depends on. `options` change the preset of the `method`, "frozen" trains the
    `head` alone; `lr` None takes the method's own rates, a number stands for all of them, and `train.optim.lr` must not
    be stated beside it; `order` says which captions meet in a batch, and `same_video` whether those of one video are
    right for each other there, or wrong, as in the papers' codes; `sampling` says which frames are seen (None: as the
    base does, see video/sampling.py); `random_frames` draws one frame of each part of equal times; `crop_from` keeps
    frames to train on of so many pixels, more than the model sees, of which `augment.crop` cuts; `loss` is a name in
    losses.TWO, its scale never above `max_scale`; `pixels` changes the pixel recipe of the base; `start` is an adapter
    of the method, or a released checkpoint of it, to go on from; `shard` spreads what the method full trains over the
    processes of torchrun, which changes memory and time alone."""

    model: str = "openai/clip-vit-base-patch32"
    method: str = "vop_fc"
    options: dict[str, Any] = field(default_factory=dict)
    head: HeadChoice = field(default_factory=HeadChoice)
    data: DataConfig = field(default_factory=DataConfig)
    frames: int = 12
    sampling: FrameSampling | None = None
    batch: int = 32
    order: Literal["distinct", "pairs", "opposites"] = "distinct"
    same_video: Literal["right", "wrong"] = "right"
    random_frames: bool = False
    augment: Augment = field(default_factory=Augment)
    crop_from: int | None = None
    loss: str = "contrastive"
    max_scale: float = 100.0
    pixels: dict[str, Any] = field(default_factory=dict, metadata=PIXELS)
    start: str | None = None
    lr: float | None = None
    shard: bool = False
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        within("frames", self.frames, 1)
        within("batch", self.batch, 1)
        within("crop_from", self.crop_from, 1)
        within("max_scale", self.max_scale, 1)
        within("lr", self.lr, 0, above=True)


def read_config(
    path: Path | None,
    changes: Sequence[str] = (),
    *,
    method: str | None = None,
    model: str | None = None,
    head: str | None = None,
) -> TuneConfig:
    """A config from a YAML file (the defaults without one), then method, model and head, then changes as "lr=1e-3".

    Changes may name every option of the method and of the head, as options.joint_layers=2 or head.options.layers=2.
    """
    config = read(TuneConfig, path)
    optim = config.train.optim
    keys = [change.partition("=")[0].strip() for change in changes]
    if "lr" in keys and optim.lr == config.lr:  # the config of a run states what was used in both places
        config = replace(config, train=replace(config.train, optim=replace(optim, lr=OptimConfig.lr)))
    if "train.optim.lr" in keys:
        raise no_rate(changes[keys.index("train.optim.lr")].partition("=")[2].strip())
    first = [c for c in changes if c.startswith(("method=", "head.name="))]
    for change in first:
        config = override(config, change)
    config = replace(config, method=method or config.method, model=model or config.model)
    if head not in (None, config.head.name):
        config = replace(config, head=HeadChoice(str(head)))
    every = options(config.method, config.options)
    if "frames" not in config.options:  # follows the frames of the config
        learned = every.pop("frames", None)
        said = next((c.removeprefix("options.") for c in changes if c.startswith("options.frames=")), None)
        if learned is not None and said is not None:
            raise ClipreelError(f"options.{said}: as many positions are learned as there are frames; say {said}")
    of_head = head_options(config.head.name, config.head.options)
    config = replace(config, options=every, head=replace(config.head, options=of_head))
    for change in changes:
        if change not in first:
            config = override(config, change)
    checked(config)
    return config


def checked(config: TuneConfig) -> None:
    """Raises ClipreelError for what does not go together, before anything is loaded."""
    resolved(config)
    if config.order == "opposites" and config.data.path not in ("", SHAPES):
        raise ClipreelError(
            "order opposites needs to know which video is the opposite of which, and only the shapes world says so: "
            "take distinct, or pairs"
        )
    if config.train.optim.lr not in (OptimConfig.lr, config.lr):
        raise no_rate(config.train.optim.lr)
    if config.train.select.metric not in METRICS:
        raise ClipreelError(
            f"train.select.metric {config.train.select.metric!r}: what is measured is {', '.join(METRICS)}"
        )
    head_options(config.head.name, config.head.options)
    if config.shard and (config.method, config.head.kind) != ("full", "mean"):
        raise ClipreelError(
            f"shard: {config.method} is small enough for one device; it is for the method full, no head"
        )
    if config.head.kind == "mean":
        if config.method == FROZEN:
            raise ClipreelError(f"the method {FROZEN} trains nothing below a head: name one, as --head seq_transf")
    elif config.loss != "contrastive":
        raise ClipreelError(f"loss {config.loss!r}: a head is trained by contrastive alone; take that, or no head")


def no_rate(stated: object) -> ClipreelError:
    return ClipreelError(f"train.optim.lr {stated}: clipreel tune takes its rate from lr; give lr={stated}")


def resolved(config: TuneConfig) -> dict[str, Any]:
    """All options of the method; those that learn frame positions learn as many as there are frames."""
    stated = dict(config.options)
    if "frames" in options(config.method, {}) and "frames" not in stated:
        stated["frames"] = config.frames
    return options(config.method, stated)


def settled(config: TuneConfig) -> TuneConfig:
    """The config with its learning rates stated: those of the method where `lr` is None, behind the rules that are
    there. A settled config stays as it is."""
    optim = config.train.optim
    lr, rules = own_rates(config.method, config.options) if config.lr is None else (config.lr, {})
    ruled = {rule.match for rule in optim.groups}
    groups = (*optim.groups, *(GroupRule(match, lr=own) for match, own in rules.items() if match not in ruled))
    return replace(config, lr=lr, train=replace(config.train, optim=replace(optim, lr=lr, groups=groups)))


def same_run(made: TuneConfig, wanted: TuneConfig) -> bool:
    """Whether a run of the stored config `made` is one of the config `wanted`.

    Configs of former versions state no rate where the method gives it, and those had one for all parameters.
    """
    once = settled(made)
    if made.lr is None and once.train.optim.groups != made.train.optim.groups:
        return False
    return as_dict(once) == as_dict(settled(wanted))
