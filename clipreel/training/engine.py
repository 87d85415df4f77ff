"""The one training loop: any recipe, one process or many, resumable bit for bit.

A step is a pure function of (weights, optimiser state, seed, step number), and a batch of (seed, step), so a run that
was killed goes on from its last checkpoint as if nothing had happened. Batch means global batch: neither the number of
processes nor the micro-batch changes the mathematics.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from clipreel.errors import ClipreelError
from clipreel.training import checkpoint, distributed
from clipreel.training.blame import not_finite
from clipreel.training.checkpoint import State
from clipreel.training.config import TrainConfig, as_dict, differences, to_yaml
from clipreel.training.heap import keep_freed_memory
from clipreel.training.log import Clock, RunLog, Say
from clipreel.training.microbatch import Passes, fitting_rows, gradients, seed_all
from clipreel.training.optim import Updater
from clipreel.training.plots import plot_run
from clipreel.training.recipe import Recipe

if TYPE_CHECKING:
    from clipreel.training.batches import Batch, Batches

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FREE_TO_CHANGE = ("log_every", "checkpoint_every")  # between a run and its resumption
MOST_EMPTY = 1000  # steps in a row without a sample that can be used; fewer where epochs are short
SAVED_EVERY_S = 600.0  # steps may be slow: the most that a kill costs, besides the step that it interrupts


@dataclass(frozen=True)
class Validator:
    """How good the weights are: `measure(recipe)` gives named numbers on the split, "validation" or "test".

    It runs on every process, without gradients and in evaluation mode.
    """

    split: str
    measure: Callable[[Recipe], Mapping[str, float]]


@dataclass(frozen=True)
class Snapshot:
    """Weights (safetensors, the names of `Recipe.trained`) after `step` updates, what was measured then, and the
    `selection` rule that chose them, for the protocol stamp of every number made with them."""

    step: int
    weights: Path
    metrics: dict[str, float]
    selection: str


@dataclass(frozen=True)
class Outcome:
    """What a run gave. `selected` equals `last` where nothing was measured; `on_test` marks selection on a test split.

    The recipe holds the weights of `last`; `restore` puts others in.
    """

    folder: Path
    last: Snapshot
    selected: Snapshot
    on_test: bool
    resumed_from: int | None
    micro_batch: int
    data_wait: float
    seconds: float


@dataclass
class LossScale:
    """Keeps float16 gradients in range, as torch's GradScaler does: halved when they overflow, doubled after 2000 good
    steps. Two numbers, so that it is saved exactly, and indifferent to sharded gradients."""

    scale: float = 2.0**16
    good: int = 0

    def update(self, finite: bool) -> None:
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good == 2000:
            self.scale, self.good = self.scale * 2, 0


def fit(
    recipe: Recipe,
    loader: Batches,
    config: TrainConfig,
    folder: Path,
    *,
    validator: Validator | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, extra: None,
    say: Say = print,
) -> Outcome:
    """Train to the end and return the last and the selected weights; goes on where a killed run of the folder stopped.

    `facts` are what else the result depends on (fingerprints of base and data): stored, and compared on a resume.
    On the CPU the process keeps freed memory from here on (heap.py), also after the training.
    Raises ClipreelError that names the samples of a loss that is not finite; for a full disk, a lost process, a folder
    with a run of another config.
    """
    if all(p.device.type == "cpu" for p in recipe.trained().values()):
        keep_freed_memory()
    with torch.random.fork_rng():
        return _Run(recipe, loader, config, Path(folder), validator, dict(facts or {}), progress, say).go()


def restore(recipe: Recipe, weights: Path) -> None:
    """Put the weights of a snapshot into the recipe. Raises ClipreelError where they are another method's."""
    found = distributed.broadcast(checkpoint.read_whole(weights)[0] if distributed.world().first else None)
    _put(recipe.trained(), found, str(weights))


