"""Frozen configs: every cell builds its method, and states what was printed for it."""

from pathlib import Path

import pytest
import torch
import yaml

import clipreel
from clipreel.clip import Clip
from clipreel.errors import ClipreelError
from clipreel.heads import build_head
from clipreel.training.batches import Augment
from clipreel.training.cells import Cell, cells
from clipreel.training.config import read
from clipreel.training.optim import by_rules
from clipreel.training.post_pretraining import PostPretrainConfig, every_option
from clipreel.training.settings import checked, read_config, resolved
from clipreel.training.tuning import rates
from clipreel.tuners import build
from clipreel.tuners.counting import ARCHITECTURES

CONFIGS = Path(__file__).parent.parent.parent / "configs"
RUNS = [CONFIGS / "clip_vip" / f"{n}.yaml" for n in ("post_pretrain_b32", "post_pretrain_b16", "shapes")]
TABLES = [p for p in sorted(CONFIGS.glob("*/*.yaml")) if "cells" in yaml.safe_load(p.read_text())]
STUDY = [p for g in ("shapes", "ablation/heads") for p in sorted((CONFIGS / g).glob("*.yaml")) if p.stem != "default"]
OF_MODEL = {"openai/clip-vit-base-patch32": "ViT-B/32", "openai/clip-vit-base-patch16": "ViT-B/16"}


@pytest.mark.parametrize("path", TABLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_cell_builds_and_its_rules_meet_parameters(path: Path) -> None:
    for cell in cells(path).values():
        checked(cell.config)
        with torch.device("meta"):
            clip = Clip(ARCHITECTURES[OF_MODEL[cell.config.model]])
            tuner = build(cell.config.method, clip, resolved(cell.config))
            head = build_head(cell.config.head.name, clip, cell.config.head.options)
        optim = rates(cell.config, head).optim
        names = [*dict(tuner.named_parameters()), *(f"head.{n}" for n, _ in head.named_parameters())]
        by_rules(names, 1.0, optim.decay, optim.groups)
        assert cell.t2v
        for figures in (cell.t2v, cell.v2t, cell.dual_softmax):
            recalls = [figures[k] for k in ("R@1", "R@5", "R@10") if k in figures]
            assert recalls == sorted(recalls)


@pytest.mark.parametrize("path", TABLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_captions_of_one_video_are_wrong_for_each_other_as_in_the_codes_that_draw_pairs(path: Path) -> None:
    """Specification vop.md 9.11, mv_adapter.md 4; CLIP-ViP draws every video once."""
    ways = {(cell.config.order, cell.config.same_video) for cell in cells(path).values()}
    assert ways == {("distinct", "right") if path.parent.name == "clip_vip" else ("pairs", "wrong")}


def test_ablations_of_vop_look_at_the_frames_that_its_tables_do() -> None:
    """Specification vop.md 5: X-Pool's middles, and crops of half to all of a frame."""
    found = [c.config for p in TABLES if p.parent.name == "vop" for c in cells(p).values()]
    assert {(c.sampling, c.augment, c.crop_from) for c in found} == {("middles", Augment((0.5, 1.0), flip=0.5), 256)}


def test_every_paper_has_its_tables() -> None:
    assert {p.parent.name for p in TABLES} == {"clip4clip", "clip_vip", "mv_adapter", "petl", "vop"}
    assert sum(len(cells(p)) for p in TABLES) > 100


@pytest.mark.parametrize("path", STUDY, ids=lambda p: p.stem)
def test_every_config_of_the_study_builds(path: Path) -> None:
    config = read_config(path)
    clip = clipreel.load("shapes-tiny", device="cpu").clip
    head = build_head(config.head.name, clip, config.head.options)
    assert any(True for part in (build(config.method, clip, resolved(config)), head) for _ in part.parameters())
    assert (config.model, config.data.path, config.frames, config.order) == ("shapes-tiny", "shapes", 8, "opposites")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("clip4clip/*.yaml")), ids=lambda p: p.stem)
