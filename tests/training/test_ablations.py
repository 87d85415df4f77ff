"""The ablations and the sweep of MV-Adapter: each config is what its name says, and trains."""

from pathlib import Path

import pytest
import torch

import clipreel
from clipreel.retriever import Retriever
from clipreel.training.batches import Batch
from clipreel.training.config import ScheduleConfig
from clipreel.training.optim import Updater
from clipreel.training.settings import TuneConfig, read_config
from clipreel.training.tuning import parts, rates, recipe_of
from clipreel.tuners.mv_adapter import MvAdapterConfig

CONFIGS = Path(__file__).parent.parent.parent / "configs"
ABLATION = [p for p in sorted(CONFIGS.glob("ablation/mv_adapter/*.yaml")) if p.stem != "default"]
SWEEP = [p for p in sorted(CONFIGS.glob("sweep/mv_adapter/*.yaml")) if p.stem != "default"]


@pytest.fixture(scope="module")
def base() -> Retriever:
    return clipreel.load("shapes-tiny", device="cpu")


def batch(base: Retriever, rows: int = 3) -> Batch:
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (rows, 3, 3, 64, 64), dtype=torch.uint8, generator=g)
    assert base.tokenizer is not None
    ids = base.tokenizer(["a red circle", "a blue square moves", "a star"], base.clip.config.context)
    return Batch(frames, ids, torch.arange(rows), tuple("abc"))


@pytest.mark.parametrize("path", [*ABLATION, *SWEEP], ids=lambda p: p.stem)
def test_every_config_trains_two_steps(path: Path, base: Retriever) -> None:
    config = read_config(path)
    assert (config.method, config.order, config.train.steps) == ("mv_adapter", "opposites", 100)
    torch.manual_seed(0)
    tuner, head = parts(base, config)
    recipe, optim = recipe_of(base, tuner, head, config), rates(config, head).optim
    updater = Updater(recipe.trained(), optim, ScheduleConfig("constant", 0.0), 2)
    before, losses = {n: p.detach().clone() for n, p in recipe.trained().items()}, []
    for step in range(2):
        loss = recipe(batch(base))[0]["contrastive"]
        loss.backward()
        updater.update(step)
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert any(not torch.equal(before[n], p) for n, p in recipe.trained().items() if not n.startswith("base"))


def options_of(path: Path) -> MvAdapterConfig:
    config = read_config(path)
    return MvAdapterConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.options.items()})


def test_the_ablations_are_those_of_the_paper(base: Retriever) -> None:
    found = {p.stem: options_of(p) for p in ABLATION}
    layers = base.clip.config.vision.layers
    assert {c.tie for c in found.values()} == {"none", "down in", "down out", "up in", "up out", "down in cls"} | {
        "down out cls"
    }
    tied = {c.tied: n for n, c in found.items() if c.tie == "down in"}
    assert tied == {1: "tied_1", 2: "whole", 3: "tied_3", layers: "tied_4"}
    assert not found["down_up"].transformer
    assert found["transformer"] == MvAdapterConfig(temporal=(), tie="none")
    assert found["calibration"] == MvAdapterConfig(tie="none")
    assert found["whole"] == MvAdapterConfig()
    assert (found["text_only"].vision_layers, found["video_only"].text_layers) == ((), ())
    # one thing at a time: whatever is not ablated has its default
    for name, c in found.items():
        changed = {k for k, v in vars(c).items() if v != getattr(MvAdapterConfig(), k)}
        assert len(changed - {"tie", "tied", "temporal"}) <= 1, name


def test_the_sweep_has_every_rate_three_ways() -> None:
    found: dict[tuple[float | None, str], TuneConfig] = {}
    for path in SWEEP:
        config = read_config(path)
        ways = {(): "alike", ("^base",): "50th"}
        way = ways[tuple(g.match for g in config.train.optim.groups)]
        found[config.lr, way if config.options["biases"] else "none"] = config
    rates = (3e-4, 1e-3, 3e-3, 1e-2)
    assert set(found) == {(lr, way) for lr in rates for way in ("alike", "50th", "none")}
    for lr in rates:
        assert found[lr, "50th"].train.optim.groups[0].lr == pytest.approx(lr / 50)
