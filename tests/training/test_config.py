"""Settings of a run: what they may hold, which of them counts, and what a run of another config is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import clipreel
from clipreel.errors import ClipreelError
from clipreel.heads import unit
from clipreel.training.config import (
    GroupRule,
    OptimConfig,
    SelectConfig,
    TrainConfig,
    as_dict,
    build,
    override,
    to_yaml,
)
from clipreel.training.optim import by_rules
from clipreel.training.pairs import DataConfig
from clipreel.training.post_pretraining import PostPretrainConfig
from clipreel.training.settings import TuneConfig, checked, read_config, same_run, settled
from clipreel.training.tuning import parts, rates, recipe_of, with_pixels


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("lr=-1", "lr: -1.0 is not allowed; give above 0"),
        ("lr=.nan", "lr: nan is not allowed"),
        ("lr=0", "lr: 0.0 is not allowed; give above 0"),
        ("frames=0", "frames: 0 is not allowed; give 1 or more"),
        ("batch=0", "batch: 0 is not allowed"),
        ("max_scale=.inf", "max_scale: inf is not allowed"),
        ("head.lr=-1e-3", "head.lr: -0.001 is not allowed; give 0 or more"),
        ("data.held_out_share=1.5", "data.held_out_share: 1.5 is not allowed; give 0 or more, up to 1"),
        ("data.validation_share=-0.1", "data.validation_share: -0.1 is not allowed"),
        ("train.seed=-1", "train.seed: -1 is not allowed"),
        ("train.epochs=.inf", "train.epochs: inf is not allowed"),
        ("train.optim.betas=[2, 3]", "train.optim.betas: [2.0, 3.0] are not two numbers from 0 to below 1"),
        ("train.optim.decay=.nan", "train.optim.decay: nan is not allowed"),
        ("train.optim.eps=0", "train.optim.eps: 0.0 is not allowed; give above 0"),
        ("train.optim.clip_norm=0", "train.optim.clip_norm: 0.0 is not allowed"),
        ("train.optim.groups=[{match: x, lr: -1}]", "train.optim.groups[0].lr: -1.0 is not allowed"),
        ("train.select.every_steps=0", "train.select.every_steps: 0 is not allowed; give 1 or more"),
        ("train.select.every_epochs=0", "train.select.every_epochs: 0.0 is not allowed; give above 0"),
        ("train.schedule.warmup=1", "train.schedule.warmup: 1.0 is not a share"),
        ("augment.flip=2", "augment.flip 2.0: give a probability"),
    ],
)
def test_values_out_of_range_are_named_with_their_key(change: str, said: str) -> None:
    with pytest.raises(ClipreelError) as error:
        override(TuneConfig(), change)
    assert str(error.value).startswith(f"override {change!r}: {said}")


def test_values_in_range_are_taken() -> None:
    for change in ("train.optim.clip_norm=null", "train.optim.betas=[0, 0.98]", "train.select.every_epochs=0.1"):
        override(TuneConfig(), change)
    assert TrainConfig(steps=3, epochs=0).steps == 3  # steps replace epochs


def test_the_rate_has_one_place(tmp_path: Path) -> None:
    for change in ("train.optim.lr=0.5", "train.optim.lr = 1e-3"):
        with pytest.raises(ClipreelError, match=r"takes its rate from lr; give lr="):
            read_config(None, [change], method="vop")
    file = tmp_path / "config.yaml"
    file.write_text("method: vop\ntrain: {optim: {lr: 0.5}}\n")
    with pytest.raises(ClipreelError, match=r"train.optim.lr 0.5: clipreel tune takes its rate from lr; give lr=0.5"):
        read_config(file)
    with pytest.raises(ClipreelError, match="takes its rate from lr"):
        checked(TuneConfig(train=TrainConfig(optim=OptimConfig(lr=0.5))))


def test_a_stored_config_states_the_rates_that_were_used(tmp_path: Path) -> None:
    used = settled(read_config(None, method="vop_fc"))
    assert (used.lr, used.train.optim.lr) == (1e-3, 1e-3)
    assert used.train.optim.groups == (GroupRule("^context", lr=1e-4),)
    assert settled(used) == used
    assert settled(read_config(None, ["lr=0.02"], method="full")).train.optim.lr == 0.02
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(settled(read_config(None, ["lr=0.02"], method="full"))))
    again = read_config(file)
    assert settled(again).train.optim.lr == 0.02
    assert settled(read_config(file, ["lr=0.03"])).train.optim.lr == 0.03


def test_parts_of_a_method_have_their_own_rates() -> None:
    base = clipreel.load("shapes-tiny", device="cpu")

    def found(config: TuneConfig) -> dict[bool, set[float]]:
        torch.manual_seed(0)
        tuner, head = parts(base, config)
        optim = rates(config, head).optim
        groups = by_rules([n for n, _ in tuner.named_parameters()], optim.lr, optim.decay, optim.groups)
        made: dict[bool, set[float]] = {}
        for group in groups:
            for name in group.names:
                made.setdefault(name.startswith("context"), set()).add(group.lr)
        return made

    assert found(TuneConfig(method="vop_fc")) == {True: {1e-4}, False: {1e-3}}
    assert found(TuneConfig(method="vop", options={"context": 2})) == {True: {1e-4}, False: {1e-3}}
    # a rate that is given stands for all, as the study on the shapes world has it; a rule of the config goes first
    assert found(TuneConfig(method="vop_c", lr=0.02)) == {True: {0.02}, False: {0.02}}
    own = TrainConfig(optim=OptimConfig(groups=(GroupRule("^context", lr=5e-5),)))
    assert found(TuneConfig(method="vop_c", train=own)) == {True: {5e-5}, False: {1e-3}}
    # without a context module there is nothing that the rule could meet
    assert found(TuneConfig(method="vop_fc", options={"context": 0})) == {False: {1e-3}}


def test_a_run_of_a_former_version_counts_where_it_was_trained_alike() -> None:
    def before(config: TuneConfig) -> TuneConfig:
        """As it was stored: no rate where the method gives it."""
        return build(TuneConfig, as_dict(config))

    for config in (TuneConfig(method="vop"), TuneConfig(method="vop_c", lr=0.02), TuneConfig(method="full")):
        assert same_run(before(config), config)
        assert same_run(settled(config), config)
        assert not same_run(before(config), replace(config, lr=0.5))
    one_rate = TuneConfig(method="vop_c")
    assert not same_run(before(one_rate), one_rate)
    assert same_run(settled(one_rate), one_rate)


def test_the_metric_that_selects_is_known_before_anything_is_trained() -> None:
    with pytest.raises(ClipreelError, match=r"select.metric 't2v R@2': what is measured is t2v R@1, t2v R@5"):
        checked(TuneConfig(train=TrainConfig(select=SelectConfig(metric="t2v R@2"))))
    checked(TuneConfig(train=TrainConfig(select=SelectConfig(metric="v2t R@10"))))


def test_pixels_are_set_by_key_and_as_a_whole() -> None:
    assert read_config(None, ["pixels.size=32"]).pixels == {"size": 32}
    assert read_config(None, ["pixels={resize: tensor, size: 32}"]).pixels == {"size": 32, "resize": "tensor"}
    assert override(PostPretrainConfig(), "pixels.geometry=squash").pixels == {"geometry": "squash"}
    assert override(TuneConfig(), "train.optim={decay: 0.1}").train.optim == OptimConfig(decay=0.1)
    with pytest.raises(ClipreelError, match=r"unknown key pixels.siez; did you mean pixels.size\?"):
        override(TuneConfig(), "pixels.siez=32")
    with pytest.raises(ClipreelError, match="pixels is a section; give one of its keys: size, resize, geometry"):
        override(TuneConfig(), "pixels=32")
    with pytest.raises(ClipreelError, match="sources has no key that could be changed; state it in a config file"):
        override(PostPretrainConfig(), "sources.films.path=x")
    base = clipreel.load("shapes-tiny", device="cpu")
    with pytest.raises(ClipreelError, match="resize 'bilinear': allowed are"):
        with_pixels(base, read_config(None, ["pixels={resize: bilinear}"]).pixels)
    with pytest.raises(ClipreelError, match="pixels: size"):
        with_pixels(base, {"size": "big"})


@pytest.mark.parametrize("head", ["mean", "seq_transf"])
def test_captions_of_one_video_are_right_or_wrong_as_the_config_says(head: str) -> None:
    base = clipreel.load("shapes-tiny", device="cpu")
    g = torch.Generator().manual_seed(0)
    shapes = {"video": (3, base.embed_dim), "text": (3, base.embed_dim), "frames": (3, 12, base.embed_dim)}
    features = {name: unit(torch.randn(shape, generator=g)) for name, shape in shapes.items()}
    losses = {}
    for way in ("right", "wrong"):
        config = build(TuneConfig, {"method": "vop", "head": {"name": head}, "same_video": way})
        torch.manual_seed(0)
        recipe = recipe_of(base, *parts(base, config), config)
        for groups in ((0, 0, 1), (0, 1, 2)):
            losses[way, groups] = recipe.losses(features, torch.tensor(groups))[0]["contrastive"].item()
    apart = losses["right", (0, 1, 2)]
    assert losses["wrong", (0, 0, 1)] == losses["wrong", (0, 1, 2)] == pytest.approx(apart, abs=1e-5)
    assert losses["right", (0, 0, 1)] != pytest.approx(apart, abs=1e-3)


def test_opposites_are_known_of_the_shapes_world_alone() -> None:
    config = TuneConfig(order="opposites", data=DataConfig("pairs.jsonl"))
    with pytest.raises(ClipreelError, match="only the shapes world says so: take distinct, or pairs"):
        checked(config)
    checked(replace(config, data=DataConfig("shapes")))