def test_clip4clip_is_trained_as_the_specification_says(path: Path) -> None:
    """seqTransf alone is 8.454 % of ViT-B/16, which the paper prints as 8.45; meanP is all of CLIP."""
    found = cells(path)
    assert set(found) == {"meanP", "seqTransf"}
    long = path.stem in ("didemo", "activitynet")
    for cell in found.values():
        assert (cell.config.frames, cell.config.batch, cell.config.train.epochs) == (
            (32, 64, 15) if long else (12, 128, 5)
        )
    full = cells(CONFIGS / "mv_adapter" / path.name)["full"]
    assert (found["meanP"].t2v, found["meanP"].v2t) == (full.t2v, full.v2t)
    config = found["seqTransf"].config
    with torch.device("meta"):
        clip = Clip(ARCHITECTURES["ViT-B/16"])
        head = build_head(config.head.name, clip, config.head.options)
    sizes = {f"head.{n}": p.numel() for n, p in head.named_parameters()}
    assert sum(sizes.values()) == 12_648_960
    assert round(100 * sum(sizes.values()) / sum(p.numel() for p in clip.parameters()), 3) == 8.454
    optim = rates(config, head).optim
    groups = by_rules(list(sizes), optim.lr, optim.decay, optim.groups)
    assert {(g.lr, g.decay, all("bias" in n for n in g.names)) for g in groups} == {
        (1e-4, 0.2, False),
        (1e-4, 0.0, True),
    }


def clip_vip(name: str) -> dict[str, Cell]:
    return cells(CONFIGS / "clip_vip" / f"{name}.yaml")


def test_clip_vip_is_fine_tuned_as_the_specification_says() -> None:
    tokens = {"msrvtt9k": (50, 50), "didemo": (50, 70), "lsmdc": (50, 50), "activitynet": (70, 70)}
    epochs = {"msrvtt9k": 100, "didemo": 20, "lsmdc": 10, "activitynet": 20}
    for name, wanted in tokens.items():
        found = clip_vip(name)
        assert tuple(found[s].config.options["text_tokens"] for s in ("b32", "b16")) == wanted
        for cell in found.values():
            c, optim = cell.config, cell.config.train.optim
            assert (c.lr, optim.decay, optim.betas, optim.clip_norm) == (1e-6, 0.2, (0.9, 0.98), 1.0)
            assert (c.train.epochs, c.batch, c.loss, c.max_scale) == (epochs[name], 128, "v-s", 200.0)
            assert resolved(c)["frames"] == 12
            assert c.frames == (32 if name == "activitynet" else 12)
    groups = clip_vip("didemo")["b16"].config.train.optim.groups
    found = {g.names: (g.lr, g.decay) for g in by_rules(["fc.weight", "fc.bias", "x/logit_scale"], 1e-6, 0.2, groups)}
    assert found == {("fc.weight",): (1e-6, 0.2), ("fc.bias",): (1e-6, 0.0), ("x/logit_scale",): (1e-5, 0.0)}


def test_figures_that_are_not_known_are_left_out_and_doubtful_ones_marked(tmp_path: Path) -> None:
    cell = clip_vip("msrvtt9k")["b32"]
    assert cell.t2v == {"R@1": 50.1, "R@5": 74.8, "R@10": 84.6, "MdR": 1}
    assert cell.v2t == {"R@1": 49.1, "R@5": 76.2, "R@10": 84.0}
    assert cell.unverified == ("dual_softmax",)
    assert clip_vip("msrvtt9k")["b16"].v2t == {}
    assert clip_vip("activitynet")["b16"].unverified == ()
    data = yaml.safe_load((CONFIGS / "clip_vip" / "lsmdc.yaml").read_text())
    for change in ({"target": {"t2v": [1, 2]}}, {"target": {"t2w": [1, 2, 3, 4]}}, {"unverified": ["v2t"]}):
        data["cells"]["b32"] |= change
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(data))
        with pytest.raises(ClipreelError, match="is no table of cells"):
            cells(tmp_path / "wrong.yaml")


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_post_pretraining_configs_build(path: Path) -> None:
    config = read(PostPretrainConfig, path)
    architecture = ARCHITECTURES[OF_MODEL.get(config.model, "ViT-B/32")]
    with torch.device("meta"):
        tuner = build(config.method, Clip(architecture), every_option(config))
    optim = config.train.optim
    by_rules([n for n, _ in tuner.named_parameters()], 1.0, optim.decay, optim.groups)
    assert config.sources
    default = PostPretrainConfig().train
    if path.stem.startswith("post_pretrain"):
        assert (optim, config.train.schedule, config.train.seed) == (default.optim, default.schedule, default.seed)
        assert (optim.lr, optim.decay, optim.clip_norm, config.batch) == (5e-6, 0.05, 5.0, 1024)
