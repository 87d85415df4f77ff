"""What the loop does beside the exact result: blame, precision, memory, selection, and the clock."""

import math
from pathlib import Path

import pytest
import torch

from clipreel.errors import ClipreelError
from clipreel.training import engine, log, microbatch
from clipreel.training.config import SelectConfig
from clipreel.training.engine import LossScale, Validator, fit
from clipreel.training.log import Clock, read_log
from clipreel.training.microbatch import Passes, fitting_rows
from clipreel.training.recipe import Recipe, RetrievalRecipe, Tensors
from tests.training import worker
from tests.training.tiny import ROWS, Memory, Rows, tiny_config, tiny_recipe, weights


def silent(text: str) -> None:
    pass


def rows(folder: Path, kind: str = "train") -> list[dict]:
    return [row for row in read_log(folder) if row["kind"] == kind]


# ---------------------------------------------------------------------- who made it infinite


class Dark(RetrievalRecipe):
    """A row of black frames has features that are not finite, or only a gradient that is not."""

    where = "features"

    def encode(self, batch: Rows) -> Tensors:
        found = super().encode(batch)
        dark = (batch.frames == 0).flatten(1).all(1)[:, None]
        if self.where == "features":
            found["video"] = found["video"].masked_fill(dark, math.nan)
        else:  # the root of zero has no slope
            found["video"] = found["video"] + (found["video"] * ~dark).abs().sqrt()
        return found


class OneDark(Memory):
    """Row 5 of step 1 is black."""

    def batch(self, step: int) -> Rows:
        found = super().batch(step)
        for row, name in enumerate(found.names):
            if name == "s1r5":
                found.frames[row] = 0
        return found


def dark_recipe(where: str) -> Dark:
    plain = tiny_recipe()
    recipe = Dark(plain.clip, plain.tuner, plain.preprocess)
    recipe.where = where
    return recipe


@pytest.mark.parametrize("micro", [1, 3, 7])
@pytest.mark.parametrize(("where", "what"), [("features", "the loss"), ("gradient", "the gradient")])
def test_the_sample_of_an_infinite_loss_is_named(tmp_path: Path, where: str, what: str, micro: int) -> None:
    with pytest.raises(ClipreelError, match=rf"^step 1: {what} is not finite; by itself, this sample .*: s1r5\. "):
        fit(dark_recipe(where), OneDark(), tiny_config(micro_batch=micro), tmp_path, say=silent)
    assert [row["step"] for row in rows(tmp_path)] == [1]  # nothing of the broken step was kept


def test_another_process_names_its_sample_too(tmp_path: Path) -> None:
    runs = worker.run(2, tmp_path / "run", dark="gradient")
    assert all(code == 2 and "this sample gives" in said and ": s1r5." in said for code, said in runs), runs


def test_weights_that_are_not_finite_are_named_instead_of_samples(tmp_path: Path) -> None:
    recipe = tiny_recipe()

    def break_weights(step: int) -> None:
        if step == 2:
            next(iter(recipe.trained().values())).data.fill_(math.nan)

    name = next(iter(recipe.trained()))
    with pytest.raises(ClipreelError, match=rf"^step 2: .* because weights are not \({name}\)"):
        fit(recipe, Memory(hook=break_weights), tiny_config(), tmp_path, say=silent)


# ---------------------------------------------------------------------- precision


def test_the_scale_of_float16_falls_at_once_and_rises_slowly() -> None:
    scale = LossScale(8.0)
    scale.update(False)
    assert (scale.scale, scale.good) == (4.0, 0)
    for _ in range(1999):
        scale.update(True)
    assert (scale.scale, scale.good) == (4.0, 1999)
    scale.update(True)
    assert (scale.scale, scale.good) == (8.0, 0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("micro", [3, 7])
def test_half_precision_follows_single_precision(tmp_path: Path, precision: str, micro: int) -> None:
    runs = []
    for name in (precision, "float32"):
        recipe = tiny_recipe()
        fit(recipe, Memory(), tiny_config(precision=name, micro_batch=micro), tmp_path / name, say=silent)
        runs.append([row["loss"] for row in rows(tmp_path / name)])
        assert all(p.dtype == torch.float32 for p in recipe.trained().values())
    assert runs[0] != runs[1]
    assert runs[0] == pytest.approx(runs[1], rel=0.05)
    assert all(("loss_scale" in row) == (precision == "float16") for row in rows(tmp_path / precision))


def test_an_overflow_in_float16_skips_the_update_and_a_resume_keeps_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LossScale", lambda scale=2.0**40, good=0: LossScale(scale, good))
    config, seen = tiny_config(precision="float16", steps=30, checkpoint_every=5), []
    recipe = tiny_recipe()

    def stop(step: int) -> None:
        seen.append([p.detach().clone() for p in recipe.trained().values()])
        if step == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, Memory(hook=stop), config, tmp_path / "cut", say=silent)
    fit(tiny_recipe(), Memory(), config, tmp_path / "cut", say=silent)
    last = fit(tiny_recipe(), Memory(), config, tmp_path / "whole", say=silent).last.step
    found, wanted = ([(r["loss"], r["loss_scale"]) for r in rows(tmp_path / name)] for name in ("cut", "whole"))
    assert found == wanted
    assert len(found) == last == 30
    overflown = [not math.isfinite(row["grad_norm"]) for row in rows(tmp_path / "whole")]
    assert overflown[0]
    assert not overflown[-1]
    for step, over in enumerate(overflown[:18]):  # an overflow halves the scale and leaves the weights
        same = all(torch.equal(a, b) for a, b in zip(seen[step], seen[step + 1], strict=True))
        assert same == over, step
        assert wanted[step + 1][1] == wanted[step][1] / (2 if over else 1)


