"""The chain of ALPRO's stages on a handful of made videos, questions, starting weights, published configs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import clipreel
from clipreel.alpro.bert import TextConfig
from clipreel.alpro.model import AlproConfig
from clipreel.alpro.retriever import AlproRetriever
from clipreel.alpro.start import start, with_heads
from clipreel.alpro.timesformer import VisionConfig
from clipreel.alpro.weights import TEXT, foreign_names
from clipreel.alpro.wordpiece import WordPiece
from clipreel.cli import main
from clipreel.data.questions import accuracies, answer_vocabulary, read_questions
from clipreel.data.shapes import ShapesWorld
from clipreel.errors import ClipreelError
from clipreel.training.alpro_stages import StageConfig, run_stage
from clipreel.training.stage_cells import stage_cell
from tests.alpro.tiny import config as tiny_sizes
from tests.alpro.tiny import tiny
from tests.training import worker
from tests.training.tiny import tiny_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "alpro").glob("*.yaml"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos with captions and two to select on, a picture, questions, a vocabulary."""
    folder = tmp_path_factory.mktemp("world")
    samples = ShapesWorld().write_videos(folder, "test", count=8)
    lines = (folder / "annotations.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:6]))
    (folder / "held.jsonl").write_text("".join(lines[6:]))
    stills = [{"video": s.video.name, "captions": [f"a still {n}"]} for n, s in enumerate(samples[:2])]
    (folder / "stills.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stills))
    rows = [
        {"video": s.video.name, "question": q, "answer": a, "answer_type": q.split()[0], "question_id": f"{i}-{n}"}
        for i, s in enumerate(samples)
        for n, (q, a) in enumerate((("what is it?", "shape"), ("how many?", "one" if i % 2 else "two")))
    ]
    (folder / "qa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:12]))
    (folder / "held_qa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[12:]))
    (folder / "entities.txt").write_text("circle 3\nsquare 2\n")
    captions = [c for s in samples for c in s.captions]
    WordPiece.of_words([*captions, *(r["question"] for r in rows), "A footage video portrait of one the."]).save(folder)
    return folder


def stage(world: Path, **changes: object) -> StageConfig:
    vision = VisionConfig(32, 16, 2, 24, 1, 2, 32)
    sizes = AlproConfig(vision, TextConfig(8, 40, 24, 2, 1, 2, 32), embed=16)
    base = StageConfig(
        tokenizer=str(world),
        sizes=sizes,
        train_data=str(world / "train.jsonl"),
        validation_data=str(world / "held.jsonl"),
        entities=str(world / "entities.txt"),
        frames=2,
        keep_frames=4,
        tokens=16,
        batch=3,
        train=tiny_config(steps=2),
    )
    return replace(base, **changes)


def test_the_stages_follow_each_other(world: Path, tmp_path: Path) -> None:
    prompter = stage(world, stage="prompter", images=str(world / "stills.jsonl"), augment="video")
    made = run_stage(prompter, tmp_path / "prompter")
    assert set(made.outcome.selected.metrics) == {"t2v R@1", "t2v R@5", "t2v R@10"}
    pretrain = stage(world, stage="pretrain", prompter=str(made.folder), sampling="alpro_headtail")
    made = run_stage(pretrain, tmp_path / "pretrain")
    assert made.model.entities == ("circle", "square")
    made = run_stage(stage(world, model=str(made.folder)), tmp_path / "retrieval")
    questions = str(world / "qa.jsonl")
    select = replace(tiny_config(steps=2), select=replace(tiny_config().select, metric="accuracy"))
    answering = stage(
        world,
        stage="qa",
        model=str(made.folder),
        train_data=questions,
        validation_data=str(world / "held_qa.jsonl"),
        train=select,
        augment="operations",
    )
    made = run_stage(answering, tmp_path / "qa")
    assert set(made.outcome.selected.metrics) == {"accuracy", "accuracy what", "accuracy how"}
    again = clipreel.load(made.folder)
    assert isinstance(again, AlproRetriever)
    assert again.answers == ("shape", "one", "two")
    assert again.space == made.model.space
    name = str(next(world.glob("*.mp4")))
    assert main(["ask", name, "how many?", "--model", str(made.folder)]) == 0


@pytest.mark.parametrize("least", [-0.1, 1.1, float("nan")])
def test_a_rule_that_keeps_all_or_nothing_is_refused(world: Path, least: float) -> None:
    with pytest.raises(ClipreelError, match=r"keep_least: .* is not allowed; give 0 or more, up to 1"):
        stage(world, keep_least=least)


def test_the_command_trains_a_config(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stage.yaml"
    sizes = {
        "vision": {"image_size": 32, "patch": 16, "frames": 2, "width": 24, "layers": 1, "heads": 2, "mlp": 32},
        "text": {"vocab": 8, "context": 40, "width": 24, "layers": 2, "text_layers": 1, "heads": 2, "mlp": 32},
        "embed": 16,
    }
    settings = {
        "stage": "retrieval",
        "tokenizer": str(world),
        "sizes": sizes,
        "frames": 2,
        "keep_frames": 4,
        "batch": 3,
    }
    file.write_text(json.dumps({"config": settings}))
    command = ["train", str(file), f"train_data={world / 'annotations.jsonl'}", "train.steps=2", "--json"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    assert main(["train", str(file), "batches=3"]) == 2
    assert "unknown key batches; did you mean batch?" in capsys.readouterr().err


def test_two_processes_make_the_model_of_one(world: Path, tmp_path: Path) -> None:
    """With dropout, drop path, hidden words and crops, which belong to the rows of the batch."""
    config = stage(world, images=str(world / "stills.jsonl"), augment="video")
    # a gradient that is only rounding becomes a whole step of Adam, unless eps is far above it
    config = replace(config, train=replace(config.train, optim=replace(config.train.optim, eps=1e-4)))
    assert config.sizes.vision.drop_path > 0 < config.sizes.text.dropout
    one = run_stage(config, tmp_path / "one")
    runs = worker.run(2, tmp_path / "two", stage=config)
    assert [code for code, _ in runs] == [0, 0], runs
    assert all(f"R@1 {one.outcome.selected.metrics['t2v R@1']}" in said for _, said in runs)
    again = clipreel.load(tmp_path / "two" / "model")
    for name, tensor in one.model.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    assert sum("decoding" in said for _, said in runs) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_data": ""}, "set train_data"),
        ({"tokenizer": ""}, "nothing says how text is read"),
        ({"stage": "pretrain"}, "needs a prompter"),
        ({"stage": "qa", "train_data": "", "validation_data": ""}, "no questions to train on"),
    ],
)
def test_what_is_missing_is_told(world: Path, tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(ClipreelError, match=said):
        run_stage(stage(world, **changes), tmp_path)


def test_answers_outside_the_vocabulary_are_told(world: Path, tmp_path: Path) -> None:
    words, said = tmp_path / "answers.json", []
    asked = stage(world, stage="qa", train_data=str(world / "qa.jsonl"), validation_data="", answers=str(words))
    for text, error in (("[]", "are empty; give a JSON list"), ('["red"]', "none of the 12 questions has an answer")):
        words.write_text(text)
        with pytest.raises(ClipreelError, match=error):
            run_stage(asked, tmp_path / "run")
    words.write_text('["shape", "one"]')
    made = run_stage(asked, tmp_path / "run", say=said.append)
    assert "3 of 12 questions have an answer outside the vocabulary" in said
    assert made.model.answers == ("shape", "one")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 1}, "batch: 1 is not allowed; give 2 or more"),
        ({"frames": 0}, "frames: 0 is not allowed"),
        ({"tokens": 2}, "tokens: 2 is not allowed; give 3 or more"),
        ({"negatives_within": 0}, "negatives_within: 0 is not allowed; give 2 or more"),
        ({"stage": "qa", "most_answers": 0}, "most_answers: 0 is not allowed"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_decoded(
    world: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ClipreelError, match=said):
        stage(world, **changes)
    assert stage(world, stage="qa", batch=1).batch == 1


def test_what_is_cut_or_dropped_in_training_is_told(world: Path, tmp_path: Path) -> None:
    name, said = next(world.glob("*.mp4")).name, []
    rows = [
        {"video": name, "question": q, "answer": a, "question_id": a}
        for q, a in (("what " * 500, "one"), ("how many?", "two"))
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = stage(world, stage="qa", train_data=str(tmp_path / "qa.jsonl"), validation_data="", videos=str(world))
    with pytest.raises(ClipreelError, match="0 videos can be read and at least 1 are needed"):
        run_stage(replace(asked, videos=str(tmp_path)), tmp_path / "unread")
    run_stage(asked, tmp_path / "qa", say=said.append)
    assert "1 of 2 questions are cut to the 14 tokens that are read; see tokens" in said
    assert "an epoch has 2 rows and a batch 3, so every step takes the same 2 rows" in said
    with pytest.raises(ClipreelError, match=r"there is no file .*none.json; give answers"):
        run_stage(replace(asked, answers=str(tmp_path / "none.json")), tmp_path / "none")
    prompter = run_stage(stage(world, stage="prompter", validation_data=""), tmp_path / "prompter")
    for least, told in ((0.0, False), (1.0, True)):
        said = []
        sure = stage(world, stage="pretrain", prompter=str(prompter.folder), validation_data="", keep_least=least)
        run_stage(sure, tmp_path / str(least), say=said.append)
        assert any("so entities taught nothing; lower it" in text for text in said) == told
    (tmp_path / "one.jsonl").write_text((world / "train.jsonl").read_text().splitlines()[0])
    alone = stage(world, train_data=str(tmp_path / "one.jsonl"), validation_data="", videos=str(world))
    with pytest.raises(ClipreelError, match="1 videos can be read and at least 2 are needed"):
        run_stage(alone, tmp_path / "alone")


@pytest.mark.parametrize("path", CONFIGS, ids=[p.stem for p in CONFIGS])
def test_the_published_stages_are_readable_and_whole(path: Path) -> None:
    cell = stage_cell(path)
    c, optim = cell.config, cell.config.train.optim
    assert (optim.name, optim.betas, optim.eps, optim.decay) == ("adamw_hf", (0.9, 0.98), 1e-6, 0.0)
    assert c.train.schedule.name == "hero_linear"
    assert cell.source
    pixels = {"prompter": "video", "pretrain": "video", "retrieval": "none", "qa": "operations"}
    assert c.augment == pixels[c.stage]
    assert bool(cell.target) == (c.stage != "prompter")
    with torch.device("meta"):
        size = sum(p.numel() for p in clipreel_size(c).parameters())
    # full size with the head of the stage (specification alpro.md 6; a QA file of LAVIS has no head for words)
    assert abs(size / 1e6 - (234.3 if c.stage == "qa" else 231.5 if c.stage == "retrieval" else size / 1e6)) < 2.5


def clipreel_size(c: StageConfig) -> torch.nn.Module:
    from clipreel.alpro.model import Alpro

    return Alpro(replace(c.sizes, words=c.stage != "qa", answers=c.most_answers if c.stage == "qa" else 0))


def test_there_are_six_published_stages() -> None:
    assert len(CONFIGS) == 6


# ---------------------------------------------------------------------- starting weights


def vit_and_bert() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What timm and the hub would give for the tiny sizes."""
    model = tiny(3)
    names = foreign_names(model.config, "")
    vit = {n: p for n, p in model.video.state_dict().items() if n != "time_embed" and ".temporal_" not in n} | {
        "head.weight": torch.zeros(5, 24),
        "head.bias": torch.zeros(5),
    }
    bert: dict[str, torch.Tensor] = {"bert.pooler.dense.weight": torch.zeros(24, 24)}
    for ours, theirs in names.items():
        if ours.startswith(("text.", "mlm.")):
            parts = model.state_dict()[ours].chunk(len(theirs)) if len(theirs) > 1 else (model.state_dict()[ours],)
            bert |= {old_name(t.removeprefix(TEXT)): p for t, p in zip(theirs, parts, strict=True)}
    return vit, bert


def old_name(name: str) -> str:
    name = name if name.startswith("cls.") else "bert." + name
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def test_a_start_is_the_vit_of_each_frame_and_bert() -> None:
    vit, bert = vit_and_bert()
    made, whole = start(tiny_sizes(), vit, bert), tiny(3)
    for name, tensor in made.state_dict().items():
        if name.startswith(("text.", "mlm.")) or (name.startswith("video.") and name.removeprefix("video.") in vit):
            assert torch.equal(tensor, whole.state_dict()[name]), name
    block = made.video.blocks[0]
    assert torch.equal(block.temporal_attn.qkv.weight, block.attn.qkv.weight)
    assert torch.equal(block.temporal_norm1.weight, block.norm1.weight)
    assert not block.temporal_fc.weight.any()
    assert not made.video.time_embed.any()


def test_a_start_that_does_not_fit_is_told() -> None:
    vit, bert = vit_and_bert()
    with pytest.raises(ClipreelError, match=r"not the ViT that fits here; missing: .*blocks.0.norm1.weight"):
        start(tiny_sizes(), {n: t for n, t in vit.items() if n != "blocks.0.norm1.weight"})
    with pytest.raises(ClipreelError, match="not the BERT that fits here; unexpected: extra"):
        start(tiny_sizes(), None, bert | {"extra": torch.zeros(1)})
    with pytest.raises(ClipreelError, match=r"mis-shaped: cls_token \(1,\), not \(1, 1, 24\)"):
        start(tiny_sizes(), vit | {"cls_token": torch.zeros(1)})


def test_a_new_head_keeps_everything_else() -> None:
    model = tiny()
    grown = with_heads(model, answers=7)
    assert grown.config.answers == 7
    for name, tensor in model.state_dict().items():
        assert torch.equal(grown.state_dict()[name], tensor)


# ---------------------------------------------------------------------- questions


def test_questions_are_read_in_the_published_form(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"question": "what is it", "answer": "dog", "video_id": "video7", "answer_type": "what"}\n')
    found = read_questions(file, tmp_path)
    assert (found[0].video, found[0].kind, found[0].answer) == (tmp_path / "video7.mp4", "what", "dog")
    file.write_text('{"question": "what is it", "answer": " ", "video_id": "video7"}\n')
    with pytest.raises(ClipreelError, match="line 1: answer is ' '"):
        read_questions(file)
    file.write_text("\n")
    with pytest.raises(ClipreelError, match="holds no questions"):
        read_questions(file)


def test_accuracy_counts_missing_and_unknown_answers_as_wrong(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    rows = [("a", "dog", "what"), ("b", "dog", "what"), ("c", "two", "how")]
    keys = ("video_id", "answer", "answer_type")
    file.write_text("".join(json.dumps({"question": "?", **dict(zip(keys, r, strict=True))}) + "\n" for r in rows))
    questions = read_questions(file)
    assert answer_vocabulary(questions, 1) == ("dog",)
    found = accuracies(questions, {"q0": "dog", "q2": "dog"})
    assert found == {"accuracy": pytest.approx(100 / 3), "accuracy what": 50.0, "accuracy how": 0.0}