def _put(params: Mapping[str, torch.nn.Parameter], found: Mapping[str, Tensor], source: str) -> None:
    checkpoint.require_same(found, params, source)
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(distributed.laid_out_like(found[name], p))


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        recipe: Recipe,
        loader: Batches,
        config: TrainConfig,
        folder: Path,
        validator: Validator | None,
        facts: dict[str, Any],
        progress: Callable[[int, int, str], None],
        say: Say,
    ) -> None:
        self.recipe, self.loader, self.config, self.folder = recipe, loader, config, folder
        self.validator, self.facts, self.progress = validator, facts, progress
        self.first = distributed.world().first
        self.say: Say = say if self.first else lambda text: None
        self.params = recipe.trained()
        if not self.params:
            raise ClipreelError("the method has nothing to train")
        self.device = next(iter(self.params.values())).device
        self.total = config.steps or max(1, math.ceil(config.epochs * loader.steps_per_epoch - 1e-9))
        select = config.select
        self.measure_every = select.every_steps or max(1, round(select.every_epochs * loader.steps_per_epoch))
        if validator is not None and validator.split != select.split:
            raise ClipreelError(
                f"the weights would be selected on the {validator.split} split, and the config says select.split: "
                f"{select.split}; give validation data, or say select.split: {validator.split}"
            )
        self.updater = Updater(self.params, config.optim, config.schedule, self.total)
        self.scaler = LossScale() if config.precision == "float16" else None
        self.done, self.micro = 0, config.micro_batch if isinstance(config.micro_batch, int) else 0
        self.best: dict[str, Any] | None = None
        self.metrics: dict[str, float] = {}
        self.waited, self.empty = 0.0, 0

    @property
    def states(self) -> Path:
        return self.folder / "checkpoints"

    def go(self) -> Outcome:
        started = time.perf_counter()
        if self.config.recompute:
            self.recipe.recompute()
        self._claim()
        resumed = self._resume()
        for text in self.loader.told():
            self.say(text)
        if self.first:
            self.log = RunLog(self.folder, self.done)
        self.recipe.train(True)
        try:
            if self.config.select.at_start and self.done == 0:
                self._measure()
            self._loop()
        finally:
            self.recipe.train(False)
        return self._finish(resumed, time.perf_counter() - started)

    def _loop(self) -> None:
        clock, begin = Clock(self.done, self.total), self.done
        started = saved = time.perf_counter()
        with closing(self.loader.stream(self.done, self.total)) as batches:
            for step, batch, waited in batches:
                clock.waited += waited
                self.waited += waited
                values = self._step(step, batch)
                self.done = step + 1
                last = self.done == self.total
                logged = self.done % self.config.log_every == 0 or self.done == 1 or last
                if logged or step == begin:
                    self._report(values | clock.read(self.done), logged)
                due = self.validator is not None and self.done % self.measure_every == 0
                better = self._measure() if due or last else False
                late = distributed.least(int(time.perf_counter() - saved >= SAVED_EVERY_S))
                if better or self.done % self.config.checkpoint_every == 0 or last or late:
                    self._save()
                    saved = time.perf_counter()
        self.waited /= max(time.perf_counter() - started, 1e-9)

    def _step(self, step: int, batch: Batch) -> dict[str, float]:
        """One update. Returns the numbers of the log."""
        rows = sum(distributed.row_counts(len(batch)))
        if not rows:
            return self._nothing(step)
        self.empty = 0
        micro = self.micro or fitting_rows(self.recipe, batch, self._passes(1))
        if rows == self.loader.batch_rows(step):  # one with rows left out says too little of those to come
            self.micro = micro
        passes, scale = self._passes(micro), 1.0 if self.scaler is None else self.scaler.scale
        try:
            losses, report = gradients(self.recipe, batch, step, passes, scale)
        except torch.OutOfMemoryError as e:
            raise ClipreelError(
                f"step {step}: {micro} rows at a time do not fit into the memory of {self.device}; set "
                f"micro_batch: {max(1, micro // 2)} or recompute: true"
            ) from e
        if self.scaler is not None:
            torch._foreach_mul_([p.grad for p in self.params.values() if p.grad is not None], 1 / scale)
        norm = self.updater.norm()
        numbers = {"loss": torch.stack([x.float() for x in losses.values()]).sum(), "grad_norm": norm}
        numbers |= {f"loss/{n}": x for n, x in losses.items()} if len(losses) > 1 else {}
        numbers |= report
        values = dict(zip(numbers, torch.stack([x.double() for x in numbers.values()]).tolist(), strict=True))
        overflow = not math.isfinite(values["grad_norm"])
        if not math.isfinite(values["loss"]) or (overflow and (self.scaler is None or self.scaler.scale < 1)):
            what = "the gradient" if math.isfinite(values["loss"]) else "the loss"
            raise not_finite(what, self.recipe, self.params, batch, step, passes)
        if self.scaler is not None:
            values["loss_scale"] = scale
            self.scaler.update(not overflow)
        if overflow:
            self.updater.optimiser.zero_grad(set_to_none=True)
        else:
            self.updater.update(step, norm)
            self.recipe.after_step()
        return values | {"lr": max(self.updater.rates(step))}

    def _nothing(self, step: int) -> dict[str, float]:
        """A step none of whose samples can be used changes nothing but counts. A whole epoch of them is an error."""
        self.empty += 1
        if self.empty >= min(MOST_EMPTY, 2 * self.loader.steps_per_epoch):  # one epoch may end with them, one begin
            raise ClipreelError(
                f"none of the samples of steps {step + 2 - self.empty} to {step + 1} can be used; skipped-*.jsonl in "
                f"{self.folder.parent} says why. Leave them out: clipreel shards PLACE --decode --renew"
            )
        if self.empty == 1:
            self.say(f"step {step + 1}: none of its samples can be used; such steps change nothing")
        return {"lr": max(self.updater.rates(step))}

    def _passes(self, micro: int) -> Passes:
        dtype = DTYPES[self.config.precision]

        def autocast() -> torch.autocast:
            return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

        return Passes(list(self.params.values()), self.device, micro, autocast, self.config.seed)

    def _report(self, values: dict[str, float], logged: bool) -> None:
        """Tell of a step; the first one after a resume is not `logged`, so that logs are those of a run in one go."""
        if self.first:
            if logged:
                self.log.write("train", self.done, values)
            loss, waited = values.get("loss", math.nan), values["data_wait"]  # an empty step has no loss
            text = f"loss {loss:.4f}  data {waited:.0%}  {values['memory_gb']:.1f} GB"
            self.progress(self.done, self.total, text)

    def _measure(self) -> bool:
        """Measure, and keep the weights if they are the best so far; says whether they are."""
        if self.validator is None:
            return False
        self.recipe.train(False)
        seed_all(self.config.seed, self.done, "measure")
        with torch.no_grad():
            found = self.validator.measure(self.recipe)
        self.recipe.train(True)
        self.metrics = distributed.tell({k: float(v) for k, v in found.items()})
        metric = self.config.select.metric
        if metric not in self.metrics:
            raise ClipreelError(f"select.metric: {metric!r} is not measured; allowed are {', '.join(self.metrics)}")
        if self.first:
            self.log.write("measure", self.done, self.metrics)
        value = self.metrics[metric]
        if math.isnan(value) or (self.best is not None and value <= self.best["value"]):
            return False
        name = f"selected-{self.done:08d}.safetensors"
        self._write_weights(name)
        self.best = {"step": self.done, "value": value, "metrics": self.metrics, "file": name}
        return True

    def _write_weights(self, name: str) -> None:
        tensors = {n: distributed.whole(p) for n, p in self.params.items()}
        about = {"step": self.done}
        distributed.on_first(lambda: str(checkpoint.write_whole(self.folder / name, tensors, about)))

    def _claim(self) -> None:
        """Make the folder this run's, or see that it is already."""
        config = as_dict(self.config)
        known = {k: v for k, v in config.items() if k not in FREE_TO_CHANGE} | {"facts": self.facts}

        def claim() -> None:
            with checkpoint.disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "config.yaml"
            about = self.folder / "facts.json"
            if checkpoint.saved(self.states):
                before = yaml.safe_load(path.read_text("utf-8")) | {"facts": json.loads(about.read_text("utf-8"))}
                other = differences({k: v for k, v in before.items() if k not in FREE_TO_CHANGE}, known)
                if other:
                    raise ClipreelError(
                        f"{self.folder} holds a run of another config ({'; '.join(other[:3])}); take another folder, "
                        "or delete it"
                    )
            checkpoint.write_text(path, to_yaml(self.config))
            checkpoint.write_text(about, json.dumps(self.facts, indent=1))

        distributed.on_first(claim)

    def _resume(self) -> int | None:
        """Take the newest checkpoint, on all processes that of the first; None at a fresh start."""
        state: State | None = None

        def look() -> dict[str, Any] | None:
            nonlocal state
            state = checkpoint.latest(self.states, self.say)
            return None if state is None else {"step": state.step, **state.facts}

        facts = distributed.on_first(look)
        if facts is None:
            start = {n: distributed.whole(p) for n, p in self.params.items()}
            _put(self.params, distributed.broadcast(start), "the first process")
            return None
        tensors = distributed.broadcast(None if state is None else state.tensors)
        _put(self.params, checkpoint.take(tensors, "param/"), str(self.states))
        moments = checkpoint.take(tensors, "optim/")
        for name, value in moments.items():
            p = self.params[name.rsplit("/", 1)[0]]
            moments[name] = distributed.laid_out_like(value, p) if value.shape == p.shape else value
        self.updater.load_state(moments)
        self.done, self.micro = facts["step"], facts["micro_batch"]
        self.best, self.metrics, self.empty = facts["best"], facts["metrics"], facts.get("empty", 0)
        if self.scaler is not None:
            self.scaler = LossScale(*facts["loss_scale"])
        self.recipe.after_step()
        self.say(f"going on after step {self.done} of {self.total}")
        return self.done

    def _save(self) -> None:
        tensors = {f"param/{n}": distributed.whole(p) for n, p in self.params.items()}
        tensors |= {f"optim/{n}": distributed.whole(t) for n, t in self.updater.state().items()}
        facts = {
            "micro_batch": self.micro,
            "empty": self.empty,
            "best": self.best,
            "metrics": self.metrics,
            "loss_scale": None if self.scaler is None else [self.scaler.scale, self.scaler.good],
        }

        def write() -> None:
            checkpoint.save(self.states, State(self.done, tensors, facts))
            best = [checkpoint.read_facts(path)["best"] for _, path in checkpoint.saved(self.states)]
            needed = {b["file"] for b in best if b is not None}
            for path in self.folder.glob("selected-*.safetensors"):
                if path.name not in needed:
                    path.unlink()

        distributed.on_first(write)

    def _finish(self, resumed: int | None, seconds: float) -> Outcome:
        self._write_weights("last.safetensors")
        split, metric = self.config.select.split, self.config.select.metric
        last = Snapshot(self.done, self.folder / "last.safetensors", self.metrics, "none")
        selected = last
        if self.best is not None:
            rule = f"best {metric} on the {split} split"
            selected = Snapshot(self.best["step"], self.folder / self.best["file"], self.best["metrics"], rule)
        on_test = self.best is not None and split == "test"
        outcome = Outcome(self.folder, last, selected, on_test, resumed, self.micro, self.waited, seconds)
        if self.first:
            checkpoint.write_text(self.folder / "outcome.json", json.dumps(asdict(outcome), indent=1, default=str))
            plot_run(self.folder, self.say)
        return outcome