# ---------------------------------------------------------------------- memory


def passes_of(recipe: Recipe) -> Passes:
    return Passes(list(recipe.trained().values()), torch.device("cpu"), 1, lambda: torch.autocast("cpu", enabled=False))


def test_as_many_rows_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a model that takes 5000 bytes and 100 more for every row."""
    recipe, batch = tiny_recipe(), Memory((40,)).batch(0)
    monkeypatch.setattr(microbatch, "_cost", lambda recipe, batch, passes: 5000 + 100 * len(batch))
    for wanted in (1, 2, 10, 39, 40):
        for spare in (1, 99):
            free = math.ceil((5000 + 100 * wanted + spare) / microbatch.SHARE_OF_FREE)
            assert fitting_rows(recipe, batch, passes_of(recipe), free) == wanted
    assert fitting_rows(recipe, batch, passes_of(recipe), 0) == 1


def test_measuring_memory_leaves_no_gradients() -> None:
    recipe, batch = tiny_recipe(), Memory((40,)).batch(0)
    few, many = (microbatch._cost(recipe, batch.rows(0, n), passes_of(recipe)) for n in (5, 40))
    assert 4 * few < many < 12 * few
    assert all(p.grad is None for p in recipe.trained().values())


@pytest.mark.parametrize(("free", "kept"), [(0, 1), (2**50, 7)])
def test_the_micro_batch_is_found_once_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kept: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(microbatch, "free_bytes", lambda device: asked.append(free) or free)
    recipe, wanted = tiny_recipe(0.2), tiny_recipe(0.2)
    found = fit(recipe, Memory(), tiny_config(), tmp_path / "auto", say=silent)
    assert (found.micro_batch, len(asked)) == (kept, 1)
    fit(wanted, Memory(), tiny_config(micro_batch=3), tmp_path / "given", say=silent)
    for name, p in weights(wanted).items():
        torch.testing.assert_close(weights(recipe)[name], p, atol=1e-5, rtol=0, msg=name)


def test_too_little_memory_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "gradients", full)
    with pytest.raises(ClipreelError, match=r"^step 0: 7 rows at a time do not fit .* set micro_batch: 3 or recompute"):
        fit(tiny_recipe(), Memory(), tiny_config(micro_batch=7), tmp_path, say=silent)


def test_recomputing_keeps_less_and_changes_nothing(tmp_path: Path) -> None:
    found = []
    for recompute in (False, True):
        recipe = tiny_recipe(0.2)
        fit(recipe, Memory(), tiny_config(recompute=recompute), tmp_path / str(recompute), say=silent)
        kept = microbatch._cost(recipe, Memory().batch(0), passes_of(recipe))
        found.append((weights(recipe), [row["loss"] for row in rows(tmp_path / str(recompute))], kept))
    (plain, losses, kept), (sparing, same, less) = found
    assert losses == same
    assert all(torch.equal(plain[name], p) for name, p in sparing.items())
    assert less < 0.7 * kept


def test_a_recipe_that_cannot_recompute_says_so(tmp_path: Path) -> None:
    class Plain(RetrievalRecipe):
        recompute = Recipe.recompute

    tiny = tiny_recipe()
    with pytest.raises(ClipreelError, match="Plain cannot recompute activations; set recompute: false"):
        fit(Plain(tiny.clip, tiny.tuner, tiny.preprocess), Memory(), tiny_config(recompute=True), tmp_path, say=silent)


# ---------------------------------------------------------------------- measuring


def measured(values: list[float]) -> tuple[Validator, list[bool]]:
    """A validator that gives these numbers in turn, and whether it was asked without gradients."""
    left, quiet = iter(values), []

    def measure(recipe: RetrievalRecipe) -> dict[str, float]:
        quiet.append(not torch.is_grad_enabled() and not recipe.tuner.training)
        return {"t2v R@1": next(left)}

    return Validator("validation", measure), quiet


@pytest.mark.parametrize(("values", "best"), [([9.0, 1.0, 2.0, 3.0], 0), ([1.0, 2.0, 5.0, 5.0], 4)])
def test_weights_that_nothing_was_trained_of_can_be_the_best(tmp_path: Path, values: list[float], best: int) -> None:
    validator, quiet = measured(values)
    recipe = tiny_recipe()
    start = weights(recipe)
    config = tiny_config(select=SelectConfig(every_steps=2, at_start=True))
    outcome = fit(recipe, Memory(), config, tmp_path, validator=validator, say=silent)
    assert [(r["step"], r["t2v R@1"]) for r in rows(tmp_path, "measure")] == list(
        zip((0, 2, 4, 6), values, strict=True)
    )
    assert all(quiet)
    assert (outcome.selected.step, outcome.selected.metrics["t2v R@1"]) == (best, max(values))
    assert (outcome.last.step, outcome.last.metrics["t2v R@1"]) == (6, values[-1])
    engine.restore(recipe, outcome.selected.weights)
    assert all(torch.equal(start[n], p) for n, p in weights(recipe).items()) == (best == 0)


def test_nothing_is_measured_at_the_start_unasked_or_again_after_a_resume(tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    for asked, steps in ((False, [2, 4, 6]), (True, [0, 2, 4, 6])):
        config = tiny_config(select=SelectConfig(every_steps=2, at_start=asked))
        folder = tmp_path / str(asked)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny_recipe(), Memory(hook=stop), config, folder, validator=measured([9.0, 2.0])[0], say=silent)
        outcome = fit(tiny_recipe(), Memory(), config, folder, validator=measured([3.0, 4.0])[0], say=silent)
        assert [row["step"] for row in rows(folder, "measure")] == steps
        assert outcome.selected.step == steps[0]


# ---------------------------------------------------------------------- the clock


def test_a_step_without_samples_changes_nothing(tmp_path: Path) -> None:
    """As of shards where all samples of a batch are damaged."""
    told: list[str] = []
    fit(tiny_recipe(), Memory((0, 0, 8, 8)), tiny_config(steps=4, log_every=1), tmp_path / "a", say=told.append)
    assert ["loss" in row for row in rows(tmp_path / "a")] == [False, False, True, True]
    assert [t for t in told if "change nothing" in t] == [
        "step 1: none of its samples can be used; such steps change nothing"
    ]
    assert (tmp_path / "a" / "loss.png").is_file()


def test_a_run_ends_however_many_steps_are_empty_and_stops_where_all_are(tmp_path: Path) -> None:
    sizes = (8, *[0] * 9)
    outcome = fit(tiny_recipe(), Memory(sizes), tiny_config(steps=20), tmp_path / "a", say=silent)
    assert outcome.last.step == 20

    def kill(step: int) -> None:
        if step == 7:
            raise KeyboardInterrupt

    for hook in (kill, lambda step: None):  # a resumed run counts those before it
        loader = Memory((0,) * 5, hook)
        with pytest.raises((KeyboardInterrupt, ClipreelError)) as ended:
            fit(tiny_recipe(), loader, tiny_config(steps=20), tmp_path / "b", say=silent)
    assert "none of the samples of steps 1 to 10 can be used" in str(ended.value)
    assert "clipreel shards PLACE --decode --renew" in str(ended.value)


def test_a_batch_with_rows_left_out_does_not_set_the_micro_batch(tmp_path: Path) -> None:
    class Damaged(Memory):
        def batch(self, step: int) -> Rows:
            whole = super().batch(step)
            return whole if step else whole.rows(0, 1)

    assert fit(tiny_recipe(), Damaged(), tiny_config(), tmp_path, say=silent).micro_batch == ROWS


class Time:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    time = monotonic = perf_counter

    def time_ns(self) -> int:
        return int(1e9 * self.now)


def test_rate_time_left_and_waiting_are_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(log, "time", time)
    clock = Clock(20, 100)
    time.now, clock.waited = 105.0, 1.0
    found = clock.read(30)
    assert [found[n] for n in ("steps_per_s", "left_s", "data_wait")] == pytest.approx([2.0, 35.0, 0.2])
    assert found["memory_gb"] > 0
    time.now, clock.waited = 107.0, clock.waited + 2.0
    found = clock.read(31)
    assert [found[n] for n in ("steps_per_s", "left_s", "data_wait")] == pytest.approx([0.5, 138.0, 1.0])


@pytest.mark.parametrize("wait", [0.0, 0.9])
def test_a_slow_loader_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: float) -> None:
    """Every step takes one second, of which the loader is waited for 0.9 or none at all."""
    time = Time()
    for module in (log, engine):
        monkeypatch.setattr(module, "time", time)

    class Slow(Memory):
        def stream(self, start: int, stop: int):
            for step in range(start, stop):
                time.now += 1.0
                yield step, self.batch(step), wait

    outcome = fit(tiny_recipe(), Slow(), tiny_config(log_every=2), tmp_path, say=silent)
    assert outcome.data_wait == pytest.approx(wait)
    assert outcome.seconds == pytest.approx(6.0)
    for row in rows(tmp_path):
        assert (row["data_wait"], row["steps_per_s"], row["left_s"]) == pytest.approx((wait, 1.0, 6.0 - row["step"]))
